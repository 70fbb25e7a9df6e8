"""The adapter announces itself, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

from radixbackend.plugins import Plugins


def test_it_is_listed() -> None:
    (about,) = [about for _, about in Plugins().adapters() if about.framework == "LlamaIndex"]
    assert about.name == "llama-index-llms-radix"
    assert about.provides == ("Radix", "RadixEmbedding")
    assert about.version


def test_announcing_imports_no_llamaindex() -> None:
    code = (
        "import sys; from llama_index.llms.radix.plugin import radix_adapters; radix_adapters();"
        "assert not [name for name in sys.modules if name.startswith(('llama_index.core', 'torch', 'pydantic'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_both_halves_of_the_namespace_are_found() -> None:
    import llama_index.core
    import llama_index.llms.radix

    assert not hasattr(llama_index, "__file__") or llama_index.__file__ is None
    assert len({llama_index.core.__file__, llama_index.llms.radix.__file__}) == 2

"""How the adapter announces itself."""

from __future__ import annotations

import subprocess
import sys

from radixbackend.plugins import Plugins

WITHOUT_LANGCHAIN = """
import sys
from radixbackend.plugins import Plugins
assert any(info.name == "langchain-radix" for _, info in Plugins().adapters()), "not announced"
assert not [name for name in sys.modules if name.startswith(("langchain_core", "torch"))], "imported"
"""


def test_it_announces_itself() -> None:
    (info,) = (info for _, info in Plugins().adapters() if info.name == "langchain-radix")
    assert info.framework == "LangChain"
    assert info.provides == ("ChatRadix", "RadixEmbeddings")


def test_announcing_imports_no_langchain() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_LANGCHAIN], check=True, timeout=60)

"""How this adapter announces itself, for ``radix plugins``. It imports no LlamaIndex."""

from __future__ import annotations

from llama_index.llms.radix import DISTRIBUTION, __version__

from radixbackend import hookimpl
from radixbackend.types import AdapterInfo


@hookimpl
def radix_adapters() -> AdapterInfo:
    return AdapterInfo(DISTRIBUTION, "LlamaIndex", __version__, ("Radix", "RadixEmbedding"))

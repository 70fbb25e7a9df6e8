"""How this adapter announces itself, for ``radix plugins``. It imports no LangChain."""

from __future__ import annotations

from langchain_radix import __all__ as provides
from langchain_radix import __version__
from radixbackend import hookimpl
from radixbackend.types import AdapterInfo


@hookimpl
def radix_adapters() -> AdapterInfo:
    return AdapterInfo("langchain-radix", "LangChain", __version__, tuple(provides))

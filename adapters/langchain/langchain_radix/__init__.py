"""LangChain over an engine in this process: `ChatRadix` and `RadixEmbeddings`.

Each name is imported when it is first used, so that announcing the adapter does not import LangChain.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_radix.chat_models import ChatRadix
    from langchain_radix.embeddings import RadixEmbeddings

__all__ = ["ChatRadix", "RadixEmbeddings"]

__version__ = "0.1.0"

_HOMES = {"ChatRadix": "chat_models", "RadixEmbeddings": "embeddings"}


if not TYPE_CHECKING:  # so that type checkers know the names above and no others

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # from now on without a call
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

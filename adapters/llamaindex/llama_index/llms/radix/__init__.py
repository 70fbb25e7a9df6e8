"""LlamaIndex over an engine in this process: `Radix`, an LLM that cannot return an object that breaks its schema.

The names are imported when they are first used, so that announcing the adapter imports no LlamaIndex.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index.llms.radix.base import Radix

    __version__: str

__all__ = ["Radix", "__version__"]

DISTRIBUTION = "llama-index-llms-radix"


if not TYPE_CHECKING:  # so that type checkers know the names above and no others

    def __getattr__(name: str) -> Any:
        if name == "Radix":
            from llama_index.llms.radix.base import Radix as value
        elif name == "__version__":
            from importlib.metadata import version

            value = version(DISTRIBUTION)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

"""DSPy over radixbackend. The public names, each imported when it is first used.

``import dspy_radix`` imports neither DSPy nor torch, so that `radix plugins` can list the adapter quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_radix.adapter import RadixAdapter
    from dspy_radix.engine import AsyncRadixEngine, RadixEngine
    from dspy_radix.lm import RadixLM
    from dspy_radix.warming import warm

__all__ = ["AsyncRadixEngine", "RadixAdapter", "RadixEngine", "RadixLM", "__version__", "warm"]

_HOMES = {
    "AsyncRadixEngine": "engine",
    "RadixAdapter": "adapter",
    "RadixEngine": "engine",
    "RadixLM": "lm",
    "warm": "warming",
}

__version__ = "0.1.0"


if not TYPE_CHECKING:  # so that type checkers know the names above and no others

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # from now on without a call
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

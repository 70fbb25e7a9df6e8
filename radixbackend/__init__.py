"""Open-weight LLMs inside your process. The public names, each imported when it is first used.

``import radixbackend`` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radixbackend import errors
    from radixbackend.backend import Backend, get_backend
    from radixbackend.config import EngineConfig
    from radixbackend.engine.engine import Engine
    from radixbackend.hookspecs import hookimpl
    from radixbackend.structured import explain_schema
    from radixbackend.types import (
        Constraint,
        EngineStats,
        GenerationRequest,
        GenerationResult,
        SamplingParams,
        TokenEvent,
        Usage,
    )

    __version__: str

__all__ = [
    "Backend",
    "Constraint",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "GenerationRequest",
    "GenerationResult",
    "SamplingParams",
    "TokenEvent",
    "Usage",
    "__version__",
    "errors",
    "explain_schema",
    "get_backend",
    "hookimpl",
]

_HOMES = {
    "Backend": "backend",
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "explain_schema": "structured",
    "get_backend": "backend",
    "hookimpl": "hookspecs",
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # a source tree that is on the path but not installed
        return "0+source"


if not TYPE_CHECKING:  # so that type checkers know the names above and no others

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "__version__":
            value = _version()
        elif name == "errors":
            value = import_module(f"{__name__}.errors")
        else:
            value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)
        globals()[name] = value  # from now on without a call
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""OpenAI's SDK, major version 2 or 3, and the HTTP library that it builds on.

Rules. It is imported here first, so that who lacks it is told which extra brings it. Version 2 builds on httpx, 3 on
httpx2, and either takes a client of the other's: which one is meant, is found out here and nowhere else.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from radixbackend.errors import MissingDependencyError

try:
    import openai
except ImportError as fault:
    raise MissingDependencyError("this needs OpenAI's SDK: pip install 'radixbackend[openai]'") from fault

__all__ = ["httpx", "library_of", "openai"]


def library_of(client: type) -> ModuleType:
    """The HTTP library of a client's class: that of its lowest base."""
    return importlib.import_module(client.__mro__[-2].__module__.partition(".")[0])


httpx: Any = library_of(openai.DefaultHttpxClient)

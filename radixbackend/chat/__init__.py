"""The chat layer: conversations in, messages out. Framework-neutral; every adapter is a thin face of it.

The names that adapters use, each imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radixbackend.chat.face import AsyncDeltas, Chat, Deltas, open_chat
    from radixbackend.chat.message import ContentPart, ImagePart, Message, TextPart, ToolCall
    from radixbackend.chat.request import (
        ChatChoice,
        ChatDelta,
        ChatRequest,
        ChatResult,
        ResponseFormat,
        Tool,
        ToolCallDelta,
        ToolChoice,
    )
    from radixbackend.chat.service import ChatService

__all__ = [
    "AsyncDeltas",
    "Chat",
    "ChatChoice",
    "ChatDelta",
    "ChatRequest",
    "ChatResult",
    "ChatService",
    "ContentPart",
    "Deltas",
    "ImagePart",
    "Message",
    "ResponseFormat",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "open_chat",
]

_HOMES = dict.fromkeys(("AsyncDeltas", "Chat", "Deltas", "open_chat"), "face") | {"ChatService": "service"}


if not TYPE_CHECKING:  # so that type checkers know the names above and no others

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'request')}"), name)
        globals()[name] = value  # from now on without a call
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

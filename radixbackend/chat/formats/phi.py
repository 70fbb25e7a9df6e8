"""Phi-4: a JSON list after the word ``functools``."""

from __future__ import annotations

from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

TRIGGER = "functools["

PHI = LaidOutFormat(
    "phi",
    Layout(
        opens=(TRIGGER,),
        begin='{"name": "',
        middle='", "arguments": ',
        end="}",
        trigger=TRIGGER,
        separator=", ",
        close="]",
    ),
)


def find(model: ModelInfo) -> ToolFormat | None:
    return PHI if TRIGGER in model.chat_template else None

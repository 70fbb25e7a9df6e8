"""Granite 3: a JSON list after ``<|tool_call|>``. (Granite 4 writes as Hermes does.)"""

from __future__ import annotations

from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

TRIGGER = "<|tool_call|>"

GRANITE = LaidOutFormat(
    "granite",
    Layout(
        opens=(f"{TRIGGER}[", f"{TRIGGER} ["),
        begin='{"name": "',
        middle='", "arguments": ',
        end="}",
        trigger=TRIGGER,
        separator=", ",
        close="]",
    ),
)


def find(model: ModelInfo) -> ToolFormat | None:
    granite = model.model_type.startswith("granite") or "<|start_of_role|>" in model.chat_template
    shown: str | frozenset[str] = model.chat_template or model.added_tokens
    return GRANITE if granite and TRIGGER in shown else None

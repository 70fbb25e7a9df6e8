"""Kimi K2: a section of numbered calls, whose names and numbers are their ids."""

from __future__ import annotations

from radixbackend.chat.formats.base import INDEX, Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

OPEN = "<|tool_calls_section_begin|>"
CLOSE = "<|tool_calls_section_end|>"
BEGIN = "<|tool_call_begin|>"
ARGUMENTS = "<|tool_call_argument_begin|>"
END = "<|tool_call_end|>"


class KimiFormat(LaidOutFormat):
    """A layout whose text has ids."""

    def call_id(self, name: str, index: str) -> str | None:
        return f"functions.{name}:{index}"


KIMI = KimiFormat(
    "kimi",
    Layout(
        opens=(OPEN,),
        begin=f"{BEGIN}functions.",
        middle=f":{INDEX}{ARGUMENTS}",
        end=END,
        trigger=OPEN,
        close=CLOSE,
    ),
    hidden=(CLOSE, BEGIN, ARGUMENTS, END),
)


def find(model: ModelInfo) -> ToolFormat | None:
    return KIMI if model.mentions(OPEN) else None

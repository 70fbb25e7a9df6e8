"""Hermes, and with it Qwen 2.5 and 3, Granite 4, SmolLM3 and many others: JSON in ``<tool_call>`` tags."""

from __future__ import annotations

from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

HERMES = LaidOutFormat(
    "hermes",
    Layout(
        begin='<tool_call>\n{"name": "',
        middle='", "arguments": ',
        end="}\n</tool_call>",
        trigger="<tool_call>",
        separator="\n",
    ),
    hidden=("</tool_call>",),
)


def find(model: ModelInfo) -> ToolFormat | None:
    return HERMES if model.mentions("<tool_call>") else None

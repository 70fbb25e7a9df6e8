"""DeepSeek V3 and R1 (arguments in a fenced block) and V3.1 (bare arguments)."""

from __future__ import annotations

# ruff: noqa: RUF001  # the markers have these characters
from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

OPEN = "<｜tool▁calls▁begin｜>"
CLOSE = "<｜tool▁calls▁end｜>"
BEGIN = "<｜tool▁call▁begin｜>"
SEPARATOR = "<｜tool▁sep｜>"
END = "<｜tool▁call▁end｜>"

FENCED = LaidOutFormat(
    "deepseek-v3",
    Layout(
        opens=(OPEN,),
        begin=f"{BEGIN}function{SEPARATOR}",
        middle="\n```json\n",
        end=f"\n```{END}",
        trigger=OPEN,
        separator="\n",
        close=CLOSE,
    ),
    hidden=(CLOSE, BEGIN, SEPARATOR, END),
)

BARE = LaidOutFormat(
    "deepseek-v3.1",
    Layout(opens=(OPEN,), begin=BEGIN, middle=SEPARATOR, end=END, trigger=OPEN, close=CLOSE),
    hidden=(CLOSE, BEGIN, SEPARATOR, END),
)


def find(model: ModelInfo) -> ToolFormat | None:
    if not model.mentions(OPEN):
        return None
    return FENCED if "```json" in model.chat_template else BARE

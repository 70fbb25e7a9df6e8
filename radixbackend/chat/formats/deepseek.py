"""DeepSeek V3 and R1 (arguments in a fenced block), V3.1 (bare arguments), V3.2 and V4 (each argument between tags)."""

from __future__ import annotations

# ruff: noqa: RUF001  # the markers have these characters
from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.chat.formats.parameters import JSON_TYPES
from radixbackend.chat.formats.xml import KIND, XmlFormat
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

DSML = "｜DSML｜"
_KINDS = {each: "true" if each == "string" else "false" for each in JSON_TYPES}


def _dsml(name: str, calls: str, space: str = "") -> XmlFormat:
    """The markup of V3.2, which its successors vary: the section's name, and a space before every name."""
    return XmlFormat(
        name,
        Layout(
            opens=(f"<{DSML}{space}{calls}>\n",),
            begin=f'<{DSML}{space}invoke name="',
            middle='">',
            end=f"\n</{DSML}{space}invoke>",
            trigger=f"<{DSML}{space}{calls}>",
            separator="\n",
            close=f"\n</{DSML}{space}{calls}>",
            lead="\n\n",
        ),
        before=f'\n<{DSML}{space}parameter name="',
        between=f'" string="{KIND}">',
        after=f"</{DSML}{space}parameter>",
        kinds=_KINDS,
        tokens=(DSML,),
    )


TAGGED = _dsml("deepseek-v3.2", "function_calls")
TAGGED_V4 = _dsml("deepseek-v4", "tool_calls")
TAGGED_V4_1 = _dsml("deepseek-v4.1", "calls", " ")


def find(model: ModelInfo) -> ToolFormat | None:
    if model.mentions(DSML):
        return _tagged(model)
    if not model.mentions(OPEN):
        return None
    return FENCED if "```json" in model.chat_template else BARE


def _tagged(model: ModelInfo) -> ToolFormat:
    """By the section's name; the markup before it is often put together by the template."""
    if " calls>" in model.chat_template:
        return TAGGED_V4_1
    return TAGGED_V4 if "tool_calls>" in model.chat_template or model.model_type == "deepseek_v4" else TAGGED

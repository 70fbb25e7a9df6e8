"""Kimi K3: every part of an answer stands between ``<|open|>NAME<|sep|>`` and ``<|close|>NAME<|sep|>``.

An answer is what it thinks, then the response, then a section of numbered calls if there are any; arguments are
tagged with their type. The prompt ends with the opening of the first of these parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from radixbackend.chat.formats.base import INDEX, Layout, Schemas, ToolFormat
from radixbackend.chat.formats.parameters import JSON_TYPES
from radixbackend.chat.formats.xml import KIND, XmlFormat
from radixbackend.chat.nodes import Node, any_text, const, either, optional, sequence, tag
from radixbackend.types import ModelInfo

OPEN, CLOSE, SEP = "<|open|>", "<|close|>", "<|sep|>"
RESPONSE = f"{OPEN}response{SEP}"
RESPONSE_END = f"{CLOSE}response{SEP}"
MESSAGE_END = f"{CLOSE}message{SEP}"


class KimiK3Format(XmlFormat):
    """A layout inside of sections."""

    dropped = (RESPONSE, RESPONSE_END, MESSAGE_END)

    def calls(self, tools: Schemas, *, at_most_one: bool) -> Node:
        silence = either([const(""), const(RESPONSE_END), const(RESPONSE + RESPONSE_END)])
        return sequence(silence, self._section(tools, at_most_one))

    def free(self, tools: Schemas, *, at_most_one: bool, excludes: Sequence[str]) -> Node:
        said = tag("", any_text([OPEN, CLOSE, *excludes]), RESPONSE_END)
        calls = self._section(tools, at_most_one)
        return either(
            [
                self.silent(tools, excludes=excludes),
                sequence(optional(const(RESPONSE)), said, calls),
                self.calls(tools, at_most_one=at_most_one),
            ]
        )

    def silent(self, tools: Schemas, *, excludes: Sequence[str]) -> Node:
        """The end is the model's to write or not."""
        text = any_text([OPEN, CLOSE, *excludes])
        return sequence(optional(const(RESPONSE)), either([text, tag("", text, RESPONSE_END + MESSAGE_END)]))

    def content(self, node: Node) -> Node:
        return sequence(optional(const(RESPONSE)), node, optional(const(RESPONSE_END + MESSAGE_END)))

    def spell_key(self, key: str) -> str:
        return key.replace("&", "&amp;").replace('"', "&quot;")

    def read_key(self, text: str) -> str:
        return text.replace("&quot;", '"').replace("&amp;", "&")

    def _section(self, tools: Schemas, at_most_one: bool) -> Node:
        return sequence(super().calls(tools, at_most_one=at_most_one), optional(const(MESSAGE_END)))


KIMI_K3 = KimiK3Format(
    "kimi-k3",
    Layout(
        opens=(f"{OPEN}tools{SEP}",),
        begin=f'{OPEN}call tool="',
        middle=f'" index="{INDEX}"{SEP}',
        end=f"{CLOSE}call{SEP}",
        trigger=f"{OPEN}tools{SEP}",
        close=f"{CLOSE}tools{SEP}",
        first_index=1,
    ),
    before=f'{OPEN}argument key="',
    between=f'" type="{KIND}"{SEP}',
    after=f"{CLOSE}argument{SEP}",
    kinds={each: "number" if each == "integer" else each for each in JSON_TYPES},
    tokens=(OPEN, CLOSE, SEP),
)


def find(model: ModelInfo) -> ToolFormat | None:
    return KIMI_K3 if all(map(model.mentions, (OPEN, CLOSE, SEP))) else None

"""Formats that a layout describes: strings around a name and its arguments.

Rules. Whatever a family does differently (how arguments are written, when a call begins, what ids look like) is one
method that its own file overrides.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from radixbackend.chat.formats.base import INDEX, AnswerParser, ArgumentReader, JsonReader, Layout, Schemas
from radixbackend.chat.formats.parser import LaidOutParser
from radixbackend.chat.nodes import (
    Node,
    any_text,
    const,
    either,
    json_value,
    optional,
    regex,
    separated,
    sequence,
    tag,
    triggered,
)


class LaidOutFormat:
    """A `ToolFormat` from a `Layout`, with arguments as one JSON object. Others override."""

    parallel = True
    dropped: tuple[str, ...] = ()
    """What stands around content, and belongs to nobody."""

    def __init__(
        self, name: str, layout: Layout, *, hidden: tuple[str, ...] = (), tokens: tuple[str, ...] = ()
    ) -> None:
        """``hidden``: further markers, which free text may not have. ``tokens``: those that markers are made of."""
        self.name = name
        self.layout = layout
        self._hidden = hidden
        self._tokens = tokens

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.layout.trigger, *self._hidden, *self._tokens)

    # -- arguments -----------------------------------------------------------------------------------------------

    def arguments(self, schema: Mapping[str, Any]) -> Node:
        """Grammar of the arguments."""
        return json_value(schema)

    def spell(self, arguments: Mapping[str, Any]) -> str:
        """The arguments as the model writes them."""
        return json.dumps(arguments, ensure_ascii=False)

    def reader(self, schema: Mapping[str, Any]) -> ArgumentReader:
        return JsonReader()

    # -- grammar -------------------------------------------------------------------------------------------------

    def calls(self, tools: Schemas, *, at_most_one: bool) -> Node:
        layout = self.layout
        opening = either([const(text) for text in layout.opens]) if layout.is_section else ""
        lead = optional(const(layout.lead)) if layout.lead else ""
        return sequence(lead, opening, self._some(tools, at_most_one), layout.close)

    def free(self, tools: Schemas, *, at_most_one: bool, excludes: Sequence[str]) -> Node:
        layout = self.layout
        if layout.is_section:
            some = self._some(tools, at_most_one)
            tags = [tag(opening, some, layout.close) for opening in layout.opens]
        else:
            tags = self._tags(tools)
        ends = at_most_one or layout.is_section
        return triggered(self.triggers(tools), tags, excludes=[*self._hidden, *excludes], at_most_one=ends)

    def silent(self, tools: Schemas, *, excludes: Sequence[str]) -> Node:
        return any_text([*self.triggers(tools), *self._hidden, *excludes])

    def content(self, node: Node) -> Node:
        return node

    def triggers(self, tools: Schemas) -> tuple[str, ...]:
        return (self.layout.trigger,)

    def _some(self, tools: Schemas, at_most_one: bool) -> Node:
        return separated(self._tags(tools), self.layout.separator, at_most_one=at_most_one)

    def _tags(self, tools: Schemas) -> list[Node]:
        return [self._tag(name, schema) for name, schema in tools.items()]

    def _tag(self, name: str, schema: Mapping[str, Any]) -> Node:
        first, *rest = f"{self.layout.begin}{name}{self.layout.middle}".split(INDEX)
        width = self.layout.index_width
        index = regex(f"[0-9a-zA-Z]{{{width}}}" if width else "[0-9]+")
        numbered = [part for text in rest for part in (index, text)]
        return tag(first, sequence(*numbered, self.arguments(schema)), self.layout.end)

    # -- text ----------------------------------------------------------------------------------------------------

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        layout = self.layout
        written = [
            f"{layout.begin}{name}{layout.middle}".replace(INDEX, f"{index:0{layout.index_width}}")
            + self.spell(arguments)
            + layout.end
            for index, (name, arguments) in enumerate(calls, layout.first_index)
        ]
        return layout.opens[0] + layout.separator.join(written) + layout.close

    def parser(self, tools: Schemas) -> AnswerParser:
        return LaidOutParser(self, tools)

    def call_id(self, name: str, index: str) -> str | None:
        """The id of a call whose text has this `INDEX`."""
        return None

    def new_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def template_id(self, call_id: str) -> str:
        return call_id

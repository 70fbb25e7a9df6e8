"""Formats that write each argument between tags: GLM 4.5 and later, Qwen3-Coder and Qwen 3.5, Seed-OSS.

A value that is a string is written as it is, without quotes or escapes; any other value is JSON. Where the schema
allows both, what is JSON of an allowed type counts as such.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from radixbackend.chat.formats.base import ArgumentReader, Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.chat.formats.parameters import in_order, properties, required, type_of, types_of, values_of
from radixbackend.chat.formats.parser import overlap
from radixbackend.chat.nodes import Node, any_text, const, either, json_value, regex, tag
from radixbackend.types import ModelInfo


class XmlFormat(LaidOutFormat):
    """A layout whose arguments are ``before KEY between VALUE after``, one after the other."""

    def __init__(self, name: str, layout: Layout, before: str, between: str, after: str) -> None:
        super().__init__(name, layout, hidden=(layout.end.strip().split("\n")[-1],))
        self.before = before
        self.between = between
        self.after = after

    def arguments(self, schema: Mapping[str, Any]) -> Node:
        must = required(schema)
        nodes = [
            (tag(f"{self.before}{key}{self.between}", _value(own), self.after), key in must)
            for key, own in properties(schema).items()
        ]
        return in_order(nodes, "") or const("")

    def spell(self, arguments: Mapping[str, Any]) -> str:
        return "".join(
            f"{self.before}{key}{self.between}{value if isinstance(value, str) else _dump(value)}{self.after}"
            for key, value in arguments.items()
        )

    def reader(self, schema: Mapping[str, Any]) -> ArgumentReader:
        return XmlReader(self, schema)


def _value(schema: Mapping[str, Any]) -> Node:
    if (values := values_of(schema)) is not None:
        return either([const(value if isinstance(value, str) else _dump(value)) for value in values])
    if "string" not in types_of(schema):
        return json_value(schema)
    if isinstance(pattern := schema.get("pattern"), str):
        return regex(pattern.removeprefix("^").removesuffix("$"))
    return any_text()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class XmlReader:
    """Turns tagged arguments into JSON text; strings stream, other values are given out whole."""

    def __init__(self, format: XmlFormat, schema: Mapping[str, Any]) -> None:
        self._before = format.before.lstrip()
        self._between = format.between
        self._after = format.after
        self._types = {key: types_of(own) for key, own in properties(schema).items()}
        self._buffer = ""
        self._key: str | None = None  # whose value is being read
        self._streams = False  # the value is a string for sure
        self._count = 0

    def feed(self, text: str) -> tuple[str, str | None]:
        self._buffer += text
        out = ""
        while True:
            step = self._read_key() if self._key is None else self._read_value()
            if step is None:
                return out, None
            out += step
            if self._key is None and self._ended():
                rest, self._buffer = self._buffer, ""
                return out + ("}" if self._count else "{}"), rest

    def _ended(self) -> bool:
        """Whether what comes is no further argument."""
        text = self._buffer.lstrip()
        return not (text.startswith(self._before) or self._before.startswith(text))

    def _read_key(self) -> str | None:
        text = self._buffer.lstrip()
        if not text.startswith(self._before):
            return "" if self._ended() else None
        key, found, rest = text[len(self._before) :].partition(self._between)
        if not found:
            return None
        self._key, self._buffer = key, rest
        self._streams = self._types.get(key, frozenset(("string",))) == {"string"}
        self._count += 1
        return ("{" if self._count == 1 else ", ") + _dump(key) + ": " + ('"' if self._streams else "")

    def _read_value(self) -> str | None:
        value, found, rest = self._buffer.partition(self._after)
        if self._streams:
            if not found:
                keep = overlap(value, self._after)
                value, self._buffer = value[: len(value) - keep], value[len(value) - keep :]
                return _dump(value)[1:-1] if value else None
            self._key, self._buffer = None, rest
            return _dump(value)[1:-1] + '"'
        if not found:
            return None
        key, self._key, self._buffer = self._key, None, rest
        return _as_json(value, self._types[key or ""])


def _as_json(text: str, types: frozenset[str]) -> str:
    """The text itself if it is JSON of one of these types; else it is a string."""
    try:
        value = json.loads(text)
    except ValueError:
        return _dump(text)
    kind = type_of(value)
    fits = kind in types or (kind == "integer" and "number" in types)
    is_text = "string" in types and (kind == "string" or not fits)
    return _dump(text) if is_text else text.strip()


GLM = XmlFormat(
    "glm",
    Layout(begin="<tool_call>", middle="", end="\n</tool_call>", trigger="<tool_call>", separator="\n"),
    before="\n<arg_key>",
    between="</arg_key>\n<arg_value>",
    after="</arg_value>",
)

GLM_DENSE = XmlFormat(
    "glm-4.7",
    Layout(begin="<tool_call>", middle="", end="</tool_call>", trigger="<tool_call>"),
    before="<arg_key>",
    between="</arg_key><arg_value>",
    after="</arg_value>",
)

QWEN_CODER = XmlFormat(
    "qwen-coder",
    Layout(
        begin="<tool_call>\n<function=",
        middle=">",
        end="\n</function>\n</tool_call>",
        trigger="<tool_call>",
        separator="\n",
    ),
    before="\n<parameter=",
    between=">\n",
    after="\n</parameter>",
)

SEED = XmlFormat(
    "seed",
    Layout(
        begin="<seed:tool_call>\n<function=",
        middle=">",
        end="\n</function>\n</seed:tool_call>",
        trigger="<seed:tool_call>",
        separator="\n",
    ),
    before="\n<parameter=",
    between=">",
    after="</parameter>",
)


def find(model: ModelInfo) -> ToolFormat | None:
    template = model.chat_template
    if "<arg_key>" in template:
        return GLM_DENSE if "</arg_key><arg_value>" in template else GLM
    if model.mentions("<seed:tool_call>"):
        return SEED
    return QWEN_CODER if "<function=" in template and "<parameter=" in template else None

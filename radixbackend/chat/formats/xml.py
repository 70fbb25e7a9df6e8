"""Formats that write each argument between tags: GLM 4.5 and later, Qwen3-Coder and Qwen 3.5, Seed-OSS, MiniMax M2.

A value that is a string is written as it is, without quotes or escapes; any other value is JSON. Where the schema
allows both, what is JSON of an allowed type counts as such; some formats say which of the two it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from radixbackend.chat.formats.base import ArgumentReader, Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.chat.formats.parameters import in_order, of_types, properties, required, type_of, types_of, values_of
from radixbackend.chat.formats.parser import overlap
from radixbackend.chat.nodes import Node, any_text, const, either, json_value, regex, tag
from radixbackend.types import ModelInfo

KIND = "\2"
"""Stands for what says of which type a value is."""


class XmlFormat(LaidOutFormat):
    """A layout whose arguments are ``before KEY between VALUE after``, one after the other.

    Where ``between`` has a `KIND`, ``kinds`` says what it is for a value of each JSON type.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
        before: str,
        between: str,
        after: str,
        *,
        kinds: Mapping[str, str] = MappingProxyType({}),
        tokens: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name, layout, hidden=((layout.close or layout.end).strip().split("\n")[-1],), tokens=tokens)
        self.before = before
        self.between = between
        self.after = after
        self.kinds = kinds

    def arguments(self, schema: Mapping[str, Any]) -> Node:
        must = required(schema)
        nodes = [(self._argument(key, own), key in must) for key, own in properties(schema).items()]
        return in_order(nodes, "") or const("")

    def spell(self, arguments: Mapping[str, Any]) -> str:
        return "".join(
            self._opening(key, self.kinds.get(type_of(value), "")) + _spell(value) + self.after
            for key, value in arguments.items()
        )

    def reader(self, schema: Mapping[str, Any]) -> ArgumentReader:
        return XmlReader(self, schema)

    def spell_key(self, key: str) -> str:
        return key

    def read_key(self, text: str) -> str:
        return text

    def _opening(self, key: str, kind: str) -> str:
        return self.before + self.spell_key(key) + self.between.replace(KIND, kind)

    def _argument(self, key: str, schema: Mapping[str, Any]) -> Node:
        values = self._values(schema) if self.kinds else {"": _value(schema)}
        return either([tag(self._opening(key, kind), value, self.after) for kind, value in values.items()])

    def _values(self, schema: Mapping[str, Any]) -> dict[str, Node]:
        """What may stand after each kind."""
        by_kind: dict[str, list[Any]] = {}
        if (values := values_of(schema)) is not None:
            for value in values:
                by_kind.setdefault(self.kinds[type_of(value)], []).append(const(_spell(value)))
            return {kind: either(options) for kind, options in by_kind.items()}
        for each in sorted(types_of(schema)):
            by_kind.setdefault(self.kinds[each], []).append(each)
        return {
            kind: _text(schema) if types == ["string"] else json_value(of_types(schema, types))
            for kind, types in by_kind.items()
        }


def _value(schema: Mapping[str, Any]) -> Node:
    if (values := values_of(schema)) is not None:
        return either([const(_spell(value)) for value in values])
    return _text(schema) if "string" in types_of(schema) else json_value(schema)


def _text(schema: Mapping[str, Any]) -> Node:
    if isinstance(pattern := schema.get("pattern"), str):
        return regex(pattern.removeprefix("^").removesuffix("$"))
    return any_text()


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class XmlReader:
    """Turns tagged arguments into JSON text; strings stream, other values are given out whole."""

    def __init__(self, format: XmlFormat, schema: Mapping[str, Any]) -> None:
        self._format = format
        self._before = format.before.lstrip()
        self._between, self._typed, self._opened = format.between.partition(KIND)
        self._after = format.after
        self._types = {key: types_of(own) for key, own in properties(schema).items()}
        self._buffer = ""
        self._key: str | None = None  # whose value is being read
        self._fits: frozenset[str] = frozenset()  # the types that the value may have
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
        kind, opened, rest = rest.partition(self._opened) if self._typed else ("", found, rest)
        if not found or not opened:
            return None
        self._key, self._buffer = self._format.read_key(key), rest
        kinds = self._format.kinds.items()
        of_kind = frozenset(each for each, spelled in kinds if spelled == kind)
        self._fits = of_kind or self._types.get(self._key, frozenset(("string",)))
        self._count += 1
        return ("{" if self._count == 1 else ", ") + _dump(self._key) + ": " + ('"' if self._streams else "")

    @property
    def _streams(self) -> bool:
        """Whether the value is a string for sure."""
        return self._fits == {"string"}

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
        self._key, self._buffer = None, rest
        return _as_json(value, self._fits)


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

MINIMAX = XmlFormat(
    "minimax",
    Layout(
        opens=("<minimax:tool_call>\n",),
        begin='<invoke name="',
        middle='">',
        end="\n</invoke>",
        trigger="<minimax:tool_call>",
        separator="\n",
        close="\n</minimax:tool_call>",
        lead="\n",
    ),
    before='\n<parameter name="',
    between='">',
    after="</parameter>",
)


def find(model: ModelInfo) -> ToolFormat | None:
    template = model.chat_template
    if "<arg_key>" in template:
        return GLM_DENSE if "</arg_key><arg_value>" in template else GLM
    for format in (SEED, MINIMAX):
        if model.mentions(format.layout.trigger):
            return format
    return QWEN_CODER if "<function=" in template and "<parameter=" in template else None

"""Formats that write calls as a Python list: Llama 4 (and 3.2, if its template says so), LFM 2 with tokens around it.

Values are Python literals. The grammar gives strings double quotes and writes what is inside lists and objects as
JSON; the parser reads both spellings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from radixbackend.chat.formats.base import ArgumentReader, Layout, Schemas, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.chat.formats.parameters import in_order, properties, required, values_of
from radixbackend.chat.nodes import Node, const, either, json_value, optional, sequence, tag, triggered
from radixbackend.types import ModelInfo

_WORDS = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = {"'": "'", "\n": "", "a": "\\u0007", "v": "\\u000b", "0": "\\u0000"}
_SPACED = {",": ", ", ":": ": "}
_BRACKETS = {"(": "[", ")": "]"}


class PythonicFormat(LaidOutFormat):
    """A layout whose arguments are keywords of a Python call."""

    def triggers(self, tools: Schemas) -> tuple[str, ...]:
        if self.layout.trigger == "[":  # which is common in text: only with a name it is a call
            return tuple(f"[{name}(" for name in tools)
        return super().triggers(tools)

    @property
    def markers(self) -> tuple[str, ...]:
        return () if self.layout.trigger == "[" else super().markers

    def arguments(self, schema: Mapping[str, Any]) -> Node:
        must = required(schema)
        nodes = [(sequence(f"{key}=", _value(own)), key in must) for key, own in properties(schema).items()]
        return sequence(in_order(nodes, ", ") or "", ")")

    def free(self, tools: Schemas, *, at_most_one: bool, excludes: Sequence[str]) -> Node:
        if self.layout.trigger != "[":
            return super().free(tools, at_most_one=at_most_one, excludes=excludes)
        more = "" if at_most_one else optional(sequence(", ", self._some(tools, at_most_one)))
        tags = [
            tag(f"[{name}(", sequence(self.arguments(schema), more), self.layout.close)
            for name, schema in tools.items()
        ]
        return triggered(self.triggers(tools), tags, excludes=excludes, at_most_one=True)

    def spell(self, arguments: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={_spell(value)}" for key, value in arguments.items()) + ")"

    def reader(self, schema: Mapping[str, Any]) -> ArgumentReader:
        return KeywordReader()


def _value(schema: Mapping[str, Any]) -> Node:
    if (values := values_of(schema)) is not None:
        return either([const(_spell(value)) for value in values])
    if schema.get("type") == "boolean":
        return either([const("True"), const("False")])
    if schema.get("type") == "null":
        return const("None")
    if isinstance(branches := schema.get("anyOf"), list) and all(isinstance(b, Mapping) for b in branches):
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        return either([_value({**branch, **shared}) for branch in branches])
    return json_value(schema)


def _spell(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


class KeywordReader:
    """Turns ``a=1, b='x')`` into JSON text, character by character."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._state = self._key
        self._word = ""
        self._quote = ""
        self._depth = 0
        self._count = 0
        self._done = False

    def feed(self, text: str) -> tuple[str, str | None]:
        for at, char in enumerate(text):
            self._state(char)
            if self._done:
                return self._flush(), text[at + 1 :]
        return self._flush(), None

    def _flush(self) -> str:
        out, self._out = "".join(self._out), []
        return out

    def _key(self, char: str) -> None:
        if char == "=":
            self._out.append(("{" if not self._count else ", ") + json.dumps(self._word) + ": ")
            self._count += 1
            self._word = ""
            self._state = self._literal
        elif char == ")":
            self._out.append("}" if self._count else "{}")
            self._done = True
        elif char not in ", \n\t":
            self._word += char

    def _literal(self, char: str) -> None:
        if char.isalpha():
            self._word += char
            return
        if self._word:
            self._out.append(_WORDS.get(self._word, self._word))
            self._word = ""
        if char in "'\"":
            self._quote = char
            self._out.append('"')
            self._state = self._string
        elif char in ",)" and not self._depth:
            self._state = self._key
            self._key(char)
        elif not char.isspace():
            self._depth += (char in "([{") - (char in ")]}")
            self._out.append(_SPACED.get(char) or _BRACKETS.get(char, char))

    def _string(self, char: str) -> None:
        if char == self._quote:
            self._out.append('"')
            self._state = self._literal
        elif char == "\\":
            self._state = self._escape
        else:
            self._out.append(json.dumps(char, ensure_ascii=False)[1:-1])

    def _escape(self, char: str) -> None:
        if char == "x":
            self._out.append("\\u00")
        elif char in '"\\/bfnrtu':
            self._out.append(f"\\{char}")
        else:
            self._out.append(_ESCAPES.get(char, f"\\\\{char}"))
        self._state = self._string


LLAMA = PythonicFormat(
    "llama-pythonic", Layout(opens=("[",), begin="", middle="(", end="", trigger="[", separator=", ", close="]")
)

LFM = PythonicFormat(
    "lfm",
    Layout(
        opens=("<|tool_call_start|>[",),
        begin="",
        middle="(",
        end="",
        trigger="<|tool_call_start|>",
        separator=", ",
        close="]<|tool_call_end|>",
    ),
    hidden=("<|tool_call_end|>",),
)


def find(model: ModelInfo) -> ToolFormat | None:
    if model.mentions("<|tool_call_start|>"):
        return LFM
    if '"parameters": dictionary' in model.chat_template:  # Llama's own templates ask for JSON
        return None
    return LLAMA if "func_name1(" in model.chat_template or model.model_type.startswith("llama4") else None

"""Gemma 4: ``<|tool_call>call:NAME{…}<tool_call|>``, with strings between tokens of their own and bare keys.

Inside the braces is JSON in all but spelling: no white space, keys without quotes and in the alphabet's order, strings
between two ``<|"|>`` without escapes. So a string cannot hold that token, and a key no punctuation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from radixbackend.chat.formats.base import ArgumentReader, Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.chat.formats.parameters import (
    in_order,
    items,
    properties,
    required,
    resolved,
    types_of,
    values_of,
)
from radixbackend.chat.formats.parser import overlap
from radixbackend.chat.nodes import Node, any_text, json_value, regex, sequence, tag
from radixbackend.types import ModelInfo

QUOTE = '<|"|>'
MAX_COUNTED = 64
"""Items of an array whose number the grammar enforces."""

_SCALARS = frozenset(("boolean", "integer", "null", "number"))
_WORDS = {"None": "null", "True": "true", "False": "false"}

_SPELLING = r"""
value ::= object | array | string | number | boolean | null
object ::= "{" (member ("," member)*)? "}"
member ::= [a-zA-Z0-9_] [a-zA-Z0-9_\-]* ":" value
array ::= "[" (value ("," value)*)? "]"
string ::= "<|\"|>" ([^<] | "<"+ [^<|])* "<|\"|>"
number ::= integer ("." [0-9]+)? ([eE] [+\-]? [0-9]+)?
integer ::= "-"? ("0" | [1-9] [0-9]*)
boolean ::= "true" | "false"
null ::= "null"
"""


class GemmaFormat(LaidOutFormat):
    """A layout whose arguments are an object in Gemma's spelling."""

    def arguments(self, schema: Mapping[str, Any]) -> Node:
        must, own = required(schema), properties(schema)
        names = sorted(own, key=_alphabetically)
        nodes = [(sequence(f"{name}:", _value(own[name])), name in must) for name in names]
        return sequence(in_order(nodes, ",") or "", "}")

    def spell(self, arguments: Mapping[str, Any]) -> str:
        return _spell(arguments)[1:]

    def reader(self, schema: Mapping[str, Any]) -> ArgumentReader:
        return GemmaReader()


def _spell(value: Any) -> str:
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spell(value[key])}" for key in sorted(value, key=_alphabetically)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spell, value)) + "]"
    return json.dumps(value)


def _alphabetically(key: str) -> str:
    return key.lower()


def _value(schema: Mapping[str, Any]) -> Node:
    """The value of an argument. Bounds of numbers and patterns of texts are enforced out here, not further in."""
    schema = resolved(schema)
    types = types_of(schema)
    if values_of(schema) is None and types <= _SCALARS:
        return json_value(schema)
    if values_of(schema) is None and types == {"string"}:
        pattern = schema.get("pattern")
        text = regex(pattern.removeprefix("^").removesuffix("$")) if isinstance(pattern, str) else any_text()
        return tag(QUOTE, text, QUOTE)
    return {"type": "grammar", "grammar": _Rules().grammar(schema)}


class _Rules:
    """The rules of one value, those of a schema that is met again once."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}  # by schema

    def grammar(self, schema: Mapping[str, Any]) -> str:
        root = self._rule(schema)
        rules = "\n".join(f"{name} ::= {body}" for name, body in self._bodies.items())
        return f"root ::= {root}\n{rules}{_SPELLING}"

    def _rule(self, schema: Mapping[str, Any]) -> str:
        """The name of the rule of a schema's values."""
        schema = resolved(schema)
        text = json.dumps(schema)
        if text not in self._names:
            self._names[text] = name = f"r{len(self._names)}"
            self._bodies[name] = " | ".join(self._options(schema, name)) or "value"
        return self._names[text]

    def _options(self, schema: Mapping[str, Any], name: str) -> Iterator[str]:
        branches = schema.get("anyOf", schema.get("oneOf"))
        if (values := values_of(schema)) is not None:
            yield from (_quoted(_spell(value)) for value in values)
        elif isinstance(branches, Sequence) and all(isinstance(branch, Mapping) for branch in branches):
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
            yield from (self._rule({**rest, **branch}) for branch in branches)
        else:
            for kind in sorted(types_of(schema)):
                if kind == "object" and properties(schema):
                    yield self._object(schema, name)
                elif kind == "array" and (item := items(schema)) is not None:
                    yield self._array(schema, self._rule(item))
                else:
                    yield kind

    def _object(self, schema: Mapping[str, Any], name: str) -> str:
        """Each member is there or not; the first that is there has no comma before it."""
        must, own = required(schema), properties(schema)
        first, more = '""', '""'
        for index, key in reversed(list(enumerate(sorted(own, key=_alphabetically)))):
            member = f"{_quoted(key + ':')} {self._rule(own[key])}"
            begins, goes_on = f"{name}_{index}", f"{name}_{index}_more"
            self._bodies[begins] = f"{member} {more}" + ("" if key in must else f" | {first}")
            self._bodies[goes_on] = f'"," {member} {more}' + ("" if key in must else f" | {more}")
            first, more = begins, goes_on
        return f'"{{" {first} "}}"'

    def _array(self, schema: Mapping[str, Any], item: str) -> str:
        least, most = min(schema.get("minItems", 0), MAX_COUNTED), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        end = "" if most is None or most > MAX_COUNTED else most - 1
        several = f'{item} ("," {item}){{{max(least - 1, 0)},{end}}}'
        return f'"[" {several} "]"' if least else f'"[" ({several})? "]"'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class GemmaReader:
    """Turns ``a:1,b:<|"|>x<|"|>}`` into JSON text; strings stream."""

    def __init__(self) -> None:
        self._buffer = ""
        self._out = ["{"]
        self._open = ["}"]  # what closes each object and array that is open, and before them the arguments
        self._counts = [0]  # how many members and items each of them has
        self._at_key = True
        self._in_string = False
        self._word = ""  # a key, or a value that is no string

    def feed(self, text: str) -> tuple[str, str | None]:
        self._buffer += text
        while self._open and (self._read_string() if self._in_string else self._read_mark()):
            pass
        out, self._out = "".join(self._out), []
        if self._open:
            return out, None
        rest, self._buffer = self._buffer, ""
        return out, rest

    def _read_string(self) -> bool:
        text, found, rest = self._buffer.partition(QUOTE)
        if not found:
            keep = overlap(text, QUOTE)
            text, rest = text[: len(text) - keep], text[len(text) - keep :]
        self._buffer = rest
        self._in_string = not found
        if self._at_key:
            self._word += text
        else:
            self._out.append(json.dumps(text, ensure_ascii=False)[1:-1] + ('"' if found else ""))
        return bool(found)

    def _read_mark(self) -> bool:
        """The next character, or quote, outside of strings; False until it is there."""
        if QUOTE.startswith(self._buffer) and self._buffer != QUOTE:
            return False
        mark = QUOTE if self._buffer.startswith(QUOTE) else self._buffer[0]
        self._buffer = self._buffer[len(mark) :]
        if mark == QUOTE:
            self._in_string = True
            if not self._at_key:
                self._begin('"')
        elif mark == ":" and self._at_key:
            self._begin(f"{json.dumps(self._word.strip(), ensure_ascii=False)}: ")
            self._word, self._at_key = "", False
        elif mark in "{[" and not self._at_key:
            self._begin(mark)
            self._open.append("}" if mark == "{" else "]")
            self._counts.append(0)
            self._at_key = mark == "{"
        elif mark in ",}]":
            self._end_value(mark)
        else:
            self._word += mark
        return True

    def _begin(self, text: str) -> None:
        """A key, or a value; what is not the first in its object or array comes after a comma."""
        in_array = self._open[-1] == "]"
        if self._at_key or in_array:
            self._out.append(", " if self._counts[-1] else "")
            self._counts[-1] += 1
        self._out.append(text)

    def _end_value(self, mark: str) -> None:
        word, self._word = self._word.strip(), ""
        if word and not self._at_key:
            self._begin(_as_json(_WORDS.get(word, word)))
        if mark != ",":
            self._out.append(self._open.pop())
            self._counts.pop()
        self._at_key = bool(self._open) and self._open[-1] == "}" and mark == ","


def _as_json(word: str) -> str:
    """The word itself if it is JSON; else it is a string without its quotes."""
    try:
        json.loads(word)
    except ValueError:
        return json.dumps(word, ensure_ascii=False)
    return word


GEMMA = GemmaFormat(
    "gemma",
    Layout(
        begin="<|tool_call>call:",
        middle="{",
        end="<tool_call|>",
        trigger="<|tool_call>",
    ),
    hidden=("<tool_call|>",),
    tokens=(QUOTE,),
)


def find(model: ModelInfo) -> ToolFormat | None:
    return GEMMA if model.mentions(GEMMA.layout.trigger) else None

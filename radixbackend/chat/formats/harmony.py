"""Harmony, the format of gpt-oss: every answer is a row of messages in channels.

``analysis`` is reasoning, ``final`` is content, and ``commentary`` is a call if it has a recipient, else content (a
preamble). A call ends with a token that ends the whole answer, so there is one call at most. The prompt ends with
``<|start|>assistant``, and the recipient may stand before or after the channel.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from radixbackend.chat.formats.base import (
    AnswerParser,
    CallArguments,
    CallEnd,
    CallStart,
    JsonReader,
    Piece,
    Reasoning,
    Schemas,
    Text,
    ToolFormat,
)
from radixbackend.chat.formats.parser import overlap
from radixbackend.chat.nodes import Node, any_text, const, either, json_value, sequence, tag
from radixbackend.types import ModelInfo

START = "<|start|>"
CHANNEL = "<|channel|>"
MESSAGE = "<|message|>"
CONSTRAIN = "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
NEXT = f"<|end|>{START}assistant"
FINAL = f"{CHANNEL}final{MESSAGE}"
PREAMBLE = f"{CHANNEL}commentary{MESSAGE}"
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)

_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


class HarmonyFormat:
    """A `ToolFormat`."""

    name = "harmony"
    markers = MARKERS
    parallel = False

    def calls(self, tools: Schemas, *, at_most_one: bool) -> Node:
        return either([self._call(name, schema) for name, schema in tools.items()])

    def free(self, tools: Schemas, *, at_most_one: bool, excludes: Sequence[str]) -> Node:
        call = self.calls(tools, at_most_one=at_most_one)
        said = tag(PREAMBLE, any_text([*MARKERS, *excludes]), NEXT)
        return either([self.silent(tools, excludes=excludes), call, sequence(said, call)])

    def silent(self, tools: Schemas, *, excludes: Sequence[str]) -> Node:
        return self.content(any_text([*MARKERS, *excludes]))

    def content(self, node: Node) -> Node:
        return sequence(FINAL, node)

    def _call(self, name: str, schema: Mapping[str, Any]) -> Node:
        channel_first = [const(_header(name, space)) for space in (" ", "")]
        recipient_first = [
            const(f" to=functions.{name}{CHANNEL}commentary {constrain}json{MESSAGE}") for constrain in (CONSTRAIN, "")
        ]
        return sequence(either([*channel_first, *recipient_first]), json_value(schema))

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        return "".join(f"{_header(name)}{json.dumps(arguments, ensure_ascii=False)}" for name, arguments in calls[:1])

    def parser(self, tools: Schemas) -> AnswerParser:
        return HarmonyParser(tools)

    def new_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def template_id(self, call_id: str) -> str:
        return call_id


def _header(name: str, space: str = " ") -> str:
    return f"{CHANNEL}commentary to=functions.{name}{space}{CONSTRAIN}json{MESSAGE}"


class HarmonyParser:
    """Header, body, header, body."""

    def __init__(self, tools: Schemas) -> None:
        self._tools = tools
        self._buffer = ""
        self._kind: type[Text] | type[Reasoning] | type[CallArguments] | None = None  # of the body; None in a header
        self._reader = JsonReader()

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._read_header(pieces) if self._kind is None else self._read_body(pieces):
            pass
        return pieces

    def finish(self, *, truncated: bool) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self._kind is CallArguments or not rest:
            return []
        if self._kind is not None:
            return [self._kind(rest)]
        is_header = any(marker in rest for marker in MARKERS) or rest.strip() in ("", "assistant")
        return [] if truncated or is_header else [Text(rest)]

    def _read_header(self, pieces: list[Piece]) -> bool:
        header, found, rest = self._buffer.partition(MESSAGE)
        if not found:
            return self._is_bare()
        self._buffer = rest
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient and recipient[1] in self._tools:
            self._kind, self._reader = CallArguments, JsonReader()
            pieces.append(CallStart(recipient[1]))
        else:
            self._kind = Reasoning if channel and channel[1] == "analysis" else Text
        return True

    def _is_bare(self) -> bool:
        """Whether what comes is no header: then it is content, as from a model that does without channels."""
        text = self._buffer.lstrip()
        starts = (START, CHANNEL, "to=", "assistant", *ENDS)
        if any(text.startswith(start) or start.startswith(text) for start in starts):
            return False
        self._kind = Text
        return True

    def _read_body(self, pieces: list[Piece]) -> bool:
        if self._kind is CallArguments:
            return self._read_arguments(pieces)
        assert self._kind is not None
        found = [(at, marker) for marker in (*ENDS, START) if (at := self._buffer.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            body, self._buffer = self._buffer[:at], self._buffer[at + len(marker) :]
        else:
            keep = max(overlap(self._buffer, marker) for marker in (*ENDS, START))
            body, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        if body:
            pieces.append(self._kind(body))
        if found:
            self._kind = None
        return bool(found)

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        read, rest = self._reader.feed(self._buffer)
        if read:
            pieces.append(CallArguments(read))
        self._buffer = rest or ""
        if rest is None:
            return False
        pieces.append(CallEnd())
        self._kind = None
        return True


HARMONY = HarmonyFormat()


def find(model: ModelInfo) -> ToolFormat | None:
    harmony = model.mentions(CHANNEL) and model.mentions(MESSAGE) and model.mentions(CONSTRAIN)
    return HARMONY if harmony or model.model_type == "gpt_oss" else None

"""What a tool-call format is: a grammar for calls, a parser that reads them as they come, and a way to write them.

Rules. The three agree: what `write` writes is what the grammar of `calls` allows and what the parser reads. The
grammar enforces a call from its trigger on, so the parser looks for the same trigger; where the text after it is no
call after all (nothing enforced it), it is text. A parser belongs to one answer; what it gives out depends on the text
alone and not on how the text was cut. Formats know neither tokens nor requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from radixbackend.chat.nodes import Node, const

Schemas = Mapping[str, Mapping[str, Any]]
"""Tool name → JSON schema of its arguments, an object."""

INDEX = "\0"
"""Stands for a number or id in a `Layout`."""


@dataclass(frozen=True, slots=True)
class Text:
    """Content."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; ``id`` where the text has one."""

    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the call's arguments, as JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call's arguments are whole."""


Piece = Text | Reasoning | CallStart | CallArguments | CallEnd


class AnswerParser(Protocol):
    """Reads one answer."""

    def feed(self, text: str) -> list[Piece]:
        """What is certain now and was not before."""

    def finish(self, *, truncated: bool) -> list[Piece]:
        """The rest. Of a truncated answer, the beginning of a call that has no name yet is left out."""


class ToolFormat(Protocol):
    """How a model writes calls, and the rest of an answer around them.

    Attributes:
        name: of the format, for people.
        markers: strings that the parser looks for; tokens of these must be part of the text.
        parallel: whether one answer can have several calls.
    """

    @property
    def name(self) -> str: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def parallel(self) -> bool: ...

    def calls(self, tools: Schemas, *, at_most_one: bool) -> Node:
        """One or more calls, and nothing else."""

    def free(self, tools: Schemas, *, at_most_one: bool, excludes: Sequence[str]) -> Node:
        """Free text without ``excludes``, with any number of calls that are enforced once they begin."""

    def silent(self, tools: Schemas, *, excludes: Sequence[str]) -> Node:
        """Free text without calls."""

    def content(self, node: Node) -> Node:
        """``node`` as the answer's content."""

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """The text of these calls (name, arguments)."""

    def parser(self, tools: Schemas) -> AnswerParser:
        """A parser for one answer; without tools there are no calls to find."""

    def new_id(self) -> str:
        """A fresh id for a call whose text has none."""

    def template_id(self, call_id: str) -> str:
        """The id of an earlier call, from wherever, as this model's chat template accepts it."""


def wraps_content(format: ToolFormat) -> bool:
    """Whether content has something around it, so that the parser is needed without tools, too."""
    bare = const("")
    return format.content(bare) != bare


@dataclass(frozen=True, slots=True)
class Layout:
    """The strings around names and arguments: ``open (begin NAME middle ARGUMENTS end) separator … close``.

    Attributes:
        opens: before the first call; the first is what `ToolFormat.write` writes, all are allowed.
        trigger: what of ``open + begin`` is enough to know that a call has begun.
        index_width: letters and digits of each `INDEX` in ``begin`` or ``middle``; 0 for a number of any length.
        first_index: the first call's number.
        lead: white space that models like to write before the calls; it may begin an answer.
    """

    begin: str
    middle: str
    end: str
    trigger: str
    opens: tuple[str, ...] = ("",)
    separator: str = ""
    close: str = ""
    index_width: int = 0
    first_index: int = 0
    lead: str = ""

    @property
    def is_section(self) -> bool:
        """Whether the calls stand in one section, after which the answer ends."""
        return bool(self.opens[0])


class ArgumentReader(Protocol):
    """Reads the arguments of one call."""

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text that is certain now, and what comes after the arguments; None while they go on."""


class JsonReader:
    """Passes one JSON object on and finds its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> tuple[str, str | None]:
        if not self._depth:
            text = text.lstrip()
            if not text.startswith("{"):
                return "", text or None
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return text[: at + 1], text[at + 1 :]
        return text, None

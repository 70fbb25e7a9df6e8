"""The incremental parser of laid-out calls: text, trigger, head, arguments, tail, text.

Rules. White space between the strings of a layout is read leniently, and so is white space before a call: it belongs
to neither text nor call. Nothing is given out before it is certain, nothing is held back after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radixbackend.chat.formats.base import (
    INDEX,
    ArgumentReader,
    CallArguments,
    CallEnd,
    CallStart,
    Piece,
    Schemas,
    Text,
)

if TYPE_CHECKING:
    from radixbackend.chat.formats.laid_out import LaidOutFormat

NAME = "\1"
"""Stands for a tool's name in a pattern."""

_PARTS = re.compile(rf"(\s+|[{{}}\[\],:]|{NAME}|{INDEX})")
_LOOSE = frozenset("{}[],:")


@dataclass(frozen=True, slots=True)
class Found:
    """A pattern that matched: where it ended, and the name and number in it."""

    end: int
    name: str = ""
    index: str = ""


class NotYetError(Exception):
    """More text is needed to tell whether a pattern matches."""


class Pattern:
    """A layout's strings as something that the beginning of a text matches, does not match, or may come to match."""

    def __init__(self, text: str) -> None:
        self._atoms = [atom for atom in _PARTS.split(text) if atom]

    def match(self, text: str, names: Schemas) -> Found | None:
        """None where it does not and will not match; raises `NotYetError`."""
        at, name, index = 0, "", ""
        try:
            for atom in self._atoms:
                if atom == NAME:
                    name = _known_name(text, at, names)
                    at += len(name)
                elif atom == INDEX:
                    index = _word(text, at)
                    at += len(index)
                elif atom.isspace():
                    at = _skip_space(text, at)
                else:
                    if atom in _LOOSE:
                        at = _skip_space(text, at)
                    at = _literal(text, at, atom)
                    if atom in _LOOSE:
                        at = _skip_space(text, at)
        except ValueError:
            return None
        return Found(at, name, index)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _literal(text: str, at: int, literal: str) -> int:
    if text.startswith(literal, at):
        return at + len(literal)
    if literal.startswith(text[at:]):
        raise NotYetError
    raise ValueError


def _known_name(text: str, at: int, names: Schemas) -> str:
    rest = text[at:]
    if any(name.startswith(rest) for name in names):
        raise NotYetError
    found = max((name for name in names if rest.startswith(name)), key=len, default="")
    if not found:
        raise ValueError
    return found


def _word(text: str, at: int) -> str:
    end = at
    while end < len(text) and text[end].isalnum():
        end += 1
    if end == len(text):
        raise NotYetError
    if end == at:
        raise ValueError
    return text[at:end]


class LaidOutParser:
    """`AnswerParser` for a `LaidOutFormat`."""

    def __init__(self, format: LaidOutFormat, tools: Schemas) -> None:
        layout = format.layout
        head = layout.begin + NAME + layout.middle
        self._format = format
        self._tools = tools
        self._triggers = format.triggers(tools) if tools else ()
        self._heads = [Pattern(opening + head) for opening in layout.opens]
        follows = layout.separator + head if layout.is_section or layout.separator.strip() else None
        self._tails = [Pattern(layout.end + next_) for next_ in (follows, layout.close, "") if next_ is not None]
        self._state = self._in_text
        self._buffer = ""
        self._space = ""  # before what comes next: text keeps it, a call drops it
        self._reader: ArgumentReader | None = None

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._state(pieces):
            pass
        return pieces

    def finish(self, *, truncated: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state == self._in_text and truncated:
            half = max((overlap(self._buffer, marker) for marker in self._format.dropped), default=0)
            self._buffer = self._buffer[: len(self._buffer) - half] if half > 1 else self._buffer
        if self._state == self._in_tail:
            self._state = self._in_text
            self._buffer = "" if truncated else self._after_end(self._buffer)
        elif self._state == self._in_head and truncated:
            self._buffer = ""
        if self._state != self._in_arguments:
            self._give(pieces, self._buffer)
        if self._space and not self._space_ends_calls:
            pieces.append(Text(self._space))
        self._buffer = self._space = ""
        return pieces

    # -- states: each takes what it can from the buffer and says whether to go on ---------------------------------

    def _in_text(self, pieces: list[Piece]) -> bool:
        markers = (*self._triggers, *self._format.dropped)
        found = min(((at, marker) for marker in markers if (at := self._buffer.find(marker)) >= 0), default=None)
        if found is not None:
            at, marker = found
            self._give(pieces, self._buffer[:at])
            if marker in self._triggers:
                self._buffer = self._buffer[at:]
                self._state = self._in_head
            else:
                self._buffer = self._buffer[at + len(marker) :]
            return True
        keep = max((overlap(self._buffer, marker) for marker in markers), default=0)
        certain = len(self._buffer) - keep
        self._give(pieces, self._buffer[:certain])
        self._buffer = self._buffer[certain:]
        return False

    def _in_head(self, pieces: list[Piece]) -> bool:
        return self._take(pieces, self._heads)

    def _in_arguments(self, pieces: list[Piece]) -> bool:
        assert self._reader is not None
        read, rest = self._reader.feed(self._buffer)
        if read:
            pieces.append(CallArguments(read))
        self._buffer = rest or ""
        if rest is None:
            return False
        pieces.append(CallEnd())
        self._state = self._in_tail
        return True

    def _in_tail(self, pieces: list[Piece]) -> bool:
        return self._take(pieces, self._tails)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _take(self, pieces: list[Piece], patterns: Sequence[Pattern]) -> bool:
        """Go on after the first pattern that matches, wait while one may, or go back to text."""
        for pattern in patterns:
            try:
                found = pattern.match(self._buffer, self._tools)
            except NotYetError:
                return False
            if found is not None:
                self._buffer = self._buffer[found.end :]
                if found.name:
                    self._begin(pieces, found)
                else:
                    self._state = self._in_text
                return True
        # Whatever began here is no call: its first character is text, and what follows is looked at anew.
        self._give(pieces, self._buffer[:1])
        self._buffer = self._buffer[1:]
        self._state = self._in_text
        return True

    def _begin(self, pieces: list[Piece], found: Found) -> None:
        self._space = ""
        self._reader = self._format.reader(self._tools[found.name])
        pieces.append(CallStart(found.name, self._format.call_id(found.name, found.index)))
        self._state = self._in_arguments

    def _after_end(self, text: str) -> str:
        try:
            found = self._tails[-1].match(text, self._tools)
        except NotYetError:
            return text
        return text if found is None else text[found.end :]

    @property
    def _space_ends_calls(self) -> bool:
        """White space after the last call is nobody's."""
        return self._reader is not None

    def _give(self, pieces: list[Piece], text: str) -> None:
        if not self._triggers:
            pieces += [Text(text)] if text else []
            return
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            pieces.append(Text(kept))


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that begins ``marker``."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0

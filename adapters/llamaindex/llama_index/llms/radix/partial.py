"""JSON as it comes: the value that is certain so far.

Rules. What is given out only grows: a string gets longer, a list or an object gets more entries, and nothing else ever
changes. So a string is shown as it grows, a number or a name (true, false, null) when it is whole, and of a key that
comes twice the first stays, as in `repaired`. Reading takes time linear in the text; unfinished values share their
finished parts.

The text is what a grammar let through, so it is not judged here: from where it is no JSON on, nothing more is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MISSING: Any = object()
"""No value yet."""

_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WHITE = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def well_formed(text: str) -> str:
    """``text`` with pairs of surrogates as the character they mean, and U+FFFD for those without a partner."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def repaired(text: str) -> str:
    """JSON in which no key comes twice, the first of each stays, and every string is one that UTF-8 can hold.

    JSON may have both, and so may what a grammar lets through; libraries differ in what they make of it.
    """
    twice = False

    def first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        members: dict[str, Any] = {}
        for key, value in pairs:
            members.setdefault(key, value)
        twice |= len(members) < len(pairs)
        return members

    value = json.loads(text, object_pairs_hook=first_of_each)
    if not twice and not _ESCAPED_SURROGATE.search(text):
        return text
    return well_formed(json.dumps(value, ensure_ascii=False))


class GrowingJson:
    """Reads one JSON value, piece by piece."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._string: list[str] | None = None  # the characters of the string being read
        self._escape = ""  # what has come of an escape in it
        self._scalar = ""  # what has come of a number or a name
        self._root: Any = MISSING  # the whole value, when it is finished
        self._changed = False
        self._stopped = False

    @property
    def value(self) -> Any:
        """The value so far, `MISSING` if nothing is certain. It is not touched again."""
        value = self._root
        if self._string is not None and not self._in_key:
            value = _shown(self._string)
        for place in reversed(self._open):
            value = place.with_next(value)
        return value

    def feed(self, text: str) -> Iterator[Any]:
        """The value whenever a member of an object is finished, and at the end of ``text``, if there is more of it."""
        for char in text:
            if self._stopped:
                return
            try:
                finished = self._read(char)
            except ValueError:  # no JSON
                self._stopped = True
                finished = False
            if finished and self._changed:
                self._changed = False
                yield self.value
        if self._changed:
            self._changed = False
            yield self.value

    @property
    def _in_key(self) -> bool:
        return bool(self._open) and self._open[-1].awaits_key

    def _read(self, char: str) -> bool:
        """Take one character; whether it finished a member of an object."""
        if self._string is not None:
            return self._read_string(self._string, char)
        if self._scalar and char not in ",]}" and char not in _WHITE:
            self._scalar += char
            return False
        finished = bool(self._scalar) and self._end_scalar()
        return self._read_structure(char) or finished

    def _read_structure(self, char: str) -> bool:
        if char == '"':
            self._string = []
            self._changed |= not self._in_key
        elif char in "{[":
            self._open.append(_Open({} if char == "{" else []))
            self._changed = True
        elif char in "}]":
            return bool(self._open) and self._finish(self._open.pop().container)
        elif char not in ",:" and char not in _WHITE:
            self._scalar = char
        return False

    def _read_string(self, string: list[str], char: str) -> bool:
        if self._escape:
            self._escape += char
            if self._escape[1] == "u" and len(self._escape) < 6:
                return False
            string.append(chr(int(self._escape[2:], 16)) if self._escape[1] == "u" else _ESCAPES.get(char, char))
            self._escape = ""
        elif char == "\\":
            self._escape = char
            return False
        elif char == '"':
            return self._end_string(well_formed("".join(string)))
        else:
            string.append(char)
        self._changed |= not self._in_key
        return False

    def _end_string(self, text: str) -> bool:
        self._string = None
        if self._in_key:
            self._open[-1].key = text
            return False
        self._changed |= text.endswith("\ufffd")  # it was not shown before, see `_shown`
        return self._finish(text)

    def _end_scalar(self) -> bool:
        value = json.loads(self._scalar)
        self._scalar = ""
        self._changed = True
        return self._finish(value)

    def _finish(self, value: Any) -> bool:
        if self._open:
            return self._open[-1].add(value)
        self._root = value
        self._stopped = True
        return False


class _Open:
    """A list or an object that is being read. It holds finished entries only; an object also the key of the next."""

    def __init__(self, container: dict[str, Any] | list[Any]) -> None:
        self.container = container
        self.key: str | None = None

    @property
    def awaits_key(self) -> bool:
        return isinstance(self.container, dict) and self.key is None

    def add(self, value: Any) -> bool:
        """Take the next entry; whether it is a member of an object."""
        if isinstance(self.container, list):
            self.container.append(value)
            return False
        if self.key is not None:
            self.container.setdefault(self.key, value)
            self.key = None
        return True

    def with_next(self, value: Any) -> dict[str, Any] | list[Any]:
        """A copy, with the entry that is still being read unless that is `MISSING`."""
        if isinstance(self.container, list):
            return self.container.copy() if value is MISSING else [*self.container, value]
        new = value is not MISSING and self.key is not None and self.key not in self.container
        return {**self.container, self.key: value} if new else self.container.copy()  # type: ignore[dict-item]


def _shown(string: list[str]) -> str:
    """What is certain of an unfinished string: the first half of a pair of surrogates waits for the second."""
    text = "".join(string)
    return well_formed(text[:-1] if text and "\ud800" <= text[-1] < "\udc00" else text)

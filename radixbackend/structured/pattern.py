"""Regular expressions of the ECMA-262 dialect (the one JSON Schema names), parsed into a small tree.

Rules. A tree says what the pattern means, not how it was written: classes and escapes become explicit sets of code
points (``\\d`` is ASCII, ``.`` is anything but a line terminator, case matters), groups vanish unless a
back-reference needs them. What no grammar can express (look-around, back-references, word boundaries) is kept in the
tree with its position, so that the caller decides. Parsing is linear in the pattern and bounded in depth.

Must not know: JSON Schema, grammars, which backend supports what. `language` reads these trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

MAX_NESTING = 64
MAX_POSITIONS = 100_000
"""Bound of the repetition product: literal positions once every counted repetition is written out."""

LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]


class PatternError(ValueError):
    """A pattern was refused; ``position`` is the index of the character at fault."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of ``ranges`` or of the Unicode ``properties`` (``"p{L}"``), or out of neither if negated.

    ``ranges`` are inclusive, sorted and apart. ``negated`` is used with properties alone; without them it is
    resolved into ranges.
    """

    ranges: Ranges
    properties: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: Node
    low: int
    high: int | None
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """``^`` or ``$``: start or end of the whole text."""

    at: str


@dataclass(frozen=True, slots=True)
class Group:
    """A capturing group; appears only where the pattern has a back-reference."""

    item: Node
    number: int


@dataclass(frozen=True, slots=True)
class Boundary:
    negated: bool
    position: int


@dataclass(frozen=True, slots=True)
class Look:
    """Look-around; ``opener`` is one of ``?=``, ``?!``, ``?<=``, ``?<!``."""

    item: Node
    opener: str
    position: int


@dataclass(frozen=True, slots=True)
class Back:
    """A back-reference to group ``number``."""

    number: int
    position: int


Node = Chars | Sequence | Either | Repeat | Anchor | Group | Boundary | Look | Back

EMPTY = Sequence(())
NOTHING = Chars(())
ANYTHING = Chars(((0, LAST),))

_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = (
    (9, 13),
    (32, 32),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
_TERMINATORS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_CONTROLS = {"f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_HEX = frozenset("0123456789abcdefABCDEF")


def union(*sets: Ranges) -> Ranges:
    """The code points in any of ``sets``, as sorted ranges that neither touch nor overlap."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in sets for pair in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """Every other code point."""
    gaps, start = [], 0
    for low, high in ranges:
        if low > start:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        gaps.append((start, LAST))
    return tuple(gaps)


_CLASSES: dict[str, Ranges] = {
    "d": _DIGIT,
    "D": complement(_DIGIT),
    "w": _WORD,
    "W": complement(_WORD),
    "s": _SPACE,
    "S": complement(_SPACE),
}
_DOT = Chars(complement(_TERMINATORS))


def literal(text: str) -> Sequence:
    """The tree that matches exactly ``text``."""
    return Sequence(tuple(Chars(((ord(char), ord(char)),)) for char in text))


def parse(source: str) -> Node:
    """The tree of ``source``, or `PatternError` with the position at fault."""
    return _Parser(source).parse()


def first_obstacle(node: Node) -> tuple[str, int] | None:
    """What no grammar can express, and where: the leftmost such node of the tree; None where there is none."""
    found: list[tuple[int, str]] = []
    todo: list[Node] = [node]
    while todo:
        match todo.pop():
            case Sequence(items):
                todo.extend(items)
            case Either(options):
                todo.extend(options)
            case Repeat(item=item) | Group(item=item):
                todo.append(item)
            case Boundary(position=position):
                found.append((position, "a word boundary"))
            case Look(opener=opener, position=position):
                found.append((position, "look-behind" if "<" in opener else "look-ahead"))
            case Back(position=position):
                found.append((position, "a back-reference"))
            case _:
                pass
    return min(((what, position) for position, what in found), key=lambda pair: pair[1], default=None)


class _Parser:
    """Recursive descent over the pattern; one instance per pattern."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0
        self._groups = 0
        self._names: dict[str, int] = {}
        self._named_backs: list[tuple[str, int]] = []
        self._has_backs = _has_back_reference(source)

    def parse(self) -> Node:
        node, _ = self._either()
        if self._at < len(self._source):
            self._fail("unbalanced parenthesis")
        for name, position in self._named_backs:
            if name not in self._names:
                self._fail(f"no group is named {name!r}", position)
        return node

    def _fail(self, message: str, position: int | None = None) -> NoReturn:
        raise PatternError(message, self._at if position is None else position)

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._source):
            self._fail("the pattern ends in the middle of an escape", len(self._source) - 1)
        self._at += 1
        return self._source[self._at - 1]

    # Each of the following returns a node and its size in literal positions.

    def _either(self) -> tuple[Node, int]:
        options, total = [], 0
        while True:
            node, size = self._sequence()
            options.append(node)
            total += size
            if not self._take("|"):
                return (options[0] if len(options) == 1 else Either(tuple(options))), total

    def _sequence(self) -> tuple[Node, int]:
        items: list[Node] = []
        total = 0
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            node, size = self._quantified()
            items.append(node)
            total += size
        return (items[0] if len(items) == 1 else Sequence(tuple(items))), total

    def _quantified(self) -> tuple[Node, int]:
        start = self._at
        node, size = self._atom()
        bounds = self._quantifier()
        if bounds is None:
            return node, size
        if isinstance(node, Anchor | Boundary | Look):
            self._fail("nothing to repeat", start)
        low, high = bounds
        if high is not None and high < low:
            self._fail(f"the repetition {{{low},{high}}} is out of order", start)
        size *= max(low if high is None else high, 1)
        if size > MAX_POSITIONS:
            self._fail(f"repetitions multiply to more than {MAX_POSITIONS:,} positions", start)
        lazy = self._take("?")
        return Repeat(node, low, high, lazy), size

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        return self._counted() if self._peek("{") else None

    def _counted(self) -> tuple[int, int | None] | None:
        """``{2}``, ``{2,}`` or ``{2,3}``; any other brace is a literal, as in browsers."""
        end = self._source.find("}", self._at, self._at + 32)
        low, comma, high = self._source[self._at + 1 : end].partition(",") if end > 0 else ("", "", "")
        if not (low.isascii() and low.isdigit()) or (high and not (high.isascii() and high.isdigit())):
            return None
        self._at = end + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def _atom(self) -> tuple[Node, int]:
        start, char = self._at, self._next()
        if char == "(":
            return self._group(start)
        if char == "[":
            return self._class(start), 1
        if char == "\\":
            return self._escape(start), 1
        if char == ".":
            return _DOT, 1
        if char in "^$":
            return Anchor(char), 0
        if char in "*+?":
            self._fail("nothing to repeat", start)
        return Chars(((ord(char), ord(char)),)), 1

    def _group(self, start: int) -> tuple[Node, int]:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"parentheses nest deeper than {MAX_NESTING}", start)
        opener = next((o for o in ("?:", "?=", "?!", "?<=", "?<!") if self._take(o)), "")
        number = 0
        if not opener:
            number = self._open_capture(start)
        node, size = self._either()
        if not self._take(")"):
            self._fail("this parenthesis is never closed", start)
        self._depth -= 1
        if opener not in ("", "?:"):
            return Look(node, opener, start), size
        return (Group(node, number) if number and self._has_backs else node), size

    def _open_capture(self, start: int) -> int:
        self._groups += 1
        if self._take("?<") or self._take("?P<"):
            end = self._source.find(">", self._at)
            name = self._source[self._at : end] if end > 0 else ""
            if not name.isidentifier():
                self._fail("a group name is a word between < and >", start)
            if name in self._names:
                self._fail(f"two groups are named {name!r}", start)
            self._names[name] = self._groups
            self._at = end + 1
        elif self._peek("?"):
            self._fail("inline flags and other extensions are not part of the dialect", start)
        return self._groups

    def _escape(self, start: int) -> Node:
        char = self._next()
        if char in _CLASSES:
            return Chars(_CLASSES[char])
        if char in "bB":
            return Boundary(char == "B", start)
        if char in "pP":
            return Chars((), (self._property(char, start),))
        if char in "AZz":  # Perl's and Python's spelling of the anchors
            return Anchor("^" if char == "A" else "$")
        if char in "123456789":
            while self._at < len(self._source) and self._source[self._at] in "0123456789":
                char += self._next()
            return Back(int(char), start)
        if char == "k" and self._take("<"):
            end = self._source.find(">", self._at)
            name = self._source[self._at : end] if end > 0 else ""
            self._at = end + 1 if end > 0 else len(self._source)
            self._named_backs.append((name, start))
            return Back(self._names.get(name, 1), start)
        code = self._code_point(char, start)
        return Chars(((code, code),))

    def _property(self, letter: str, start: int) -> str:
        end = self._source.find("}", self._at) if self._peek("{") else -1
        name = self._source[self._at + 1 : end] if end > 0 else ""
        if not name or not name.replace("_", "").replace("=", "").isalnum() or not name.isascii():
            self._fail("a Unicode property is written \\p{Name}", start)
        self._at = end + 1
        return f"{letter}{{{name}}}"

    def _code_point(self, char: str, start: int) -> int:
        """The character an escape stands for; ``char`` is the one after the backslash."""
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "0":
            return 0
        if char == "x":
            return self._hex(2, start)
        if char == "u" and self._peek("{"):
            end = self._source.find("}", self._at)
            digits = self._source[self._at + 1 : end] if end > 0 else ""
            if not digits or len(digits) > 6 or not _HEX.issuperset(digits) or int(digits, 16) > LAST:
                self._fail("a code point is written \\u{10FFFF}", start)
            self._at = end + 1
            return int(digits, 16)
        if char == "u":
            return self._utf16(start)
        if char == "c":
            letter = self._next()
            if not (letter.isascii() and letter.isalpha()):
                self._fail("a control escape is written \\cA", start)
            return ord(letter) & 31
        if char.isascii() and char.isalnum():
            self._fail(f"unknown escape \\{char}", start)
        return ord(char)

    def _utf16(self, start: int) -> int:
        code = self._hex(4, start)
        if 0xD800 <= code < 0xDC00 and self._take("\\u"):
            low = self._hex(4, start)
            if 0xDC00 <= low < 0xE000:
                return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        if 0xD800 <= code < 0xE000:
            self._fail("an unpaired surrogate is no character", start)
        return code

    def _hex(self, count: int, start: int) -> int:
        digits = self._source[self._at : self._at + count]
        if len(digits) < count or not _HEX.issuperset(digits):
            self._fail(f"this escape takes {count} hexadecimal digits", start)
        self._at += count
        return int(digits, 16)

    def _class(self, start: int) -> Node:
        negated = self._take("^")
        parts: list[Ranges] = []
        properties: list[str] = []
        while not self._take("]"):
            low = self._class_atom(start)
            if isinstance(low, str):
                properties.append(low)
                continue
            if self._peek("-") and not self._peek("-]") and isinstance(low, int):
                mark = self._at
                self._at += 1
                high = self._class_atom(start)
                if isinstance(high, int):
                    if high < low:
                        self._fail("a range in a class is out of order", mark - 1)
                    parts.append(((low, high),))
                    continue
                self._at = mark  # the dash is literal before a class such as \w
            parts.append(((low, low),) if isinstance(low, int) else low)
        ranges = union(*parts)
        if properties:
            return Chars(ranges, tuple(properties), negated)
        return Chars(complement(ranges) if negated else ranges)

    def _class_atom(self, start: int) -> int | Ranges | str:
        """A code point, the ranges of a class escape, or the name of a Unicode property."""
        if self._at >= len(self._source):
            self._fail("this class is never closed", start)
        position, char = self._at, self._next()
        if char != "\\":
            return ord(char)
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in "pP":
            return self._property(char, position)
        return 8 if char == "b" else self._code_point(char, position)


def _has_back_reference(source: str) -> bool:
    return any(f"\\{sign}" in source for sign in "123456789k")

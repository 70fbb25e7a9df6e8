"""GBNF-style EBNF, as xgrammar takes it, in llguidance's Lark dialect.

Rules. The conversion is exact: what the two grammars generate is the same set of texts. llguidance splits text with
a longest-match lexer before it parses, so rules cannot be carried over one by one. A grammar without recursion
becomes one regular expression, which needs no lexer. In a recursive one every terminal is a single character out of
classes that do not overlap, so there is nothing to split wrongly. Errors carry the position in the source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NoReturn

from radixbackend.engine.grammar.derivation import Least, Sum, shortest
from radixbackend.engine.grammar.source import MAX_LEAST
from radixbackend.errors import ConstraintError

MAX_PATTERN = 200_000  # characters of a converted grammar
LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]
"""Inclusive ranges of code points, ascending and apart."""


@dataclass(frozen=True)
class Chars:
    """One character of a class."""

    ranges: Ranges


@dataclass(frozen=True)
class Ref:
    """A rule by name."""

    name: str
    position: int


@dataclass(frozen=True)
class Seq:
    """One after another; empty is the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """One of them."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """``low`` to ``high`` times; None is without end."""

    item: Node
    low: int
    high: int | None


Node = Chars | Ref | Seq | Alt | Repeat


def to_lark(source: str) -> str:
    """The same grammar for llguidance; `ConstraintError` where the source is wrong."""
    rules = _Parser(source).rules()
    try:
        for name, length in shortest({name: Least((_sum(node),)) for name, node in rules.items()}).items():
            if length > MAX_LEAST:
                raise ConstraintError(f"rule {name} requires itself, or more than {MAX_LEAST} characters")
        if not _recursive(rules):
            return f"start: /{_checked(_pattern(rules['root'], rules))}/\n"
        return _checked(_rules(rules))
    except RecursionError as fault:
        raise ConstraintError("the grammar nests too deeply; flatten it") from fault


def _checked(text: str) -> str:
    if len(text) > MAX_PATTERN:
        raise ConstraintError(f"the grammar unfolds to more than {MAX_PATTERN} characters; simplify it")
    return text


class _Parser:
    """Recursive descent over the source. White space is free within parentheses, and before and after ``|``."""

    _NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
    _COUNT = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}")
    _BLANK = re.compile(r"(?:[ \t]|#[^\n]*)*")
    _SPACE = re.compile(r"(?:\s|#[^\n]*)*")
    _HEAD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\s*::=")
    _ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
    _LETTERS: ClassVar = {
        "n": "\n",
        "r": "\r",
        "t": "\t",
        "f": "\f",
        "v": "\v",
        "b": "\b",
        "0": "\0",
        "a": "\a",
        "e": "\x1b",
    }

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        refs_ok: list[Ref] = []
        self._refs = refs_ok
        self._skip(self._SPACE)
        while self._at < len(self._source):
            name = self._take(self._NAME) or self._fail("a rule's name is missing")
            self._skip(self._SPACE)
            if not self._literally("::="):
                self._fail(f"'::=' is missing after {name}")
            self._skip(self._SPACE)
            rules[name] = self._alternatives()
            self._skip(self._SPACE)
        for ref in self._refs:
            if ref.name not in rules:
                raise ConstraintError(f"the grammar has no rule {ref.name}", pointer=f"@{ref.position}")
        if "root" not in rules:
            raise ConstraintError("the grammar has no rule root, where the output starts")
        return rules

    def _alternatives(self) -> Node:
        items = [self._sequence()]
        while True:
            mark = self._at
            self._skip(self._SPACE)
            if not self._literally("|"):
                self._at = mark
                return items[0] if len(items) == 1 else Alt(tuple(items))
            self._skip(self._SPACE)
            items.append(self._sequence())

    def _sequence(self) -> Node:
        items: list[Node] = []
        while (item := self._item()) is not None:
            items.append(self._repeated(item))
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def _item(self) -> Node | None:
        mark = self._at
        self._skip(self._SPACE)
        char = self._source[self._at : self._at + 1]
        if char == '"':
            return self._literal()
        if char == "[":
            return self._chars()
        if char == ".":
            self._at += 1
            return Chars(((0, LAST),))
        if char == "(":
            self._at += 1
            self._skip(self._SPACE)
            inner = self._alternatives()
            self._skip(self._SPACE)
            if not self._literally(")"):
                self._fail("')' is missing")
            return inner
        position = self._at
        if self._HEAD.match(self._source, self._at) or not (name := self._take(self._NAME)):
            self._at = mark
            return None
        self._refs.append(Ref(name, position))
        return self._refs[-1]

    def _repeated(self, item: Node) -> Node:
        self._skip(self._BLANK)
        for sign, low, high in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._literally(sign):
                return self._repeated(Repeat(item, low, high))
        if count := self._COUNT.match(self._source, self._at):
            self._at = count.end()
            low = int(count[1])
            top = low if count[2] is None else int(count[3]) if count[3] else None
            if top is not None and top < low:
                self._fail(f"{count[0]} repeats at least more often than at most")
            return self._repeated(Repeat(item, low, top))
        return item

    def _literal(self) -> Node:
        self._at += 1
        items: list[Node] = []
        while not self._literally('"'):
            code = self._char()
            items.append(Chars(((code, code),)))
        return Seq(tuple(items))

    def _chars(self) -> Node:
        self._at += 1
        negated = self._literally("^")
        ranges: list[tuple[int, int]] = []
        while not self._literally("]"):
            low = high = self._char()
            if self._source[self._at : self._at + 1] == "-" and self._source[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._char()
            if high < low:
                self._fail("a range ends before it starts")
            ranges.append((low, high))
        merged = _merge(ranges)
        return Chars(_complement(merged) if negated else merged)

    def _char(self) -> int:
        """One character of a literal or class, escapes resolved."""
        if escape := self._ESCAPE.match(self._source, self._at):
            self._at = escape.end()
            digits = escape[1] or escape[2] or escape[3]
            if digits is None:
                return ord(self._LETTERS.get(escape[4], escape[4]))
            return min(int(digits, 16), LAST)
        if self._at >= len(self._source) or self._source[self._at] == "\n":
            self._fail("a quote or bracket is not closed")
        self._at += 1
        return ord(self._source[self._at - 1])

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if found := pattern.match(self._source, self._at):
            self._at = found.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._source, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _literally(self, text: str) -> bool:
        found = self._source.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _fail(self, message: str) -> NoReturn:
        raise ConstraintError(f"the grammar is wrong: {message}", pointer=f"@{self._at}")


def _merge(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for span in ranges for edge in span), LAST + 1]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple((low + 1, high - 1) for low, high in pairs if low + 1 <= high - 1)


def _sum(node: Node) -> Sum:
    """The node's share in the equations for the shortest text."""
    if isinstance(node, Ref):
        return Sum(0, ((node.name, 1),))
    if isinstance(node, Repeat):
        return Sum(0, ((Least((_sum(node.item),)), node.low),))
    if isinstance(node, Alt):
        return Sum(0, ((Least(tuple(map(_sum, node.items))), 1),))
    return Sum(1, ()) if isinstance(node, Chars) else Sum(0, tuple((Least((_sum(item),)), 1) for item in node.items))


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Repeat):
        return (node.item,)
    return node.items if isinstance(node, Seq | Alt) else ()


def _recursive(rules: dict[str, Node]) -> bool:
    """Whether a rule that the root can reach can reach itself."""
    done: set[str] = set()

    def reaches_itself(node: Node, above: frozenset[str]) -> bool:
        if not isinstance(node, Ref):
            return any(reaches_itself(part, above) for part in _parts(node))
        if node.name in above:
            return True
        if node.name in done:
            return False
        done.add(node.name)
        return reaches_itself(rules[node.name], above | {node.name})

    return reaches_itself(Ref("root", 0), frozenset())


def _class(ranges: Ranges) -> str:
    """A class for the Rust regex syntax; one that matches nothing if empty."""

    def code(point: int) -> str:
        return chr(point) if chr(point).isalnum() and point < 128 else f"\\x{{{point:x}}}"

    # Surrogates are no characters there.
    spans = [
        span
        for low, high in ranges
        for span in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high))
        if span[0] <= span[1]
    ]
    if not spans:
        return r"[^\x{0}-\x{10ffff}]"
    return "[" + "".join(code(a) if a == b else f"{code(a)}-{code(b)}" for a, b in spans) + "]"


def _count(node: Repeat) -> str:
    return f"{{{node.low},{'' if node.high is None else node.high}}}"


def _pattern(node: Node, rules: dict[str, Node]) -> str:
    """A grammar without recursion as one regular expression."""
    if isinstance(node, Chars):
        return _class(node.ranges)
    if isinstance(node, Ref):
        return _checked(_pattern(rules[node.name], rules))
    if isinstance(node, Repeat):
        return f"(?:{_pattern(node.item, rules)}){_count(node)}"
    inner = ("" if isinstance(node, Seq) else "|").join(_pattern(item, rules) for item in node.items)
    return f"(?:{_checked(inner)})"


def _all_chars(node: Node) -> list[Ranges]:
    if isinstance(node, Chars):
        return [node.ranges]
    return [ranges for part in _parts(node) for ranges in _all_chars(part)]


def _rules(rules: dict[str, Node]) -> str:
    """A recursive grammar over terminals of one character each."""
    classes = {ranges for node in rules.values() for ranges in _all_chars(node)}
    edges = sorted({edge for ranges in classes for low, high in ranges for edge in (low, high + 1)})
    atoms: dict[frozenset[Ranges], list[tuple[int, int]]] = {}
    for low, after in pairwise(edges):
        owners = frozenset(ranges for ranges in classes if any(a <= low <= b for a, b in ranges))
        if owners:
            atoms.setdefault(owners, []).append((low, after - 1))
    terminals = {owners: f"C{number}" for number, owners in enumerate(atoms)}
    names = {name: "start" if name == "root" else f"r{number}" for number, name in enumerate(rules)}

    def text(node: Node) -> str:
        if isinstance(node, Chars):
            options = [name for owners, name in terminals.items() if node.ranges in owners]
            return f"({' | '.join(options)})"
        if isinstance(node, Ref):
            return names[node.name]
        if isinstance(node, Repeat):
            return f"({text(node.item)}){_count(node)}"
        if not node.items:
            return '""'
        return f"({(' ' if isinstance(node, Seq) else ' | ').join(text(item) for item in node.items)})"

    lines = [f"{names[name]}: {text(node)}" for name, node in rules.items()]
    lines += [f"{terminals[owners]}: /{_class(tuple(spans))}/" for owners, spans in atoms.items()]
    return "\n".join(lines) + "\n"

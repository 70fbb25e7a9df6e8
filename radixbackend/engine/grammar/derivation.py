"""How long the shortest text of a grammar's rules is: endless rules must not reach a matcher.

Rules. A rule that cannot end (it requires itself), or whose shortest text is enormous, makes a library run without
bound when it is asked for the text that comes next. Shortest lengths are the least fixed point of the grammar's
equations, with sums over sequences and minima over alternatives (Knuth, A Generalization of Dijkstra's Algorithm,
1977); here by relaxation. What the printed form adds to EBNF (lookahead, token and tag constructs) is read as short.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_RULE = re.compile(r"^([A-Za-z_][\w.-]*) ::= ", re.MULTILINE)
_TOKEN = re.compile(
    r'(?P<literal>"(?:\\.|[^"\\])*")|(?P<chars>\[(?:\\.|[^\]\\])*\])|(?P<call>[A-Za-z_][\w.-]*\()|(?P<ahead>\(=)'
    r"|(?P<name>[A-Za-z_][\w.-]*)|\{(?P<low>\d+)[^}]*\}|(?P<sign>[()|*+?])",
    re.DOTALL,
)
_PATTERN = re.compile(
    r"(?P<chars>\\.|\[(?:\\.|[^\]\\])*\])|\{(?P<low>\d+)[^}]*\}|(?P<sign>\()(?:\?(?:[a-z-]*:|P?<\w+>))?|(?P<other>[)|*+?])"
    r"|(?P<char>[^^$])",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sum:
    """``fixed`` characters plus each of ``parts`` so many times."""

    fixed: int
    parts: tuple[tuple[Least | str, int], ...]


@dataclass(frozen=True, slots=True)
class Least:
    """The shortest of these."""

    options: tuple[Sum, ...]


def longer_than(printed: str, limit: int) -> list[str]:
    """Names of the rules of a printed grammar whose shortest text has more than ``limit`` characters, or has no end."""
    starts = list(_RULE.finditer(printed))
    ends = [*(start.start() for start in starts[1:]), len(printed)]
    bodies = {start[1]: _read(printed[start.end() : end]) for start, end in zip(starts, ends, strict=True)}
    return [name for name, least in shortest(bodies).items() if least > limit]


def pattern_length(pattern: str) -> float:
    """Characters of the shortest text that a regular expression matches, as far as its syntax is the common one."""
    tokens = ((str(token.lastgroup), token[str(token.lastgroup)]) for token in _PATTERN.finditer(pattern))
    return _length(_options(tokens), {})


def shortest(bodies: dict[str, Least]) -> dict[str, float]:
    """Characters of the shortest text of each rule; infinite for rules without end."""
    users: dict[str, set[str]] = {name: set() for name in bodies}
    for name, body in bodies.items():
        for used in _names(body):
            users.setdefault(used, set()).add(name)
    length: dict[str, float] = dict.fromkeys(bodies, math.inf)
    waiting, queued = deque(reversed(bodies)), set(bodies)
    while waiting:
        name = waiting.popleft()
        queued.discard(name)
        found = _length(bodies[name], length)
        if found < length[name]:
            length[name] = found
            waiting += users[name] - queued
            queued |= users[name]
    return length


def _read(body: str) -> Least:
    if body.startswith("TagDispatch("):  # free text, which may be empty
        return Least((Sum(0, ()),))
    tokens = ((str(token.lastgroup), token[str(token.lastgroup)]) for token in _TOKEN.finditer(body))
    return _options(tokens)


def _options(tokens: Iterator[tuple[str, str]]) -> Least:
    """Alternatives up to the end or a closing parenthesis."""
    options: list[Sum] = []
    fixed, parts = 0, list[tuple[Least | str, int]]()
    for kind, text in tokens:
        if kind == "literal":
            parts.append((Least((Sum(len(_ESCAPE.sub(".", text)) - 2, ()),)), 1))
        elif kind in ("chars", "char"):
            parts.append((Least((Sum(1, ()),)), 1))
        elif kind == "name":
            parts.append((text, 1))
        elif kind in ("call", "ahead"):
            _options(tokens)  # skipped: a token, or what follows
            fixed += kind == "call"
        elif kind == "low" or text in "*?":
            if parts:
                parts[-1] = (parts[-1][0], parts[-1][1] * (int(text) if kind == "low" else 0))
        elif text == "(":
            parts.append((_options(tokens), 1))
        elif text in "|)":
            options.append(Sum(fixed, tuple(parts)))
            fixed, parts = 0, []
            if text == ")":
                return Least(tuple(options))
    return Least((*options, Sum(fixed, tuple(parts))))


def _names(node: Least) -> Iterator[str]:
    for option in node.options:
        for part, _ in option.parts:
            if isinstance(part, str):
                yield part
            else:
                yield from _names(part)


def _length(node: Least, known: dict[str, float]) -> float:
    def total(option: Sum) -> float:
        lengths = (
            (known.get(part, 0) if isinstance(part, str) else _length(part, known)) * times
            for part, times in option.parts
            if times
        )
        return option.fixed + sum(lengths)

    return min(map(total, node.options))

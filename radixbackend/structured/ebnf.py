"""A first look at GBNF-style EBNF: would a grammar backend know what to do with it?

Rules. `check` finds what can be told from the text alone (unbalanced quotes and brackets, undefined and repeated
rules, a missing root, a root that never ends) and says where, ``"@N"`` being a position in characters. It is linear
and bounded in depth. What it lets pass a backend may still refuse.

Must not know: how a backend writes grammars.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from radixbackend.errors import ConstraintError

MAX_NESTING = 64
MAX_BYTES = 256 * 1024
MAX_REPEAT = 10_000
MAX_PRODUCT = 100_000
"""How often repetitions inside each other, of one rule or several, may repeat anything together."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<rule>[A-Za-z_][A-Za-z0-9_.-]*(?=\s*::=))
    |(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)
    |(?P<define>::=)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<class>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<sign>[|()*+?])""",
    re.VERBOSE,
)
_UNFINISHED = {'"': "this quote is never closed", "[": "this class is never closed", "{": "not a repetition"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What an expression needs to end: one of ``options``, each a tuple of rule names and nested parts."""

    options: tuple[tuple[str | _Part, ...], ...]


Times = dict[str, int]
"""How often an expression repeats each rule it names at most, and under ``""`` its own texts; ``*`` counts once."""


def check(source: str) -> None:
    """Raise `ConstraintError` with the position of the first fault."""
    if len(source.encode(errors="replace")) > MAX_BYTES:
        raise ConstraintError(f"the grammar has more than {MAX_BYTES:,} bytes")
    if "\0" in source:
        _fail("the grammar holds a NUL character", source.index("\0"))
    reader = _Reader(list(_tokens(source)), len(source))
    rules = reader.rules()
    for name, at in reader.references:
        if name not in rules:
            _fail(f"the rule {name!r} is not defined", at)
    if "root" not in rules:
        _fail("there is no rule named root, where the output starts", 0)
    if "root" not in _ending(rules):
        _fail("the rule root never ends", reader.starts["root"])
    for name, times in _products(reader.times).items():
        if times > MAX_PRODUCT:
            _fail(f"the repetitions inside each other repeat more than {MAX_PRODUCT:,} times", reader.starts[name])


def _fail(message: str, at: int) -> NoReturn:
    raise ConstraintError(f"the grammar is wrong at @{at}: {message}", pointer=f"@{at}")


def _tokens(source: str) -> Iterator[_Token]:
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            _fail(_UNFINISHED.get(source[at], f"{source[at]!r} is not expected here"), at)
        if match.lastgroup != "space":
            yield _Token(match.lastgroup or "", match[0], at)
        at = match.end()


class _Reader:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self._tokens = [*tokens, _Token("end", "", end)]
        self._next = 0
        self._depth = 0
        self.references: list[tuple[str, int]] = []
        self.starts: dict[str, int] = {}
        self.times: dict[str, Times] = {}

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def rules(self) -> dict[str, _Part]:
        rules: dict[str, _Part] = {}
        while (name := self._take()).kind != "end":
            if name.kind != "rule":
                _fail("a rule is written name ::= expression", name.at)
            self._take()  # "::=", as the rule's pattern looked ahead
            if name.text in rules:
                _fail(f"the rule {name.text!r} is defined twice", name.at)
            self.starts[name.text] = name.at
            rules[name.text], self.times[name.text] = self._either()
            if self._peek().text == ")":
                _fail("this parenthesis was never opened", self._peek().at)
        return rules

    def _either(self) -> tuple[_Part, Times]:
        times: Times = {}
        options = [self._sequence(times)]
        while self._peek().text == "|":
            self._take()
            options.append(self._sequence(times))
        return _Part(tuple(options)), times

    def _sequence(self, times: Times) -> tuple[str | _Part, ...]:
        needs: list[str | _Part] = []
        while True:
            token = self._peek()
            if token.kind in ("end", "rule") or token.text in ("|", ")"):
                return tuple(needs)
            needed, own = self._element()
            optional, repeated = self._quantifiers(max(own.values(), default=1))
            for name, count in own.items():
                times[name] = max(times.get(name, 1), count * repeated)
            if not optional and needed is not None:
                needs.append(needed)

    def _element(self) -> tuple[str | _Part | None, Times]:
        token = self._take()
        if token.kind == "name":
            self.references.append((token.text, token.at))
            return token.text, {token.text: 1}
        if token.text == "(":
            self._depth += 1
            if self._depth > MAX_NESTING:
                _fail(f"parentheses nest deeper than {MAX_NESTING}", token.at)
            found = self._either()
            if self._take().text != ")":
                _fail("this parenthesis is never closed", token.at)
            self._depth -= 1
            return found
        if token.kind not in ("text", "class"):
            _fail(f"{token.text!r} is not expected here", token.at)
        return None, {"": 1}

    def _quantifiers(self, inner: int) -> tuple[bool, int]:
        """Read those that follow: whether they allow nothing at all, and how often they repeat what is before them.

        ``inner`` is how often that repeats something itself.
        """
        optional, times = False, 1
        while self._peek().kind == "count" or self._peek().text in ("*", "+", "?"):
            token = self._take()
            numbers = [int(number[:9]) for number in re.findall(r"\d+", token.text)]
            if any(number > MAX_REPEAT for number in numbers):
                _fail(f"repeats more than {MAX_REPEAT:,} times", token.at)
            if len(numbers) == 2 and numbers[1] < numbers[0]:
                _fail("the repetition is out of order", token.at)
            times *= max(numbers, default=1) or 1
            if times * inner > MAX_PRODUCT:
                _fail(f"the repetitions inside each other repeat more than {MAX_PRODUCT:,} times", token.at)
            optional = optional or token.text in ("*", "?") or numbers[:1] == [0]
        return optional, times


def _products(times: dict[str, Times]) -> dict[str, int]:
    """How often each rule repeats anything, the rules that it names included; recursion counts once."""
    products: dict[str, int] = {}
    entered: set[str] = set()
    todo = list(times)
    while todo:
        name = todo[-1]
        if name not in entered:
            entered.add(name)
            todo.extend(used for used in times[name] if used and used not in entered)
            continue
        todo.pop()
        if name not in products:
            products[name] = max((n * products.get(used, 1) for used, n in times[name].items()), default=1)
    return products


def _ending(rules: dict[str, _Part]) -> set[str | int]:
    """The rules that some finite text fits, and the ids of the parts: a least fixed point, linear in the grammar."""
    owners: list[str | int] = []  # by option: what ends as soon as that option does
    missing: list[int] = []  # by option: how many of its needs are not known to end
    waiting: defaultdict[str | int, list[int]] = defaultdict(list)
    ready: list[str | int] = []
    todo: list[tuple[str | int, _Part]] = list(rules.items())
    while todo:
        owner, part = todo.pop()
        for option in part.options:
            for need in option:
                waiting[need if isinstance(need, str) else id(need)].append(len(owners))
                if isinstance(need, _Part):
                    todo.append((id(need), need))
            owners.append(owner)
            missing.append(len(option))
            if not option:
                ready.append(owner)
    ending: set[str | int] = set()
    while ready:
        owner = ready.pop()
        if owner in ending:
            continue
        ending.add(owner)
        for index in waiting[owner]:
            missing[index] -= 1
            if not missing[index]:
                ready.append(owners[index])
    return ending

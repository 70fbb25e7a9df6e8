"""Shortest texts of rules: what could keep a library busy forever is found before it gets there."""

from __future__ import annotations

import math

import pytest

from radixbackend.engine.grammar.derivation import Least, Sum, longer_than, pattern_length, shortest

DOUBLING = "root ::= ((r0))\n" + "".join(f"r{n} ::= ((r{n + 1} r{n + 1}))\n" for n in range(9)) + 'r9 ::= (("x"))\n'


@pytest.mark.parametrize(
    ("printed", "limit", "found"),
    [
        ('root ::= (("a" root))\n', 100, ["root"]),
        ('root ::= (("a" root) | ("b"))\n', 100, []),
        ('root ::= ((a) | ("b"))\na ::= (("x" a))\n', 100, ["a"]),
        ('root ::= (("\\"(|" [)\\]"]))\n', 3, ["root"]),
        ('root ::= (("\\"(|" [)\\]"]))\n', 4, []),
        ('root ::= (("a"{10, -1} | "b"{7}))\n', 6, ["root"]),
        ('root ::= (("a"* "b"+ "c"? "d"{0, 9}))\n', 1, []),
        ('root ::= ((a)) (=(root root))\na ::= (("x"))\n', 1, []),
        ('root ::= ((Token(3) free))\nfree ::= TagDispatch(\n  ("<t>", root),\n  excludes=("x")\n) (=(root))\n', 1, []),
        (DOUBLING, 511, ["root", "r0"]),
    ],
)  # fmt: skip
def test_rules_with_long_shortest_texts_are_named(printed: str, limit: int, found: list[str]) -> None:
    assert longer_than(printed, limit) == found


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        ("", 0),
        ("abc", 3),
        (r"a|bc|\d{3}", 1),
        (r"^(?:ab){5}[^x]*\($", 11),
        ("(a{1000}){1000}", 1_000_000),
        ("(a|bb){3,7}c?", 3),
        ("((a{2}){2}|x{9}){2}", 8),
        (r"[a\]]{4}", 4),
    ],
)
def test_patterns_are_measured(pattern: str, length: int) -> None:
    assert pattern_length(pattern) == length


def test_the_fixed_point_is_the_least() -> None:
    two = Least((Sum(1, (("two", 1),)), Sum(5, (("one", 2),))))
    one = Least((Sum(3, ()), Sum(0, (("two", 1),))))
    assert shortest({"two": two, "one": one, "never": Least((Sum(1, (("never", 1),)),))}) == {
        "two": 11,
        "one": 3,
        "never": math.inf,
    }

"""Formats: what a grammar writes for one must pass the check of the same format."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.structured.formats import FORMATS, FormatBook

BOOK = FormatBook()
SLOW_TO_DRAW = {"iri", "iri-reference", "uri-template"}
"""Their classes of Unicode take minutes to draw from; the first two are the URI patterns with wider classes."""
DRAWN = [name for name, known in FORMATS.items() if known.refuses is None and name not in SLOW_TO_DRAW]


@pytest.mark.parametrize("name", DRAWN)
def test_what_a_grammar_generates_is_valid(name: str) -> None:
    known = FORMATS[name]

    @settings(max_examples=40)
    @given(st.from_regex(BOOK.language(name).text, fullmatch=True))
    def check(text: str) -> None:
        if known.max_length is None or len(text) <= known.max_length:
            assert BOOK.accepts(name, text)

    check()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("date-time", "1998-12-31T23:59:60Z"),
        ("date-time", "1998-12-31T15:59:60.123-08:00"),
        ("email", '"joe bloggs"@example.com'),
        ("email", "joe@[127.0.0.1]"),
        ("email", "joe@[IPv6:::1]"),
        ("hostname", "xn--bcher-kva.example"),
        ("uri", "http://[2001:db8::1]/a"),
        ("uri-reference", "//[v1.a]/"),
    ],
)
def test_valid_texts_that_no_grammar_writes_are_accepted(name: str, text: str) -> None:
    assert not BOOK.language(name).has(text)
    assert BOOK.accepts(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("date", "1900-02-29"),
        ("date", "2024-04-31"),
        ("date-time", "1998-12-31T22:59:60Z"),
        ("time", "12:00:60Z"),
        ("duration", "PT"),
        ("duration", "P1Y2D"),
        ("hostname", "a" * 64),
        ("hostname", ".".join(["a" * 60] * 5)),
        ("hostname", "xn--X"),
        ("email", "joe@-a.example"),
        ("ipv4", "1.2.3.04"),
        ("ipv6", "::1%eth0"),
        ("uuid", "123e4567-e89b-12d3-a456-42661417400"),
        ("uri", "http://exa mple.org"),
        ("regex", "(?P<name>x)"),
        ("uri-template", "{a..b}"),
    ],
)
def test_invalid_texts_are_refused(name: str, text: str) -> None:
    assert not BOOK.accepts(name, text)
    assert not BOOK.accepts(name, text + "\n")


def test_an_unknown_format_accepts_everything() -> None:
    assert BOOK.accepts("color", "no colour")

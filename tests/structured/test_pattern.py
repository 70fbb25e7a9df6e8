"""Patterns: what they mean, what is wrong with them and where, and what grammars are given instead."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixbackend.structured.automaton import EVERY_TEXT, build
from radixbackend.structured.language import (
    ANY_TEXT,
    Language,
    SlowMatchError,
    avoiding,
    languages,
    lengths,
    searcher,
    strip_anchors,
    whole,
    words,
)
from radixbackend.structured.pattern import MAX_NESTING, NOTHING, PatternError, first_obstacle, parse

TEXTS = ["".join(letters) for length in range(5) for letters in itertools.product("ab1", repeat=length)]

atoms = st.sampled_from(["a", "b", "1", ".", "[ab]", "[^a]", "\\d", "\\w", "(?:)", "^", "$"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}", "{2}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("(a", 0),
        ("a)", 1),
        ("ab[c", 2),
        ("*a", 0),
        ("a**", 2),
        ("x{3,2}", 0),
        ("[b-a]", 1),
        ("a\\", 1),
        ("\\u12", 0),
        ("\\xg1", 0),
        ("\\cé", 0),
        ("\\p{}", 0),
        ("\\y", 0),
        ("(?i)a", 0),
        ("a\\ud800", 1),
        ("\\k<n>", 0),
        ("(" * 200, MAX_NESTING),
        ("(?:a{1000}){1000}", 0),
    ],
)
def test_a_fault_has_its_position(pattern: str, position: int) -> None:
    with pytest.raises(PatternError) as fault:
        parse(pattern)
    assert fault.value.position == position


@pytest.mark.parametrize(
    ("pattern", "what", "position"),
    [
        ("a(?=b)", "look-ahead", 1),
        ("ab(?!c)", "look-ahead", 2),
        ("(?<=a)b", "look-behind", 0),
        ("(a)\\1", "a back-reference", 3),
        ("(?<n>a)\\k<n>", "a back-reference", 7),
        ("a\\b", "a word boundary", 1),
    ],
)
def test_what_no_grammar_can_express_is_named_with_its_position(pattern: str, what: str, position: int) -> None:
    assert first_obstacle(parse(pattern)) == (what, position)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("^\\d$", ["7"], ["\u09ea", "7\n"]),
        ("^\\w$", ["_"], ["é"]),
        ("^\\s$", ["\ufeff", "\u00a0"], ["_"]),
        ("^.$", ["é", "\U0001f600"], ["\n", "\u2028"]),
        ("^\\cC$", ["\x03"], ["C"]),
        ("^\\u{1F600}\\ud83d\\ude00$", ["\U0001f600\U0001f600"], ["u"]),
        ("^[\\]\\-^a]$", ["]", "-", "^", "a"], ["b"]),
        ("^[^]$", ["\n", "a"], [""]),
        ("[]", [], ["", "a"]),
        ("^\\p{Lu}$", ["É"], ["é"]),
        ("^[^\\p{L}\\d]$", ["-"], ["a", "1"]),
        ("a|^b$", ["xax", "b"], ["bb"]),
        ("(^a|b)c$", ["ac", "xbc"], ["xac"]),
        ("a{,2}", ["a{,2}"], ["aa"]),
    ],
)
def test_semantics_are_those_of_ecma_262(pattern: str, matching: list[str], others: list[str]) -> None:
    found, language = searcher(pattern), Language(whole(parse(pattern)))
    for text in matching:
        assert found(text)
        assert language.has(text)
    for text in others:
        assert not found(text)
        assert not language.has(text)


@given(patterns)
def test_a_whole_match_tree_matches_where_the_pattern_is_found(pattern: str) -> None:
    try:
        language = Language(whole(parse(pattern)))
    except PatternError:
        return  # an anchor in a repetition: refused, not mistaken
    shortest, longest = lengths(language.tree)
    for text in TEXTS[:60]:
        found = re.search(pattern.replace("$", "\\Z"), text) is not None
        assert language.has(text) == found
        assert not found or shortest <= len(text) <= (len(text) if longest is None else longest)


@given(patterns)
def test_rendering_and_parsing_again_changes_nothing(pattern: str) -> None:
    try:
        language = Language(whole(parse(pattern)))
    except PatternError:
        return
    if language.tree != NOTHING:
        assert Language(strip_anchors(parse(language.text))).text == language.text


@given(patterns, patterns)
def test_set_operations_are_those_of_the_languages(first: str, second: str) -> None:
    try:
        left, right = Language(whole(parse(first))), Language(whole(parse(second)))
    except PatternError:
        return
    assert left.automaton is not None
    assert right.automaton is not None
    both, without = left.automaton.and_also(right.automaton), left.automaton.without(right.automaton)
    assert both is not None
    assert without is not None
    for automaton, expected in ((both, lambda a, b: a and b), (without, lambda a, b: a and not b)):
        language = Language.of(automaton)
        if language is None and not automaton.is_empty:
            continue  # its tree would be too large
        for text in TEXTS[:60]:
            assert (language is not None and language.has(text)) == expected(left.has(text), right.has(text))


@given(st.lists(st.text("ab1", max_size=3), max_size=5))
def test_avoiding_matches_everything_else(taken: list[str]) -> None:
    language = Language(avoiding(taken))
    for text in TEXTS:
        assert language.has(text) == (text not in taken)


def test_words_are_listed_in_order_and_only_up_to_the_limit() -> None:
    assert words(parse("(?:b|a)c?"), 4) == ("b", "bc", "a", "ac")
    assert words(parse("(?:b|a)c?"), 3) is None
    assert words(parse("a*"), 100) is None


@pytest.mark.parametrize("pattern", ["a$b", "x[]", "[]|b^", "(?:[]a)+"])
def test_what_is_found_nowhere_is_nothing(pattern: str) -> None:
    assert whole(parse(pattern)) == NOTHING
    assert not searcher(pattern)("ab")


def test_what_is_found_everywhere_is_any_text() -> None:
    assert whole(parse("")) == whole(parse("^.*")) == whole(parse("[a-z]*$")) == ANY_TEXT


def test_look_ahead_at_the_start_becomes_a_language_of_its_own() -> None:
    body, ahead = languages(parse("^(?!dev)[a-z]+$"))
    assert [text for text in ("dev", "devel", "de", "prod") if body.has(text) and ahead.has(text)] == ["de", "prod"]
    with pytest.raises(PatternError):
        languages(parse("a(?!b)"))


def test_a_match_that_backtracks_without_end_is_cut_off() -> None:
    start = time.monotonic()
    with pytest.raises(SlowMatchError):
        searcher("^(?:a|aa)+$")("a" * 5_000 + "!")
    assert time.monotonic() - start < 5


def test_automata_stay_within_their_bounds() -> None:
    start = time.process_time()
    for pattern in ("[ab]*a[ab]{40}", "(?:a{1,60}){1,60}", "|".join("ab" * n for n in range(90)), "\\p{L}"):
        build(strip_anchors(parse(pattern)))
    assert time.process_time() - start < 2
    assert EVERY_TEXT.without(EVERY_TEXT) is not None
    assert EVERY_TEXT.without(EVERY_TEXT).is_empty  # type: ignore[union-attr]

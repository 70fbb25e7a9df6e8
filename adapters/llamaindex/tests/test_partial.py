"""JSON as it comes: whatever the pieces, what is known only grows, and in the end it is what json reads."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.llms.radix.partial import MISSING, GrowingJson, repaired, well_formed

PROFILE = settings.get_profile("llamaindex")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def grows(before: Any, after: Any) -> bool:
    """Whether ``after`` has all of ``before``, and at most more of it."""
    if isinstance(before, dict):
        return isinstance(after, dict) and all(key in after and grows(before[key], after[key]) for key in before)
    if isinstance(before, list):
        return isinstance(after, list) and len(before) <= len(after) and all(map(grows, before, after))
    if isinstance(before, str):
        return isinstance(after, str) and after.startswith(before)
    return bool(before == after) and type(before) is type(after)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@settings(PROFILE, max_examples=300)
@given(values, st.lists(st.integers(0, 10_000), max_size=30), st.booleans(), st.sampled_from((None, 2)))
def test_what_is_known_only_grows(value: Any, cuts: list[int], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    reader = GrowingJson()
    seen = [known for piece in pieces(text, cuts) for known in reader.feed(piece)]
    assert all(grows(a, b) for a, b in itertools.pairwise(seen))
    if isinstance(value, dict | list | str):
        assert reader.value == well_formed_value(value)
        assert seen[-1] == reader.value
    if isinstance(value, dict):
        assert len([k for k, after in enumerate(seen) if k == 0 or after != seen[k - 1]]) >= len(value)


def well_formed_value(value: Any) -> Any:
    return json.loads(well_formed(json.dumps(value, ensure_ascii=False)))


@settings(PROFILE, max_examples=100)
@given(st.dictionaries(st.text(max_size=5), values, min_size=1, max_size=4))
def test_each_field_has_a_value_of_its_own_when_it_is_finished(value: dict[str, Any]) -> None:
    """However the text was cut: all of it at once here."""
    seen = list(GrowingJson().feed(json.dumps(value)))
    for count in range(1, len(value) + 1):
        assert well_formed_value(dict(list(value.items())[:count])) in seen


def test_values_that_were_given_out_are_not_touched_again() -> None:
    reader = GrowingJson()
    seen = [value for char in '{"a": [1, {"b": "xy"}]}' for value in reader.feed(char)]
    assert [seen[0], seen[-1]] == [{}, {"a": [1, {"b": "xy"}]}]
    assert {"a": [1]} in seen


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", MISSING),
        ("12", MISSING),  # there may be more of it
        ("[12", []),
        ("[12,", [12]),
        ('{"ke', {}),
        ('{"key"', {}),
        ('{"key": "a\\', {"key": "a"}),
        ('{"key": "a\\u00e', {"key": "a"}),
        ('{"key": "a\\u00e9', {"key": "aé"}),
        ('{"key": "\\ud83d', {"key": ""}),
        ('{"key": "\\ud83dx', {"key": "\ufffdx"}),
        ('{"key": tru', {}),
        ('{"key": true', {}),
        ('{"key": true}', {"key": True}),
        ('{"a": 1, "a": 2, "b": 3}', {"a": 1, "b": 3}),
        ("{} and more", {}),
        ("I am no JSON", MISSING),
        ('[1, oops, {"a": 1}]', [1]),
    ],
)
def test_what_is_certain(text: str, value: Any) -> None:
    reader = GrowingJson()
    for char in text:
        list(reader.feed(char))
    assert reader.value is value if value is MISSING else reader.value == value


def test_repairs_are_what_growing_gives() -> None:
    text = '{"a": "\\ud800", "a": 2, "b": "\\ud83d\\ude00", "c": {"d": 1, "d": [2]}}'
    reader = GrowingJson()
    list(reader.feed(text))
    assert json.loads(repaired(text)) == reader.value == {"a": "\ufffd", "b": "😀", "c": {"d": 1}}
    fine = '{"a": 1.10, "b": [1e2]}'
    assert repaired(fine) is fine
    with pytest.raises(ValueError, match="Expecting"):
        repaired('{"a":')

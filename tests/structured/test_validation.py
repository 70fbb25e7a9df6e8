"""Finished outputs are judged against the caller's own schema, and failures say what and where."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from radixbackend.errors import OutputValidationError
from radixbackend.structured import FrontDoor
from radixbackend.types import Constraint

ORDER = {
    "type": "object",
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"a/b": {"type": "string", "maxLength": 3}, "n": {"$ref": "#/$defs/count"}},
                "required": ["n"],
                "additionalProperties": False,
            },
            "uniqueItems": True,
        }
    },
    "$defs": {"count": {"type": "integer", "minimum": 1}},
    "required": ["items"],
}


@pytest.fixture(scope="module")
def door() -> FrontDoor:
    return FrontDoor()


def failure(door: FrontDoor, constraint: Constraint, text: str) -> OutputValidationError:
    with pytest.raises(OutputValidationError) as raised:
        door.check(constraint).validate(text)
    assert raised.value.text == text
    return raised.value


@pytest.mark.parametrize(
    ("value", "keyword", "path"),
    [
        ([], "type", ""),
        ({}, "required", ""),
        ({"items": 3}, "type", "/items"),
        ({"items": [{"n": 1}, {"n": 0}]}, "minimum", "/items/1/n"),
        ({"items": [{"n": 1, "a/b": "long"}]}, "maxLength", "/items/0/a~1b"),
        ({"items": [{"a/b": ""}]}, "required", "/items/0"),
        ({"items": [{"n": 1, "x": 1}]}, "additionalProperties", "/items/0"),
        ({"items": [{"n": 1}, {"n": 1}]}, "uniqueItems", "/items"),
    ],
)
def test_failure_has_keyword_and_path(door: FrontDoor, value: Any, keyword: str, path: str) -> None:
    fault = failure(door, Constraint.json_schema(ORDER), json.dumps(value))
    assert (fault.keyword, fault.path) == (keyword, path)
    assert keyword in str(fault)
    assert (path or "the root") in str(fault)


def test_valid_output_passes(door: FrontDoor) -> None:
    door.check(Constraint.json_schema(ORDER)).validate(' {"items": [{"a/b": "日本語", "n": 1},\n{"n": 2}]} ')


@pytest.mark.parametrize("text", ["", "no JSON", '{"items": [', '{"items": []', '{"items": []} x', "{'items': []}"])
def test_text_that_is_no_json(door: FrontDoor, text: str) -> None:
    for constraint in (Constraint.json_schema(ORDER), Constraint.json_schema(True), Constraint.json_object()):
        fault = failure(door, constraint, text)
        assert (fault.keyword, fault.path) == ("json", "")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity"])
def test_numbers_that_json_does_not_have(door: FrontDoor, text: str) -> None:
    assert failure(door, Constraint.json_schema(True), text).keyword == "json"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("time", "23:59:60Z", "24:00:00Z"),
        ("date-time", "2024-01-01T00:00:00+01:00", "2024-01-01 00:00:00"),
        ("duration", "P1DT2H", "P1D2H"),
        ("email", "a.b@example.org", "a..b@example.org"),
        ("idn-email", "ä@bücher.example", "ä"),
        ("hostname", "a-b.example", "-a.example"),
        ("idn-hostname", "bücher.example", "a_b"),
        ("idn-hostname", "xn--bcher-kva.example", "xn--X.example"),
        ("ipv4", "127.0.0.1", "127.0.0.256"),
        ("ipv6", "::ffff:1.2.3.4", "1::2::3"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000"),
        ("uri", "https://example.org/a?b#c", "/a"),
        ("uri-reference", "/a?b", "\\a"),
        ("iri", "https://bücher.example/ä", "ä"),
        ("iri-reference", "ä/b", "\\ä"),
        ("uri-template", "/a{?b,c*}", "/a{b"),
        ("json-pointer", "/a~1b/0", "a"),
        ("relative-json-pointer", "1/a", "-1/a"),
        ("regex", "a(b|c)", "a(b"),
    ],
)
def test_formats_are_checked(door: FrontDoor, name: str, good: str, bad: str) -> None:
    constraint = Constraint.json_schema({"type": "object", "properties": {"x": {"format": name}}})
    door.check(constraint).validate(json.dumps({"x": good}))
    door.check(constraint).validate('{"x": 3}')
    fault = failure(door, constraint, json.dumps({"x": bad}))
    assert (fault.keyword, fault.path) == ("format", "/x")


def test_unknown_format_says_nothing(door: FrontDoor) -> None:
    door.check(Constraint.json_schema({"format": "color"})).validate('"anything"')


def test_patterns_are_those_of_ecma_262(door: FrontDoor) -> None:
    digits = Constraint.json_schema({"pattern": "^\\d+$"})
    door.check(digits).validate('"12"')
    assert failure(door, digits, '"٣"').keyword == "pattern"  # a digit of Unicode, not of ECMA-262
    assert failure(door, digits, '"12\\n"').keyword == "pattern"  # "$" is the end, not before a line feed
    ahead = Constraint.json_schema({"pattern": "^(?=.*[0-9]).{3,}$"})
    door.check(ahead).validate('"ab1"')
    assert failure(door, ahead, '"abc"').keyword == "pattern"


def test_divisors_are_decimal(door: FrontDoor) -> None:
    tenths = Constraint.json_schema({"type": "number", "multipleOf": 0.1})
    for text in ("0.3", "1.1", "-7", "0"):
        door.check(tenths).validate(text)
    assert failure(door, tenths, "0.35").keyword == "multipleOf"


def test_judge_is_the_draft_of_the_schema(door: FrontDoor) -> None:
    """Up to draft 7, keywords beside ``$ref`` do not count; later they do."""
    schema = {"$ref": "#/definitions/x", "maximum": 5, "definitions": {"x": {"type": "integer"}}}
    old = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    door.check(Constraint.json_schema(old)).validate("6")
    assert failure(door, Constraint.json_schema(schema), "6").keyword == "maximum"
    exclusive = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    door.check(Constraint.json_schema(exclusive)).validate("4")
    failure(door, Constraint.json_schema(exclusive), "3")


def test_long_reasons_are_cut(door: FrontDoor) -> None:
    fault = failure(door, Constraint.json_schema({"maxLength": 3}), json.dumps("a" * 100_000))
    assert len(str(fault)) < 500


def test_json_object(door: FrontDoor) -> None:
    door.check(Constraint.json_object()).validate('{"a": {"b": []}}')
    for text in ("[]", "3", '"{}"', "null"):
        assert failure(door, Constraint.json_object(), text).keyword == "type"


def test_regex_matches_the_whole_text(door: FrontDoor) -> None:
    constraint = Constraint.regex(r"a|bc+|\d{2}")
    for text in ("a", "bccc", "12"):
        door.check(constraint).validate(text)
    for text in ("", "ab", "xa", "b", "123", "a\n"):
        fault = failure(door, constraint, text)
        assert (fault.keyword, fault.path) == ("pattern", "")


def test_choice_is_exact(door: FrontDoor) -> None:
    constraint = Constraint.choice(["red", "reddish"])
    door.check(constraint).validate("reddish")
    for text in ("re", "Red", "red ", ""):
        assert failure(door, constraint, text).keyword == "enum"


def test_threads_share_a_validation(door: FrontDoor) -> None:
    checked = door.check(Constraint.json_schema(ORDER))

    def verdict(count: int) -> bool:
        try:
            checked.validate(json.dumps({"items": [{"n": count}]}))
        except OutputValidationError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(verdict, [0, 1] * 100)) == [False, True] * 100

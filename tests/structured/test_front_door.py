"""What the front door answers for each kind of constraint, what it reports, and what it refuses and where."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from radixbackend.errors import ConstraintError, OutputValidationError
from radixbackend.structured import CheckedConstraint, CoverageReport, Finding, FrontDoor, explain_schema, front_door
from radixbackend.structured.formats import FORMATS, FormatBook
from radixbackend.structured.lint import lint_xgrammar
from radixbackend.types import Constraint

CLOSED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
UNIQUE = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}


@pytest.fixture(scope="module")
def door() -> FrontDoor:
    return FrontDoor()


def check(schema: Any, **options: Any) -> CheckedConstraint:
    return FrontDoor().check(Constraint.json_schema(schema, **options))


def fits(checked: CheckedConstraint, text: str) -> bool:
    try:
        checked.validate(text)
    except OutputValidationError:
        return False
    return True


# Answers


def test_schema_that_xgrammar_enforces_goes_there() -> None:
    checked = check(CLOSED)
    assert checked.route == ("xgrammar", "llguidance")
    assert checked.report == CoverageReport("xgrammar", ("xgrammar", "llguidance"))
    assert json.loads(checked.constraint.source) == CLOSED
    assert fits(checked, '{"a": 1}')
    assert not fits(checked, '{"a": 1.5}')


def test_preferred_backend_comes_first(door: FrontDoor) -> None:
    for constraint in (Constraint.json_schema(CLOSED), Constraint.regex("a+"), Constraint.json_object()):
        assert door.check(constraint).route == ("xgrammar", "llguidance")
        assert door.check(constraint, prefer="llguidance").route == ("llguidance", "xgrammar")


def test_options_of_the_constraint_survive(door: FrontDoor) -> None:
    compiled = door.check(Constraint.json_schema({"allOf": [CLOSED]}, whitespace=True)).constraint
    assert (compiled.kind, compiled.whitespace) == ("json_schema", True)
    assert json.loads(compiled.source) == CLOSED


def test_keys_keep_the_order_of_the_schema() -> None:
    names = ["z", "a", "m"]
    compiled = json.loads(check({"type": "object", "properties": {name: {} for name in names}}).constraint.source)
    assert list(compiled["properties"]) == names


@pytest.mark.parametrize(
    ("constraint", "source", "good", "bad"),
    [
        (Constraint.json_object(), "", '{"a": [1]}', "[1]"),
        (Constraint.regex(r"^\d+$"), "[0-9]+", "12", "12a"),
        (Constraint.choice(["a", "b"]), '["a", "b"]', "b", "ab"),
    ],
)
def test_other_kinds(door: FrontDoor, constraint: Constraint, source: str, good: str, bad: str) -> None:
    checked = door.check(constraint)
    assert checked.constraint.source == source
    assert checked.constraint.kind == constraint.kind
    assert checked.report.enforced
    assert fits(checked, good)
    assert not fits(checked, bad)


def test_grammar_is_passed_on_as_it_is(door: FrontDoor) -> None:
    constraint = Constraint.grammar('root ::= "a"{2,3} | other # remark\nother ::= [b-z]+ ("," other)?\n')
    checked = door.check(constraint)
    assert checked.constraint == constraint
    assert checked.route == ("xgrammar", "llguidance")
    assert fits(checked, "anything: the grammar is the promise")


def test_schemas_inside_a_structural_tag_are_rewritten_and_reported(door: FrontDoor) -> None:
    part = {"type": "json_schema", "json_schema": {"allOf": [UNIQUE]}}
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": [{"type": "any_text"}, part]}}
    checked = door.check(Constraint.structural_tag(tag))
    assert checked.route == ("xgrammar",)
    inner = json.loads(checked.constraint.source)["format"]["elements"][1]["json_schema"]
    assert inner["properties"]["a"]["type"] == "array"
    place = "/format/elements/1/json_schema/allOf/0/properties/a/uniqueItems"
    assert place in [finding.pointer for finding in checked.report.findings]


def test_open_objects_inside_a_structural_tag_are_closed_and_that_is_noted(door: FrontDoor) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "object"}, "properties": {"type": "array"}, "additionalProperties": {}},
    }
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    checked = door.check(Constraint.structural_tag(tag))
    inner = json.loads(checked.constraint.source)["format"]["json_schema"]
    assert inner["additionalProperties"] is False
    assert inner["properties"]["a"]["additionalProperties"] == {}
    assert inner["properties"]["additionalProperties"] == {}
    assert any("take no others" in note for note in checked.report.notes)
    assert json.loads(check(schema).constraint.source)["additionalProperties"] == {}


def test_backend_of_a_plugin_is_asked_first(door: FrontDoor) -> None:
    checked = door.check(Constraint.json_schema(CLOSED), prefer="ours")
    assert checked.route[0] == checked.report.backend == "ours"
    assert set(checked.route[1:]) == {"llguidance", "xgrammar"}
    assert "what ours enforces is not known here" in checked.report.notes


def test_fault_inside_a_structural_tag_has_its_whole_pointer(door: FrontDoor) -> None:
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"type": "strnig"}}}
    with pytest.raises(ConstraintError) as refusal:
        door.check(Constraint.structural_tag(tag))
    assert refusal.value.pointer == "/format/json_schema/type"


# Policy


def test_fallback_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked = check(UNIQUE)
    assert [finding.pointer for finding in checked.report.findings] == ["/properties/a/uniqueItems"]
    assert not checked.report.enforced
    assert not fits(checked, '{"a": [1, 1]}')


def test_warn_lists_what_is_left(door: FrontDoor) -> None:
    for _ in range(2):  # a cached answer warns as well
        with pytest.warns(UserWarning, match="/properties/a/uniqueItems"):
            door.check(Constraint.json_schema(UNIQUE, on_unsupported="warn"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        door.check(Constraint.json_schema(CLOSED, on_unsupported="warn"))


def test_error_refuses_the_first_finding(door: FrontDoor) -> None:
    for _ in range(2):
        with pytest.raises(ConstraintError, match="no grammar backend enforces uniqueItems") as refusal:
            door.check(Constraint.json_schema(UNIQUE, on_unsupported="error"))
        assert refusal.value.pointer == "/properties/a/uniqueItems"
    assert door.check(Constraint.json_schema(CLOSED, on_unsupported="error")).report.enforced


# Cache


def test_equal_constraints_share_an_answer(door: FrontDoor) -> None:
    first = door.check(Constraint.json_schema(CLOSED))
    assert door.check(Constraint.json_schema(json.dumps(CLOSED))) is first
    assert door.check(Constraint.json_schema(CLOSED), prefer="llguidance") is not first
    assert FrontDoor().check(Constraint.json_schema(CLOSED)) is not first


def test_refusals_are_cached_and_raised_anew(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Constraint.json_schema({"type": "strnig", "title": "only here"})
    with pytest.raises(ConstraintError) as first:
        door.check(refused)
    monkeypatch.setattr(door, "_judge", lambda *_: pytest.fail("judged again"))
    with pytest.raises(ConstraintError) as second:
        door.check(refused)
    assert second.value is not first.value
    assert (str(second.value), second.value.pointer) == (str(first.value), first.value.pointer)


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixbackend.structured.front_door.MAX_CACHED_BYTES", 10_000)
    door = FrontDoor()
    first = door.check(Constraint.regex("a0"))
    kept = [door.check(Constraint.regex(f"a{index}")) for index in range(1, 20)]
    assert door.check(Constraint.regex("a19")) is kept[-1]
    assert door.check(Constraint.regex("a0")) is not first


def test_threads_share_a_door(door: FrontDoor) -> None:
    schemas = [Constraint.json_schema({"type": "integer", "minimum": index % 10}) for index in range(100)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(door.check, schemas))
    assert [json.loads(answer.constraint.source)["minimum"] for answer in answers] == [i % 10 for i in range(100)]


# Reports


def test_explain_schema_prints_full_coverage() -> None:
    assert str(explain_schema(CLOSED)) == (
        "backend: xgrammar (route: xgrammar → llguidance)\nenforced while generating: all of it"
    )


def test_explain_schema_prints_what_is_left() -> None:
    closed = {**UNIQUE, "additionalProperties": False}
    assert str(explain_schema(json.dumps(closed))).splitlines() == [
        "backend: xgrammar (route: xgrammar → llguidance)",
        "left to validation of the finished output:",
        "  /properties/a/uniqueItems: no grammar remembers earlier items",
    ]


def test_explain_schema_prints_why_not_xgrammar() -> None:
    report = explain_schema({"type": "number", "multipleOf": 0.5})
    assert report.enforced
    assert str(report).splitlines()[0] == "backend: llguidance (route: llguidance)"
    assert str(report).splitlines()[-1] == "note: xgrammar is passed over: multipleOf is dropped"


def test_explain_schema_takes_a_class() -> None:
    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return CLOSED

    assert explain_schema(Model) == explain_schema(CLOSED)


# What xgrammar drops or ignores: the lint sees it in the caller's schema, and the answer enforces or reports it.

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
ARRAY = {"type": "array", "items": {"type": "integer"}}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
HABITS: dict[str, tuple[Any, str, str, str]] = {  # schema, what the lint sees, valid output, invalid output
    "not": ({"type": "string", "not": {"const": "a"}}, "/not", '"b"', '"a"'),
    "if": ({"type": "integer", "if": {"minimum": 5}, "then": {"maximum": 9}}, "/if", "7", "10"),
    "then": ({"type": "integer", "if": {"minimum": 5}, "then": {"maximum": 9}}, "/then", "3", "10"),
    "else": ({"type": "integer", "if": {"minimum": 5}, "else": {"maximum": 2}}, "/else", "2", "3"),
    "dependentRequired": (
        {**OBJECT, "dependentRequired": {"a": ["b"]}}, "/dependentRequired", '{"a": 1, "b": 2}', '{"a": 1}'),
    "dependentSchemas": (
        {**OBJECT, "dependentSchemas": {"a": {"required": ["b"]}}}, "/dependentSchemas", "{}", '{"a": 1}'),
    "dependencies": (
        {"$schema": DRAFT_7, **OBJECT, "dependencies": {"a": ["b"]}}, "/dependencies", "{}", '{"a": 1}'),
    "uniqueItems": ({**ARRAY, "uniqueItems": True}, "/uniqueItems", "[1, 2]", "[1, 1]"),
    "contains": ({**ARRAY, "contains": {"const": 5}}, "/contains", "[1, 5]", "[1]"),
    "minContains": ({**ARRAY, "contains": {"const": 5}, "minContains": 2}, "/minContains", "[5, 5]", "[5]"),
    "maxContains": ({**ARRAY, "contains": {"const": 5}, "maxContains": 1}, "/maxContains", "[5]", "[5, 5]"),
    "multipleOf of a number": ({"type": "number", "multipleOf": 0.5}, "/multipleOf", "1.5", "1.25"),
    "multipleOf beside a bound": (
        {"type": "integer", "multipleOf": 3, "minimum": 2, "maximum": 8}, "/multipleOf", "6", "7"),
    "length beside pattern": ({"type": "string", "minLength": 3, "pattern": "^[a-z]+$"}, "/minLength", '"abc"', '"ab"'),
    "length beside format": (
        {"type": "string", "maxLength": 9, "format": "ipv4"}, "/maxLength", '"127.0.0.1"', '"127.0.0.11"'),
    "look-ahead": ({"type": "string", "pattern": "^(?=.*[0-9])[a-z0-9]+$"}, "/pattern", '"a1"', '"a"'),
    "look-behind": ({"type": "string", "pattern": "^[a-z]+(?<!b)$"}, "/pattern", '"ba"', '"ab"'),
    "back-reference": ({"type": "string", "pattern": "^(a+)b\\1$"}, "/pattern", '"aba"', '"abb"'),
    "word boundary": ({"type": "string", "pattern": "\\bfoo"}, "/pattern", '"a foo"', '"afoo"'),
    "Unicode property": ({"type": "string", "pattern": "^\\p{Lu}$"}, "/pattern", '"É"', '"é"'),
    "unanchored pattern": ({"type": "string", "pattern": "b"}, "/pattern", '"abc"', '"ac"'),
    "pattern beside format": (
        {"type": "string", "format": "date", "pattern": "^2"}, "/pattern", '"2024-01-01"', '"1999-01-01"'),
    "format": ({"type": "string", "format": "date"}, "/format", '"2024-02-29"', '"2023-02-29"'),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 1.5}]}, "/oneOf", "2", "1"),
    "allOf": ({"allOf": [{**OBJECT, "required": ["a"]}, {"maxProperties": 1}]}, "/allOf", '{"a": 1}', '{"a": "x"}'),
    "beside $ref": (
        {"$ref": "#/$defs/x", "maximum": 5, "$defs": {"x": {"type": "integer"}}}, "/maximum", "5", "6"),
    "beside enum": ({"enum": [1, 20], "maximum": 5}, "/maximum", "1", "20"),
    "beside anyOf": (
        {"anyOf": [{"type": "integer"}, {"type": "string"}], "maximum": 5}, "/maximum", '"a"', "6"),
    "without type": ({"minimum": 3}, "/minimum", '"a"', "2"),
    "properties without type": ({"properties": {"a": {"type": "integer"}}}, "/properties", "[]", '{"a": "x"}'),
    "undeclared required": ({"type": "object", "required": ["a"]}, "/required", '{"b": 1, "a": 1}', '{"b": 1}'),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}}},
        "/patternProperties", '{"b": "x"}', '{"ab": "x"}'),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^a"}}, "/propertyNames", '{"a": 1}', '{"b": 1}'),
    "unevaluatedProperties": (
        {"type": "object", "allOf": [OBJECT], "unevaluatedProperties": False},
        "/unevaluatedProperties", '{"a": 1}', '{"b": 1}'),
    "unevaluatedItems": (
        {"type": "array", "prefixItems": [{}], "unevaluatedItems": False}, "/unevaluatedItems", "[1]", "[1, 2]"),
    "tuple items": ({"$schema": DRAFT_7, "type": "array", "items": [{"type": "null"}]}, "/items", "[null, 1]", "[1]"),
    "open tuple": ({"type": "array", "prefixItems": [{"type": "null"}]}, "/prefixItems", "[null, 1]", "[1]"),
    "false property": ({"type": "object", "properties": {"a": False}}, "/properties", '{"b": 1}', '{"a": 1}'),
    "$dynamicRef": (
        {"$dynamicRef": "#x", "$defs": {"y": {"$dynamicAnchor": "x", "type": "integer"}}}, "/$dynamicRef", "1", '"a"'),
    "minLength": ({"type": "string", "minLength": 2}, "/minLength", '"\\n\\n"', '"\\n"'),
    "maxLength": ({"type": "string", "maxLength": 2}, "/maxLength", '"\\"\\n"', '"abc"'),
}  # fmt: skip
LEFT_TO_VALIDATION = {  # no grammar can express these; the pointers are into the caller's schema
    "uniqueItems": "/uniqueItems",
    "contains": "/contains",
    "minContains": "/contains",
    "maxContains": "/contains",
    "look-behind": "/pattern",
    "back-reference": "/pattern",
    "word boundary": "/pattern",
    "oneOf": "/oneOf",
    "unevaluatedProperties": "/unevaluatedProperties",
}


@pytest.mark.parametrize("habit", HABITS)
def test_what_xgrammar_drops_is_enforced_or_reported(habit: str, door: FrontDoor) -> None:
    schema, seen, good, bad = HABITS[habit]
    assert seen in [finding.pointer for finding in lint_xgrammar(schema)]
    checked = door.check(Constraint.json_schema(schema))
    reported = [finding.pointer for finding in checked.report.findings]
    assert reported == ([LEFT_TO_VALIDATION[habit]] if habit in LEFT_TO_VALIDATION else [])
    if checked.route[0] == "xgrammar":
        assert lint_xgrammar(json.loads(checked.constraint.source)) == ()
    assert fits(checked, good)
    assert not fits(checked, bad)


def test_lint_has_nothing_to_say_about_plain_schemas() -> None:
    assert lint_xgrammar({**CLOSED, "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": ["null", "number"]}}}) == ()


@pytest.mark.parametrize(
    ("schema", "pointer", "reason"),
    [
        ({"format": "ipv4", "maxLength": 4}, "/maxLength", "every text of the format is longer"),
        ({"format": "date", "minLength": 11}, "/minLength", "every text of the format is shorter"),
        ({"format": "uuid", "pattern": "^.{3}$"}, "/pattern", "it excludes the keywords beside it"),
        ({"pattern": "^abc$", "maxLength": 2}, "/maxLength", "every text of the pattern is longer"),
        ({"minLength": 3, "maxLength": 2}, "/minLength", "minLength is above maxLength"),
    ],
)
def test_lengths_that_no_text_has_are_refused(schema: Any, pointer: str, reason: str) -> None:
    with pytest.raises(ConstraintError, match=reason) as refusal:
        check({"type": "string", **schema})
    assert refusal.value.pointer == pointer


@pytest.mark.parametrize("text", ["a@b", '""@a', "a:", "a//[::]", "23:59:60Z", "a"])
def test_no_text_that_a_format_admits_is_shorter_than_its_pattern_allows(text: str) -> None:
    """By which lengths are judged before there is a text."""
    book = FormatBook()
    for name in FORMATS:
        if book.accepts(name, text):
            assert book.lengths(name)[0] <= len(text), name


def test_what_the_last_resort_leaves_out_has_its_own_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(schema: Any) -> str | None:
        return "too large" if "pattern" in json.dumps(schema) else None

    monkeypatch.setattr(front_door, "llguidance_refusal", refuses)
    properties = {"a": {"type": "string", "pattern": "^a"}, "b": {"type": "integer", "minimum": 3}}
    constraint = Constraint.json_schema({"type": "object", "properties": properties})
    report = FrontDoor().check(constraint, prefer="llguidance").report
    pointers = [finding.pointer for finding in report.findings if "too large" in finding.reason]
    assert pointers == ["/properties/a/pattern", "/properties/b/minimum"]


def test_grammars_may_repeat_a_lot() -> None:
    """Recursion counts once, and so does an endless repetition."""
    for source in (
        'root ::= ([a-z]{0,100} "x"){0,1000}',
        'root ::= "(" (root | "x"){0,9999} ")"',
        'root ::= term ("+" term){0,999}\nterm ::= "n"{1,99} | "(" root ")"',
        'root ::= (("a"* "b")* "c")+',
    ):
        FrontDoor().check(Constraint.grammar(source))


def test_annotations_and_unknown_formats_are_no_findings() -> None:
    report = explain_schema({"type": "string", "title": "t", "default": 1, "format": "color", "x-note": {"not": {}}})
    assert report.enforced
    assert report.backend == "xgrammar"


def test_findings_compare_and_print() -> None:
    assert Finding("/a", "a", "why") < Finding("/b", "a", "why")
    assert str(Finding("/a", "a", "why")) == "/a: why"


# Refusals

REFUSED_SCHEMAS: dict[str, tuple[Any, str, str]] = {
    "truncated": ('{"type":', "", "not JSON"),
    "no JSON": ("type: string", "", "not JSON"),
    "no schema": ("[1]", "", "JSON object, true or false"),
    "65 levels": ('{"items":' * 65 + "{}" + "}" * 65, "", "nests deeper than 64"),
    "duplicate key": ('{"type": "string", "type": "null"}', "/type", "appears twice at the root"),
    "nested duplicate key": (
        '{"properties": {"a/b": {"minimum": 1, "minimum": 2}}}', "/properties/a~1b/minimum", "appears twice"),
    "misspelt type": ({"type": "strnig"}, "/type", "'strnig'"),
    "negative length": ({"properties": {"a": {"minLength": -1}}}, "/properties/a/minLength", "from 0"),
    "required of text": ({"required": "a"}, "/required", "list of different strings"),
    "list of no schema": ({"anyOf": [{}, 3]}, "/anyOf/1", "a schema is an object"),
    "unknown draft": ({"$schema": "http://json-schema.org/draft-03/schema#"}, "/$schema", "not supported"),
    "missing target": ({"properties": {"a": {"$ref": "#/$defs/x"}}}, "/properties/a/$ref", "points at nothing"),
    "remote target": ({"$ref": "https://example.com/x.json"}, "/$ref", "remote"),
    "target of no schema": ({"$ref": "#/title", "title": "x"}, "/$ref", "points at no"),
    "endless reference": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "/$defs/a/$ref", "without end"),
    "empty enum": ({"enum": []}, "/enum", "nothing can fit"),
    "minimum above maximum": ({"type": "integer", "minimum": 5, "maximum": 3}, "/minimum", "nothing can fit"),
    "no integer between": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "/minimum", "nothing can fit"),
    "minLength above maxLength": ({"type": "string", "minLength": 5, "maxLength": 3}, "/minLength", "nothing can fit"),
    "minItems above maxItems": ({"type": "array", "minItems": 3, "maxItems": 2}, "/minItems", "nothing can fit"),
    "required false": ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "/required", "'a'"),
    "required impossible": (
        {"type": "object", "properties": {"a": {"type": "null", "const": 1}}, "required": ["a"]}, "/required", "'a'"),
    "type against enum": ({"type": "string", "enum": [1, 2]}, "/enum", "contradicts"),
    "false": (False, "", "nothing can fit"),
    "not everything": ({"not": {}}, "/not", "nothing can fit"),
    "invalid pattern": ({"properties": {"a": {"pattern": "a(b"}}}, "/properties/a/pattern", "invalid at @1"),
    "invalid name pattern": ({"patternProperties": {"[": {}}}, "/patternProperties/[", "invalid at @0"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED_SCHEMAS)
def test_schema_refused_with_pointer(fault: str, door: FrontDoor) -> None:
    schema, pointer, message = REFUSED_SCHEMAS[fault]
    with pytest.raises(ConstraintError, match=message) as refusal:
        door.check(Constraint.json_schema(schema))
    assert refusal.value.pointer == pointer


@pytest.mark.parametrize(
    ("pattern", "position", "message"),
    [
        ("a(b", 1, "never closed"),
        ("ab)", 2, "unbalanced"),
        ("[z-a]", 1, "out of order"),
        ("x[ab", 1, "never closed"),
        ("*a", 0, "nothing to repeat"),
        ("ba{3,2}", 1, "out of order"),
        ("ab\\", 2, "escape"),
        ("(?i)a", 0, "inline flags"),
        ("ab(?=c)", 2, "look-ahead"),
        ("ab(?!c)d", 2, "look-ahead"),
        ("ab(?<!c)d", 2, "look-behind"),
        ("(a)\\1", 3, "back-reference"),
        ("ab\\bcd", 2, "word boundary"),
        ("a$b", 0, "nothing can match"),
        ("[^\\s\\S]", 0, "nothing can match"),
    ],
)
def test_regex_refused_with_position(pattern: str, position: int, message: str, door: FrontDoor) -> None:
    with pytest.raises(ConstraintError, match=message) as refusal:
        door.check(Constraint.regex(pattern))
    assert refusal.value.pointer == f"@{position}"


@pytest.mark.parametrize(
    ("source", "position", "message"),
    [
        ("", 0, "no rule named root"),
        ('other ::= "a"', 0, "no rule named root"),
        ("root ::= other", 9, "'other' is not defined"),
        ('root ::= "a', 9, "never closed"),
        ("root ::= [a-z", 9, "never closed"),
        ('root ::= ("a"', 9, "never closed"),
        ('root ::= "a" )', 13, "never opened"),
        ('root ::= "a"\nroot ::= "b"', 13, "defined twice"),
        ('root ::= "a" root', 0, "never ends"),
        ('x ::= "a"\nroot ::= x ("b" | root) root', 10, "never ends"),
        ('root ::= "a"{3,2}', 12, "out of order"),
        ('root = "a"', 5, "not expected"),
        ('"a" root ::= "a"', 0, "name ::= expression"),
    ],
)
def test_grammar_refused_with_position(source: str, position: int, message: str, door: FrontDoor) -> None:
    with pytest.raises(ConstraintError, match=message) as refusal:
        door.check(Constraint.grammar(source))
    assert refusal.value.pointer == f"@{position}"


def test_grammar_that_ends_by_one_way_is_taken(door: FrontDoor) -> None:
    """Recursion is fine as long as there is a way out, be it through optional, nested or later parts."""
    for source in (
        'root ::= "a" root?',
        'root ::= "(" root ")" | ',
        'root ::= a a\na ::= b ("x" | a)\nb ::= (a b | "y")',
        'root ::= x*\nx ::= x "a"',
    ):
        assert door.check(Constraint.grammar(source)).route


@pytest.mark.parametrize(("source", "pointer"), [("[]", ""), ('["a", 3]', "/1"), ('["", "a"]', "/0"), ("{}", "")])
def test_choices_refused(source: str, pointer: str, door: FrontDoor) -> None:
    with pytest.raises(ConstraintError) as refusal:
        door.check(Constraint("choice", source))
    assert refusal.value.pointer == pointer


def test_brackets_in_texts_are_no_levels(door: FrontDoor) -> None:
    text = '\\"' + "[{" * 100
    assert fits(door.check(Constraint.json_schema({"const": text})), json.dumps(text))


def test_unsatisfiable_where_nobody_must_go_is_fine() -> None:
    checked = check({"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}})
    assert fits(checked, "{}")
    assert not fits(checked, '{"a": 4}')

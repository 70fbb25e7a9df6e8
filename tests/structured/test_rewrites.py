"""What the grammars are given allows what the caller's schema allows: all of it, and nothing more without a finding.

Schemas are drawn at random over all the keywords, drafts and combinations that the rewriting looks into; the judge
is the validation of the original. Real schemas are compared on their labelled instances and on mutations of these.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.errors import ConstraintError, OutputValidationError
from radixbackend.structured import CheckedConstraint, FrontDoor
from radixbackend.types import Constraint

DOOR = FrontDoor()
DRAFTS = {
    4: "http://json-schema.org/draft-04/schema#",
    7: "http://json-schema.org/draft-07/schema#",
    2019: "https://json-schema.org/draft/2019-09/schema",
    2020: "https://json-schema.org/draft/2020-12/schema",
}

# Random schemas

names = st.sampled_from("abc")
scalars = st.sampled_from([None, True, False, 0, 1, 2, 3, 1.5, -1, "", "a", "b", "ab", "ba", "aab", "1.2.3.4"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "c", "ab", "d", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)
types = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])
counts = st.integers(0, 3)
leaves = st.sampled_from(
    [True, {}, {"type": "integer"}, {"type": "string"}, {"const": 1}, {"enum": ["a", 2, None]}, {"minimum": 1}, False]
)


def keywords(schemas: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    some, named = st.lists(schemas, min_size=1, max_size=3), st.dictionaries(names, schemas, min_size=1, max_size=3)
    bounds = st.sampled_from([0, 1, 2, 1.5])
    return {
        "type": st.one_of(types, st.lists(types, min_size=1, max_size=2, unique=True)),
        "enum": st.lists(values, min_size=1, max_size=5),
        "const": values,
        "minimum": bounds,
        "maximum": bounds,
        "exclusiveMinimum": bounds,
        "exclusiveMaximum": bounds,
        "multipleOf": st.sampled_from([1, 2, 0.5, 1.5]),
        "minLength": counts,
        "maxLength": counts,
        "pattern": st.sampled_from(["^a", "b$", "a|b", "^(?:a|b)$", "^$", "^[^a]*$", "^(?!a)", "c*"]),
        "format": st.sampled_from(["ipv4", "color"]),
        "properties": named,
        "required": st.lists(names, min_size=1, max_size=2, unique=True),
        "additionalProperties": schemas,
        "patternProperties": st.dictionaries(
            st.sampled_from(["^a", "b", "^[bc]$", "d", ""]), schemas, min_size=1, max_size=2
        ),
        "propertyNames": st.sampled_from(
            [{"enum": ["a", "b"]}, {"pattern": "^[ab]"}, {"maxLength": 1}, {"not": {"const": "a"}}, {"const": "c"}]
        ),
        "minProperties": counts,
        "maxProperties": counts,
        "items": schemas,
        "prefixItems": st.lists(schemas, min_size=1, max_size=2),
        "minItems": counts,
        "maxItems": counts,
        "uniqueItems": st.booleans(),
        "contains": schemas,
        "allOf": some,
        "anyOf": some,
        "oneOf": some,
        "not": schemas,
        "if": schemas,
        "then": schemas,
        "else": schemas,
        "dependentRequired": st.dictionaries(names, st.lists(names, max_size=2, unique=True), min_size=1, max_size=2),
        "dependentSchemas": st.dictionaries(names, schemas, min_size=1, max_size=1),
        "unevaluatedProperties": schemas,
        "unevaluatedItems": schemas,
        "$ref": st.sampled_from(["#/$defs/x", "#/$defs/y"]),
    }


def schema_objects(schemas: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    makers = keywords(schemas)
    chosen = st.lists(st.sampled_from(sorted(makers)), max_size=3, unique=True)
    return chosen.flatmap(lambda picked: st.fixed_dictionaries({keyword: makers[keyword] for keyword in picked}))


schemas = st.recursive(leaves, schema_objects, max_leaves=6)
TREE = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/y"}}}
roots = st.builds(
    lambda root, x, y: {**root, "$defs": {"x": x, "y": {**TREE, **y}}},
    schema_objects(schemas),
    schemas,
    st.sampled_from([{}, {"required": ["a"]}, {"additionalProperties": False}]),
)


def in_draft(schema: Any, draft: int) -> Any:
    """The 2020-12 schema in the vocabulary of an older draft, as far as that has the words."""
    if isinstance(schema, bool):
        return schema if draft > 4 else ({} if schema else {"not": {}})
    if not isinstance(schema, dict) or draft == 2020:
        return schema
    told: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "$defs", "dependentSchemas"):
            value = {name: in_draft(child, draft) for name, child in value.items()}
        elif keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
            value = [in_draft(child, draft) for child in value]
        elif keyword not in ("enum", "const"):
            value = in_draft(value, draft)
        if keyword == "prefixItems":
            told["items"] = value
        elif keyword == "items" and "prefixItems" in schema:
            told["additionalItems"] = value
        elif draft == 4 and keyword.startswith("exclusive"):
            told[keyword], told[keyword[9:].lower()] = True, value
        elif draft <= 7 and keyword.startswith("dependent"):
            told["dependencies"] = value
        elif draft <= 7 and keyword == "$ref":
            told[keyword] = value.replace("$defs", "definitions")
        else:
            told["definitions" if draft <= 7 and keyword == "$defs" else keyword] = value
    return told


def allows(checked: CheckedConstraint, value: Any) -> bool:
    try:
        checked.validate(json.dumps(value))
    except OutputValidationError:
        return False
    return True


def rewritten(checked: CheckedConstraint) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(checked.constraint.source))


@settings(max_examples=150)
@given(roots, st.sampled_from(sorted(DRAFTS)), st.lists(values, min_size=20, max_size=20))
def test_a_rewritten_schema_allows_what_the_original_allows(root: Any, draft: int, samples: list[Any]) -> None:
    schema = {"$schema": DRAFTS[draft], **in_draft(root, draft)}
    try:
        compare(schema, samples)
    except ConstraintError as refusal:
        # A reference to itself, or a keyword of draft 4 that has changed since.
        if "without end" not in str(refusal) and draft > 4:
            raise


# All pairs of simple schemas of one type

FAMILIES: dict[str, tuple[list[dict[str, Any]], list[Any]]] = {
    "number": (
        [{"minimum": 1}, {"exclusiveMinimum": 1}, {"maximum": 2}, {"exclusiveMaximum": 2}, {"minimum": 1, "maximum": 2},
         {"const": 1}, {"enum": [1, 2, 4]}, {"multipleOf": 2}, {"type": "integer", "minimum": 0.5},
         {"exclusiveMinimum": 1.5, "maximum": 4}],
        [0, 0.5, 1, 1.25, 1.5, 1.75, 2, 3, 4, 5, -2],
    ),
    "string": (
        [{"minLength": 1}, {"minLength": 2}, {"maxLength": 2}, {"maxLength": 1}, {"const": "a"},
         {"enum": ["a", "ab", ""]}, {"pattern": "^a"}, {"pattern": "b$"}, {"pattern": "^(?!a)"},
         {"pattern": "a$b?"}, {"not": {"const": "b"}}],
        ["", "a", "b", "ab", "ba", "aa", "abb", "bbb"],
    ),
    "array": (
        [{"minItems": 1}, {"maxItems": 1}, {"maxItems": 2}, {"items": {"type": "integer"}},
         {"items": {"type": "string"}},
         {"prefixItems": [{"type": "integer"}]}, {"prefixItems": [{"const": 1}], "items": False},
         {"prefixItems": [{}, {"type": "string"}], "minItems": 2}, {"const": [1]}, {"enum": [[], [1, "a"]]}],
        [[], [1], [2], ["a"], [1, "a"], [1, 2], ["a", "b"], [1, "a", 3], [None]],
    ),
    "object": (
        [{"required": ["a"]}, {"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"type": "string"}}},
         {"properties": {"a": {}}, "additionalProperties": False}, {"additionalProperties": {"type": "integer"}},
         {"properties": {"b": {}}, "additionalProperties": False}, {"const": {"a": 1}}, {"minProperties": 2},
         {"maxProperties": 1}, {"patternProperties": {"^a": {"type": "integer"}}},
         {"patternProperties": {"a$": {"minimum": 2}}, "additionalProperties": {"type": "string"}},
         {"propertyNames": {"enum": ["a", "b"]}}, {"propertyNames": {"maxLength": 1}},
         {"dependentRequired": {"a": ["b"]}}, {"properties": {"a": False}},
         {"patternProperties": {"a(?=b)": {"type": "integer"}}, "additionalProperties": False}],
        [{}, {"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": "x"}, {"aa": 1}, {"ba": 1}, {"ba": "x"},
         {"ab": 1}, {"ab": "x"}, {"c": "x"}, {"a": 2, "c": 3}, {"aa": 2, "ba": 2}, {"a": 1, "b": 2, "c": 3}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("combined", ["both", "first alone", "either alone", "second if first"])
def test_simple_schemas_combine_exactly(kind: str, combined: str) -> None:
    family, pool = FAMILIES[kind]
    for index, first in enumerate(family):
        for second in family[index:] if combined == "either alone" else family:
            schema = {
                "both": {"allOf": [first, second]},
                "first alone": {"allOf": [first], "not": second},
                "either alone": {"oneOf": [first, second]},
                "second if first": {"if": first, "then": second, "else": {"not": second}},
            }[combined]
            compare({"type": kind, **schema}, pool)


def compare(schema: Any, pool: list[Any]) -> None:
    checked = answer(schema)
    if checked is None:
        judge = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
        assert not [value for value in pool if judge.is_valid(value)], schema
        return
    judge = rewritten(checked)
    for value in pool:
        told, original = judge.is_valid(value), allows(checked, value)
        assert told or not original, (schema, value)
        assert original or not told or checked.report.findings, (schema, value)


def answer(schema: Any) -> CheckedConstraint | None:
    """None where the schema is refused as unsatisfiable."""
    try:
        return DOOR.check(Constraint.json_schema(schema))
    except ConstraintError as refusal:
        if "nothing can fit" not in str(refusal):
            raise
        return None


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["a"]}], "type": "object"},
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "additionalProperties": {},
                "required": ["a"],
            },
        ),
        ({"type": "string", "enum": ["a", 1, "bcd"], "maxLength": 2}, {"const": "a"}),
        (
            {"type": "number", "not": {"const": 5}},
            {"anyOf": [{"type": "number", "exclusiveMaximum": 5}, {"type": "number", "exclusiveMinimum": 5}]},
        ),
        (
            {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]},
            {"type": ["integer", "string"], "minimum": 0},
        ),
        (
            {"type": "string", "not": {"enum": ["x"]}},
            {"type": "string", "pattern": "^(?:|[^x][\\s\\S]*|x[\\s\\S][\\s\\S]*)$"},
        ),
        ({"type": "integer", "exclusiveMinimum": 1.5, "maximum": 9.9}, {"type": "integer", "minimum": 2, "maximum": 9}),
        ({"type": "string", "pattern": ".*"}, {"type": "string"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, {"type": "null"}),
    ],
)  # fmt: skip
def test_rewrites_are_short(schema: Any, expected: Any) -> None:
    checked = DOOR.check(Constraint.json_schema(schema))
    assert checked.report.enforced
    assert json.loads(checked.constraint.source) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}, "type": "object"},
        {"type": "object", "properties": {"k": {"enum": ["x", "y"]}, "v": {}}, "required": ["k"],
         "if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["v"]}},
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 3}}},
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "integer"}},
        {"type": "string", "pattern": "^(?!tmp)[a-z]+$"},
        {"oneOf": [{"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "number"}}]},
        {"allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string"},
    ],
)  # fmt: skip
def test_what_neither_library_takes_as_it_is_becomes_enforceable(schema: Any) -> None:
    report = DOOR.check(Constraint.json_schema(schema)).report
    assert report.enforced, str(report)
    assert not report.backend.endswith("lenient")


def test_recursion_with_siblings_is_resolved() -> None:
    schema = {
        "$ref": "#/$defs/node",
        "required": ["children"],
        "$defs": {"node": {"type": "object", "properties": {"children": {"items": {"$ref": "#/$defs/node"}}}}},
    }
    checked = DOOR.check(Constraint.json_schema(schema))
    assert checked.report.enforced
    judge = rewritten(checked)
    assert judge.is_valid({"children": [{}, {"children": []}]})
    assert not judge.is_valid({})
    assert not judge.is_valid({"children": [1]})


# Real schemas


def mutated(value: Any, rng: random.Random) -> Any:
    """``value`` with one thing changed somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        change = rng.random()
        if change < 0.3:
            return {key: part for key, part in value.items() if key != name}
        if change < 0.5:
            return {**value, rng.choice(["extra", "type", "x-a"]): rng.choice([1, "a", None, {}])}
        return {**value, name: mutated(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.3:
            return [*value, value[place]]
        return [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
    return rng.choice([None, True, 0, -1, 1.5, 10**6, "", "a", "https://example.org/a", "2024-02-30", [], {}])


def test_real_schemas_mean_the_same_after_rewriting(shared_data: Path) -> None:
    rng = random.Random(7)
    seen = 0
    with (shared_data / "dev.jsonl").open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if len(json.dumps(row["schema"])) < 12_000][::6]
    for row in rows:
        try:
            checked = DOOR.check(Constraint.json_schema(row["schema"]))
        except ConstraintError:
            continue  # that these have no instance is tested elsewhere
        judge = rewritten(checked)
        for test in row["tests"]:
            for value in (test["data"], *(mutated(test["data"], rng) for _ in range(4))):
                told, original = judge.is_valid(value), allows(checked, value)
                seen += 1
                assert told or not original, (row["id"], value)
                assert original or not told or checked.report.findings, (row["id"], value)
    assert seen > 700

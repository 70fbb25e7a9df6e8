"""Random schemas on a random model: what finishes fits, what cannot be served is refused before it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixbackend import Constraint, Engine, SamplingParams, errors, explain_schema

NAMES = st.sampled_from(["a", "b", "name", "größe", "with space", 'quo"te'])


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": st.integers(-50, 50),
            "maximum": st.integers(-50, 50),
            "multipleOf": st.sampled_from([1, 2, 5, 0.5]),
        },
    )
    return bounds


def strings() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 4),
            "maxLength": st.integers(0, 8),
            "pattern": st.sampled_from(["^[a-c]+$", "x", "^\\d{2}$"]),
            "format": st.sampled_from(["date", "ipv4", "email"]),
        },
    )


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.builds(
        lambda properties, required, extra: {
            "type": "object",
            "properties": properties,
            "required": sorted({name for name in required if name in properties}),
            **extra,
        },
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(NAMES, max_size=3),
        st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "boolean"}}]),
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={"minItems": st.integers(0, 2), "maxItems": st.integers(0, 3), "uniqueItems": st.booleans()},
    )
    unions = st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
    either = st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=2)})
    both = st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)})
    negated = st.builds(lambda schema, other: {**schema, "not": other}, inner, inner)
    return objects | arrays | unions | either | both | negated


SCHEMAS = st.recursive(
    numbers()
    | strings()
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"k": [1, "ü"]}}, {"enum": ["x", 3, None]}]),
    compound,
    max_leaves=6,
)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[Engine]:
    with Engine(tiny_checkpoint) as engine:
        yield engine


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_every_finished_output_validates(engine: Engine, schema: dict[str, Any], seed: int) -> None:
    params = SamplingParams(max_tokens=150, seed=seed)
    constraint = Constraint.json_schema(schema)
    try:
        enforced = explain_schema(schema).enforced
    except errors.ConstraintError:
        with pytest.raises(errors.ConstraintError):
            engine.generate("x", params, constraint=constraint)
        return
    try:
        result = engine.generate("x", params, constraint=constraint)
    except errors.GrammarCompileError:
        return  # refused before anything was generated
    except errors.OutputValidationError:
        if enforced:  # only what was reported as not enforced can end here; and then as an error, never a success
            raise
        return
    if result.complete and result.finish_reason == "stop":
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(json.loads(result.text), schema, format_checker=checker)


HOSTILE = {
    "nested parentheses": Constraint.regex("(" * 200_000 + "a" + ")" * 200_000),
    "many choices": Constraint.json_schema({"enum": [f"value {i}" for i in range(100_000)]}),
    "NUL": Constraint.json_schema({"const": "a\0b"}),
    "endless pattern": Constraint.regex("((a{1,999}){1,999}){1,999}"),
    "deep": Constraint.json_schema('{"items":' * 5_000 + "{}" + "}" * 5_000),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_constraints_end_in_a_clear_error_while_others_go_on(engine: Engine, name: str) -> None:
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    started = time.monotonic()
    engine.generate([5, 6, 7], params)
    calm = time.monotonic() - started
    with engine.stream([6, 7, 8], params) as other:
        next(other)
        started = time.monotonic()
        with pytest.raises(errors.RequestError, match=r"\w"):
            engine.generate("x", params, constraint=HOSTILE[name], timeout=20)
        for _ in other:
            pass
    assert time.monotonic() - started < 10 * calm + 20
    assert engine.generate("still there", params).finish_reason == "length"


def test_what_no_budget_can_hold_is_reported_as_cut(engine: Engine) -> None:
    constraint = Constraint.json_schema({"type": "array", "minItems": 10**12})
    result = engine.generate("x", SamplingParams(max_tokens=50), constraint=constraint)
    assert (result.finish_reason, result.complete) == ("length", False)

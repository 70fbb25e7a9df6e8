from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixbackend import types
from radixbackend.errors import ConstraintError, InvalidRequestError
from radixbackend.types import (
    Choice,
    Constraint,
    EngineStats,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    Usage,
)

VALUES = [v for v in vars(types).values() if dataclasses.is_dataclass(v)]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: v.__name__)
def test_values_are_frozen_and_described(value: Any) -> None:
    assert value.__dataclass_params__.frozen
    assert value.__doc__
    assert not value.__doc__.startswith(f"{value.__name__}("), "the docstring is the generated one"


def test_every_sampling_parameter_is_explained() -> None:
    described = re.findall(r"^    (\w+): ", inspect.getdoc(SamplingParams) or "", re.MULTILINE)
    assert described == [field.name for field in dataclasses.fields(SamplingParams)]


# -- SamplingParams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.0),
        ("min_tokens", None),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("frequency_penalty", math.inf),
        ("presence_penalty", None),
        ("repetition_penalty", 0),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", 3),
        ("seed", 1.5),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop_token_ids", (-1,)),
        ("n", 0),
        ("logprobs", -1),
        ("prompt_logprobs", True),
    ],
)
def test_wrong_parameter_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_borders_are_allowed() -> None:
    SamplingParams(max_tokens=0, temperature=0, top_p=1, min_p=1, repetition_penalty=0.01, logprobs=0, seed=-(2**63))
    SamplingParams(max_tokens=None, min_tokens=10_000)
    with pytest.raises(InvalidRequestError, match="min_tokens=3 exceeds max_tokens=2"):
        SamplingParams(max_tokens=2, min_tokens=3)


def test_convenient_spellings_become_one() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[1, 2], logit_bias={"7": 1})  # type: ignore[arg-type]
    assert params == SamplingParams(stop=("END",), stop_token_ids=(1, 2), logit_bias={7: 1.0})


def test_replace_validates_again() -> None:
    assert SamplingParams().replace(n=3).n == 3
    with pytest.raises(InvalidRequestError):
        SamplingParams().replace(n=0)


# -- Constraint --------------------------------------------------------------------------------------------------

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_schema_keeps_its_meaning_and_key_order(schema: dict[str, Any]) -> None:
    source = Constraint.json_schema(schema).source
    again = json.loads(source)
    assert again == schema
    assert list(again) == list(schema)
    assert Constraint.json_schema(schema) == Constraint.json_schema(again)


def test_schema_from_a_class() -> None:
    class Answer:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {"type": "object"}

    assert Constraint.json_schema(Answer) == Constraint.json_schema({"type": "object"})
    with pytest.raises(ConstraintError, match="int has no model_json_schema"):
        Constraint.json_schema(int)


def test_schema_that_is_not_json() -> None:
    loop: dict[str, Any] = {}
    loop["properties"] = loop
    for schema in ({"default": math.nan}, {"default": {1, 2}}, loop):
        with pytest.raises(ConstraintError, match="not JSON"):
            Constraint.json_schema(schema)


@pytest.mark.parametrize("choices", [[], [""], ["a", 1]], ids=repr)
def test_bad_choices(choices: Any) -> None:
    with pytest.raises(ConstraintError, match="non-empty"):
        Constraint.choice(choices)


def test_constraints_are_keys() -> None:
    assert len({Constraint.regex("a"), Constraint.regex("a"), Constraint.grammar("a"), Constraint.json_object()}) == 3


# -- requests and answers ----------------------------------------------------------------------------------------


def test_prompt_of_token_ids_becomes_a_tuple() -> None:
    assert GenerationRequest([1, 2]).prompt == (1, 2)  # type: ignore[arg-type]
    assert GenerationRequest("text").prompt == "text"
    with pytest.raises(InvalidRequestError) as caught:
        GenerationRequest("text", priority=1.5)  # type: ignore[arg-type]
    assert caught.value.param == "priority"


def test_result_speaks_for_its_first_choice() -> None:
    first, second = Choice(0, "a", (1,), "stop"), Choice(1, "b", (2, 3), "length", complete=False)
    result = GenerationResult((first, second), Usage(5, 3, 4), (9, 9))
    assert (result.text, result.token_ids, result.finish_reason, result.complete) == ("a", (1,), "stop", True)
    assert result.usage.total_tokens == 8


def test_hit_rate() -> None:
    assert EngineStats().cache_hit_rate == 0
    assert EngineStats(prompt_tokens=8, cached_tokens=6).cache_hit_rate == 0.75

"""Constrained generation through the whole engine, on a model whose own words mean nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from radixbackend import Constraint, Engine, SamplingParams, errors

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 10}, "number": {"type": "integer"}},
            "required": ["street", "number"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
ALL = SamplingParams(max_tokens=120, seed=1)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[Engine]:
    with Engine(tiny_checkpoint, max_running=8, max_step_tokens=64) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> Iterator[Engine]:
    with Engine(tiny_checkpoint, max_running=8, jump_forward=False) as engine:
        yield engine


@pytest.mark.parametrize("seed", range(12))
def test_a_schema_is_kept_whatever_the_model_would_say(engine: Engine, seed: int) -> None:
    result = engine.generate("Someone: ", ALL.replace(seed=seed), constraint=Constraint.json_schema(PERSON))
    assert result.finish_reason == "stop"
    assert result.complete
    jsonschema.validate(json.loads(result.text), PERSON)
    assert list(json.loads(result.text)) == list(PERSON["properties"])


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint.regex(r"[a-f]{3}-\d{2,4}"), r"[a-f]{3}-\d{2,4}"),
        (Constraint.choice(["yes", "no", "it depends"]), r"yes|no|it depends"),
        (Constraint.grammar('root ::= "<" word ">"\nword ::= [xyz] [xyz] | [xyz]'), r"<[xyz]{1,2}>"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_every_kind_is_kept(engine: Engine, constraint: Constraint, pattern: str, seed: int) -> None:
    result = engine.generate("Say: ", ALL.replace(seed=seed), constraint=constraint)
    assert re.fullmatch(pattern, result.text)
    assert result.finish_reason == "stop"


def test_json_object(engine: Engine) -> None:
    result = engine.generate("Say: ", ALL, constraint=Constraint.json_object())
    assert isinstance(json.loads(result.text), dict)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_jump_forward_changes_the_steps_not_the_tokens(
    engine: Engine, plain: Engine, seed: int, temperature: float
) -> None:
    params = ALL.replace(seed=seed, temperature=temperature, logprobs=1)
    constraint = Constraint.json_schema(PERSON)
    steps = engine.stats().steps, plain.stats().steps
    fast = engine.generate("Someone: ", params, constraint=constraint)
    slow = plain.generate("Someone: ", params, constraint=constraint)
    assert fast.token_ids == slow.token_ids
    assert fast.logprobs is not None
    assert slow.logprobs is not None
    assert [p.logprob for p in fast.logprobs] == pytest.approx([p.logprob for p in slow.logprobs], abs=1e-3)
    assert fast.usage.forced_tokens > 0
    assert slow.usage.forced_tokens == 0
    took = engine.stats().steps - steps[0], plain.stats().steps - steps[1]
    # One more where the last token of all was forced; one less where a step waited for the grammar to compile.
    assert abs(took[0] + fast.usage.forced_tokens - took[1]) <= 1


def test_constrained_and_free_rows_side_by_side(engine: Engine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(i: int) -> tuple[int, ...]:
        constraint = [None, Constraint.json_schema(PERSON), Constraint.regex("[ab]{20}")][i % 3]
        return engine.generate(f"Number {i % 6}", ALL.replace(max_tokens=60, seed=i), constraint=constraint).token_ids

    alone = [ask(i) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_choices_streams_and_stop_strings(engine: Engine) -> None:
    constraint = Constraint.json_schema(PERSON)
    result = engine.generate("Someone: ", ALL.replace(n=4), constraint=constraint)
    for choice in result.choices:
        jsonschema.validate(json.loads(choice.text), PERSON)
    events = list(engine.stream("Someone: ", ALL, constraint=constraint))
    assert "".join(e.text for e in events) == result.text
    cut = engine.generate("Someone: ", ALL.replace(stop=('"age"',)), constraint=constraint)
    assert cut.text == result.text[: result.text.index('"age"')]
    assert cut.finish_reason == "stop"
    assert not cut.complete


def test_retraction_keeps_the_grammar(tiny_checkpoint: Path, engine: Engine) -> None:
    prompts = [f"Person {i}: " for i in range(6)]
    constraint = Constraint.json_schema(PERSON)
    expected = [engine.generate(p, ALL, constraint=constraint).token_ids for p in prompts]
    with Engine(tiny_checkpoint, kv_cache_tokens=160, max_running=6) as small:
        answers = small.generate(prompts, ALL, constraint=constraint)
        assert small.stats().retractions > 0
    assert [a.token_ids for a in answers] == expected


@pytest.mark.parametrize("budget", [60, 70, 80, 100])
def test_json_closes_within_the_budget(engine: Engine, budget: int) -> None:
    properties = {"text": {"type": "string"}, "n": {"type": "array", "items": {"type": "integer"}}}
    schema = {"type": "object", "properties": properties, "required": ["text", "n"]}
    constraint = Constraint.json_schema(schema)
    for seed in range(5):
        result = engine.generate("x", SamplingParams(max_tokens=budget, seed=seed), constraint=constraint)
        assert result.complete
        jsonschema.validate(json.loads(result.text), schema)


def test_a_budget_too_small_is_reported_as_truncated(engine: Engine) -> None:
    result = engine.generate("x", SamplingParams(max_tokens=3, seed=1), constraint=Constraint.json_schema(PERSON))
    assert (result.finish_reason, result.complete) == ("length", False)
    assert result.text


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.regex("((("),
        Constraint.json_schema({"type": "nonsense"}),
        Constraint.json_schema({"type": "string", "enum": []}),
        Constraint.json_schema("{not json"),
        Constraint.grammar("root ::= nowhere"),
        Constraint.json_schema({"$ref": "#/nowhere"}),
    ],
)
def test_what_cannot_be_a_constraint_is_refused_at_the_door(engine: Engine, constraint: Constraint) -> None:
    steps = engine.stats().steps
    with pytest.raises(errors.RequestError):
        engine.generate("x", ALL, constraint=constraint)
    assert engine.stats().steps <= steps + 1

"""Models that think before they answer: what they think is theirs, and the answer keeps its types."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy_radix import RadixAdapter, RadixLM


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Any) -> Iterator[RadixLM]:
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("models") / "thinker", thinks=True)
    with RadixLM(folder, max_tokens=400, cache=False, kv_cache_tokens=16_384) as lm:
        # Random words end neither a thought nor a string; likelier ends do.
        likelier = {b"</think>": 3.0, b'"': 4.0}
        texts = {token: lm.engine.chat.token_bytes(token) for token in range(1024)}
        bias = {str(token): likelier[text] for token, text in texts.items() if text in likelier}
        yield lm.copy(logit_bias=bias, seed=1)


def test_thoughts_are_parts_of_their_own(thinker: RadixLM) -> None:
    assert thinker.supports_reasoning
    assert "reasoning_effort" in thinker.supported_params
    config = lm15.Config(max_tokens=400, seed=1, extensions={"logit_bias": thinker.kwargs["logit_bias"]})
    asked = lm15.Request(thinker.model, (lm15.Message.user("hi"),), config=config)
    whole = thinker(asked)
    thought = whole.message.first(lm15.ThinkingPart)
    assert thought.text
    assert "</think>" not in thought.text
    streamed = lm15.materialize_response(thinker.engine.stream(asked), asked)
    assert [(part.type, part.text) for part in streamed.message.parts] == [
        (part.type, part.text) for part in whole.message.parts
    ]


def test_reasoning_fields_are_filled_by_thoughts(thinker: RadixLM) -> None:
    program = dspy.ChainOfThought("question -> answer: int", rationale_field_type=dspy.Reasoning)
    with dspy.context(lm=thinker, adapter=RadixAdapter()):
        for prediction in (program(question="How many?"), asyncio.run(program.acall(question="How many?"))):
            assert isinstance(prediction.answer, int)
            assert isinstance(prediction.reasoning, dspy.Reasoning)
            assert prediction.reasoning.content
    asked = thinker.history[-1]["kwargs"]
    assert asked["reasoning_effort"] == "low"
    assert list(asked["response_format"]["json_schema"]["schema"]["properties"]) == ["answer"]


def test_typed_answers_follow_a_thought(thinker: RadixLM) -> None:
    with dspy.context(lm=thinker, adapter=RadixAdapter()):
        prediction = dspy.Predict("question -> mood: bool, names: list[str]")(question="Who?")
    assert isinstance(prediction.mood, bool)
    assert thinker.history[-1]["outputs"][0]["reasoning_content"]

"""The model that ships with radixbackend, which knows DSPy's prompts: programs that mean something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from dspy_radix import RadixAdapter, RadixLM

from radixbackend.errors import ModelError

CITIES = ("France", "Italy", "Spain", "Japan", "Egypt", "Norway")


@pytest.fixture(scope="module")
def tiny() -> Iterator[RadixLM]:
    try:
        lm = RadixLM("radix-tiny", max_tokens=100, temperature=0, cache=False, kv_cache_tokens=50_000)
    except ModelError:
        pytest.skip("radix-tiny is not here")
    with lm:
        yield lm


def test_dspys_default_adapter_reads_its_answers(tiny: RadixLM) -> None:
    read = 0
    with dspy.context(lm=tiny, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        for country in CITIES:
            with contextlib.suppress(AdapterParseError):
                dspy.Predict("question -> answer")(question=f"What is the capital of {country}?")
                read += 1
    assert read >= 3


class Mood(dspy.Signature):
    """Classify the sentiment of the text."""

    text: str = dspy.InputField()
    sentiment: Literal["positive", "negative"] = dspy.OutputField()


TEXTS = {
    "The room was wonderful and the staff were kind.": "positive",
    "I love this place, everything was great.": "positive",
    "A lovely dinner, and the best cake that I ever had.": "positive",
    "The food was terrible and the service was slow.": "negative",
    "I hate this phone, it broke after a day.": "negative",
    "An awful trip, and a boring guide.": "negative",
}


def test_an_optimizer_finds_demos(tiny: RadixLM) -> None:
    examples = [dspy.Example(text=text, sentiment=mood).with_inputs("text") for text, mood in TEXTS.items()]

    def right(example: Any, prediction: Any, trace: Any = None) -> bool:
        return bool(example.sentiment == prediction.sentiment)

    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=right, max_bootstrapped_demos=2, max_labeled_demos=2, num_candidate_programs=1, num_threads=8
    )
    with dspy.context(lm=tiny, adapter=RadixAdapter()):
        program = optimizer.compile(dspy.Predict(Mood), trainset=examples, valset=examples)
    assert max(candidate["score"] for candidate in program.candidate_programs) >= 50.0


def weather(city: str) -> str:
    """Get the current weather of a city."""
    return "Sunny, 21 degrees."


def test_an_agent_uses_its_tool(tiny: RadixLM) -> None:
    with dspy.context(lm=tiny, adapter=RadixAdapter()):
        agent = dspy.ReAct("question -> answer", tools=[weather], max_iters=3)
        trajectory = agent(question="What is the weather in Paris?").trajectory
    assert "Execution error" not in str(trajectory)
    assert trajectory["tool_name_0"] in ("weather", "finish")

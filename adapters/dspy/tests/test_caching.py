"""How much of DSPy's prompts comes from the cache, from a cold start and with many threads."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.lm15 import CacheConfig
from dspy.utils.exceptions import AdapterParseError
from dspy_radix import RadixAdapter, RadixLM, warm

WORDS = ("sea", "garden", "room", "night", "guest", "key", "towel", "boat", "bread", "fish", "light", "storm", "early")


class Counted:
    """Prompt tokens, those from the cache and those computed, since it was made."""

    def __init__(self, lm: RadixLM) -> None:
        self._lm, self._before = lm, lm.stats()

    def _since(self, name: str) -> int:
        return int(getattr(self._lm.stats(), name) - getattr(self._before, name))

    @property
    def share(self) -> float:
        return self._since("cached_tokens") / self._since("prompt_tokens")

    @property
    def computed(self) -> int:
        return self._since("prefilled_tokens")


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def few_shot(demos: int, seed: int = 0) -> Any:
    rng = random.Random(seed)
    program = dspy.ChainOfThought("question -> answer")
    program.predict.demos = [
        dspy.Example(question=words(rng, 10), reasoning=words(rng, 20), answer=words(rng, 5)) for _ in range(demos)
    ]
    return program


def inputs(count: int, seed: int = 1) -> list[dspy.Example]:
    rng = random.Random(seed)
    return [dspy.Example(question=words(rng, 10)).with_inputs("question") for _ in range(count)]


def run(program: Any, examples: list[dspy.Example], threads: int) -> None:
    dspy.Parallel(num_threads=threads, disable_progress_bar=True)([(program, example) for example in examples])


@pytest.fixture
def cold(radix: RadixLM) -> Iterator[RadixLM]:
    radix.flush_cache()
    lm = radix.copy(max_tokens=32)
    with dspy.context(lm=lm):
        yield lm


def test_a_cold_wave_computes_what_it_shares_once(cold: RadixLM) -> None:
    """Sixteen first requests at once are as cheap as one after the other."""
    serial = Counted(cold)
    run(few_shot(8), inputs(16), threads=1)
    expected = serial.share
    cold.flush_cache()
    wave = Counted(cold)
    run(few_shot(8), inputs(16), threads=16)
    assert expected > 0.87
    assert wave.share > expected - 0.005


def test_interleaved_candidates_share_what_they_can(cold: RadixLM) -> None:
    """Random search: programs that differ in their demos, over the same inputs, all at once."""
    counted = Counted(cold)
    jobs = [(few_shot(6, seed=seed), example) for example in inputs(8) for seed in range(4)]
    dspy.Parallel(num_threads=16, disable_progress_bar=True)(jobs)
    assert counted.share > 0.8


def lookup(place: str) -> str:
    """What there is at a place."""
    return "a boat, a lamp and two chairs"


def test_agents_share_their_instructions_and_their_own_past(cold: RadixLM) -> None:
    counted = Counted(cold)
    agent = dspy.ReAct("question -> answer", tools=[lookup], max_iters=3)
    dspy.Parallel(num_threads=8, disable_progress_bar=True)([(agent, example) for example in inputs(8)])
    assert counted.share > 0.7


# -- warm ----------------------------------------------------------------------------------------------------------


def test_warm_leaves_only_the_input_to_compute(cold: RadixLM) -> None:
    program = few_shot(4)
    usage = warm(program)
    assert usage.cached_tokens == 0
    assert usage.prompt_tokens > 300
    assert warm(program).cached_tokens == usage.prompt_tokens
    assert cold.history == []
    counted = Counted(cold)
    program(question="What is there?")
    assert counted.share > 0.93


@pytest.mark.parametrize("kind", [RadixAdapter, dspy.ChatAdapter, dspy.XMLAdapter], ids=lambda kind: kind.__qualname__)
def test_warm_formats_as_calls_do(cold: RadixLM, kind: Any) -> None:
    program = few_shot(4)
    with dspy.context(adapter=kind()):
        usage = warm(program)
        with contextlib.suppress(AdapterParseError):  # random words keep to no layout
            program(question="What is there?", config={"max_tokens": 40})
    first = cold.history[0]["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] > 0.9 * first["prompt_tokens"]
    assert usage.prompt_tokens > 300


def test_warm_generates_and_records_nothing(cold: RadixLM) -> None:
    program = few_shot(2)
    calls: list[str] = []

    class Trace(dspy.utils.callback.BaseCallback):  # type: ignore[misc, name-defined]
        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            calls.append(call_id)

    generated = cold.stats().generated_tokens
    with dspy.context(callbacks=[Trace()], track_usage=True, trace=[]):
        warm(program)
        assert dspy.settings.trace == []
    assert calls == []
    assert cold.stats().generated_tokens == generated
    assert program.history == []


def test_warm_reaches_every_predictor_and_takes_inputs(cold: RadixLM) -> None:
    class Two(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("document, question -> facts: list[str]")
            self.second = few_shot(3)

    document = " ".join(WORDS * 12)
    program = Two()
    plain = warm(program)
    with_document = warm(program, inputs={"document": document})
    assert with_document.prompt_tokens > plain.prompt_tokens + 100
    counted = Counted(cold)
    program.first(document=document, question="Which?")
    assert counted.share > 0.85


def test_warm_pins_where_the_lm_says_so(cold: RadixLM) -> None:
    pinning = cold.copy(prompt_cache=CacheConfig(prefix="stable", key="warm"))
    warm(few_shot(2), lm=pinning)
    with dspy.context(lm=pinning):
        warm(few_shot(2))
    assert cold.stats().slots_held == 0, "warming claims no memory; the first call pins"


def test_warm_needs_a_radix_lm() -> None:
    with dspy.context(lm=dspy.LM("openai/gpt-4o", api_key="none")), pytest.raises(TypeError, match="RadixLM"):
        warm(few_shot(1))


def test_warm_says_when_a_prompt_is_too_long(cold: RadixLM) -> None:
    with pytest.raises(dspy.ContextWindowExceededError):
        warm(few_shot(400))


def test_the_plugin_announces_the_adapter() -> None:
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from radixbackend.plugins import Plugins\n"
        "from dspy_radix.plugin import radix_adapters\n"
        "info = radix_adapters()\n"
        "print(info.name, info.framework, ' '.join(info.provides), 'dspy' in sys.modules, 'torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["dspy-radix", "dspy", "RadixLM", "RadixAdapter", "warm", "False", "False"], run.stderr

"""DSPy's prompt-cache hints pin: the prefix stays when everything else is evicted."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import CacheConfig
from dspy_radix import RadixLM
from dspy_radix.pins import MOST, SHARE

from radixbackend.errors import InvalidRequestError

SYSTEM = "You answer guests of a small hotel by the sea, briefly and politely, in the language that they write in."


def messages(*said: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(said)
    return [
        {"role": "system", "content": SYSTEM},
        *({"role": r, "content": s} for r, s in zip(roles, said, strict=False)),
    ]


pytestmark = pytest.mark.filterwarnings("ignore:Passing OpenAI-style message dictionaries")


@pytest.fixture
def own(checkpoint: Path) -> Any:
    """An LM over an engine of its own, so that its pins are the only ones."""
    with RadixLM(checkpoint, kv_cache_tokens=4096, max_context=2048, max_tokens=2, cache=False) as lm:
        yield lm


def cached(lm: RadixLM) -> int:
    count: int = lm.history[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def held(lm: RadixLM) -> int:
    return lm.stats().slots_held


def test_defaults_overrides_and_none(own: RadixLM) -> None:
    lm = own.copy(prompt_cache=CacheConfig(prefix="stable"))
    lm(messages=messages("When is breakfast?"), prompt_cache=None)
    assert held(own) == 0
    lm(messages=messages("When is breakfast?"))
    stable = held(own)
    lm(messages=messages("When is breakfast?"), prompt_cache=CacheConfig(prefix="history"))
    assert held(own) > stable > 0
    with pytest.raises(TypeError, match="CacheConfig"):
        lm("hi", prompt_cache="stable")
    assert lm.kwargs["prompt_cache"] == CacheConfig(prefix="stable")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stable_prefix_survives_a_flush(own: RadixLM, asynchronous: bool) -> None:
    lm = own.copy(prompt_cache=CacheConfig(prefix="stable"))

    def ask(text: str) -> None:
        asked = messages(text)
        asyncio.run(lm.acall(messages=asked)) if asynchronous else lm(messages=asked)

    ask("When is breakfast?")
    assert held(lm) > 20
    lm.flush_cache()
    ask("Where may I park?")
    assert cached(lm) >= held(lm) - 1 > 20
    own.flush_cache()
    own(messages=messages("Is the sauna open?"), prompt_cache=None)
    assert cached(own) > 20, "the pin outlives the call that made it"


def test_without_a_hint_nothing_is_pinned(own: RadixLM) -> None:
    own(messages=messages("When is breakfast?"))
    assert held(own) == 0
    own(messages=messages("When is breakfast?"), prompt_cache=CacheConfig())
    own(messages=messages("When is breakfast?"), prompt_cache=CacheConfig(mode="off"))
    own(messages=messages("When is breakfast?"), prompt_cache_key="guest")
    assert held(own) == 0


def test_a_keyed_history_moves_on(own: RadixLM) -> None:
    hint = CacheConfig(prefix="history", key="guest-7")
    own(messages=messages("When is breakfast?"), prompt_cache=hint)
    first = held(own)
    own(messages=messages("When is breakfast?", "At eight.", "And on Sundays?"), prompt_cache=hint)
    second = held(own)
    assert second > first
    assert cached(own) >= first - 1
    own(messages=messages("Another question, and a short one."), prompt_cache=hint)
    assert held(own) < second, "the longer history is let go"


def test_a_position_pins_up_to_that_message(own: RadixLM) -> None:
    asked = messages("When is breakfast?", "At eight.", "And on Sundays?")
    own(messages=asked, prompt_cache=CacheConfig(prefix_until_index=0))
    short = held(own)
    own(messages=asked, prompt_cache=CacheConfig(prefix_until_index=1, key="k"))
    assert held(own) > short


def test_pins_are_few_and_leave_room(own: RadixLM) -> None:
    """Unkeyed histories, each another one, would fill the cache."""
    for index in range(2 * MOST):
        own(messages=messages(f"{index} " * 40), prompt_cache=CacheConfig(prefix="history"))
    assert len(own.engine._pins._entries) <= MOST
    for index in range(8):
        own(messages=messages(f"{index} " * 400), prompt_cache=CacheConfig(prefix="history"))
    assert held(own) <= SHARE * own.stats().slots_total
    assert own("There is still room for a prompt without a hint. " * 50)


def test_a_wave_of_threads_pins_once(own: RadixLM) -> None:
    lm = own.copy(prompt_cache=CacheConfig(prefix="stable"))
    before = lm.stats()
    threads = [threading.Thread(target=lm, kwargs={"messages": messages(f"Question {index}?")}) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = lm.stats()
    assert after.finished - before.finished == 12 + 1
    assert after.prefilled_tokens - before.prefilled_tokens < held(lm) + 12 * 30


def test_closing_releases_the_pins_of_a_shared_engine(own: RadixLM, checkpoint: Path) -> None:
    other = RadixLM(checkpoint, kv_cache_tokens=4096, max_context=2048, max_tokens=2, cache=False)
    other(messages=messages("When is breakfast?"), prompt_cache=CacheConfig(prefix="stable"))
    assert held(own) > 0
    other.close()
    own("hi")
    assert held(own) == 0


def test_a_hint_that_cannot_be_followed_is_noted(own: RadixLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Any) -> Any:
        raise InvalidRequestError("the model's chat template wants a user")

    monkeypatch.setattr(own.engine.chat, "pin", refuse)
    assert own(messages=messages("hi"), prompt_cache=CacheConfig(prefix="stable"))
    (note,) = own.history[-1]["adaptations"]
    assert (note.field, note.action) == ("config.cache", "dropped")
    assert "wants a user" in note.reason


def test_a_cache_object_that_is_not_ours_is_refused(own: RadixLM) -> None:
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="resource"):
        own("hi", prompt_cache=CacheConfig(resource="cachedContents/1"))

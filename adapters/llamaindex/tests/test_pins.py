"""Cache points: what comes before them is computed once and stays, for a while and within bounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import CacheControl, CachePoint, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.llms.radix import Radix
from llama_index.llms.radix.pins import Pins
from pydantic import BaseModel, Field

from adapters.llamaindex.tests.conftest import OPTIONS
from radixbackend.chat import ChatRequest
from radixbackend.errors import InvalidRequestError, UnsupportedByServerError
from radixbackend.types import EngineStats, Usage


def marked(text: str, ttl: str = "5m", role: str = "system") -> ChatMessage:
    point = CachePoint(cache_control=CacheControl(type="ephemeral", ttl=ttl))
    return ChatMessage(role=role, blocks=[TextBlock(text=text), point])


LONG = "You are the desk clerk of a small hotel by the sea. " * 8
HI = ChatMessage(content="Hi!")


@pytest.fixture
def small(checkpoint: Path) -> Iterator[Radix]:
    with Radix(checkpoint, max_tokens=2, **{**OPTIONS, "kv_cache_tokens": 4096}) as llm:
        yield llm


def test_a_marked_prefix_stays(small: Radix) -> None:
    small.chat([marked(LONG), HI])
    held = small.stats().slots_held
    assert held > 200
    small.chat_layer.flush_cache()
    again = small.chat([marked(LONG), ChatMessage(content="Bye!")])
    assert again.additional_kwargs["cached_tokens"] >= held - 8  # the end of the turn may be another's
    assert small.stats().slots_held == held
    assert asyncio.run(small.achat([marked(LONG), HI])).additional_kwargs["cached_tokens"] >= held - 8
    small.close()


def test_closing_lets_go(checkpoint: Path) -> None:
    options = {**OPTIONS, "kv_cache_tokens": 4096}
    with Radix(checkpoint, max_tokens=2, **options) as other:
        with Radix(checkpoint, max_tokens=2, **options) as llm:
            list(llm.stream_chat([marked(LONG), HI]))
            assert other.stats().slots_held > 200
        other.chat_layer.flush_cache()
        assert other.stats().slots_held == 0


def test_objects_share_a_marked_instruction(small: Radix) -> None:
    class Room(BaseModel):
        number: int = Field(ge=1, le=9)

    prompt = ChatPromptTemplate([marked(LONG), ChatMessage(content="For {guest}.")])
    llm = small.model_copy(update={"max_tokens": 60})
    llm.structured_predict(Room, prompt, guest="Eva")
    before = llm.stats()
    for n in range(3):
        llm.structured_predict(Room, prompt, guest=f"guest {n}")
    after = llm.stats()
    assert after.prefilled_tokens - before.prefilled_tokens < 3 * 200
    llm.close()


class FakeChat:
    """As much of a `Chat` as pins ask of it; each prefix has as many tokens as its text has characters."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: list[str] = []
        self.pinned: list[str] = []

    def pin(self, request: ChatRequest) -> Any:
        text = request.messages[-1].text
        self.pinned.append(text)
        self.held.append(text)
        pin = type("Pin", (), {"usage": Usage(prompt_tokens=len(text)), "release": lambda _: self.held.remove(text)})
        return pin()

    def stats(self) -> EngineStats:
        if not self.slots:
            raise UnsupportedByServerError("no counters")
        return EngineStats(slots_total=self.slots)


def keep(pins: Pins, text: str, ttl: str = "5m") -> None:
    pins.keep([marked(text, ttl), HI], ChatRequest.of([{"role": "user", "content": "Hi!"}]))


def test_they_last_as_long_as_they_are_asked_for() -> None:
    now = [0.0]
    chat: Any = FakeChat(1000)
    pins = Pins(chat, clock=lambda: now[0])
    keep(pins, "short", "30s")
    keep(pins, "long", "1h")
    now[0] = 20
    keep(pins, "short", "30s")
    assert chat.pinned == ["short", "long"]
    now[0] = 49
    keep(pins, "long", "1h")
    assert chat.held == ["short", "long"]
    now[0] = 51
    keep(pins, "long", "1h")
    assert chat.held == ["long"]
    pins.close()
    assert chat.held == []
    with pytest.raises(InvalidRequestError, match="ttl"):
        keep(pins, "short", "soon")


def test_together_they_hold_half_of_the_cache_at_most() -> None:
    chat: Any = FakeChat(100)
    pins = Pins(chat)
    for text in ("a" * 20, "b" * 20, "a" * 20, "c" * 20):
        keep(pins, text)
    assert chat.held == ["a" * 20, "c" * 20]  # the one that was asked for longest ago makes room
    keep(pins, "d" * 60)
    assert chat.held == []
    server: Any = FakeChat(0)
    keep(Pins(server), "a" * 20)
    assert server.held == ["a" * 20]


def test_many_threads_compute_it_once() -> None:
    chat: Any = FakeChat(1000)
    pins = Pins(chat)
    threads = [threading.Thread(target=keep, args=(pins, "the same")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chat.pinned == ["the same"]

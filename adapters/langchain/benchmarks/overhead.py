"""What `ChatRadix` adds to the bare chat layer: per call and per streamed chunk.

    python overhead.py [rounds]

The engine is replaced by one that answers at once, so that all the time is that of the layers above. `floor` is a chat
model that does nothing at all: what LangChain itself takes for a call or a chunk. Times are of the processor, not of
the clock; the rounds of all of them take turns, and the median counts, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_radix import ChatRadix
from tokenizers import Tokenizer as Bpe
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radixbackend import GenerationRequest, GenerationResult, TokenEvent, Usage, hookimpl
from radixbackend.chat import ChatRequest, open_chat
from radixbackend.tokenizer import Tokenizer
from radixbackend.types import Choice, ImagePolicy

CHUNKS = 100
PROMPT = "When is breakfast, and what is there to eat?"


def tokenizer() -> Tokenizer:
    bpe = Bpe(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    inner = PreTrainedTokenizerFast(tokenizer_object=bpe)
    inner.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return Tokenizer(inner)


class Stream:
    """`CHUNKS` events, made beforehand."""

    def __init__(self) -> None:
        self._events = iter(EVENTS)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> TokenEvent:
        return next(self._events)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> TokenEvent:
        try:
            return next(self._events)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Instant:
    """A backend that has the answer already."""

    model_name = "instant"
    max_context = 4096
    weights_hash = ""
    images = ImagePolicy("it is a stand-in")
    tool_format = None
    reasoning_format = None

    def __init__(self) -> None:
        self.tokenizer = tokenizer()

    def generate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult:
        return RESULT

    async def agenerate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult:
        return RESULT

    def stream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> Stream:
        return Stream()

    def astream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> Stream:
        return Stream()

    def close(self) -> None:
        pass


USED = Usage(10, CHUNKS)
RESULT = GenerationResult((Choice(0, "word " * CHUNKS, tuple(range(CHUNKS)), "stop"),), USED, (0,) * 10)
EVENTS = [TokenEvent(0, (1,), "word ") for _ in range(CHUNKS - 1)]
EVENTS.append(TokenEvent(0, (1,), "word ", finish_reason="stop", usage=USED))


class Plugin:
    """Serves the instant backend to whoever asks for it by name."""

    @hookimpl
    def radix_create_backend(self, model: str) -> Instant | None:
        return Instant() if model == "instant" else None


class Floor(BaseChatModel):
    """Nothing but what LangChain does."""

    @property
    def _llm_type(self) -> str:
        return "floor"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("word"))])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for _ in range(CHUNKS):
            yield ChatGenerationChunk(message=AIMessageChunk("word "))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for _ in range(CHUNKS):
            yield ChatGenerationChunk(message=AIMessageChunk("word "))


def exhaust(stream: Any) -> None:
    for _ in stream:
        pass


def measure(ways: dict[str, Callable[[], Any]], rounds: int, repeat: int) -> dict[str, float]:
    """Microseconds of each, the median of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            for _ in range(repeat):
                way()
            times[name].append((time.process_time() - start) / repeat * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, found: dict[str, float], share: float = 1.0) -> None:
    bare, floor, radix = (found[name] / share for name in ("chat layer", "floor", "ChatRadix"))
    ours = radix - bare - floor
    print(
        f"{title:22} chat layer {bare:7.1f} µs   LangChain alone {floor:7.1f} µs   ChatRadix {radix:7.1f} µs   "
        f"{radix / bare:5.1f}x the chat layer, {radix / (bare + floor):4.2f}x both; its own share {ours:+7.1f} µs"
    )


def main(rounds: int) -> None:
    plugins = (Plugin(),)
    chat = open_chat("instant", plugins=plugins)
    model, floor = ChatRadix(model="instant", plugins=plugins, temperature=0), Floor()
    request = ChatRequest.of([{"role": "user", "content": PROMPT}])
    loop = asyncio.new_event_loop()

    def wait(make: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: loop.run_until_complete(make())

    async def aexhaust(stream: Any) -> None:
        async for _ in stream:
            pass

    report(
        "call",
        measure(
            {
                "chat layer": lambda: chat.complete(request),
                "floor": lambda: floor.invoke(PROMPT),
                "ChatRadix": lambda: model.invoke(PROMPT),
            },
            rounds,
            20,
        ),
    )
    report(
        "call, async",
        measure(
            {
                "chat layer": wait(lambda: chat.acomplete(request)),
                "floor": wait(lambda: floor.ainvoke(PROMPT)),
                "ChatRadix": wait(lambda: model.ainvoke(PROMPT)),
            },
            rounds,
            20,
        ),
    )
    report(
        "streamed chunk",
        measure(
            {
                "chat layer": lambda: exhaust(chat.stream(request)),
                "floor": lambda: exhaust(floor.stream(PROMPT)),
                "ChatRadix": lambda: exhaust(model.stream(PROMPT)),
            },
            rounds,
            2,
        ),
        CHUNKS,
    )
    report(
        "streamed chunk, async",
        measure(
            {
                "chat layer": wait(lambda: aexhaust(chat.astream(request))),
                "floor": wait(lambda: aexhaust(floor.astream(PROMPT))),
                "ChatRadix": wait(lambda: aexhaust(model.astream(PROMPT))),
            },
            rounds,
            2,
        ),
        CHUNKS,
    )
    loop.close()
    model.close()
    chat.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)

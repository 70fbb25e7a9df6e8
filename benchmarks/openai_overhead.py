"""What OpenAI's SDK in process costs over the engine itself: per call and per streamed token.

    python -m benchmarks.openai_overhead [--calls 200] [--tokens 200] [--rounds 5]

Twice: over an engine with a tiny model (a step takes a millisecond or so, and the client works beside it), and over a
backend whose answer is there already, so that all that is left is the client's own work: chat template, dispatch,
JSON, server-sent events, and the SDK with its types. Medians of the rounds, in microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from radixbackend import Engine, GenerationRequest, GenerationResult, SamplingParams, TokenEvent
from radixbackend.openai import AsyncOpenAI, OpenAI

ROOT = Path(__file__).resolve().parents[1]
MESSAGES: Any = [{"role": "user", "content": "When is breakfast, and where may I park my car?"}]


class Ready:
    """A backend that has its answer already; everything else is the engine's."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self._engine = engine
        self._sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        self._result: GenerationResult | None = None
        self._events: list[TokenEvent] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, prompt: GenerationRequest, **_: Any) -> GenerationResult:
        if self._result is None:
            self._result = self._engine.generate(prompt)
        return self._result

    async def agenerate(self, prompt: GenerationRequest, **_: Any) -> GenerationResult:
        return self.generate(prompt)

    def stream(self, prompt: GenerationRequest, **_: Any) -> Replay:
        if not self._events:
            self._events = list(self._engine.stream(prompt.prompt, self._sampling))  # type: ignore[arg-type]
        return Replay(iter(self._events))

    def astream(self, prompt: GenerationRequest, **_: Any) -> Replay:
        return self.stream(prompt)


class Replay:
    """Events, sync and async."""

    def __init__(self, events: Iterator[TokenEvent]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[TokenEvent]:
        return self._events

    def __next__(self) -> TokenEvent:
        return next(self._events)

    def __aiter__(self) -> Replay:
        return self

    async def __anext__(self) -> TokenEvent:
        for event in self._events:
            return event
        raise StopAsyncIteration

    def close(self) -> None: ...

    async def aclose(self) -> None: ...

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Replay:
        return self

    async def __aexit__(self, *_: object) -> None: ...


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(engine: Any, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per call of one token, and per token of a stream, by who is asked."""
    found: dict[str, list[float]] = {name: [] for name in ("call", "client", "async", "token", "streamed", "astreamed")}
    with OpenAI(backend=engine, names=["m"]) as client:
        prompt = tuple(_prompt(engine, client))
        for _ in range(options.rounds):
            _round(engine, client, prompt, options, found)
    return found


def _prompt(engine: Any, client: OpenAI) -> tuple[int, ...]:
    """The tokens that the client's messages become."""
    from radixbackend.chat.request import ChatRequest
    from radixbackend.chat.service import ChatService

    return ChatService(engine).tokenize(ChatRequest.of(MESSAGES))


def _round(
    engine: Any, client: OpenAI, prompt: tuple[int, ...], options: argparse.Namespace, found: dict[str, list[float]]
) -> None:
    calls, tokens = options.calls, options.tokens
    one = GenerationRequest(prompt, SamplingParams(max_tokens=1, temperature=0))
    long = GenerationRequest(prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))
    ask: Any = {"model": "m", "messages": MESSAGES, "temperature": 0}
    flow: Any = {**ask, "max_tokens": tokens, "stream": True, "extra_body": {"ignore_eos": True}}

    def direct() -> None:
        for _ in range(calls):
            engine.generate(one)

    def through() -> None:
        for _ in range(calls):
            client.chat.completions.create(max_tokens=1, **ask)

    async def through_async() -> tuple[float, float]:
        async with AsyncOpenAI(backend=engine, names=["m"]) as other:
            await other.chat.completions.create(max_tokens=1, **ask)
            started = time.perf_counter()
            for _ in range(calls):
                await other.chat.completions.create(max_tokens=1, **ask)
            between = time.perf_counter()
            async for _ in await other.chat.completions.create(**flow):
                pass
            return between - started, time.perf_counter() - between

    for warm in (direct, through):
        warm()
    found["call"].append(seconds(direct) / calls)
    found["client"].append(seconds(through) / calls)
    found["token"].append(seconds(lambda: [None for _ in engine.stream(long)]) / tokens)
    found["streamed"].append(seconds(lambda: [None for _ in client.chat.completions.create(**flow)]) / tokens)
    called, streamed = asyncio.run(through_async())
    found["async"].append(called / calls)
    found["astreamed"].append(streamed / tokens)


def main() -> None:
    logging.disable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    table = Table("µs", "engine", "OpenAI", "overhead", "AsyncOpenAI", "overhead")
    with tempfile.TemporaryDirectory() as folder:
        runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["make_checkpoint"](Path(folder))
        with Engine(folder, kv_cache_tokens=4096, self_check=False) as engine:
            for title, backend in (("tiny model", engine), ("answer ready", Ready(engine, options.tokens))):
                medians = {name: statistics.median(s) * 1e6 for name, s in measure(backend, options).items()}
                for what, base, sync, other in (
                    ("call", "call", "client", "async"),
                    ("streamed token", "token", "streamed", "astreamed"),
                ):
                    row = [medians[base], medians[sync], medians[sync] - medians[base]]
                    row += [medians[other], medians[other] - medians[base]]
                    table.add_row(f"{title}: {what}", *(f"{value:.0f}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    main()

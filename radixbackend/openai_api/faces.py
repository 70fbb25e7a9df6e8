"""How an endpoint waits for the engine: on an event loop, or blocking its thread.

Rules. Endpoints are written once, as coroutines and asynchronous generators over a `Face`. On an event loop they
are awaited as usual. With `BlockingFace` nothing in them ever suspends, so `run` and `Blocking` drive them to the
end from plain code, and no second copy and no hidden event loop is needed. A face knows nothing of HTTP or JSON.

A face has one timeout: how long its caller waits for an answer, or for the next piece of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from radixbackend.errors import RequestAbortedError, RequestTimeoutError
from radixbackend.types import (
    Choice,
    Embeddings,
    GenerationRequest,
    GenerationResult,
    Prompt,
    TokenEvent,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    from radixbackend.chat.request import ChatDelta, ChatRequest, ChatResult
    from radixbackend.openai_api.served import Served

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)


class WaitedTooLong(Exception):
    """The caller's timeout passed; the request is aborted."""


class Face(Protocol):
    """What endpoints ask of the engine, for one request.

    ``abort`` ends its stream while somebody else waits for the next event, who then gets an error; any thread may
    call it.
    """

    abort: Callable[[], None]

    async def chat(self, asked: ChatRequest) -> ChatResult: ...

    def chat_stream(self, asked: ChatRequest) -> AsyncGenerator[ChatDelta]: ...

    async def generate(self, asked: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Answer all of these, in one batch."""

    def stream(self, asked: Sequence[GenerationRequest]) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """The events of all of these as they come, each with the index of its request."""

    async def embed(self, texts: Sequence[Prompt], dimensions: int | None) -> Embeddings: ...

    async def call(self, function: Callable[[], T]) -> T:
        """Run something slow without holding up anybody else."""


class Closable(Protocol[Item]):
    """A stream whose ``aclose`` suspends nowhere."""

    def __aiter__(self) -> AsyncIterator[Item]: ...

    def __anext__(self) -> Awaitable[Item]: ...

    def aclose(self) -> Coroutine[Any, Any, None]: ...


def _nothing() -> None:
    """Nothing is open."""


def _closed() -> RequestAbortedError:
    return RequestAbortedError("the stream was closed while it was being read")


class LoopFace:
    """For an event loop. A cancelled task, or a closed stream, aborts what it waits for."""

    def __init__(self, served: Served, timeout: float | None = None) -> None:
        self.served = served
        self.timeout = timeout
        self.abort = _nothing

    async def chat(self, asked: ChatRequest) -> ChatResult:
        result: ChatResult = await self._patiently(self.served.chats.acomplete(asked))
        return result

    async def chat_stream(self, asked: ChatRequest) -> AsyncGenerator[ChatDelta]:
        async with self.served.chats.astream(asked) as deltas:
            async for delta in self._patient(deltas):
                yield delta

    async def generate(self, asked: Sequence[GenerationRequest]) -> list[GenerationResult]:
        if len(asked) == 1:
            return [await self._patiently(self.served.backend.agenerate(asked[0]))]
        results: list[GenerationResult] = await self._patiently(self._gather(asked))
        return results

    async def _gather(self, asked: Sequence[GenerationRequest]) -> list[GenerationResult]:
        async with contextlib.aclosing(self.stream(asked)) as events:
            return await collect(asked, events)

    async def embed(self, texts: Sequence[Prompt], dimensions: int | None) -> Embeddings:
        result: Embeddings = await self._patiently(self._embed(texts, dimensions))
        return result

    async def _embed(self, texts: Sequence[Prompt], dimensions: int | None) -> Embeddings:
        """One by one, so that a caller who leaves is not worked for any longer."""
        embed = self.served.backend.embed
        parts = [await asyncio.to_thread(embed, text, dimensions=dimensions) for text in texts]
        vectors = tuple(vector for part in parts for vector in part.vectors)
        return Embeddings(vectors, sum(part.prompt_tokens for part in parts))

    async def stream(self, asked: Sequence[GenerationRequest]) -> AsyncGenerator[tuple[int, TokenEvent]]:
        if len(asked) == 1:
            async with self.served.backend.astream(asked[0]) as events:
                async for event in self._patient(events):
                    yield 0, event
            return
        news: asyncio.Queue[tuple[int, TokenEvent | BaseException | None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(i, request, news)) for i, request in enumerate(asked)]
        loop = asyncio.get_running_loop()

        def abort() -> None:
            loop.call_soon_threadsafe(news.put_nowait, (0, _closed()))

        self.abort = abort
        try:
            left = len(tasks)
            while left:
                index, event = await self._patiently(news.get())
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    left -= 1
                else:
                    yield index, event
        finally:
            for task in tasks:
                task.cancel()

    async def call(self, function: Callable[[], T]) -> T:
        result: T = await self._patiently(asyncio.to_thread(function))
        return result

    async def _pump(
        self,
        index: int,
        asked: GenerationRequest,
        news: asyncio.Queue[tuple[int, TokenEvent | BaseException | None]],
    ) -> None:
        """Put a request's events into the queue, then None or what went wrong."""
        try:
            async with self.served.backend.astream(asked) as events:
                async for event in events:
                    news.put_nowait((index, event))
            news.put_nowait((index, None))
        except Exception as fault:
            news.put_nowait((index, fault))

    async def _patient(self, items: Closable[T]) -> AsyncGenerator[T]:
        aborted = False

        def abort() -> None:
            nonlocal aborted
            aborted = True
            run(items.aclose())

        self.abort = abort
        while (item := await self._patiently(anext(items, None))) is not None:
            yield item
        if aborted:  # which looks like an end
            raise _closed()

    async def _patiently(self, waiting: Any) -> Any:
        if self.timeout is None:
            return await waiting
        try:
            async with asyncio.timeout(self.timeout):
                return await waiting
        except TimeoutError:
            raise WaitedTooLong from None


class BlockingFace:
    """For a thread. Its coroutines block and never suspend."""

    def __init__(self, served: Served, timeout: float | None = None) -> None:
        self.served = served
        self.timeout = timeout
        self.abort = _nothing

    async def chat(self, asked: ChatRequest) -> ChatResult:
        with _timeouts():
            return self.served.chats.complete(asked, timeout=self.timeout)

    async def chat_stream(self, asked: ChatRequest) -> AsyncGenerator[ChatDelta]:
        with self.served.chats.stream(asked) as deltas, Interruptible(deltas.close, self.timeout) as reading:
            self.abort = reading.abort
            while (delta := reading.next(deltas)) is not None:
                yield delta

    async def generate(self, asked: Sequence[GenerationRequest]) -> list[GenerationResult]:
        if len(asked) == 1:
            with _timeouts():
                return [self.served.backend.generate(asked[0], timeout=self.timeout)]
        async with contextlib.aclosing(self._events(asked, whole=True)) as events:
            return await collect(asked, events)

    async def embed(self, texts: Sequence[Prompt], dimensions: int | None) -> Embeddings:
        with _timeouts():
            return self.served.backend.embed(texts, dimensions=dimensions, timeout=self.timeout)

    def stream(self, asked: Sequence[GenerationRequest]) -> AsyncGenerator[tuple[int, TokenEvent]]:
        return self._events(asked, whole=False)

    async def _events(
        self, asked: Sequence[GenerationRequest], *, whole: bool
    ) -> AsyncGenerator[tuple[int, TokenEvent]]:
        with contextlib.ExitStack() as stack, Interruptible(stack.close, self.timeout, whole=whole) as reading:
            # Opened before any is read, so that they run in one batch, which serves them at one pace.
            self.abort = reading.abort
            live = {i: stack.enter_context(self.served.backend.stream(request)) for i, request in enumerate(asked)}
            while live:
                for index, events in list(live.items()):
                    if (event := reading.next(events)) is None:
                        del live[index]
                    else:
                        yield index, event

    async def call(self, function: Callable[[], T]) -> T:
        return function()


class Interruptible:
    """A stream being read that others may close: whoever aborts it, and a timeout while its reader waits.

    ``close`` must be safe to call from any thread. The timeout's thread sleeps, and there is none without one.
    ``whole``: the timeout is for all of the stream, not for each item.
    """

    def __init__(self, close: Callable[[], None], seconds: float | None, *, whole: bool = False) -> None:
        self._close = close
        self._seconds = seconds
        self._whole = whole
        self._waiting: float | None = None  # since when
        self._over = threading.Event()
        self._reason: Exception | None = None

    def __enter__(self) -> Self:
        if self._whole:
            self._waiting = time.monotonic()
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), name="radix-timeout", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def next(self, items: Iterator[T]) -> T | None:
        """The next item, None at the end; raises why it was closed, which may look like an end, too."""
        if not self._whole:
            self._waiting = time.monotonic()
        try:
            item = next(items, None)
        except Exception:
            if self._reason is None:
                raise
        finally:
            if not self._whole:
                self._waiting = None
        if self._reason is not None:
            raise self._reason
        return item

    def abort(self) -> None:
        self._interrupt(_closed())

    def _interrupt(self, reason: Exception) -> None:
        self._reason = reason
        self._close()

    def _watch(self, seconds: float) -> None:
        left = seconds
        while not self._over.wait(left):
            waiting = self._waiting
            left = seconds if waiting is None else waiting + seconds - time.monotonic()
            if left <= 0:
                self._interrupt(WaitedTooLong())
                return


@contextlib.contextmanager
def _timeouts() -> Iterator[None]:
    try:
        yield
    except RequestTimeoutError:
        raise WaitedTooLong from None


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a `BlockingFace`."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("an endpoint over a blocking face suspended")


class Blocking(Iterator[T]):
    """The items of an asynchronous generator over a `BlockingFace`. `close`, or dropping it, ends the generator."""

    def __init__(self, items: AsyncGenerator[T]) -> None:
        self._items = items

    def __next__(self) -> T:
        try:
            return run(anext(self._items))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Safe to call twice."""
        run(self._items.aclose())

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is running: whoever drives it will end it
            self.close()


async def collect(
    asked: Sequence[GenerationRequest], events: AsyncIterator[tuple[int, TokenEvent]]
) -> list[GenerationResult]:
    """The results that streams of events add up to."""
    seen: list[list[TokenEvent]] = [[] for _ in asked]
    async for index, event in events:
        seen[index].append(event)
    return [_result(request, own) for request, own in zip(asked, seen, strict=True)]


def _result(asked: GenerationRequest, events: Sequence[TokenEvent]) -> GenerationResult:
    last = {event.index: event for event in events if event.finish_reason is not None}
    usages = [last[index].usage or Usage() for index in sorted(last)]
    return GenerationResult(
        choices=tuple(_choice(last[index], [e for e in events if e.index == index], asked) for index in sorted(last)),
        usage=replace(
            usages[0],
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            forced_tokens=sum(usage.forced_tokens for usage in usages),
        ),
        prompt_token_ids=() if isinstance(asked.prompt, str) else asked.prompt,
        prompt_logprobs=next((e.prompt_logprobs for e in events if e.prompt_logprobs is not None), None),
    )


def _choice(last: TokenEvent, events: Sequence[TokenEvent], asked: GenerationRequest) -> Choice:
    assert last.finish_reason is not None
    logprobs: list[TokenLogprob] = [entry for event in events for entry in event.logprobs]
    return Choice(
        index=last.index,
        text="".join(event.text for event in events),
        token_ids=tuple(token for event in events for token in event.token_ids),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        complete=last.complete,
        logprobs=None if asked.sampling.logprobs is None else tuple(logprobs),
    )

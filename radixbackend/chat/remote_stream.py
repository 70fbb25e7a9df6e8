"""Streams of an answer that comes from a server, for threads and for event loops.

Rules. Both read the same `Answer`, which does no I/O. Whatever ends a stream early hangs up, whereupon the server
aborts what is unfinished: an error, `close`, leaving the ``with`` block, dropping the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from radixbackend.chat.connection import close_soon
from radixbackend.chat.request import ChatDelta
from radixbackend.chat.wire import DeltaReader
from radixbackend.errors import RequestTimeoutError

if TYPE_CHECKING:
    from radixbackend.chat.sdk import openai


class Answer:
    """What has been read of a stream and not yet been handed out. No I/O."""

    def __init__(self, reader: DeltaReader, timeout: float | None) -> None:
        self._reader = reader
        self._ready: deque[ChatDelta] = deque()
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def next(self) -> ChatDelta | None:
        """None is: read on. Raises `RequestTimeoutError` when it is too late for that."""
        if self._ready:
            return self._ready.popleft()
        if self._end is not None and time.monotonic() > self._end:
            raise RequestTimeoutError(f"the request did not finish within {self._timeout:g} s and was aborted")
        return None

    def take(self, chunk: object) -> None:
        self._ready += self._reader.read(chunk)

    def finish(self) -> None:
        self._ready.append(self._reader.end())


_OVER = object()


class RemoteStream(Iterator[ChatDelta]):
    """Deltas of one request, for one thread at a time; a context manager, too.

    Iterating raises the error that ended the request. `close`, leaving the ``with`` block or dropping the stream hangs
    up, whereupon the server aborts what is unfinished.
    """

    def __init__(
        self,
        events: openai.Stream[object],
        answer: Answer,
        mapped: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._events: openai.Stream[object] | None = events
        self._answer = answer
        self._mapped = mapped

    def __next__(self) -> ChatDelta:
        try:
            while (delta := self._answer.next()) is None:
                if self._events is None:
                    raise StopIteration
                self._read(self._events)
        except BaseException:
            self.close()
            raise
        return delta

    def _read(self, events: openai.Stream[object]) -> None:
        with self._mapped():
            chunk = next(events, _OVER)
        if chunk is _OVER:
            self.close()
            self._answer.finish()
        else:
            self._answer.take(chunk)

    def close(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        events, self._events = self._events, None
        if events is not None:
            events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncRemoteStream(AsyncIterator[ChatDelta]):
    """Deltas of one request, for one task at a time; an async context manager, too.

    A cancelled task, `aclose`, leaving the ``async with`` block or dropping the stream hangs up, whereupon the server
    aborts what is unfinished.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[openai.AsyncStream[object]]],
        answer: Answer,
        mapped: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._start: Callable[[], Awaitable[openai.AsyncStream[object]]] | None = start
        self._events: openai.AsyncStream[object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer = answer
        self._mapped = mapped

    async def __anext__(self) -> ChatDelta:
        try:
            if self._start is not None:
                start, self._start = self._start, None
                self._loop = asyncio.get_running_loop()
                with self._mapped():
                    self._events = await start()
            while (delta := self._answer.next()) is None:
                if self._events is None:
                    raise StopAsyncIteration
                await self._read(self._events)
        except BaseException:
            await self.aclose()
            raise
        return delta

    async def _read(self, events: openai.AsyncStream[object]) -> None:
        with self._mapped():
            chunk = await anext(events, _OVER)
        if chunk is _OVER:
            await self.aclose()
            self._answer.finish()
        else:
            self._answer.take(chunk)

    async def aclose(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        self._start = None
        events, self._events = self._events, None
        if events is not None:
            await events.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._events is not None and self._loop is not None:
            _hang_up(self._events.response)
            close_soon(self._loop, self._events.close)


def _hang_up(response: Any) -> None:
    """Tell the other side at once, even if the event loop is about to end and closes nothing any more."""
    network = response.extensions.get("network_stream")
    if network is not None and (connection := network.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)

"""Streams of events, for a thread and for an event loop. Dropping one aborts its request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from radixbackend.engine.answer import Reader
from radixbackend.engine.channel import AsyncChannel, Channel, Deadline
from radixbackend.engine.intake import Intake
from radixbackend.types import TokenEvent

if TYPE_CHECKING:
    from radixbackend.engine.request import Update


class TokenStream(Iterator[TokenEvent]):
    """Events of one request, for one thread at a time; a context manager, too.

    Iterating raises the error that ended the request. `close`, leaving the ``with`` block or dropping the stream
    aborts what is unfinished, within a token.
    """

    def __init__(
        self, intake: Intake, channel: Channel[Update], deadline: Deadline, abandon: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._reader = Reader(intake)
        self._deadline = deadline
        self._abandon = abandon
        self._closed = False

    def __next__(self) -> TokenEvent:
        if self._closed or self._reader.done:
            raise StopIteration
        try:
            return self._reader.read(self._channel.get(self._deadline))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncTokenStream(AsyncIterator[TokenEvent]):
    """Events of one request, for one task at a time; an async context manager, too.

    The request is checked and queued when the first event is awaited. A cancelled task, `aclose`, leaving the
    ``async with`` block or dropping the stream aborts what is unfinished, within a token.
    """

    def __init__(
        self,
        open_channel: Callable[[], AsyncChannel[Update]],
        start: Callable[[Callable[[Update], None]], Awaitable[Intake]],
        timeout: float | None,
        abandon: Callable[[Intake], None],
    ) -> None:
        self._open_channel = open_channel
        self._start = start
        self._deadline = Deadline(timeout)
        self._abandon = abandon
        self._channel: AsyncChannel[Update] | None = None
        self._intake: Intake | None = None
        self._reader: Reader | None = None
        self._closed = False

    async def __anext__(self) -> TokenEvent:
        if self._closed or (self._reader is not None and self._reader.done):
            raise StopAsyncIteration
        try:
            if self._reader is None or self._channel is None:
                self._channel = self._open_channel()
                self._intake = await self._start(self._channel.put)
                self._reader = Reader(self._intake)
            return self._reader.read(await self._channel.get(self._deadline))
        except BaseException:
            self._close()
            raise

    async def aclose(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._intake is not None:
                self._abandon(self._intake)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

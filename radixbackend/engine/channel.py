"""How a caller waits for what the engine's thread has to say: one channel per request, blocking or on an event loop.

Rules. ``put`` is called by the engine's thread and never blocks; ``get`` by the one caller. A channel belongs to one
request, so any number of threads and event loops can wait at once. It does not look at what it carries.
"""

from __future__ import annotations

import asyncio
import queue
import time

from radixbackend.engine.request import ConsumerGone, Update
from radixbackend.errors import RequestTimeoutError


class Deadline:
    """The moment by which a request must be done; None is never."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, at least 0."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def passed(self) -> RequestTimeoutError:
        return RequestTimeoutError(f"the request did not finish within {self._seconds:g} s and was aborted")


class Channel:
    """For a thread that blocks."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self.put = self._queue.put

    def get(self, deadline: Deadline) -> Update:
        """The next update; raises `RequestTimeoutError` past the deadline."""
        try:
            return self._queue.get(timeout=deadline.left())
        except queue.Empty:
            raise deadline.passed() from None


class AsyncChannel:
    """For a task of the event loop that is running at construction."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Update] = asyncio.Queue()

    def put(self, update: Update) -> None:
        """Raises `ConsumerGone` once the event loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, update)
        except RuntimeError:
            raise ConsumerGone from None

    async def get(self, deadline: Deadline) -> Update:
        """The next update; raises `RequestTimeoutError` past the deadline."""
        left = deadline.left()
        if left is None:
            return await self._queue.get()
        try:
            return await asyncio.wait_for(self._queue.get(), left)
        except TimeoutError:
            raise deadline.passed() from None

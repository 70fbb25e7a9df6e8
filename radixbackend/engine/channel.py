"""How a caller waits for what the engine's thread has to say: one channel per request, blocking or on an event loop.

Rules. ``put`` is called by the engine's thread and never blocks; ``get`` by the one caller. A channel belongs to one
request, so any number of threads and event loops can wait at once. It does not look at what it carries. A thread that
wakes up takes the interpreter's lock, and often a core, from the engine's: so nobody is woken more often than they need
to be, and there is little to run when they are.
"""

from __future__ import annotations

import asyncio
import queue
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from radixbackend.engine.request import ConsumerGone, Update
from radixbackend.errors import RequestTimeoutError

T = TypeVar("T")


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


class AtOnce:
    """Keeps a request's updates back until its last one: who reads nothing but the result is woken once, for all."""

    def __init__(self, put: Callable[[list[Update]], None]) -> None:
        self._put = put
        self._kept: list[Update] = []

    def put(self, update: Update) -> None:
        self._kept.append(update)
        if update.last:
            self._put(self._kept)


class Channel(Generic[T]):
    """For a thread that blocks."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()
        self.put = self._queue.put

    def get(self, deadline: Deadline) -> T:
        """What was put in next; raises `RequestTimeoutError` past the deadline."""
        try:
            return self._queue.get(timeout=deadline.left())
        except queue.Empty:
            raise deadline.passed() from None


class AsyncChannel(Generic[T]):
    """For a task of the event loop that its mailbox is of.

    What is put in can be got at once; the mailbox only wakes a task that waits for it.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._items: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """Raises `ConsumerGone` once the event loop is closed."""
        self._items.append(item)
        self._mailbox.ring(self)

    async def get(self, deadline: Deadline) -> T:
        """What was put in next; raises `RequestTimeoutError` past the deadline."""
        if not self._items:
            await self._arrival(deadline)
        return self._items.popleft()

    async def _arrival(self, deadline: Deadline) -> None:
        waiter, left = self._mailbox.future(), deadline.left()
        timer = None if left is None else waiter.get_loop().call_later(left, _wake, waiter)
        self._waiter = waiter
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        if not self._items:
            raise deadline.passed()

    def arrived(self) -> None:
        """On the event loop, some time after each `put`."""
        if self._waiter is not None and self._items:
            _wake(self._waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Mailbox:
    """Tells the tasks of one event loop that something came; what a step says to all of them takes one wake-up.

    Waking a loop costs system calls on both sides and a few turns of the interpreter's lock, which the engine's thread
    wants back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._rung: deque[AsyncChannel[Any]] = deque()
        self._called = False

    def ring(self, channel: AsyncChannel[Any]) -> None:
        """From any thread; raises `ConsumerGone` once the event loop is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            self._rung.clear()
            raise ConsumerGone
        self._rung.append(channel)
        if not self._called:
            self._called = True
            try:
                loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # closed in between
                raise ConsumerGone from None

    def future(self) -> asyncio.Future[None]:
        """To be awaited on the event loop."""
        loop = self._loop()
        assert loop is not None, "it is running"
        return loop.create_future()

    def _tell(self) -> None:
        self._called = False  # first: who rings from here on calls again
        while self._rung:
            self._rung.popleft().arrived()


class Mailboxes:
    """The mailbox of each event loop that an engine speaks to."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()

    def channel(self) -> AsyncChannel[Any]:
        """One for a task of the event loop that is running."""
        loop = asyncio.get_running_loop()
        mailbox = self._of.get(loop)
        if mailbox is None:
            mailbox = self._of[loop] = Mailbox(loop)
        return AsyncChannel(mailbox)

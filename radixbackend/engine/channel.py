"""How a caller waits for what the engine's thread has to say: one channel per request, blocking or on an event loop.

Rules. ``put`` is called by the engine's thread and never blocks; ``get`` by the one caller. A channel belongs to one
request, so any number of threads and event loops can wait at once. It does not look at what it carries.
"""

from __future__ import annotations

import asyncio
import queue
import time
import weakref
from collections import deque
from collections.abc import Callable

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


class AtOnce:
    """Keeps a request's updates back until its last one: who reads nothing but the result is woken once."""

    def __init__(self, put: Callable[[Update], None]) -> None:
        self._put = put
        self._kept: list[Update] = []

    def put(self, update: Update) -> None:
        self._kept.append(update)
        if update.last:
            for kept in self._kept:
                self._put(kept)


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


class Mailbox:
    """Carries updates onto one event loop; whatever a step says to its tasks takes one wake-up, not one for each.

    Waking a loop costs a system call and a turn of the interpreter's lock, which the engine's thread wants back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._post: deque[tuple[asyncio.Queue[Update], Update]] = deque()
        self._called = False

    def send(self, queue: asyncio.Queue[Update], update: Update) -> None:
        """From any thread; raises `ConsumerGone` once the event loop is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            self._post.clear()
            raise ConsumerGone
        self._post.append((queue, update))
        if not self._called:
            self._called = True
            try:
                loop.call_soon_threadsafe(self._hand_out)
            except RuntimeError:  # closed in between
                raise ConsumerGone from None

    def _hand_out(self) -> None:
        self._called = False  # first: what is posted from here on calls again
        while self._post:
            queue, update = self._post.popleft()
            queue.put_nowait(update)


class Mailboxes:
    """The mailbox of each event loop that an engine speaks to."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()

    def channel(self) -> AsyncChannel:
        """One for a task of the event loop that is running."""
        loop = asyncio.get_running_loop()
        mailbox = self._of.get(loop)
        if mailbox is None:
            mailbox = self._of[loop] = Mailbox(loop)
        return AsyncChannel(mailbox)


class AsyncChannel:
    """For a task of the event loop that its mailbox is of."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._queue: asyncio.Queue[Update] = asyncio.Queue()

    def put(self, update: Update) -> None:
        """Raises `ConsumerGone` once the event loop is closed."""
        self._mailbox.send(self._queue, update)

    async def get(self, deadline: Deadline) -> Update:
        """The next update; raises `RequestTimeoutError` past the deadline."""
        left = deadline.left()
        if left is None:
            return await self._queue.get()
        try:
            return await asyncio.wait_for(self._queue.get(), left)
        except TimeoutError:
            raise deadline.passed() from None

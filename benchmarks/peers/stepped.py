"""A `Peer` out of an engine that has to be stepped.

Rules. Standard library alone. Steps run on the event loop, between its turns, and not on a thread: an engine that holds
Python's lock for a whole step would keep the loop from running anyway, but at moments of its own choice, so that clocks
would start late and tokens be seen a step after they were there. Between two steps everyone has their turn: takes what
came, looks at the clock and asks for more.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple, Protocol

from benchmarks.peers.drive import Ask

TURNS = 8
"""Turns of the loop between two steps: more than it takes from a token to the request that follows the answer."""


class News(NamedTuple):
    """What a step brought one request."""

    request: int
    tokens: list[int]
    ended: bool


class Steps(Protocol):
    """An engine that computes while it is stepped."""

    def add(self, request: int, ask: Ask) -> None:
        """Queue a request, under a number of the caller's."""

    def step(self) -> Iterable[News]:
        """Compute something for what is queued; called for as long as some request has not ended."""


class Stepped:
    """See `Peer.stream`."""

    def __init__(self, engine: Steps) -> None:
        self._engine = engine
        self._ids = itertools.count()
        self._open: dict[int, asyncio.Queue[list[int] | Exception | None]] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def stream(self, ask: Ask) -> AsyncIterator[list[int]]:
        """The new token ids as they come; raises what a step raised."""
        request = next(self._ids)
        self._engine.add(request, ask)
        came = self._open[request] = asyncio.Queue()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step())
        while (said := await came.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said

    async def _step(self) -> None:
        while self._open:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            try:
                for news in self._engine.step():
                    if news.tokens:
                        self._open[news.request].put_nowait(news.tokens)
                    if news.ended:
                        self._open.pop(news.request).put_nowait(None)
            except Exception as fault:
                for came in self._open.values():
                    came.put_nowait(fault)
                self._open.clear()

"""Prefixes that prompt-cache hints ask to keep.

Rules. A pin is a hint: one that cannot be had costs its request nothing but the reason why. Whoever asks for a prefix
that is just being pinned waits for it, so a wave of threads computes it once. Pins hold memory: there are at most
`MOST` of them in at most `SHARE` of the cache, and those asked for longest ago go first. Safe to use from many threads.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from radixbackend.chat import Chat, ChatRequest
from radixbackend.chat.face import Pinned
from radixbackend.errors import CacheExhaustedError, InvalidRequestError, UnsupportedByServerError

MOST = 16
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a hint: the pin, or why there is none."""

    pin: Pinned | None = None
    why_not: str = ""

    @property
    def tokens(self) -> int:
        return 0 if self.pin is None else self.pin.usage.prompt_tokens

    def release(self) -> None:
        if self.pin is not None:
            self.pin.release()


@dataclass(frozen=True, slots=True)
class _Entry:
    prefix: ChatRequest
    kept: Future[Kept]

    @property
    def outcome(self) -> Kept | None:
        """None while it is being pinned, and where that failed."""
        return self.kept.result() if self.kept.done() and self.kept.exception() is None else None


class Pins:
    """The pins of one chat, by name: the hint's key, or else the prefix itself."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}  # asked for longest ago first

    def keep(self, prefix: ChatRequest, key: str | None = None) -> Kept:
        """Pin the prefix, unless it is pinned already; blocks while it is computed.

        A key stands for one prefix at a time: the one pinned under it before, a shorter history perhaps, is let go.
        """
        name = key or repr(prefix)
        mine = _Entry(prefix, Future())
        with self._lock:
            before = self._entries.pop(name, None)
            known = before is not None and before.prefix == prefix
            entry = self._entries[name] = before if before is not None and known else mine
        if entry is mine:
            self._pin(name, mine)
            if before is not None and before.outcome is not None:
                before.outcome.release()
            self._trim()
        return entry.kept.result()

    def release(self) -> None:
        """Let go of all of them."""
        with self._lock:
            entries, self._entries = self._entries, {}
        for entry in entries.values():
            if entry.outcome is not None:
                entry.outcome.release()

    def _pin(self, name: str, entry: _Entry) -> None:
        """Always resolves the entry, for others wait for it."""
        try:
            entry.kept.set_result(Kept(self._chat.pin(entry.prefix)))
        except (InvalidRequestError, CacheExhaustedError) as fault:  # no template for it, or no room
            entry.kept.set_result(Kept(why_not=str(fault)))
        except BaseException as fault:
            with self._lock:
                if self._entries.get(name) is entry:
                    del self._entries[name]
            entry.kept.set_exception(fault)
            raise

    def _trim(self) -> None:
        try:
            room = SHARE * self._chat.stats().slots_total
        except UnsupportedByServerError:
            room = math.inf  # a server's pins hold nothing
        released = []
        with self._lock:
            settled = [(name, kept) for name, entry in self._entries.items() if (kept := entry.outcome) is not None]
            held = sum(kept.tokens for _, kept in settled)
            for name, kept in settled[:-1]:
                if len(self._entries) <= MOST and held <= room:
                    break
                held -= kept.tokens
                released.append(kept)
                del self._entries[name]
        for kept in released:
            kept.release()

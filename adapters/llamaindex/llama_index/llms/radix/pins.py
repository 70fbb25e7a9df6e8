"""Prefixes that the cache keeps, because a message has a `CachePoint`.

Rules. A prefix is computed when its point is first seen and kept until nobody has asked for it during the point's
``ttl``, or until it has to make room: kept prefixes together hold at most half of the cache, for a request that finds
no room at all would fail. Whoever comes while a prefix is computed waits for it. Looked after whenever a point is
seen, without a thread of its own. Safe to use from many threads.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.radix.messages import cache_points, to_chat

from radixbackend.chat import Chat, ChatRequest
from radixbackend.errors import InvalidRequestError, UnsupportedByServerError

SHARE = 0.5
"""Of the cache's slots, how many may be kept."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(slots=True)
class _Kept:
    release: Callable[[], None]
    tokens: int
    until: float = 0.0


class Pins:
    """The prefixes kept for one `Chat`."""

    def __init__(self, chat: Chat, clock: Callable[[], float] = time.monotonic) -> None:
        self._chat = chat
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def keep(self, messages: Sequence[ChatMessage], request: ChatRequest) -> None:
        """Have what comes before the points of ``messages`` computed and kept; blocks until it is."""
        for prefix, point in cache_points(messages):
            seconds = _seconds(point.cache_control.ttl)
            with self._lock:
                self._keep(replace(request, messages=to_chat(prefix)), seconds)

    def close(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            while self._kept:
                self._kept.popitem()[1].release()

    def _keep(self, prefix: ChatRequest, seconds: float) -> None:
        now = self._clock()
        for key in [key for key, kept in self._kept.items() if kept.until <= now]:
            self._kept.pop(key).release()
        key = repr((prefix.messages, prefix.tools, prefix.chat_template_kwargs, prefix.cache_salt))
        known = self._kept.pop(key, None)
        kept = known or self._pin(prefix)
        kept.until = self._clock() + seconds
        self._kept[key] = kept  # the last to make room
        if known is None:
            self._make_room()

    def _pin(self, prefix: ChatRequest) -> _Kept:
        pin = self._chat.pin(prefix)
        return _Kept(pin.release, pin.usage.prompt_tokens)

    def _make_room(self) -> None:
        try:
            room = SHARE * self._chat.stats().slots_total
        except UnsupportedByServerError:
            return  # a server keeps nothing for us
        while sum(kept.tokens for kept in self._kept.values()) > room:
            self._kept.pop(next(iter(self._kept))).release()


def _seconds(ttl: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", ttl)
    if found is None:
        raise InvalidRequestError(f"a cache point's ttl is like 30s, 5m or 1h, not {ttl!r}", param="messages")
    return float(found[1]) * _UNITS[found[2]]

"""What an instance holds of engines: one open chat for each model that it was asked for.

Rules. Whoever opens the same model with the same options shares one engine. Closing, or dropping the last reference,
gives the shares back. Copies and pickles carry the options alone and open shares of their own when they are first
used. Safe to use from many threads and event loops.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import SecretStr

from langchain_radix.errors import translated
from radixbackend.chat import Chat, open_chat
from radixbackend.errors import EngineClosedError


class Settings(Protocol):
    """What the adapter's classes have in common."""

    engine_options: dict[str, Any]
    plugins: Sequence[Any]
    openai_api_base: str | None
    openai_api_key: SecretStr | None
    max_retries: int | None
    default_headers: Mapping[str, str] | None
    http_client: Any
    http_async_client: Any


@dataclass(frozen=True)
class Source:
    """What `open_chat` is given besides the name of a model."""

    base_url: str | None = None
    api_key: SecretStr | None = None
    plugins: tuple[object, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Source:
        if settings.openai_api_base is None:
            return cls(plugins=tuple(settings.plugins), options=settings.engine_options)
        remote = {
            "max_retries": settings.max_retries,
            "headers": settings.default_headers,
            "http_client": settings.http_client,
            "http_async_client": settings.http_async_client,
        }
        options = {name: value for name, value in remote.items() if value is not None}
        return cls(settings.openai_api_base, settings.openai_api_key, options=options)

    def open(self, model: str) -> Chat:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return open_chat(model, base_url=self.base_url, api_key=key, plugins=self.plugins, **self.options)


class Shares:
    """Open chats by name of the model."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._open: dict[str, Chat] = {}
        self._closed = False
        weakref.finalize(self, _close, self._open).atexit = False

    def chat(self, model: str) -> Chat:
        """The chat with this model, opened if it is not yet; blocks while it loads.

        Raises:
            RadixClosedError: after `close`.
            ConfigError, ModelError, PluginError: nothing is kept.
        """
        if (chat := self._open.get(model)) is not None:
            return chat
        with translated, self._lock:
            if self._closed:
                raise EngineClosedError("this model was closed; make a new one")
            if model not in self._open:
                self._open[model] = self._source.open(model)
            return self._open[model]

    async def achat(self, model: str) -> Chat:
        """The same, without blocking the event loop."""
        if (chat := self._open.get(model)) is not None:
            return chat
        return await asyncio.to_thread(self.chat, model)

    def close(self) -> None:
        """Safe to call twice."""
        with self._lock:
            self._closed = True
            _close(self._open)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shares) and self._source == other._source

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Shares], tuple[Source]]:
        return Shares, (self._source,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shares:
        return Shares(self._source)  # not a copy of the plugins: only the same objects share an engine


def _close(chats: dict[str, Chat]) -> None:
    while chats:
        chats.popitem()[1].close()

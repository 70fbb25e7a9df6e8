"""The engine pair under `RadixLM`: one `radixbackend.chat.Chat`, as DSPy 3.4's engine contract wants it.

Rules. One attempt each: retries, candidates, history and DSPy's response cache are DSPy's. Sync and async differ in
how they wait and in nothing else. The pair has one share of the model's engine, given back by `close` or when the
last LM that uses it is gone; copies of an LM, deep ones too, use the same pair.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from dspy import lm15

from dspy_radix import convert
from dspy_radix.errors import translated
from dspy_radix.pins import Pins
from radixbackend import EngineStats
from radixbackend.chat import Chat, ChatRequest, open_chat
from radixbackend.types import Usage

PARAMS = frozenset(
    (
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "stream"),
        *("response_format", "tools", "tool_choice", "parallel_tool_calls", "metadata", "prompt_cache_key"),
    )
)
HASH_DIGITS = 12


class RadixEngine:
    """DSPy's sync engine over a model in this process, or behind an OpenAI-compatible server.

    Args:
        model: what `radixbackend.Engine` takes, or the name that the server knows the model by.
        base_url, api_key: of a server; without ``base_url`` the model runs in this process.
        timeout: seconds that one request may take.
        plugins: objects with hook implementations, for this engine alone.
        options: fields of `radixbackend.EngineConfig`; or with ``base_url`` what `radixbackend.chat.open_chat` takes.

    Raises:
        ConfigError, ModelError, PluginError: of `radixbackend`; nothing is kept.
    """

    supports_function_calling = True
    supports_response_schema = True

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        plugins: Sequence[object] = (),
        **options: Any,
    ) -> None:
        self.timeout = timeout
        self._opened: dict[str, Any] = {"model": os.fspath(model)}
        if base_url is None:
            self._opened |= options
            self.chat: Chat = open_chat(model, plugins=plugins, **options)
        else:
            self._opened["base_url"] = _without_credentials(base_url)
            options.setdefault("max_retries", 0)  # trying again is DSPy's
            self.chat = open_chat(model, base_url=base_url, api_key=api_key, plugins=plugins, **options)
        self._plugins = plugins
        self._pins = Pins(self.chat)
        self._finalizer = weakref.finalize(self, _give_back, self.chat, self._pins)
        # The model as DSPy's response cache knows it: what answers must be part of the key.
        whose = self.chat.weights_hash[:HASH_DIGITS] if self.chat.weights_hash else _place(base_url or "")
        name = self.chat.model_name
        self.model = f"radix/{Path(name).name if Path(name).is_dir() else name}@{whose}"

    @property
    def supports_reasoning(self) -> bool:
        return self.chat.reasons

    @property
    def supported_params(self) -> frozenset[str]:
        return PARAMS | {"reasoning_effort"} if self.chat.reasons else PARAMS

    def complete(self, request: lm15.Request) -> lm15.Response:
        with translated():
            asked, adapted = self.prepare(request)
            result = self.chat.complete(asked, timeout=self.timeout)
            return convert.to_response(result, request, self.chat.token_bytes, adapted)

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        with translated():
            asked, adapted = self.prepare(request)
            with self.chat.stream(asked, timeout=self.timeout) as deltas:
                yield convert.start(request, adapted)
                for delta in deltas:
                    yield from convert.to_events(delta, self.chat.token_bytes)

    def prepare(self, request: lm15.Request) -> tuple[ChatRequest, tuple[lm15.Adaptation, ...]]:
        """The request in the chat layer's terms, its cache hint followed; blocks while a prefix is being pinned."""
        asked, adapted = convert.to_chat(request), convert.adaptations(request.config)
        prefix = convert.marked_prefix(request, asked)
        if prefix is not None:
            kept = self._pins.keep(prefix, request.config.cache.key)
            if kept.pin is None:
                adapted += (lm15.Adaptation("config.cache", "dropped", kept.why_not, asked=str(request.config.cache)),)
        return asked, adapted

    def warm(self, request: lm15.Request) -> Usage:
        """Compute the request's prompt into the cache; nothing is generated."""
        with translated():
            return self.chat.warm(convert.to_chat(request))

    def stats(self) -> EngineStats:
        return self.chat.stats()

    def flush_cache(self) -> int:
        """Drop what is cached and neither in use nor pinned; returns how many tokens that were."""
        return self.chat.flush_cache()

    def close(self) -> None:
        """Release the pins and give the share back. Safe to call twice."""
        self._finalizer()

    # -- copies, on disk and in memory ----------------------------------------------------------------------------

    def dump_state(self) -> dict[str, Any]:
        """How to open it again; of a server, where it is: keys, headers and clients are for the loader to give.

        Raises:
            TypeError: there are plugins, which are objects of this process.
        """
        if self._plugins:
            raise TypeError("an engine with plugins= cannot be saved; set the LM again after loading the program")
        return {**self._opened, "timeout": self.timeout}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> Self:
        """An engine over the same model: a share of the one that is open, if there is one."""
        return cls(**state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).load_state, (self.dump_state(),)


class AsyncRadixEngine:
    """DSPy's async engine: the same chat, without blocking an event loop."""

    def __init__(self, engine: RadixEngine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        engine = self.engine
        with translated():
            asked, adapted = await self._prepare(request)
            result = await engine.chat.acomplete(asked, timeout=engine.timeout)
            return convert.to_response(result, request, engine.chat.token_bytes, adapted)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        engine = self.engine
        with translated():
            asked, adapted = await self._prepare(request)
            async with engine.chat.astream(asked, timeout=engine.timeout) as deltas:
                yield convert.start(request, adapted)
                async for delta in deltas:
                    for event in convert.to_events(delta, engine.chat.token_bytes):
                        yield event

    async def _prepare(self, request: lm15.Request) -> tuple[ChatRequest, tuple[lm15.Adaptation, ...]]:
        if request.config.cache is not None:  # pinning waits
            return await asyncio.to_thread(self.engine.prepare, request)
        return self.engine.prepare(request)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.engine.close)

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(RadixEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.engine,)


def _give_back(chat: Chat, pins: Pins) -> None:
    pins.release()
    chat.close()


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _place(url: str) -> str:
    """Where a server is."""
    parts = urlsplit(_without_credentials(url))
    return parts.netloc + parts.path

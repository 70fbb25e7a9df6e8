"""What an adapter talks to: a `Chat`, which is a model in this process or one behind a server.

Rules. An adapter opens one with `open_chat`, closes it, and does not ask which of the two it has. What only one of
them can do is None or a typed error in the other. No framework is known here.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from radixbackend.backend import SharedBackend, get_backend
from radixbackend.chat.request import ChatDelta, ChatRequest, ChatResult, Message, Tool
from radixbackend.chat.service import ChatService
from radixbackend.errors import ConfigError
from radixbackend.token_bytes import token_bytes
from radixbackend.types import Embeddings, EngineStats, Prompt, Usage

if TYPE_CHECKING:
    pass


class Deltas(Iterator[ChatDelta], Protocol):
    """An answer as it comes, for one thread at a time. `close`, or dropping it, aborts what is unfinished."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class AsyncDeltas(Protocol):
    """An answer as it comes, for one task at a time. `aclose`, cancelling or dropping it aborts what is unfinished."""

    def __aiter__(self) -> AsyncIterator[ChatDelta]: ...

    async def __anext__(self) -> ChatDelta: ...

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Pinned(Protocol):
    """A prompt that stays in the cache until it is released, and what computing it took."""

    @property
    def usage(self) -> Usage: ...

    def release(self) -> None: ...


class Chat(Protocol):
    """A model to talk to, from any thread and any event loop.

    ``weights_hash`` and ``max_context`` are None where a server does not say. ``reasons`` is whether the model writes
    what it thinks before it answers, ``sees`` whether it takes images. ``token_bytes`` is what a token of
    `TokenLogprob` adds to the text.
    """

    @property
    def model_name(self) -> str: ...

    @property
    def max_context(self) -> int | None: ...

    @property
    def weights_hash(self) -> str | None: ...

    @property
    def reasons(self) -> bool: ...

    @property
    def sees(self) -> bool: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def complete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult: ...

    async def acomplete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult: ...

    def stream(self, request: ChatRequest, *, timeout: float | None = None) -> Deltas: ...

    def astream(self, request: ChatRequest, *, timeout: float | None = None) -> AsyncDeltas: ...

    def tokenize(self, request: ChatRequest | str) -> tuple[int, ...]: ...

    def count_tokens(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Iterable[Tool | Mapping[str, Any]] | None = None,
    ) -> int: ...

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings: ...

    async def aembed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings: ...

    def warm(self, request: ChatRequest) -> Usage: ...

    def pin(self, request: ChatRequest) -> Pinned: ...

    def stats(self) -> EngineStats: ...

    def flush_cache(self) -> int: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalChat(ChatService):
    """A share of an engine in this process, which `close` gives back."""

    def __init__(self, share: SharedBackend) -> None:
        super().__init__(share)
        self._share = share

    @property
    def model_name(self) -> str:
        return self._share.model_name

    @property
    def max_context(self) -> int:
        return self._share.max_context

    @property
    def weights_hash(self) -> str:
        return self._share.weights_hash

    @property
    def reasons(self) -> bool:
        return self._share.reasoning_format is not None

    @property
    def sees(self) -> bool:
        return not self._share.images.refusal

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes.get(token_id, b"")

    @cached_property
    def _token_bytes(self) -> dict[int, bytes]:
        """Read when the first log-probability is asked for (0.2 s for 128k tokens)."""
        tokenizer = self._share.tokenizer
        return {} if tokenizer is None else token_bytes(tokenizer.inner)

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        return self._share.embed(texts, dimensions=dimensions, timeout=timeout)

    async def aembed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        return await asyncio.to_thread(self._share.embed, texts, dimensions=dimensions, timeout=timeout)

    def warm(self, request: ChatRequest) -> Usage:
        """Compute this conversation into the cache, so that requests that go on from it start at once."""
        return self._share.warm(self._prefix(request), cache_salt=request.cache_salt)

    def pin(self, request: ChatRequest) -> Pinned:
        """`warm`, and keep it from being evicted until it is released."""
        return self._share.pin(self._prefix(request), cache_salt=request.cache_salt)

    def _prefix(self, request: ChatRequest) -> tuple[int, ...]:
        return self.tokenize(replace(request, add_generation_prompt=False))

    def stats(self) -> EngineStats:
        return self._share.stats()

    def flush_cache(self) -> int:
        return self._share.flush_cache()

    def close(self) -> None:
        """Safe to call twice. The engine itself closes with its last share."""
        self._share.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_chat(
    model: str | os.PathLike[str],
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    plugins: Sequence[object] = (),
    **options: object,
) -> Chat:
    """A model to talk to: in this process, or behind an OpenAI-compatible server if ``base_url`` is given.

    Args:
        model: what `Engine` takes, or the name that the server knows the model by.
        options: fields of `EngineConfig`; or with ``base_url`` those of `RemoteChat`.

    Raises:
        ConfigError, ModelError, PluginError: nothing is kept. `ConfigError` too where the checkpoint has no
            tokenizer.
        MissingDependencyError: ``base_url`` without the extra ``openai``.
    """
    if base_url is not None:
        return _remote(os.fspath(model), base_url, api_key, options)
    share = get_backend(model, plugins=plugins, **options)
    try:
        return LocalChat(share)
    except BaseException:
        share.close()
        raise


def _remote(model: str, base_url: str, api_key: str | None, options: Mapping[str, Any]) -> Chat:
    from radixbackend.chat.remote import RemoteChat

    known = inspect.signature(RemoteChat).parameters.keys() - {"model"}
    if unknown := sorted(options.keys() - known):
        raise ConfigError(
            f"unknown option {', '.join(unknown)}; with base_url there are {', '.join(sorted(known - {'base_url'}))}"
        )
    return RemoteChat(model, base_url, api_key=api_key, **options)

"""What adapters see of an engine, and how they share one.

Rules. Adapters depend on the `Backend` protocol alone. Everybody who asks `get_backend` for the same model and
options gets a share of one engine; it is built once, in the first caller's thread, and closed when the last share
is. Which kind of backend serves a name is the hook `radix_create_backend`'s to decide. The one piece of state that
a process has for all of this is `_shared`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from radixbackend.config import EngineConfig
from radixbackend.errors import ConfigError, EngineClosedError
from radixbackend.plugins import Plugins
from radixbackend.types import Embeddings, EngineStats, GenerationRequest, GenerationResult, ImagePolicy, Prompt, Usage

if TYPE_CHECKING:
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat
    from radixbackend.engine.engine import Pin
    from radixbackend.engine.radix_tree import NodeDump
    from radixbackend.engine.streams import AsyncTokenStream, TokenStream
    from radixbackend.tokenizer import Tokenizer


class Backend(Protocol):
    """Something that answers requests. An `Engine` is one; so is a share of one, or a plugin's own."""

    @property
    def model_name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def max_context(self) -> int: ...

    @property
    def weights_hash(self) -> str: ...

    @property
    def images(self) -> ImagePolicy: ...

    @property
    def tool_format(self) -> ToolFormat | None: ...

    @property
    def reasoning_format(self) -> ReasoningFormat | None: ...

    def generate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult: ...

    async def agenerate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult: ...

    def stream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> TokenStream: ...

    def astream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> AsyncTokenStream: ...

    def embed(
        self, texts: Prompt | Sequence[Prompt], /, *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings: ...

    def warm(self, prefix: Prompt, *, cache_salt: str | None = None) -> Usage: ...

    def pin(self, prefix: Prompt, *, cache_salt: str | None = None) -> Pin: ...

    def stats(self) -> EngineStats: ...

    def flush_cache(self) -> int: ...

    def dump_cache(self) -> list[NodeDump]: ...

    def close(self) -> None: ...


class SharedBackend:
    """One user's share of a backend; `close` gives the share back, once."""

    def __init__(self, backend: Backend, release: Callable[[], None]) -> None:
        self._backend: Backend | None = backend
        self._release = release

    @property
    def backend(self) -> Backend:
        """What is shared; raises `EngineClosedError` after `close`."""
        if self._backend is None:
            raise EngineClosedError("this share of the engine is closed")
        return self._backend

    @property
    def model_name(self) -> str:
        return self.backend.model_name

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.backend.tokenizer

    @property
    def max_context(self) -> int:
        return self.backend.max_context

    @property
    def weights_hash(self) -> str:
        return self.backend.weights_hash

    @property
    def images(self) -> ImagePolicy:
        return self.backend.images

    @property
    def tool_format(self) -> ToolFormat | None:
        return self.backend.tool_format

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        return self.backend.reasoning_format

    def generate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult:
        return self.backend.generate(prompt, timeout=timeout)

    async def agenerate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult:
        return await self.backend.agenerate(prompt, timeout=timeout)

    def stream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> TokenStream:
        return self.backend.stream(prompt, timeout=timeout)

    def astream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> AsyncTokenStream:
        return self.backend.astream(prompt, timeout=timeout)

    def embed(
        self, texts: Prompt | Sequence[Prompt], /, *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        return self.backend.embed(texts, dimensions=dimensions, timeout=timeout)

    def warm(self, prefix: Prompt, *, cache_salt: str | None = None) -> Usage:
        return self.backend.warm(prefix, cache_salt=cache_salt)

    def pin(self, prefix: Prompt, *, cache_salt: str | None = None) -> Pin:
        return self.backend.pin(prefix, cache_salt=cache_salt)

    def stats(self) -> EngineStats:
        return self.backend.stats()

    def flush_cache(self) -> int:
        return self.backend.flush_cache()

    def dump_cache(self) -> list[NodeDump]:
        return self.backend.dump_cache()

    def close(self) -> None:
        """Safe to call twice. The engine itself closes with its last share."""
        backend, self._backend = self._backend, None
        if backend is not None:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(eq=False)
class _Slot:
    """One shared backend, or the place where it is being built."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    backend: Backend | None = None
    users: int = 0


class SharedBackends:
    """Backends by key, each built once and closed with its last user. Safe to use from many threads.

    A share may also be given back by a finalizer, which the garbage collector runs wherever this thread happens to be:
    inside the lock, too. So who leaves is noted in a queue, and counted out by whoever is not inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here = threading.local()  # whether this thread holds the lock, or is about to
        self._leaving: queue.SimpleQueue[tuple[Hashable, _Slot]] = queue.SimpleQueue()
        self._slots: dict[Hashable, _Slot] = {}

    def get(self, key: Hashable, build: Callable[[], Backend]) -> SharedBackend:
        """A share of the backend of this key, built if there is none; whoever else asks meanwhile waits for it."""
        with self._exclusive():
            slot = self._slots.setdefault(key, _Slot())
            slot.users += 1
        self._count_out()
        try:
            with slot.lock:
                if slot.backend is None:
                    slot.backend = build()
                return SharedBackend(slot.backend, lambda: self._release(key, slot))
        except BaseException:
            self._release(key, slot)
            raise

    def _release(self, key: Hashable, slot: _Slot) -> None:
        self._leaving.put((key, slot))
        if not getattr(self._here, "inside", False):
            self._count_out()

    def _count_out(self) -> None:
        """Strike off who has left, and close what nobody uses any more."""
        while not self._leaving.empty():
            idle = []
            with self._exclusive(), contextlib.suppress(queue.Empty):
                while True:
                    key, slot = self._leaving.get_nowait()
                    slot.users -= 1
                    if slot.users == 0:
                        idle.append(slot)
                        if self._slots.get(key) is slot:
                            del self._slots[key]
            for slot in idle:
                if slot.backend is not None:
                    slot.backend.close()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._here.inside = True
        try:
            with self._lock:
                yield
        finally:
            self._here.inside = False


_shared = SharedBackends()


def get_backend(model: str | os.PathLike[str], *, plugins: Sequence[object] = (), **options: object) -> SharedBackend:
    """A share of the backend that serves ``model`` with these options; the same for all who ask the same.

    Args:
        model: what `Engine` takes, or a name or URL that a plugin's `radix_create_backend` serves.
        plugins: further plugins; only callers who pass the same objects share.
        options: fields of `EngineConfig`, or what the plugin takes.

    Raises:
        ConfigError, ModelError, PluginError: nothing is kept.
    """
    name = os.fspath(model)
    key = (_configuration(name, options), tuple(id(p) for p in plugins))
    return _shared.get(key, lambda: _create(name, plugins, options))


def _configuration(name: str, options: Mapping[str, object]) -> Hashable:
    """Equal for options that come to the same; what only a plugin understands is compared as it is written."""
    try:
        return EngineConfig.make(name, dict(options))
    except ConfigError:
        return name, tuple(sorted((option, repr(value)) for option, value in options.items()))


def _create(name: str, plugins: Iterable[object], options: dict[str, object]) -> Backend:
    claimed = Plugins(plugins).create_backend(name, options)
    if claimed is not None:
        return claimed
    from radixbackend.engine.engine import Engine

    return Engine(name, plugins=plugins, **options)

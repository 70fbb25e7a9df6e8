"""The engine as its users see it: sync, async, streaming, from any thread and any event loop.

Rules. A face only: it hands requests to the engine's thread and reads answers; sync and async differ in how they
wait and in nothing else. No slots, no tensors, no policy. Leaving early (an exception, a cancelled task, a dropped
stream) aborts what is unfinished. An engine does not survive ``os.fork``: use after it raises `EngineClosedError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from radixbackend.config import EngineConfig
from radixbackend.engine.answer import result
from radixbackend.engine.build import Parts, build
from radixbackend.engine.channel import AtOnce, Channel, Deadline, Mailboxes
from radixbackend.engine.intake import Intake
from radixbackend.engine.loop import start
from radixbackend.engine.streams import AsyncTokenStream, TokenStream
from radixbackend.errors import EngineClosedError, InvalidRequestError, RadixError
from radixbackend.types import (
    Constraint,
    Embeddings,
    EngineStats,
    GenerationRequest,
    GenerationResult,
    ImagePolicy,
    Prompt,
    RequestId,
    SamplingParams,
    Usage,
)

if TYPE_CHECKING:
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat
    from radixbackend.engine.radix_tree import NodeDump
    from radixbackend.engine.request import Update
    from radixbackend.tokenizer import Tokenizer
    from radixbackend.types import Image

LONG_TEXT = 2048
"""Characters from which on a prompt is tokenized off the event loop."""


class Engine:
    """A model in this process, with its radix tree of KV cache and its one batch for all callers.

    Args:
        model: folder of a checkpoint in transformers' format, or a hub id.
        plugins: objects with hook implementations, for this engine alone.
        options: fields of `EngineConfig`.

    Raises:
        ConfigError, ModelError, PluginError: nothing was started.
    """

    def __init__(self, model: str | os.PathLike[str], *, plugins: Iterable[object] = (), **options: object) -> None:
        config = EngineConfig.make(model, options)
        self._mailboxes = Mailboxes()
        self._open: Parts | None = start(lambda: build(config, plugins), lambda parts: parts.loop)
        # A dropped engine stops its thread and gives its memory back, as does the end of the interpreter.
        self._finalizer = weakref.finalize(self, _close, self._open)

    # -- generating ----------------------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str; the first signature wins
        self,
        prompt: str | GenerationRequest | Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
    ) -> GenerationResult: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[GenerationRequest] | Sequence[Sequence[int]],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[GenerationResult]: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[GenerationRequest] | Sequence[Sequence[int]],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
        return_exceptions: Literal[True],
    ) -> list[GenerationResult | RadixError]: ...

    def generate(
        self,
        prompt: str | GenerationRequest | Sequence[object],
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> object:
        """Answer one prompt, or each of a list of prompts (in one batch); blocks until all are done.

        Args:
            prompt: text, token ids, a `GenerationRequest` (which then says everything), or a list of these.
            images: of one prompt, in the order of their places in it; see `GenerationRequest`.
            timeout: seconds for all of it; past them what is unfinished is aborted.
            return_exceptions: for a list: put a request's error in its place instead of raising the first.

        Raises:
            InvalidRequestError: some prompt or option was refused; nothing was queued.
            RequestError: the request ended otherwise than by finishing.
            EngineClosedError: after `close`.
        """
        parts = self._parts
        many = _is_many(prompt)
        prompts: Sequence[Any] = prompt if many else [prompt]  # type: ignore[assignment]
        if many and images:
            raise InvalidRequestError(
                "images belong to one prompt; pass a list of GenerationRequests, each with its own", param="images"
            )
        asked = [_one(p, sampling, constraint, priority, cache_salt, images) for p in prompts]
        channels: list[Channel[list[Update]]] = [Channel() for _ in asked]
        intakes = [parts.desk.admit(a, AtOnce(c.put).put, stream=False) for a, c in zip(asked, channels, strict=True)]
        _submit(parts, intakes)
        deadline = Deadline(timeout)
        answers: list[GenerationResult | RadixError] = []
        try:
            for intake, channel in zip(intakes, channels, strict=True):
                try:
                    answers.append(result(intake, channel.get(deadline)))
                except RadixError as fault:
                    if not return_exceptions:
                        raise
                    answers.append(fault)
        finally:
            _abandon(parts, intakes)
        return answers if many else answers[0]

    async def agenerate(
        self,
        prompt: Prompt | GenerationRequest,
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
    ) -> GenerationResult:
        """Answer one prompt without blocking the event loop; a cancelled task aborts the request.

        Many at once: ``asyncio.gather``. Arguments and errors as for `generate`.
        """
        parts, channel = self._parts, self._mailboxes.channel()
        asked = _one(prompt, sampling, constraint, priority, cache_salt, images)
        intake = await _admit(parts, asked, AtOnce(channel.put).put, stream=False)
        try:
            return result(intake, await channel.get(Deadline(timeout)))
        finally:
            _abandon(parts, [intake])

    def stream(
        self,
        prompt: Prompt | GenerationRequest,
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
    ) -> TokenStream:
        """The answer's events as they come; the request is queued at once. Arguments and errors as for `generate`."""
        parts = self._parts
        channel: Channel[Update] = Channel()
        intake = parts.desk.admit(_one(prompt, sampling, constraint, priority, cache_salt, images), channel.put)
        _submit(parts, [intake])
        return TokenStream(intake, channel, Deadline(timeout), functools.partial(_abandon, parts, [intake]))

    def astream(
        self,
        prompt: Prompt | GenerationRequest,
        sampling: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        images: Sequence[Image] = (),
        timeout: float | None = None,
    ) -> AsyncTokenStream:
        """The answer's events as they come, without blocking the event loop; queued when first awaited."""
        parts = self._parts
        asked = _one(prompt, sampling, constraint, priority, cache_salt, images)
        return AsyncTokenStream(
            self._mailboxes.channel,
            functools.partial(_admit, parts, asked),
            timeout,
            lambda intake: _abandon(parts, [intake]),
        )

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """A vector for each text (or list of token ids), pooled and normalized as the checkpoint says.

        Computed one by one between the steps that answer requests; without files of sentence-transformers a vector
        is the last token's final hidden state, normalized. Blocks until all are done.

        Args:
            dimensions: keep only the first so many (for models that were trained for it).
            timeout: seconds for all of them.

        Raises:
            InvalidRequestError, UnsupportedModelError, RequestTimeoutError, EngineClosedError
        """
        parts = self._parts
        inputs = texts if _is_many(texts) else [texts]
        prompts = [parts.desk.encode(_one(text, None, None, 0, None).prompt) for text in inputs]  # type: ignore[arg-type]
        deadline = Deadline(timeout)
        vectors = []
        for prompt in prompts:
            future = parts.loop.call(functools.partial(parts.embedder.vector, prompt, dimensions))
            try:
                vectors.append(future.result(deadline.left()))
            except TimeoutError:
                raise deadline.passed() from None
        return Embeddings(tuple(vectors), sum(map(len, prompts)))

    # -- the cache -----------------------------------------------------------------------------------------------

    def warm(self, prefix: Prompt, *, cache_salt: str | None = None) -> Usage:
        """Compute a prefix into the cache, so that requests that begin with it start at once."""
        return self._prefill(prefix, cache_salt, pin=False)[1]

    def pin(self, prefix: Prompt, *, cache_salt: str | None = None) -> Pin:
        """`warm`, and keep the prefix from being evicted until the pin is released."""
        parts = self._parts
        request_id, usage = self._prefill(prefix, cache_salt, pin=True)

        def release() -> None:
            with contextlib.suppress(EngineClosedError):  # then it is released already
                parts.loop.call(lambda: parts.scheduler.unpin(request_id))

        return Pin(release, usage)

    def _prefill(self, prefix: Prompt, cache_salt: str | None, *, pin: bool) -> tuple[RequestId, Usage]:
        parts = self._parts
        channel: Channel[list[Update]] = Channel()
        intake = parts.desk.admit(
            _one(prefix, _PREFILL, None, 0, cache_salt), AtOnce(channel.put).put, stream=False, pin=pin
        )
        _submit(parts, [intake])
        try:
            return intake.request.id, result(intake, channel.get(Deadline(None))).usage
        finally:
            _abandon(parts, [intake])

    def flush_cache(self) -> int:
        """Drop every cached prefix that is neither in use nor pinned; returns how many tokens that were."""
        parts = self._parts
        return parts.loop.call(parts.cache.clear).result()

    def dump_cache(self) -> list[NodeDump]:
        """The radix tree as it is now, depth first (for looking at it)."""
        parts = self._parts
        return parts.loop.call(lambda: list(parts.cache.tree.dump())).result()

    # -- about it ------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters and gauges as of the last step."""
        return self._parts.loop.stats

    @property
    def config(self) -> EngineConfig:
        return self._parts.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None when the checkpoint has none."""
        return self._parts.tokenizer

    @property
    def model_name(self) -> str:
        return self._parts.model.name

    @property
    def weights_hash(self) -> str:
        """A fingerprint of the checkpoint as it is computed here, for the keys of response caches."""
        checkpoint, config = self._parts.model.weights_hash, self._parts.config
        rounded = [config.quantization] if config.quantization else []
        if config.kv_cache_dtype != "auto":
            rounded.append(f"kv-{config.kv_cache_dtype}")
        # Hashed again, for whoever keeps the first digits alone.
        return hashlib.sha256(":".join((checkpoint, *rounded)).encode()).hexdigest() if rounded else checkpoint

    @property
    def max_context(self) -> int:
        """Longest prompt plus output, in tokens."""
        return self._parts.limits.longest

    @property
    def images(self) -> ImagePolicy:
        """Whether this model takes images, and which."""
        return self._parts.images

    @property
    def tool_format(self) -> ToolFormat | None:
        """How this model writes tool calls, as `radix_tool_format` says."""
        return self._parts.tool_format

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        """How this model writes what it thinks first, as `radix_reasoning_format` says; None if it does not."""
        return self._parts.reasoning_format

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End what is unfinished with `RequestAbortedError` and give all memory back. Safe to call twice."""
        parts, self._open = self._open, None
        if parts is not None:
            self._finalizer.detach()
            _close(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _parts(self) -> Parts:
        if self._open is None:
            raise EngineClosedError("the engine is closed")
        return self._open


class Pin:
    """A prefix that stays in the cache until `release`; a context manager, too."""

    def __init__(self, release: Callable[[], None], usage: Usage) -> None:
        self._release = release
        self.usage = usage

    def release(self) -> None:
        """Let the prefix be evicted when its turn comes. Safe to call twice."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_PREFILL = SamplingParams(max_tokens=0)


def _close(parts: Parts) -> None:
    parts.loop.close()


def _submit(parts: Parts, intakes: Sequence[Intake]) -> None:
    """Queue all of them, or raise and queue none."""
    requests = [intake.request for intake in intakes]
    parts.loop.submit(requests)
    for request in requests:
        if request.grammar is not None:
            request.grammar.add_done_callback(lambda _: parts.loop.wake())


async def _admit(
    parts: Parts, asked: GenerationRequest, sink: Callable[[Update], None], *, stream: bool = True
) -> Intake:
    """Check and queue; off the event loop where checking takes long."""
    long = isinstance(asked.prompt, str) and len(asked.prompt) > LONG_TEXT
    if asked.constraint is not None or asked.images or long:
        intake = await asyncio.to_thread(parts.desk.admit, asked, sink, stream=stream)
    else:
        intake = parts.desk.admit(asked, sink, stream=stream)
    _submit(parts, [intake])
    return intake


def _abandon(parts: Parts, intakes: Iterable[Intake]) -> None:
    """Abort those that have not ended; nobody listens any more."""
    for intake in intakes:
        if not intake.request.ended:
            with contextlib.suppress(EngineClosedError):  # then close() has ended it
                parts.loop.post(functools.partial(parts.scheduler.abort, intake.request.id))


def _one(
    prompt: str | GenerationRequest | Sequence[int],
    sampling: SamplingParams | None,
    constraint: Constraint | None,
    priority: int,
    cache_salt: str | None,
    images: Sequence[Image] = (),
) -> GenerationRequest:
    if isinstance(prompt, GenerationRequest):
        return prompt
    if not isinstance(prompt, str) and not (isinstance(prompt, Sequence) and all(isinstance(t, int) for t in prompt)):
        raise InvalidRequestError(
            f"a prompt is text, a sequence of token ids or a GenerationRequest, not {type(prompt).__name__}",
            param="prompt",
        )
    prompt = prompt if isinstance(prompt, str) else tuple(prompt)
    return GenerationRequest(prompt, sampling or SamplingParams(), constraint, priority, cache_salt, images)  # type: ignore[arg-type]


def _is_many(prompt: object) -> bool:
    """Whether this is a list of prompts; an empty list is an empty prompt."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and not isinstance(prompt[0], int)
    )

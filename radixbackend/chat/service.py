"""The chat layer's face: `ChatRequest` in, `ChatResult` or a stream of `ChatDelta`s out, sync and async.

Rules. All there is to decide happens in `_prepare` and in the readers of `answer`; the four ways to ask differ in how
they wait and in nothing else. A service has no state but what it remembers of the model, and may be used from many
threads and event loops at once. It does not close its backend.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from radixbackend.backend import Backend
from radixbackend.chat.answer import AnswerSpec, StreamReader, whole
from radixbackend.chat.constraint import Planner
from radixbackend.chat.formats.base import AnswerParser, wraps_content
from radixbackend.chat.images import read_image
from radixbackend.chat.request import ChatDelta, ChatRequest, ChatResult, Message, Tool
from radixbackend.chat.template import PromptTemplate
from radixbackend.chat.tools import DEFAULT
from radixbackend.errors import ConfigError, InvalidRequestError
from radixbackend.types import GenerationRequest

if TYPE_CHECKING:
    from radixbackend.engine.streams import AsyncTokenStream, TokenStream

LONG = 4096
"""Characters of text and schemas from which on a request is prepared off the event loop."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request in the engine's terms, and what it takes to read the answer."""

    asked: GenerationRequest
    spec: AnswerSpec


class ChatService:
    """Conversations over a backend.

    Raises:
        ConfigError: the backend has no tokenizer, so that it cannot read messages.
    """

    def __init__(self, backend: Backend) -> None:
        if backend.tokenizer is None:
            raise ConfigError("this checkpoint has no tokenizer, so it cannot chat; add its tokenizer files")
        self.backend = backend
        self._tokenizer = backend.tokenizer
        self._tools = backend.tool_format or DEFAULT
        self._reasoning = backend.reasoning_format
        self._template = PromptTemplate(self._tokenizer, self._tools, backend.images.placeholder)
        self._planner = Planner(self._tools, self._reasoning)
        specials = sorted(self._tokenizer.special_tokens)
        self._special_texts = frozenset(self._tokenizer.inner.convert_ids_to_tokens(specials))

    def complete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        """Answer; blocks until it is there.

        Raises:
            InvalidRequestError: refused; nothing was queued.
            OutputValidationError: the finished answer breaks its schema or a tool's.
            RequestError: it ended otherwise than by finishing.
        """
        prepared = self._prepare(request)
        result = self.backend.generate(prepared.asked, timeout=timeout)
        return whole(result, prepared.spec, self.backend.model_name)

    async def acomplete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        """Answer without blocking the event loop; a cancelled task aborts the request."""
        prepared = await self._aprepare(request)
        result = await self.backend.agenerate(prepared.asked, timeout=timeout)
        return whole(result, prepared.spec, self.backend.model_name)

    def stream(self, request: ChatRequest, *, timeout: float | None = None) -> ChatStream:
        """The answer as it comes; checked and queued at once."""
        prepared = self._prepare(request)
        return ChatStream(
            self.backend.stream(prepared.asked, timeout=timeout), StreamReader(prepared.spec, request.sampling.n)
        )

    def astream(self, request: ChatRequest, *, timeout: float | None = None) -> AsyncChatStream:
        """The answer as it comes, without blocking the event loop; checked and queued when first awaited."""

        async def start() -> tuple[AsyncTokenStream, StreamReader]:
            prepared = await self._aprepare(request)
            reader = StreamReader(prepared.spec, request.sampling.n)
            return self.backend.astream(prepared.asked, timeout=timeout), reader

        return AsyncChatStream(start)

    def tokenize(self, request: ChatRequest | str) -> tuple[int, ...]:
        """The prompt's token ids; those of a text, without the special tokens that a model expects around one.

        Raises:
            InvalidRequestError: also for a conversation with images, whose tokens nobody knows before they are read.
        """
        if isinstance(request, str):
            return self._template.encode(request)
        if any(message.images for message in request.messages):
            raise InvalidRequestError("a conversation with images is not tokenized; leave them out", param="messages")
        return self._template.encode(self._template.render(request))

    def count_tokens(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Iterable[Tool | Mapping[str, Any]] | None = None,
    ) -> int:
        """How many tokens the prompt of these messages has, the beginning of the answer included."""
        return len(self.tokenize(ChatRequest.of(messages, tools=tools)))

    # -- before the answer ---------------------------------------------------------------------------------------

    def _prepare(self, request: ChatRequest) -> _Prepared:
        images = self._read_images(request)
        prompt = self._template.render(request)
        reasoning = self._reasoning
        phase = reasoning.phase(prompt) if reasoning is not None else "after"
        if request.continue_final_message and phase == "before":
            phase = "after"  # the answer has begun
        plan = self._planner.plan(request, phase)

        def new_parser() -> AnswerParser:
            parser = self._tools.parser(plan.tools)
            if reasoning is None or not request.separate_reasoning:
                return parser
            return reasoning.parser(phase, parser)

        asked = GenerationRequest(
            prompt if images else self._template.encode(prompt),  # with images the model's processor encodes it
            request.sampling.replace(skip_special_tokens=False) if self._reads_markers(request) else request.sampling,
            plan.constraint,
            request.priority,
            request.cache_salt,
            images,
        )
        return _Prepared(asked, AnswerSpec(plan, new_parser, self._tools.new_id))

    def _read_images(self, request: ChatRequest) -> tuple[bytes, ...]:
        """The images' files, or a refusal that says which message it is about."""
        policy = self.backend.images
        found: list[bytes] = []
        for index, message in enumerate(request.messages):
            if message.images and policy.refusal:
                name = os.path.basename(os.path.normpath(self.backend.model_name))  # where it lies is not told
                raise InvalidRequestError(
                    f"messages[{index}] has an image, and {name} takes none: {policy.refusal}", param="messages"
                )
            for part in message.images:
                if len(found) == policy.most:
                    raise InvalidRequestError(
                        f"messages[{index}] has more images than the {policy.most} that a request may have",
                        param="messages",
                    )
                try:
                    found.append(read_image(part, policy.hosts))
                except InvalidRequestError as fault:
                    raise InvalidRequestError(f"messages[{index}] {fault}", param="messages") from fault
        return tuple(found)

    def _reads_markers(self, request: ChatRequest) -> bool:
        """Whether special tokens must be part of the text, because a parser looks for them."""
        markers = self._reasoning.markers if self._reasoning is not None else ()
        if request.tools or wraps_content(self._tools):
            markers = (*markers, *self._tools.markers)
        return not self._special_texts.isdisjoint(markers)

    async def _aprepare(self, request: ChatRequest) -> _Prepared:
        long = sum(len(m.text) for m in request.messages) > LONG or any(m.images for m in request.messages)
        if request.tools or request.response_format or long:
            return await asyncio.to_thread(self._prepare, request)
        return self._prepare(request)


class ChatStream(Iterator[ChatDelta]):
    """Deltas of one request, for one thread at a time; a context manager, too.

    Iterating raises the error that ended the request. `close`, leaving the ``with`` block or dropping the stream
    aborts what is unfinished, within a token.
    """

    def __init__(self, events: TokenStream, reader: StreamReader) -> None:
        self._events = events
        self._reader = reader

    def __next__(self) -> ChatDelta:
        try:
            while (delta := self._reader.read(next(self._events))) is None:
                pass
        except BaseException:
            self.close()
            raise
        return delta

    def close(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncChatStream(AsyncIterator[ChatDelta]):
    """Deltas of one request, for one task at a time; an async context manager, too.

    A cancelled task, `aclose`, leaving the ``async with`` block or dropping the stream aborts what is unfinished.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._events: AsyncTokenStream | None = None
        self._reader: StreamReader | None = None
        self._closed = False

    async def __anext__(self) -> ChatDelta:
        if self._closed:
            raise StopAsyncIteration
        try:
            if self._events is None or self._reader is None:
                self._events, self._reader = await self._start()
            while (delta := self._reader.read(await anext(self._events))) is None:
                pass
        except BaseException:
            await self.aclose()
            raise
        return delta

    async def aclose(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        self._closed = True
        if self._events is not None:
            await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

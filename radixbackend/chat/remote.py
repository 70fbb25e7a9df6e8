"""A `Chat` whose model is behind a server: ours, or any that speaks OpenAI's API.

Rules. OpenAI's SDK does the HTTP, the server-sent events and the retries; `wire` says what is sent and reads what
comes back, `faults` says what went wrong. Nothing of the environment is used but its proxies: no key, no URL, no
organization that was meant for somebody else. What a server cannot do raises `UnsupportedByServerError`.

A timeout is not tried again (but by HTTP clients of the caller's), since the server would begin anew; what else the SDK
retries is, ``max_retries`` times: a full queue, a connection that fails, a server that does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from radixbackend.chat.faults import mapped
from radixbackend.chat.request import ChatDelta, ChatRequest, ChatResult, Message, Tool
from radixbackend.chat.sdk import httpx, library_of, openai
from radixbackend.chat.wire import DeltaReader, TokenTable, chat_body, chat_result, prompt_body, usage_of
from radixbackend.errors import (
    ConfigError,
    EngineClosedError,
    ModelNotFoundError,
    RemoteError,
    RequestTimeoutError,
    UnsupportedByServerError,
)
from radixbackend.types import Embeddings, EngineStats, Prompt, SamplingParams, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_KEY = "no-key"
"""Sent where the caller has none: the SDK insists on one, servers without keys look at none."""

OWNER = "radixbackend"
"""Whom our server's models are owned by, as ``/v1/models`` says."""

MOST_INPUTS = 2048
"""Texts that are embedded at once: OpenAI's bound."""

Json = dict[str, Any]


class RemoteChat:
    """A model behind a server, from any thread and any event loop.

    Args:
        model: what the server calls it; empty is the only one, or the first, that it has.
        base_url: where its API is, such as ``http://127.0.0.1:8000/v1``.
        api_key: sent as ``Authorization: Bearer …``.
        timeout: seconds to wait for an answer, or for the next piece of a stream; None waits ten minutes. With a
            timeout of its own, a stream must also be over by then, as in this process.
        max_retries: of what may go better the next time.
        headers: sent with every request.
        http_client, http_async_client: clients of the SDK's HTTP library, in place of its own; `close` leaves them
            open, and an asynchronous one serves the event loops that it can.

    Raises:
        ConfigError: the URL is none. Nothing is asked of the server yet.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
        http_client: Any = None,
        http_async_client: Any = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url is a URL like http://127.0.0.1:8000/v1, not {base_url!r}")
        self._model = model
        self._url = base_url.rstrip("/")
        self._timeout = timeout
        self._headers = dict(headers or {})
        self._options: Json = {"base_url": self._url, "api_key": api_key or NO_KEY, "max_retries": max_retries}
        if timeout is not None:
            self._options["timeout"] = timeout
        self._http, self._http_async = http_client, http_async_client
        http = http_client or _Client(verify=self._certificates)
        self._client: openai.OpenAI = self._bare(openai.OpenAI(**self._options, http_client=http))
        self._clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}
        self._tokens = TokenTable()
        self._lock = threading.Lock()
        self._closed = False

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """As it was given; only an empty name is asked for, once."""
        if not (name := self._model or self._card.get("id")):
            raise ModelNotFoundError(f"{self._url} does not say which models it has; give a name")
        return str(name)

    @property
    def max_context(self) -> int | None:
        """What the server says of its model, asked once; None where it says nothing."""
        longest = self._card.get("max_model_len") or self._card.get("context_length")
        return longest if isinstance(longest, int) else None

    @property
    def weights_hash(self) -> None:
        """A server does not say."""
        return None

    @property
    def reasons(self) -> bool:
        """What our server says of its model, asked once; others do not say, and may reason anyway."""
        return self._card.get("reasons") is True

    @property
    def sees(self) -> bool:
        """The same: others do not say, and may take images anyway."""
        return self._card.get("sees") is True

    def token_bytes(self, token_id: int) -> bytes:
        """Of tokens in the log-probabilities that came from here; empty for others."""
        return self._tokens.bytes(token_id)

    @cached_property
    def _card(self) -> Json:
        """The model's entry in ``/v1/models``; empty where there is none."""
        try:
            answer = self._call("GET", f"{self._url}/models")
        except UnsupportedByServerError:
            return {}
        listed = answer.get("data") if isinstance(answer, dict) else None
        cards = [card for card in listed if isinstance(card, dict)] if isinstance(listed, list) else []
        named = [card for card in cards if card.get("id") == self._model]
        alone = cards if len(cards) == 1 or not self._model else []  # one model may have other names than it lists
        return next(iter(named or alone), {})

    # -- conversations -------------------------------------------------------------------------------------------

    def complete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        """Answer; blocks until it is there."""
        answer = self._call("POST", self._chats, chat_body(request, self.model_name), timeout)
        return chat_result(answer, request, self.model_name, self._tokens)

    async def acomplete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        """Answer without blocking the event loop; a cancelled task aborts the request."""
        model = await self._amodel_name()
        answer = await self._acall(self._chats, chat_body(request, model), timeout)
        return chat_result(answer, request, model, self._tokens)

    def stream(self, request: ChatRequest, *, timeout: float | None = None) -> RemoteStream:
        """The answer as it comes; returns when the server has begun it, or raises what it refuses."""
        self._check_open()
        body = _streamed(chat_body(request, self.model_name))
        answer = _Answer(DeltaReader(request, self._tokens), timeout)
        with self._mapped(self._chats, timeout):
            events = self._client.post(
                self._chats,
                body=body,
                cast_to=object,
                stream=True,
                stream_cls=openai.Stream[object],
                options=_options(timeout),
            )
        return RemoteStream(events, answer, lambda: self._mapped(self._chats, timeout))

    def astream(self, request: ChatRequest, *, timeout: float | None = None) -> AsyncRemoteStream:
        """The answer as it comes, without blocking the event loop; asked for when first awaited."""

        async def start() -> openai.AsyncStream[object]:
            body = _streamed(chat_body(request, await self._amodel_name()))
            return await self._client_here().post(
                self._chats,
                body=body,
                cast_to=object,
                stream=True,
                stream_cls=openai.AsyncStream[object],
                options=_options(timeout),
            )

        answer = _Answer(DeltaReader(request, self._tokens), timeout)
        return AsyncRemoteStream(start, answer, lambda: self._amapped(self._chats, timeout))

    def tokenize(self, request: ChatRequest | str) -> tuple[int, ...]:
        """The token ids of a prompt, or of a plain text, from servers with ``/tokenize`` (ours and vLLM)."""
        url = f"{self._root}/tokenize"
        if isinstance(request, str):
            body: Json = {"model": self.model_name, "prompt": request, "add_special_tokens": False}
        else:
            body = prompt_body(request, self.model_name)
        answer = self._call("POST", url, body)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise UnsupportedByServerError(f"{url} does not give tokens")
        return tuple(tokens)

    def count_tokens(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Iterable[Tool | Mapping[str, Any]] | None = None,
    ) -> int:
        """How many tokens the prompt of these messages has, the beginning of the answer included."""
        return len(self.tokenize(ChatRequest.of(messages, tools=tools)))

    # -- vectors -------------------------------------------------------------------------------------------------

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """A vector for each text (or list of token ids). Many are sent in several requests; the timeout is each's."""
        bodies = _embedding_bodies(texts, self.model_name, dimensions)
        return _embeddings([self._call("POST", f"{self._url}/embeddings", body, timeout) for body in bodies])

    async def aembed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """`embed` without blocking the event loop."""
        bodies = _embedding_bodies(texts, await self._amodel_name(), dimensions)
        return _embeddings([await self._acall(f"{self._url}/embeddings", body, timeout) for body in bodies])

    # -- the cache -----------------------------------------------------------------------------------------------

    def warm(self, request: ChatRequest) -> Usage:
        """Have the server compute this conversation, so that requests that go on from it start at once.

        Ours generates nothing for it; others are asked for one token, and for whatever their cache is worth.
        """
        prefix = replace(request, tool_choice=None, response_format=None, sampling=SamplingParams(max_tokens=1))
        if self._card.get("owned_by") == OWNER:
            prefix = replace(prefix, add_generation_prompt=False, sampling=SamplingParams(max_tokens=0))
        return self.complete(prefix).usage

    def pin(self, request: ChatRequest) -> RemotePin:
        """`warm`: a server keeps nothing for anybody, and `RemotePin.release` has nothing to release."""
        return RemotePin(self.warm(request))

    def stats(self) -> EngineStats:
        """The counters of the server's engine, for everybody whom it serves; ours tells them."""
        url = f"{self._root}/server_info"
        answer = self._call("GET", url)
        states = answer.get("internal_states") if isinstance(answer, dict) else None
        state = states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {}
        known = {field.name: state[field.name] for field in fields(EngineStats) if field.name in state}
        if "slots_total" not in known:
            raise UnsupportedByServerError(f"{url} has no counters of an engine")
        return EngineStats(**known)

    def flush_cache(self) -> int:
        """Drop what the server has cached and does not use; how many tokens that were, 0 where it does not say."""
        answer = self._call("POST", f"{self._root}/flush_cache")
        flushed = answer.get("flushed_tokens") if isinstance(answer, dict) else None
        return flushed if isinstance(flushed, int) else 0

    # -- the connection ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connections back. Safe to call twice."""
        with self._lock:
            closed, self._closed = self._closed, True
            clients, self._clients = self._clients, {}
        if not closed and self._http is None:
            self._client.close()
        if self._http_async is None:
            for loop, client in clients.items():
                _soon(loop, client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _root(self) -> str:
        """Where those endpoints are that OpenAI does not have."""
        return self._url.removesuffix("/v1")

    @property
    def _chats(self) -> str:
        return f"{self._url}/chat/completions"

    def _call(self, method: str, url: str, body: Json | None = None, timeout: float | None = None) -> Any:
        self._check_open()
        with self._mapped(url, timeout):
            if method == "GET":
                return self._client.get(url, cast_to=object, options=_options(timeout))
            return self._client.post(url, body=body, cast_to=object, options=_options(timeout))

    async def _acall(self, url: str, body: Json, timeout: float | None) -> Any:
        with self._amapped(url, timeout):
            return await self._client_here().post(url, body=body, cast_to=object, options=_options(timeout))

    async def _amodel_name(self) -> str:
        return self._model or await asyncio.to_thread(lambda: self.model_name)

    def _client_here(self) -> openai.AsyncOpenAI:
        """The client of the running event loop: connections belong to the loop that they were made in."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._check_open()
            for gone in [known for known in self._clients if known.is_closed()]:
                del self._clients[gone]
            if loop not in self._clients:
                http = self._http_async or _AsyncClient(verify=self._certificates)
                self._clients[loop] = self._bare(openai.AsyncOpenAI(**self._options, http_client=http))
            return self._clients[loop]

    @cached_property
    def _certificates(self) -> Any:
        """Read once (50 ms) for the clients of all event loops."""
        return httpx.create_ssl_context()

    def _bare(self, client: Any) -> Any:
        """Without what the SDK takes from the environment."""
        client.organization = client.project = client.admin_api_key = None
        client._custom_headers = self._headers
        return client

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("this chat is closed")

    def _mapped(self, url: str, timeout: float | None) -> contextlib.AbstractContextManager[None]:
        return mapped(url, _library(self._http), self._timeout if timeout is None else timeout)

    def _amapped(self, url: str, timeout: float | None) -> contextlib.AbstractContextManager[None]:
        return mapped(url, _library(self._http_async), self._timeout if timeout is None else timeout)


@dataclass(frozen=True, slots=True)
class RemotePin:
    """What a server calls pinned: warmed, and nothing to release."""

    usage: Usage

    def release(self) -> None:
        """Nothing is held."""


class _Answer:
    """What has been read of a stream and not yet been handed out. No I/O."""

    def __init__(self, reader: DeltaReader, timeout: float | None) -> None:
        self._reader = reader
        self._ready: deque[ChatDelta] = deque()
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def next(self) -> ChatDelta | None:
        """None is: read on. Raises `RequestTimeoutError` when it is too late for that."""
        if self._ready:
            return self._ready.popleft()
        if self._end is not None and time.monotonic() > self._end:
            raise RequestTimeoutError(f"the request did not finish within {self._timeout:g} s and was aborted")
        return None

    def take(self, chunk: object) -> None:
        self._ready += self._reader.read(chunk)

    def finish(self) -> None:
        self._ready.append(self._reader.end())


_OVER = object()


class RemoteStream(Iterator[ChatDelta]):
    """Deltas of one request, for one thread at a time; a context manager, too.

    Iterating raises the error that ended the request. `close`, leaving the ``with`` block or dropping the stream hangs
    up, whereupon the server aborts what is unfinished.
    """

    def __init__(
        self,
        events: openai.Stream[object],
        answer: _Answer,
        mapped: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._events: openai.Stream[object] | None = events
        self._answer = answer
        self._mapped = mapped

    def __next__(self) -> ChatDelta:
        try:
            while (delta := self._answer.next()) is None:
                if self._events is None:
                    raise StopIteration
                self._read(self._events)
        except BaseException:
            self.close()
            raise
        return delta

    def _read(self, events: openai.Stream[object]) -> None:
        with self._mapped():
            chunk = next(events, _OVER)
        if chunk is _OVER:
            self.close()
            self._answer.finish()
        else:
            self._answer.take(chunk)

    def close(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        events, self._events = self._events, None
        if events is not None:
            events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncRemoteStream(AsyncIterator[ChatDelta]):
    """Deltas of one request, for one task at a time; an async context manager, too.

    A cancelled task, `aclose`, leaving the ``async with`` block or dropping the stream hangs up, whereupon the server
    aborts what is unfinished.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[openai.AsyncStream[object]]],
        answer: _Answer,
        mapped: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._start: Callable[[], Awaitable[openai.AsyncStream[object]]] | None = start
        self._events: openai.AsyncStream[object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer = answer
        self._mapped = mapped

    async def __anext__(self) -> ChatDelta:
        try:
            if self._start is not None:
                start, self._start = self._start, None
                self._loop = asyncio.get_running_loop()
                with self._mapped():
                    self._events = await start()
            while (delta := self._answer.next()) is None:
                if self._events is None:
                    raise StopAsyncIteration
                await self._read(self._events)
        except BaseException:
            await self.aclose()
            raise
        return delta

    async def _read(self, events: openai.AsyncStream[object]) -> None:
        with self._mapped():
            chunk = await anext(events, _OVER)
        if chunk is _OVER:
            await self.aclose()
            self._answer.finish()
        else:
            self._answer.take(chunk)

    async def aclose(self) -> None:
        """Abort what is unfinished. Safe to call twice."""
        self._start = None
        events, self._events = self._events, None
        if events is not None:
            await events.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._events is not None and self._loop is not None:
            _hang_up(self._events.response)
            _soon(self._loop, self._events.close)


class _Client(openai.DefaultHttpxClient):
    """The SDK's own, but that it takes a timeout for the caller's decision, as the SDK does with errors of its own."""

    def send(self, request: Any, **options: Any) -> Any:
        try:
            return super().send(request, **options)
        except httpx.TimeoutException as fault:
            raise openai.APITimeoutError(request=request) from fault


class _AsyncClient(openai.DefaultAsyncHttpxClient):
    """The same."""

    async def send(self, request: Any, **options: Any) -> Any:
        try:
            return await super().send(request, **options)
        except httpx.TimeoutException as fault:
            raise openai.APITimeoutError(request=request) from fault


def _library(client: Any) -> ModuleType:
    return library_of(type(client)) if client is not None else httpx


def _options(timeout: float | None) -> Any:
    return {} if timeout is None else {"timeout": timeout}


def _streamed(body: Json) -> Json:
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def _hang_up(response: Any) -> None:
    """Tell the other side at once, even if the event loop is about to end and closes nothing any more."""
    network = response.extensions.get("network_stream")
    if network is not None and (connection := network.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)


def _soon(loop: asyncio.AbstractEventLoop, close: Callable[[], Any]) -> None:
    """Close something on its event loop, from anywhere; with a loop that is closed, so are its connections."""
    with contextlib.suppress(RuntimeError):
        if asyncio._get_running_loop() is loop:
            loop.create_task(close())
        else:
            loop.call_soon_threadsafe(lambda: loop.create_task(close()))


def _embedding_bodies(texts: Prompt | Sequence[Prompt], model: str, dimensions: int | None) -> list[Json]:
    """One request for every so many texts, or lists of token ids, in a row. An empty list is one text."""
    single = isinstance(texts, str) or not texts or not isinstance(texts[0], str | Sequence)
    many: Sequence[Any] = [texts] if single else texts
    inputs = [text if isinstance(text, str) else list(text) for text in many]
    rest = {"model": model, "encoding_format": "base64"} | ({} if dimensions is None else {"dimensions": dimensions})
    alike = [list(run) for _, run in itertools.groupby(inputs, type)]
    return [{**rest, "input": run[at : at + MOST_INPUTS]} for run in alike for at in range(0, len(run), MOST_INPUTS)]


def _embeddings(answers: list[Any]) -> Embeddings:
    vectors: list[NDArray[np.float32]] = []
    tokens = 0
    for answer in answers:
        try:
            entries = sorted(answer["data"], key=lambda entry: entry["index"])
            vectors += [_vector(entry["embedding"]) for entry in entries]
            tokens += (usage_of(answer.get("usage")) or Usage()).prompt_tokens
        except (TypeError, KeyError, ValueError) as fault:
            raise RemoteError(f"the server's embeddings cannot be read: {fault!r}") from fault
    return Embeddings(tuple(vectors), tokens)


def _vector(sent: str | list[float]) -> NDArray[np.float32]:
    """Base64 of little-endian float32, or numbers from servers that know no other way."""
    import numpy as np

    if isinstance(sent, str):
        return np.frombuffer(base64.b64decode(sent), "<f4").astype(np.float32)
    return np.asarray(sent, np.float32)

"""A `Chat` whose model is behind a server: ours, or any that speaks OpenAI's API.

Rules. The `connection` does the HTTP, the server-sent events and the retries; `wire` says what is sent and reads what
comes back. What a server cannot do raises `UnsupportedByServerError`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from radixbackend.chat.connection import Connection, Json
from radixbackend.chat.remote_stream import Answer, AsyncRemoteStream, RemoteStream
from radixbackend.chat.request import ChatRequest, ChatResult, Message, Tool
from radixbackend.chat.sdk import openai
from radixbackend.chat.wire import DeltaReader, TokenTable, chat_body, chat_result, prompt_body, usage_of
from radixbackend.errors import (
    ConfigError,
    ModelNotFoundError,
    RemoteError,
    UnsupportedByServerError,
)
from radixbackend.types import Embeddings, EngineStats, Prompt, SamplingParams, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OWNER = "radixbackend"
"""Whom our server's models are owned by, as ``/v1/models`` says."""

MOST_INPUTS = 2048
"""Texts that are embedded at once: OpenAI's bound."""


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
        self._connection = Connection(
            self._url,
            api_key=api_key,
            timeout=timeout,
            max_retries=max_retries,
            headers=headers or {},
            http_client=http_client,
            http_async_client=http_async_client,
        )
        self._tokens = TokenTable()

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
            answer = self._connection.get(f"{self._url}/models")
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
        answer = self._connection.post(self._chats, chat_body(request, self.model_name), timeout)
        return chat_result(answer, request, self.model_name, self._tokens)

    async def acomplete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        """Answer without blocking the event loop; a cancelled task aborts the request."""
        model = await self._amodel_name()
        answer = await self._connection.apost(self._chats, chat_body(request, model), timeout)
        return chat_result(answer, request, model, self._tokens)

    def stream(self, request: ChatRequest, *, timeout: float | None = None) -> RemoteStream:
        """The answer as it comes; returns when the server has begun it, or raises what it refuses."""
        body = _streamed(chat_body(request, self.model_name))
        answer = Answer(DeltaReader(request, self._tokens), timeout)
        events = self._connection.stream(self._chats, body, timeout)
        return RemoteStream(events, answer, lambda: self._connection.mapped(self._chats, timeout))

    def astream(self, request: ChatRequest, *, timeout: float | None = None) -> AsyncRemoteStream:
        """The answer as it comes, without blocking the event loop; asked for when first awaited."""

        async def start() -> openai.AsyncStream[object]:
            body = _streamed(chat_body(request, await self._amodel_name()))
            return await self._connection.astream(self._chats, body, timeout)

        answer = Answer(DeltaReader(request, self._tokens), timeout)
        return AsyncRemoteStream(start, answer, lambda: self._connection.amapped(self._chats, timeout))

    def tokenize(self, request: ChatRequest | str) -> tuple[int, ...]:
        """The token ids of a prompt, or of a plain text, from servers with ``/tokenize`` (ours and vLLM)."""
        url = f"{self._root}/tokenize"
        if isinstance(request, str):
            body: Json = {"model": self.model_name, "prompt": request, "add_special_tokens": False}
        else:
            body = prompt_body(request, self.model_name)
        answer = self._connection.post(url, body)
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
        return _embeddings([self._connection.post(f"{self._url}/embeddings", body, timeout) for body in bodies])

    async def aembed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """`embed` without blocking the event loop."""
        bodies = _embedding_bodies(texts, await self._amodel_name(), dimensions)
        return _embeddings([await self._connection.apost(f"{self._url}/embeddings", body, timeout) for body in bodies])

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
        answer = self._connection.get(url)
        states = answer.get("internal_states") if isinstance(answer, dict) else None
        state = states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {}
        known = {field.name: state[field.name] for field in fields(EngineStats) if field.name in state}
        if "slots_total" not in known:
            raise UnsupportedByServerError(f"{url} has no counters of an engine")
        return EngineStats(**known)

    def flush_cache(self) -> int:
        """Drop what the server has cached and does not use; how many tokens that were, 0 where it does not say."""
        answer = self._connection.post(f"{self._root}/flush_cache")
        flushed = answer.get("flushed_tokens") if isinstance(answer, dict) else None
        return flushed if isinstance(flushed, int) else 0

    # -- the connection ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connections back. Safe to call twice."""
        self._connection.close()

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

    async def _amodel_name(self) -> str:
        return self._model or await asyncio.to_thread(lambda: self.model_name)


@dataclass(frozen=True, slots=True)
class RemotePin:
    """What a server calls pinned: warmed, and nothing to release."""

    usage: Usage

    def release(self) -> None:
        """Nothing is held."""


def _streamed(body: Json) -> Json:
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


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

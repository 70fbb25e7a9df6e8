"""The dispatch: method, path, headers and body in; status, headers and body, or a stream of pieces, out.

Rules. No sockets and no framework, so the HTTP server and the in-process client answer alike because they run the
same code. Whatever goes wrong becomes an answer in OpenAI's shape; while nothing of a stream is sent, one with the
right status. Nothing that a client sends holds up the event loop or ends anything but its own request.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from radixbackend.openai_api import chat_completions, completions, embeddings, native, responses, utility
from radixbackend.openai_api.faces import Face, WaitedTooLong
from radixbackend.openai_api.faults import ApiError, api_error
from radixbackend.openai_api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    Wire,
    parse,
)
from radixbackend.openai_api.served import Served
from radixbackend.openai_api.utility import Text
from radixbackend.openai_api.wire import dumps, new_id, sse

if TYPE_CHECKING:
    from radixbackend.backend import Backend

log = logging.getLogger(__name__)

LONG_BODY = 1 << 16
"""Bytes from which on a body is parsed off the event loop."""

JSON = "application/json"
EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

Endpoint = Callable[[Any, Served, Face], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Route:
    """Where an endpoint is. ``wire`` is what its body must be; ``open`` needs no key.

    A path that ends in ``{name}`` takes whatever comes there, slashes too, instead of a body.
    """

    method: str
    path: str
    endpoint: Endpoint
    wire: type[Wire] | None = None
    open: bool = False

    def match(self, path: str) -> str | None:
        """What stands in place of ``{name}``, the empty string where there is no such place; None is no match."""
        fixed, brace, _ = self.path.partition("{")
        if not brace:
            return "" if path == self.path else None
        return path[len(fixed) :] if path.startswith(fixed) and len(path) > len(fixed) else None


@dataclass(frozen=True)
class Call:
    """A request as it came. Names of headers are in lower case, ``path`` is decoded and without the query."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """An answer. A body in pieces must be read to its end or closed: closing it aborts the request."""

    status: int
    headers: Mapping[str, str]
    body: bytes | AsyncGenerator[bytes]


class Api:
    """The API over one backend.

    Args:
        names: what clients may call the model, the first being what answers say; by default `default_names`.
        api_key: required of every client, if there is one.
        metrics: renders them for ``/metrics``.
        reveal: tell clients all about what went wrong inside; for those in this process.
        expose_cache: show clients the radix tree, and so what others have said.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        names: tuple[str, ...] = (),
        api_key: str | None = None,
        metrics: Callable[[], str] | None = None,
        reveal: bool = False,
        expose_cache: bool = False,
    ) -> None:
        self._key = None if api_key is None else api_key.encode()
        self._reveal = reveal
        self.served = Served.of(backend, names or default_names(backend.model_name), reveal)
        self.routes = (*routes(metrics), *((CACHE_TREE,) if expose_cache else ()))

    async def answer(self, call: Call, face: Face) -> Reply:
        """Raises `WaitedTooLong`, and nothing else."""
        asked: Any = None
        try:
            route, rest = self._route(call)
            if not route.open:
                self._check_key(call.headers)
            asked = await self._parse(route, call, face) if route.wire else rest or None
            answer = await route.endpoint(asked, self.served, face)
            if isinstance(answer, AsyncGenerator):
                first = await anext(answer)  # what fails before the first piece still gets a status
                return Reply(200, _headers(EVENT_STREAM), self._guarded(first, answer, asked))
            if isinstance(answer, Text):
                return Reply(200, _headers({"content-type": answer.content_type}), answer.content.encode())
            return Reply(200, _headers({"content-type": JSON}), dumps(answer))
        except WaitedTooLong:
            raise
        except Exception as fault:
            return refusal(self._error(fault, asked))

    def _route(self, call: Call) -> tuple[Route, str]:
        found = [(route, rest) for route in self.routes if (rest := route.match(call.path)) is not None]
        for route, rest in found:
            if route.method == call.method:
                return route, rest
        if found:
            allowed = ", ".join(sorted({route.method for route, _ in found}))
            raise ApiError(405, f"{call.path} takes {allowed}.", code="method_not_allowed", headers={"allow": allowed})
        raise ApiError(404, f"There is no {call.method} {call.path} here.", code="unknown_url")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        if self._key is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        good = hmac.compare_digest(key.strip().encode("utf-8", "replace"), self._key)
        if scheme.lower() != "bearer" or not good:
            raise ApiError(
                401,
                "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _parse(self, route: Route, call: Call, face: Face) -> Wire:
        # A browser lets any page send other types without asking the server first.
        kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise ApiError(415, f"Send the body as {JSON}.", code="unsupported_media_type")
        wire = route.wire
        assert wire is not None
        if len(call.body) > LONG_BODY:
            asked = await face.call(lambda: parse(wire, call.body))
        else:
            asked = parse(wire, call.body)
        self.served.check_model(getattr(asked, "model", None))
        return asked

    async def _guarded(self, first: bytes, pieces: AsyncGenerator[bytes], asked: Any) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(pieces):
            try:
                yield first
                async for piece in pieces:
                    yield piece
            except WaitedTooLong:
                raise
            except Exception as fault:
                yield sse(self._error(fault, asked).body())

    def _error(self, fault: Exception, asked: Any) -> ApiError:
        return api_error(fault, getattr(asked, "params", None), reveal=self._reveal)


def refusal(error: ApiError) -> Reply:
    return Reply(error.status, _headers({"content-type": JSON, **error.headers}), error.content())


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {**headers, "x-request-id": new_id("req")}


def default_names(model: str) -> tuple[str, ...]:
    """A hub id as it is, of a folder its last part: where it lies is nobody's business, but who knows may say it."""
    folder = os.path.isdir(model)
    return (os.path.basename(os.path.normpath(model)), model) if folder else (model,)


CACHE_TREE = Route("GET", "/cache_tree", utility.cache_tree)


def routes(metrics: Callable[[], str] | None) -> tuple[Route, ...]:
    """Every endpoint there is."""
    get, post = "GET", "POST"
    return (
        Route(post, "/v1/chat/completions", chat_completions.create, ChatCompletionRequest),
        Route(post, "/v1/completions", completions.create, CompletionRequest),
        Route(post, "/v1/responses", responses.create, responses.ResponsesRequest),
        Route(post, "/v1/embeddings", embeddings.create, EmbeddingRequest),
        Route(get, "/v1/models", utility.models),
        Route(get, "/v1/models/{model}", utility.model),
        Route(post, "/tokenize", utility.tokenize, TokenizeRequest),
        Route(post, "/detokenize", utility.detokenize, DetokenizeRequest),
        Route(post, "/generate", native.create, native.GenerateRequest),
        Route(get, "/get_model_info", utility.model_info),
        Route(get, "/model_info", utility.model_info),
        Route(get, "/server_info", utility.server_info),
        Route(get, "/get_server_info", utility.server_info),
        Route(post, "/flush_cache", utility.flush_cache),
        Route(get, "/metrics", utility.metrics(metrics)),
        Route(get, "/health", utility.health, open=True),
        Route(get, "/health_generate", utility.health, open=True),
    )

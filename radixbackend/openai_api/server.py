"""The HTTP server: the dispatch behind FastAPI and uvicorn.

Rules. Sockets, and what only a network brings, are dealt with here: bodies are bounded before they are kept, a
client that goes away ends its request within a token, and shutting down stops accepting, lets what runs finish for
a grace time, aborts the rest and gives the memory back. What requests mean is the dispatch's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from radixbackend.errors import MissingDependencyError
from radixbackend.openai_api.api import Api, Call, Reply, refusal
from radixbackend.openai_api.faces import LoopFace
from radixbackend.openai_api.faults import ApiError
from radixbackend.openai_api.openapi import document

try:
    import uvicorn
    from fastapi import FastAPI, Response
except ImportError as fault:
    raise MissingDependencyError("the server needs FastAPI and uvicorn: pip install 'radixbackend[server]'") from fault

if TYPE_CHECKING:
    from radixbackend.backend import Backend

log = logging.getLogger(__name__)

MAX_BODY = 16 << 20
"""Bytes of a request's body."""

BODY_SECONDS = 60.0
"""In which a body must arrive."""

GRACE_SECONDS = 10.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Gone(Exception):
    """The client went away."""


def create_app(api: Api, *, max_body: int = MAX_BODY, on_shutdown: Callable[[], None] | None = None) -> FastAPI:
    """An ASGI application over the dispatch; ``on_shutdown`` runs when it stops serving."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if on_shutdown is not None:
            await asyncio.to_thread(on_shutdown)

    app = FastAPI(title="radixbackend", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.openapi = lambda: document(api.routes)  # type: ignore[method-assign]

    elsewhere = app.router.default

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        """For every path, those too that no pattern of a route would match."""
        if scope["type"] == "http":
            await Exchange(api, max_body)(scope, receive, send)
        else:
            await elsewhere(scope, receive, send)

    app.router.default = dispatch
    return app


def make_server(app: FastAPI, host: str, port: int, grace: float = GRACE_SECONDS) -> uvicorn.Server:
    """A server that is not running yet; ``run()`` blocks, ``should_exit = True`` ends it from any thread."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    return uvicorn.Server(config)


def serve(
    backend: Backend,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    names: tuple[str, ...] = (),
    metrics: Callable[[], str] | None = None,
    max_body: int = MAX_BODY,
    grace: float = GRACE_SECONDS,
    expose_cache: bool = False,
) -> None:
    """Serve until interrupted, then close the backend. For the main thread: SIGINT and SIGTERM end it."""
    if api_key is None and not is_loopback(host):
        log.warning("serving on %s without a key: whoever reaches this machine can use the model", host)
    api = Api(backend, names=names, api_key=api_key, metrics=metrics, expose_cache=expose_cache)
    try:
        make_server(create_app(api, max_body=max_body), host, port, grace).run()
    finally:
        backend.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class Exchange(Response):
    """One request and its answer, on the bare ASGI channels."""

    def __init__(self, api: Api, max_body: int) -> None:
        super().__init__()
        self._api = api
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            body = await _read(receive, headers, self._max_body)
        except ApiError as error:
            await _send(refusal(error), send, close=True)
            return
        except _Gone:
            return
        call = Call(scope["method"], scope["path"], headers, body)
        answering = asyncio.create_task(self._answer(call, send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                log.debug("%s %s: the client went away; its request is aborted", call.method, call.path)
                answering.cancel()
            await asyncio.wait({answering, leaving})
        if not answering.cancelled() and (fault := answering.exception()) is not None:
            raise fault

    async def _answer(self, call: Call, send: Send) -> None:
        await _send(await self._api.answer(call, LoopFace(self._api.served)), send)


async def _read(receive: Receive, headers: dict[str, str], limit: int) -> bytes:
    """The body; raises `ApiError` when it is too long or too slow, `_Gone` when the client is."""
    too_long = ApiError(
        413, f"The body of a request may have {limit} bytes.", code="request_too_large", headers={"connection": "close"}
    )
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, "The body did not arrive in time.", code="request_timeout") from None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(reply: Reply, send: Send, *, close: bool = False) -> None:
    headers = {**reply.headers, **({"connection": "close"} if close else {})}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    if isinstance(reply.body, bytes):
        raw.append((b"content-length", str(len(reply.body)).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": reply.body})
        return
    async with contextlib.aclosing(reply.body) as pieces:
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await _send_pieces(pieces, send)


async def _send_pieces(pieces: AsyncGenerator[bytes], send: Send) -> None:
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})

"""The in-process HTTP transport under OpenAI's SDK: requests go to the dispatch, not to a socket.

Rules. A response streams: each piece is read when the caller asks for it. Closing a response's body, or dropping it,
aborts the request, however often and from whichever thread. The read timeout is enforced as on a socket: for the
answer, or for each piece of a stream; it raises the SDK's own error, since that is the one kind that the SDK neither
retries nor masks.

A transport has a share of the API that it dispatches to; when the last share is closed, so is what is behind it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from radixbackend.chat.sdk import httpx, openai
from radixbackend.openai_api.api import Api, Call, Reply
from radixbackend.openai_api.faces import Blocking, BlockingFace, LoopFace, WaitedTooLong, run

DROP = "radixbackend.drop"
"""Extension of a streamed response: a function that aborts it, for when nobody holds it any more."""


class Share:
    """One user's hold of an API; `close`, or dropping it, gives it back. ``on_last`` runs with the last."""

    def __init__(self, api: Api, on_last: Callable[[], None], _users: _Users | None = None) -> None:
        self.api = api
        self._users = _users or _Users(on_last)
        self._users.join()
        self._finalizer = weakref.finalize(self, self._users.leave)

    def again(self) -> Share:
        return Share(self.api, self._users.on_last, self._users)

    def close(self) -> None:
        """Safe to call twice."""
        self._finalizer()


class _Users:
    def __init__(self, on_last: Callable[[], None]) -> None:
        self.on_last = on_last
        self._count = 0
        self._lock = threading.Lock()

    def join(self) -> None:
        with self._lock:
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self.on_last()


class Transport(httpx.BaseTransport):  # type: ignore[misc]  # which library it is, is known at run time alone
    """For the SDK's synchronous client."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def handle_request(self, request: Any) -> Any:
        face = BlockingFace(self.share.api.served, _patience(request))
        call = _call(request, request.read())
        try:
            reply = run(self.share.api.answer(call, face))
        except WaitedTooLong:
            raise openai.APITimeoutError(request=request) from None
        if isinstance(reply.body, bytes):
            return _response(reply, content=reply.body)
        body = Body(Blocking(reply.body), face, request)
        return _response(reply, stream=body, extensions={DROP: body.close})

    def close(self) -> None:
        self.share.close()


class AsyncTransport(httpx.AsyncBaseTransport):  # type: ignore[misc]
    """For the SDK's asynchronous client."""

    def __init__(self, share: Share) -> None:
        self.share = share

    async def handle_async_request(self, request: Any) -> Any:
        face = LoopFace(self.share.api.served, _patience(request))
        call = _call(request, await request.aread())
        try:
            reply = await self.share.api.answer(call, face)
        except WaitedTooLong:
            raise openai.APITimeoutError(request=request) from None
        if isinstance(reply.body, bytes):
            return _response(reply, content=reply.body)
        body = AsyncBody(reply.body, face, request)
        return _response(reply, stream=body, extensions={DROP: body.drop})

    async def aclose(self) -> None:
        self.share.close()


class Body(httpx.SyncByteStream):  # type: ignore[misc]
    """A streamed body, read piece by piece."""

    def __init__(self, pieces: Blocking[bytes], face: BlockingFace, request: Any) -> None:
        self._pieces = pieces
        self._face = face
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except WaitedTooLong:
            raise openai.APITimeoutError(request=self._request) from None

    def close(self) -> None:
        """Safe to call twice, and while another thread waits for the next piece: its iteration then fails."""
        try:
            self._pieces.close()
        except RuntimeError:
            self._face.abort()


class AsyncBody(httpx.AsyncByteStream):  # type: ignore[misc]
    """A streamed body, read piece by piece."""

    def __init__(self, pieces: AsyncGenerator[bytes], face: LoopFace, request: Any) -> None:
        self._pieces = pieces
        self._face = face
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                yield piece
        except WaitedTooLong:
            raise openai.APITimeoutError(request=self._request) from None

    async def aclose(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Safe to call twice, and while a task waits for the next piece: its iteration then fails."""
        try:
            run(self._pieces.aclose())  # closing suspends nowhere
        except RuntimeError:
            self._face.abort()


def _patience(request: Any) -> float | None:
    timeout: float | None = request.extensions.get("timeout", {}).get("read")
    return timeout


def _call(request: Any, body: bytes) -> Call:
    return Call(request.method, request.url.path, dict(request.headers), body)


def _response(reply: Reply, **body: Any) -> Any:
    return httpx.Response(reply.status, headers=dict(reply.headers), **body)

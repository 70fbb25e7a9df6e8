"""The connection to a server: OpenAI's SDK, for threads and for event loops.

Rules. The SDK does the HTTP, the server-sent events and the retries; `faults` says what went wrong. Nothing of the
environment is used but its proxies: no key, no URL, no organization that was meant for somebody else.

A timeout is not tried again (but by HTTP clients of the caller's), since the server would begin anew; what else the SDK
retries is, ``max_retries`` times: a full queue, a connection that fails, a server that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any

from radixbackend.chat.faults import mapped
from radixbackend.chat.sdk import httpx, library_of, openai
from radixbackend.errors import EngineClosedError

NO_KEY = "no-key"
"""Sent where the caller has none: the SDK insists on one, servers without keys look at none."""

Json = dict[str, Any]


class Connection:
    """One client of the SDK's for all threads, and one for each event loop. The arguments are those of `RemoteChat`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout: float | None,
        max_retries: int,
        headers: Mapping[str, str],
        http_client: Any,
        http_async_client: Any,
    ) -> None:
        self._timeout = timeout
        self._headers = dict(headers)
        self._options: Json = {"base_url": url, "api_key": api_key or NO_KEY, "max_retries": max_retries}
        if timeout is not None:
            self._options["timeout"] = timeout
        self._http, self._http_async = http_client, http_async_client
        http = http_client or Client(verify=self._certificates)
        self._client: openai.OpenAI = self._bare(openai.OpenAI(**self._options, http_client=http))
        self._clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}
        self._lock = threading.Lock()
        self._closed = False

    def get(self, url: str) -> Any:
        """The JSON that is there."""
        self._check_open()
        with self.mapped(url, None):
            return self._client.get(url, cast_to=object)

    def post(self, url: str, body: Json | None = None, timeout: float | None = None) -> Any:
        """The JSON that is answered."""
        self._check_open()
        with self.mapped(url, timeout):
            return self._client.post(url, body=body, cast_to=object, options=_options(timeout))

    async def apost(self, url: str, body: Json, timeout: float | None) -> Any:
        with self.amapped(url, timeout):
            return await self._client_here().post(url, body=body, cast_to=object, options=_options(timeout))

    def stream(self, url: str, body: Json, timeout: float | None) -> openai.Stream[object]:
        """The events of an answer that has begun; what goes wrong in it is for `mapped` to say."""
        self._check_open()
        with self.mapped(url, timeout):
            return self._client.post(
                url,
                body=body,
                cast_to=object,
                stream=True,
                stream_cls=openai.Stream[object],
                options=_options(timeout),
            )

    async def astream(self, url: str, body: Json, timeout: float | None) -> openai.AsyncStream[object]:
        """The same, but that what goes wrong at the beginning is for `amapped` to say, too."""
        return await self._client_here().post(
            url,
            body=body,
            cast_to=object,
            stream=True,
            stream_cls=openai.AsyncStream[object],
            options=_options(timeout),
        )

    def mapped(self, url: str, timeout: float | None) -> contextlib.AbstractContextManager[None]:
        """Where faults of the SDK and of HTTP become ours."""
        return mapped(url, _library(self._http), self._timeout if timeout is None else timeout)

    def amapped(self, url: str, timeout: float | None) -> contextlib.AbstractContextManager[None]:
        return mapped(url, _library(self._http_async), self._timeout if timeout is None else timeout)

    def close(self) -> None:
        """Give the connections back. Safe to call twice."""
        with self._lock:
            closed, self._closed = self._closed, True
            clients, self._clients = self._clients, {}
        if not closed and self._http is None:
            self._client.close()
        if self._http_async is None:
            for loop, client in clients.items():
                close_soon(loop, client.close)

    def _client_here(self) -> openai.AsyncOpenAI:
        """The client of the running event loop: connections belong to the loop that they were made in."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._check_open()
            for gone in [known for known in self._clients if known.is_closed()]:
                del self._clients[gone]
            if loop not in self._clients:
                http = self._http_async or AsyncClient(verify=self._certificates)
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


class Client(openai.DefaultHttpxClient):
    """The SDK's own, but that it takes a timeout for the caller's decision, as the SDK does with errors of its own."""

    def send(self, request: Any, **options: Any) -> Any:
        try:
            return super().send(request, **options)
        except httpx.TimeoutException as fault:
            raise openai.APITimeoutError(request=request) from fault


class AsyncClient(openai.DefaultAsyncHttpxClient):
    """The same."""

    async def send(self, request: Any, **options: Any) -> Any:
        try:
            return await super().send(request, **options)
        except httpx.TimeoutException as fault:
            raise openai.APITimeoutError(request=request) from fault


def close_soon(loop: asyncio.AbstractEventLoop, close: Callable[[], Any]) -> None:
    """Close something on its event loop, from anywhere; with a loop that is closed, so are its connections."""
    with contextlib.suppress(RuntimeError):
        if asyncio._get_running_loop() is loop:
            loop.create_task(close())
        else:
            loop.call_soon_threadsafe(lambda: loop.create_task(close()))


def _library(client: Any) -> ModuleType:
    return library_of(type(client)) if client is not None else httpx


def _options(timeout: float | None) -> Any:
    return {} if timeout is None else {"timeout": timeout}

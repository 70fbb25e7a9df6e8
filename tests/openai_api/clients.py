"""The four faces behind one way to call them, a server in a thread, and a backend that remembers its requests."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import openai

from radixbackend.openai import AsyncOpenAI, OpenAI
from radixbackend.openai_api.api import Api
from radixbackend.openai_api.server import create_app, make_server
from radixbackend.types import GenerationRequest

KINDS = ("local", "local-async", "http", "http-async")
PATIENCE = 30.0


class Recorder:
    """A backend that remembers what it was asked."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.asked: list[GenerationRequest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def generate(self, prompt: GenerationRequest, **rest: Any) -> Any:
        self.asked.append(prompt)
        return self._backend.generate(prompt, **rest)

    def agenerate(self, prompt: GenerationRequest, **rest: Any) -> Any:
        self.asked.append(prompt)
        return self._backend.agenerate(prompt, **rest)

    def stream(self, prompt: GenerationRequest, **rest: Any) -> Any:
        self.asked.append(prompt)
        return self._backend.stream(prompt, **rest)

    def astream(self, prompt: GenerationRequest, **rest: Any) -> Any:
        self.asked.append(prompt)
        return self._backend.astream(prompt, **rest)


@dataclass
class Stream:
    """A stream of either client, read from plain code."""

    raw: Any
    loop: asyncio.AbstractEventLoop | None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.loop is None:
            return next(self.raw)
        try:
            return asyncio.run_coroutine_threadsafe(_next(self.raw), self.loop).result(PATIENCE)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        if self.loop is None:
            self.raw.close()
        else:
            asyncio.run_coroutine_threadsafe(self.raw.close(), self.loop).result(PATIENCE)


async def _next(items: Any) -> Any:
    return await anext(items)


@dataclass
class Client:
    """One of the four faces. `raw` is the SDK's client."""

    kind: str
    raw: Any
    loop: asyncio.AbstractEventLoop | None

    @classmethod
    def make(cls, kind: str, backend: Any, url: str, loop: asyncio.AbstractEventLoop, *, strict: bool = True) -> Client:
        """``max_retries=0``, so that what fails, fails at once; ``strict`` checks answers against the SDK's types."""
        options: dict[str, Any] = {"max_retries": 0, "_strict_response_validation": strict}
        raw: Any
        if kind == "local":
            raw = OpenAI(backend=backend, **options)
        elif kind == "local-async":
            raw = AsyncOpenAI(backend=backend, **options)
        elif kind == "http":
            raw = openai.OpenAI(base_url=f"{url}/v1", api_key="any", **options)
        else:
            raw = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", **options)
        return cls(kind, raw, loop if kind.endswith("async") else None)

    @property
    def is_async(self) -> bool:
        return self.loop is not None

    def call(self, name: str, /, **arguments: Any) -> Any:
        """For example ``call("chat.completions.create", messages=…)``; the model is filled in."""
        arguments.setdefault("model", "tiny")
        result = attrgetter(name)(self.raw)(**arguments)
        return result if self.loop is None else self.wait(result)

    def wait(self, awaitable: Any) -> Any:
        async def whole() -> Any:
            return await awaitable

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(whole(), self.loop).result(PATIENCE)

    def chat(self, text: str = "Hello", /, **arguments: Any) -> Any:
        """A chat of one message, 12 tokens at temperature 0 unless ``arguments`` say otherwise."""
        arguments.setdefault("messages", [{"role": "user", "content": text}])
        if "max_completion_tokens" not in arguments:
            arguments.setdefault("max_tokens", 12)
        arguments.setdefault("temperature", 0)
        return self.call("chat.completions.create", **arguments)

    def stream(self, name: str = "chat.completions.create", /, **arguments: Any) -> Stream:
        if name == "chat.completions.create":
            arguments.setdefault("messages", [{"role": "user", "content": "Hello"}])
        return Stream(self.call(name, stream=True, **arguments), self.loop)

    def close(self) -> None:
        if self.loop is None:
            self.raw.close()
        else:
            self.wait(self.raw.close())


@dataclass
class Served:
    """A server on loopback, and raw requests to it."""

    host: str
    port: int
    app: Any = None
    server: Any = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers, and the body: parsed where it is JSON. ``body`` is bytes as they are, or JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        sent = {"content-type": "application/json", **(headers or {})}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            content = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()
        is_json = content and found.get("content-type", "").startswith("application/json")
        parsed = json.loads(content) if is_json else content
        return response.status, found, parsed

    def post(self, path: str, body: Any, **rest: Any) -> Any:
        """The answer, which must be a good one."""
        status, _, answer = self.send("POST", path, body, **rest)
        assert status == 200, answer
        return answer

    def events(self, path: str, body: Any) -> list[Any]:
        """The data of a stream's events; the last is ``"[DONE]"`` where there is one."""
        content = self.post(path, {**body, "stream": True}).decode()
        data = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in data]


@contextlib.contextmanager
def serve(backend: Any, *, max_body: int = 1 << 20, grace: float = 1.0, **options: Any) -> Iterator[Served]:
    """A server for ``backend`` in a thread, on a port that is free."""
    options.setdefault("names", ("tiny",))
    app = create_app(Api(backend, **options), max_body=max_body)
    server = make_server(app, "127.0.0.1", 0, grace)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield Served(host, port, app, server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for something that other threads are about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)

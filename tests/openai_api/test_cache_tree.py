"""The radix tree over HTTP: where the server was told to show it, and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from radixbackend import Engine, GenerationRequest, SamplingParams
from radixbackend.cache_view import view_cache
from radixbackend.cli.tree import fetch
from radixbackend.errors import (
    AuthenticationError,
    ConfigError,
    RemoteError,
    ServerUnreachableError,
    UnsupportedByServerError,
)
from tests.openai_api.clients import Served, serve


@pytest.fixture
def warmed(engine: Engine) -> Engine:
    """An engine with three prompts in its tree, two of them in a namespace."""
    engine.flush_cache()
    for text, salt in (("Call them in <tool_call>!", None), ("The weather in Rome", "a"), ("The weather in Oslo", "a")):
        engine.generate(GenerationRequest(text, SamplingParams(max_tokens=1, temperature=0), cache_salt=salt))
    return engine


def test_it_is_not_there_by_default(served: Served) -> None:
    status, _, body = served.send("GET", "/cache_tree")
    assert (status, body["error"]["code"]) == (404, "unknown_url")
    assert "/cache_tree" not in served.send("GET", "/openapi.json")[2]["paths"]
    with pytest.raises(UnsupportedByServerError, match="--expose-cache"):
        fetch(served.url, None)


def test_what_is_shown(warmed: Engine) -> None:
    with serve(warmed, expose_cache=True) as shown:
        status, _, body = shown.send("GET", "/cache_tree")
        seen = fetch(f"{shown.url}/v1/", None)
    assert status == 200
    assert seen == view_cache(warmed)
    assert sum(node["tokens"] for node in body["nodes"]) == warmed.stats().slots_cached
    texts = {node["text"]: node for node in body["nodes"] if node["namespace"] == "a"}
    shared = next(node for text, node in texts.items() if text.startswith("The weather in "))
    assert (shared["depth"], shared["hits"], shared["locks"]) == (1, 1, 0)
    assert sorted(node["depth"] for node in texts.values()) == [1, 2, 2]
    assert any("<tool_call>" in node["text"] for node in body["nodes"] if node["namespace"] is None)


def test_it_needs_the_key(warmed: Engine) -> None:
    with serve(warmed, expose_cache=True, api_key="secret") as shown:
        assert shown.send("GET", "/cache_tree")[0] == 401
        with pytest.raises(AuthenticationError, match="--api-key"):
            fetch(shown.url, "wrong")
        assert fetch(shown.url, "secret").nodes


def test_images_are_said_to_be_there() -> None:
    """Keys below zero stand for them, and no tokenizer knows those."""
    from radixbackend.cache_view import _text

    class Letters:
        def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
            assert min(tokens) >= 0
            return "".join(map(chr, tokens))

    assert _text([97, 98, -5, -5, -7, 99], Letters()) == "ab[image]c"  # type: ignore[arg-type]
    assert _text([97, -5], None) == "[97] [image]"


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server that always says this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", json.dumps({"nodes": [{"x": 1}]}).encode()])
def test_other_servers(body: bytes) -> None:
    with answering(body) as url, pytest.raises(RemoteError, match="does not answer as radix serve does"):
        fetch(url, None)


def test_nobody_is_there() -> None:
    with answering(b"") as url:
        pass
    with pytest.raises(ServerUnreachableError, match=url):
        fetch(url, None)
    with pytest.raises(ConfigError, match="no-url"):
        fetch("no-url", None)

"""What only a network brings: keys, sizes, malformed bodies, clients that vanish; other endpoints."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radixbackend import Engine
from radixbackend.metrics import PrometheusMetrics
from radixbackend.openai_api import server
from radixbackend.openai_api.server import is_loopback
from tests.openai_api.clients import Served, serve, until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PATH = "/v1/chat/completions"
KEY = "s3cret"


def test_it_is_well(served: Served) -> None:
    assert served.send("GET", "/health")[2] == {"status": "ok"}
    assert served.send("GET", "/health_generate")[0] == 200
    assert served.post(PATH, CHAT)["model"] == "tiny"  # the one model is meant where none is named


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Iterator[Served]:
    with serve(engine, api_key=KEY, max_body=1 << 14) as served:
        yield served


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": "Bearer schl\xfcssel"}, 401),
    ],
)
def test_keys(locked: Served, sent: dict[str, str], status: int) -> None:
    got, headers, body = locked.send("POST", PATH, CHAT, sent)
    assert got == status
    if status == 401:
        assert body["error"]["type"] == "authentication_error"
        assert body["error"]["code"] == "invalid_api_key"
        assert headers["www-authenticate"] == "Bearer"


def test_what_needs_a_key(locked: Served) -> None:
    assert locked.send("GET", "/health")[0] == 200
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/flush_cache"), ("GET", "/server_info")):
        assert locked.send(method, path)[0] == 401, path


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.com")))


# -- bodies ----------------------------------------------------------------------------------------------------------


def test_long_bodies_are_refused(locked: Served) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    big = {"messages": [{"role": "user", "content": "x" * (1 << 14)}]}
    status, _, body = locked.send("POST", PATH, big, headers)
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    # Not announced, but in chunks without end: refused as soon as there is too much.
    with socket.create_connection((locked.host, locked.port), timeout=10) as connection:
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
        try:
            for _ in range(20):
                connection.sendall(chunk)
        except OSError:
            pass  # it hung up already
        assert b"413" in connection.recv(200)


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"messages": [}',
    b'{"messages": NaN}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"max_tokens": 1' + b"0" * 5000 + b', "messages": [{"role": "user", "content": "a"}]}',
    b'{"messages": [{"role": "user", "content": ["\x00"]}]}',
    b"\x00" * 1000,
    json.dumps({**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}).encode(),
]


@pytest.mark.parametrize("path", [PATH, "/v1/completions", "/v1/responses", "/v1/embeddings", "/generate", "/tokenize"])
def test_malformed_bodies(served: Served, path: str) -> None:
    for body in MALFORMED:
        status, _, answer = served.send("POST", path, body)
        if (path, body) == ("/tokenize", MALFORMED[-1]):
            continue  # nothing is wrong with its messages
        assert 400 <= status < 500, body[:50]
        assert set(answer["error"]) - {"pointer"} == {"message", "type", "param", "code"}
        assert len(answer["error"]["message"]) < 2000
    assert served.post(PATH, CHAT)["object"] == "chat.completion"


def test_a_million_errors_are_not_counted(engine: Engine) -> None:
    """They would take minutes and gigabytes."""
    ones = b"1," * (1 << 20)
    bodies = [
        b'{"messages": [' + ones + b"1]}",
        b'{"messages": [], "stop": [' + ones + b"1]}",
        b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {'
        + b",".join(b'"%d": "x"' % i for i in range(1 << 17))
        + b"}}",
    ]
    with serve(engine, max_body=1 << 23) as served:
        for body in bodies:
            started = time.monotonic()
            assert served.send("POST", PATH, body)[0] == 400
            assert time.monotonic() - started < 3
        started = time.monotonic()
        assert served.send("POST", "/v1/completions", b'{"prompt": ["a", ' + ones + b"1]}")[0] == 400
        assert time.monotonic() - started < 3


def test_deep_schema(served: Served) -> None:
    """As deep as JSON may be here."""
    schema: Any = {"type": "string"}
    for _ in range(60):
        schema = {"type": "object", "properties": {"a": schema}}
    body = {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    assert served.send("POST", PATH, body)[0] in (200, 400)
    assert served.post(PATH, CHAT)["object"] == "chat.completion"


def test_other_types_are_refused(served: Served) -> None:
    """A page in a browser may send these to any server without asking it first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _, body = served.send("POST", PATH, CHAT, {"content-type": kind})
        assert (status, body["error"]["code"]) == (415, "unsupported_media_type")
    assert served.send("POST", PATH, CHAT, {"content-type": "application/json; charset=utf-8"})[0] == 200


def test_noise_on_the_wire(served: Served) -> None:
    """Bytes that are no HTTP, connections that close at once, bodies that never come."""
    noise = random.Random(0)
    for _ in range(20):
        with socket.create_connection((served.host, served.port), timeout=10) as connection:
            connection.sendall(noise.randbytes(noise.randrange(200)))
    with socket.create_connection((served.host, served.port), timeout=10) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
    assert served.post(PATH, CHAT)["object"] == "chat.completion"


@pytest.mark.parametrize("stream", [False, True])
def test_vanished_clients_are_aborted(slow_engine: Engine, stream: bool) -> None:
    body = json.dumps({**CHAT, "max_tokens": 800, "ignore_eos": True, "stream": stream}).encode()
    with serve(slow_engine) as served:
        aborted = slow_engine.stats().aborted
        with socket.create_connection((served.host, served.port), timeout=10) as connection:
            head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: slow_engine.stats().running == 1)
        until(lambda: slow_engine.stats().aborted == aborted + 1, 2)
        until(lambda: slow_engine.stats().slots_held == 0)


def test_big_prompts_do_not_hold_up_others(served: Served) -> None:
    """A megabyte of tokens is refused at its length, and meanwhile others are answered."""
    big = {"prompt": [5] * 200_000, "max_tokens": 1}
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(served.send("POST", "/v1/completions", big)))
    thread.start()
    assert served.post(PATH, CHAT)["object"] == "chat.completion"
    thread.join(10)
    assert answers[0][0] == 400
    assert answers[0][2]["error"]["code"] == "context_length_exceeded"


# -- the other endpoints -----------------------------------------------------------------------------------------------


def test_models(served: Served) -> None:
    _, _, listed = served.send("GET", "/v1/models")
    assert [m["id"] for m in listed["data"]] == ["tiny"]
    assert listed["data"][0]["max_model_len"] == 1024
    assert served.send("GET", "/v1/models/tiny")[2]["object"] == "model"
    status, _, body = served.send("GET", "/v1/models/some/other")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


def test_names_say_nothing_of_folders(engine: Engine, checkpoint: Path) -> None:
    with serve(engine, names=()) as served:
        for path in ("/v1/models", "/get_model_info", "/server_info", "/openapi.json"):
            _, _, body = served.send("GET", path)
            assert str(checkpoint.parent) not in json.dumps(body), path
        assert served.post(PATH, CHAT)["model"] == checkpoint.name
        status, _, body = served.send("POST", PATH, {**CHAT, "model": "x"})
        assert status == 404
        assert str(checkpoint.parent) not in json.dumps(body)


def test_tokenize(served: Served, engine: Engine) -> None:
    tokenizer: Any = engine.tokenizer
    answer = served.post("/tokenize", {"prompt": "The weather <|im_end|>", "return_token_strs": True})
    tokens = tokenizer.encode("The weather <|im_end|>")
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (tokens, len(tokens), 1024)
    assert "".join(answer["token_strs"]) == "The weather <|im_end|>"
    bare = served.post("/tokenize", {"prompt": "a", "add_special_tokens": False})
    assert bare["tokens"] == tokenizer.encode("a", add_special_tokens=False)
    chat = served.post("/tokenize", {"messages": CHAT["messages"]})
    asked = served.post(PATH, CHAT)
    assert chat["count"] == asked["usage"]["prompt_tokens"]
    shorter = served.post("/tokenize", {"messages": CHAT["messages"], "add_generation_prompt": False})
    assert shorter["count"] < chat["count"]
    last = {"role": "assistant", "content": "Well"}
    messages = [*CHAT["messages"], last]
    continued = served.post("/tokenize", {"messages": messages, "continue_final_message": True})
    text = served.post("/detokenize", {"tokens": continued["tokens"]})["text"]
    assert text.endswith("Well")
    opened = served.post("/tokenize", {"messages": messages, "chat_template_kwargs": {"opening": "So"}})
    assert served.post("/detokenize", {"tokens": opened["tokens"]})["text"].endswith("So")
    tool = {"type": "function", "function": {"name": "fetch", "parameters": {"type": "object"}}}
    with_tools = served.post("/tokenize", {"messages": messages, "tools": [tool]})
    assert "fetch" in served.post("/detokenize", {"tokens": with_tools["tokens"]})["text"]
    back = served.post("/detokenize", {"tokens": tokens})
    assert back["prompt"] == back["text"] == "The weather <|im_end|>"
    assert served.post("/detokenize", {"tokens": tokens, "skip_special_tokens": True})["text"] == "The weather "
    assert served.send("POST", "/detokenize", {"tokens": [-1]})[0] == 400
    assert served.send("POST", "/detokenize", {"tokens": [2**40]})[0] == 400
    assert served.send("POST", "/tokenize", {})[0] == 400


def test_flush_cache(served: Served, engine: Engine) -> None:
    served.post("/v1/completions", {"prompt": "A prompt that nobody has asked before the cache is flushed"})
    assert engine.stats().slots_cached > 0
    answer = served.send("POST", "/flush_cache")[2]
    assert answer["success"] is True
    assert answer["flushed_tokens"] > 0
    assert engine.stats().slots_cached == 0


def test_metrics(checkpoint: Path) -> None:
    metrics = PrometheusMetrics(model_name="tiny")
    engine = Engine(checkpoint, plugins=[metrics], kv_cache_tokens=1024, self_check=False)
    with engine, serve(engine, metrics=metrics.render) as served:
        served.post(PATH, CHAT)
        status, headers, text = served.send("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = text.decode().splitlines()
    for name in ("num_running_reqs", "token_usage", "cache_hit_rate", "time_to_first_token_seconds_count"):
        assert any(line.startswith(f'radix:{name}{{model_name="tiny"}}') for line in lines), name
    assert 'radix:generation_tokens_total{model_name="tiny"} 2.0' in lines


def test_metrics_may_be_off(served: Served) -> None:
    assert served.send("GET", "/metrics")[0] == 404


def test_closed_engine(checkpoint: Path) -> None:
    engine = Engine(checkpoint, kv_cache_tokens=512, self_check=False)
    with serve(engine) as served:
        engine.close()
        assert served.send("GET", "/health")[0] == 503
        status, headers, body = served.send("POST", PATH, CHAT)
        assert (status, body["error"]["code"], headers["x-should-retry"]) == (503, "engine_closed", "false")


def test_command(checkpoint: Path) -> None:
    """``radix serve`` answers, needs its key, and ends at once and cleanly when told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", str(checkpoint), "--port", str(port), "--name", "mine"]
    options = ["-o", "kv_cache_tokens=1024", "-o", "self_check=false"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from radixbackend.cli import main; main()", *arguments, *options],
        env={**os.environ, "RADIX_API_KEY": KEY},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        served = Served("127.0.0.1", port)
        until(lambda: process.poll() is not None or _is_up(served), 60)
        assert served.send("POST", PATH, CHAT)[0] == 401
        key = {"authorization": f"Bearer {KEY}"}
        assert served.send("POST", PATH, CHAT, key)[2]["model"] == "mine"
        assert b'radix:requests_total{model_name="mine"' in served.send("GET", "/metrics", headers=key)[2]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "Traceback" not in errors
    assert f"http://127.0.0.1:{port}/v1" in errors
    assert process.returncode in (0, -signal.SIGTERM)


def _is_up(served: Served) -> bool:
    try:
        return served.send("GET", "/health")[0] == 200
    except OSError:
        return False


def test_a_wide_open_server_warns(engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    class Idle:
        def run(self) -> None: ...

    closed: list[bool] = []
    backend: Any = type("Kept", (), {"__getattr__": lambda _, name: getattr(engine, name)})()
    backend.close = lambda: closed.append(True)
    monkeypatch.setattr(server, "make_server", lambda *_: Idle())
    for host, key, warns in (("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("127.0.0.1", None, False)):
        caplog.clear()
        server.serve(backend, host=host, api_key=key)
        assert ("without a key" in caplog.text) is warns
    assert len(closed) == 3


def test_headers(served: Served) -> None:
    _, headers, _ = served.send("POST", PATH, CHAT)
    assert headers["x-request-id"]
    assert "server" not in headers
    assert served.send("HEAD", "/health")[0] == 405

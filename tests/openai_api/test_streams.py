"""Time: pieces arrive as they are made, whoever leaves is not waited for, nobody waits longer than he wants to."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from radixbackend import Engine
from radixbackend.openai import OpenAI
from radixbackend.openai_api.transport import httpx
from tests.openai_api.clients import Client, Served, serve, until

LONG: dict[str, Any] = {"max_tokens": 800, "temperature": 0, "extra_body": {"ignore_eos": True}}
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def all_ended(slow_engine: Engine) -> Any:
    """Every test leaves an idle engine with all of its slots."""
    yield
    until(lambda: slow_engine.stats().running == slow_engine.stats().waiting == 0)
    assert slow_engine.stats().slots_held == 0


def steps(engine: Engine) -> int:
    return engine.slow.count  # type: ignore[attr-defined, no-any-return]


def ends_within_a_token(engine: Engine, end: Any) -> None:
    """``end()`` aborts the one running request: at most the step under way and the one that was coming are made."""
    aborted, before = engine.stats().aborted, steps(engine)
    end()
    after = steps(engine)
    until(lambda: engine.stats().aborted == aborted + 1)
    assert steps(engine) - before <= 2 + (after - before)
    assert engine.stats().running == 0
    assert engine.stats().slots_held == 0


def test_chunks_come_one_by_one(slow: Client) -> None:
    times = []
    for chunk in slow.stream(max_tokens=10, temperature=0, extra_body={"ignore_eos": True}):
        if chunk.choices[0].delta.content:
            times.append(time.monotonic())
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(gaps) >= 5
    assert sorted(gaps)[len(gaps) // 2] > 0.01, "they came in one go"


def test_closing_a_stream(slow: Client, slow_engine: Engine) -> None:
    stream = slow.stream(**LONG)
    next(stream)
    ends_within_a_token(slow_engine, stream.close)
    stream.close()  # again, to no effect
    assert slow.chat(max_tokens=2).usage.completion_tokens == 2


def test_leaving_a_stream(slow: Client, slow_engine: Engine) -> None:
    """By the end of its ``with`` block, by way of an exception."""

    async def leave_async() -> None:
        async with await slow.raw.chat.completions.create(model="tiny", messages=USER, stream=True, **LONG) as stream:
            await anext(stream)
            raise ZeroDivisionError

    def leave() -> None:
        with slow.raw.chat.completions.create(model="tiny", messages=USER, stream=True, **LONG) as stream:
            next(stream)
            raise ZeroDivisionError

    aborted = slow_engine.stats().aborted
    with pytest.raises(ZeroDivisionError):
        slow.wait(leave_async()) if slow.is_async else leave()
    until(lambda: slow_engine.stats().aborted == aborted + 1)


def test_helper_stream_is_left(slow: Client, slow_engine: Engine) -> None:
    async def leave_async() -> None:
        async with slow.raw.chat.completions.stream(model="tiny", messages=USER, **LONG) as stream:
            await anext(stream)

    aborted = slow_engine.stats().aborted
    if slow.is_async:
        slow.wait(leave_async())
    else:
        with slow.raw.chat.completions.stream(model="tiny", messages=USER, **LONG) as stream:
            next(stream)
    until(lambda: slow_engine.stats().aborted == aborted + 1)


@pytest.mark.parametrize("kind", ["local", "local-async"])
@pytest.mark.parametrize("name", ["chat.completions.create", "completions.create"])
def test_dropping_a_stream(kind: str, name: str, slow_engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
    """At once, not when the garbage collector comes by."""
    client = Client.make(kind, slow_engine, "", loop, strict=False)  # its types of completions know of no streams
    arguments = LONG if name.startswith("chat") else {**LONG, "prompt": "Hi"}
    gc.disable()
    try:
        stream: Any = client.stream(name, **arguments)
        for _, _ in zip(range(3), stream, strict=False):
            pass

        def drop() -> None:
            nonlocal stream
            stream = None

        ends_within_a_token(slow_engine, drop)
    finally:
        gc.enable()
        client.close()


def test_breaking_out_of_a_loop(slow_clients: dict[str, Client], slow_engine: Engine) -> None:
    aborted = slow_engine.stats().aborted
    for _ in slow_clients["local"].raw.chat.completions.create(model="tiny", messages=USER, stream=True, **LONG):
        break
    until(lambda: slow_engine.stats().aborted == aborted + 1)


@pytest.mark.parametrize("kind", ["local-async", "http-async"])
@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_task(kind: str, stream: bool, slow_clients: dict[str, Client], slow_engine: Engine) -> None:
    client = slow_clients[kind]

    async def ask() -> None:
        answer = await client.raw.chat.completions.create(model="tiny", messages=USER, stream=stream, **LONG)
        async for _ in answer:
            pass

    assert client.loop is not None
    task = asyncio.run_coroutine_threadsafe(ask(), client.loop)
    until(lambda: slow_engine.stats().running == 1)
    time.sleep(0.1)
    ends_within_a_token(slow_engine, task.cancel)


def test_closing_from_another_thread(slow_clients: dict[str, Client], slow_engine: Engine) -> None:
    """While the stream is being read; whoever reads gets an error."""
    stream = slow_clients["local"].stream(**LONG)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except BaseException as fault:
            caught.append(fault)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.1)
    aborted = slow_engine.stats().aborted
    stream.raw.response.stream._stream.close()  # what the SDK's close does first
    reader.join(5)
    assert not reader.is_alive()
    assert caught
    until(lambda: slow_engine.stats().aborted == aborted + 1)


# -- timeouts --------------------------------------------------------------------------------------------------------


def test_timeout_of_an_answer(slow: Client, slow_engine: Engine) -> None:
    aborted, started = slow_engine.stats().aborted, time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        slow.chat(**LONG, timeout=0.2)
    assert time.monotonic() - started < 1
    until(lambda: slow_engine.stats().aborted == aborted + 1)


def test_timeout_is_not_retried_in_process(slow_engine: Engine) -> None:
    before = slow_engine.stats().aborted
    with OpenAI(backend=slow_engine, max_retries=2, timeout=0.1) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="tiny", messages=USER, **LONG)  # type: ignore[arg-type]
    until(lambda: slow_engine.stats().aborted == before + 1)


def test_timeout_of_several_prompts(slow: Client) -> None:
    """For all of them together, however regularly the tokens come."""
    started = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        slow.call("completions.create", prompt=["a", "b"], **LONG, timeout=0.3)
    assert time.monotonic() - started < 1.5


def test_timeout_of_embeddings(slow: Client, slow_engine: Engine) -> None:
    embedder: Any = slow_engine._parts.embedder
    plain = embedder.vector

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.3)
        return plain(*arguments)

    embedder.vector = slowly
    try:
        with pytest.raises(openai.APITimeoutError):
            slow.call("embeddings.create", input=["a", "b", "c"], timeout=0.4)
    finally:
        embedder.vector = plain


def test_timeout_is_between_pieces(slow: Client, slow_engine: Engine) -> None:
    """A stream may last as long as it likes as long as pieces come."""
    chunks = list(slow.stream(max_tokens=30, temperature=0, timeout=0.4, extra_body={"ignore_eos": True}))
    assert chunks[-1].choices[0].finish_reason == "length"
    stream = slow.stream(**LONG, timeout=0.25)
    next(stream)
    aborted = slow_engine.stats().aborted
    pace = slow_engine.slow  # type: ignore[attr-defined]
    pace.seconds = 0.6
    try:
        started = time.monotonic()
        # Over HTTP it is what the SDK makes of its HTTP library's timeout, which in 2.x is nothing.
        with pytest.raises((openai.APIConnectionError, httpx.TimeoutException)) as caught:
            for _ in stream:
                pass
        if slow.kind.startswith("local"):
            assert isinstance(caught.value, openai.APITimeoutError)
        assert time.monotonic() - started < 1.5
    finally:
        pace.seconds = 0.02
    stream.close()
    until(lambda: slow_engine.stats().aborted == aborted + 1)


# -- many ------------------------------------------------------------------------------------------------------------


def test_64_streams_at_once(client: Client, engine: Engine) -> None:
    """Each gets its own answer, all run together, in process and over HTTP."""
    asked = [{"messages": [{"role": "user", "content": f"Question {i}"}], "max_tokens": 8} for i in range(64)]

    def read(arguments: dict[str, Any]) -> str:
        return "".join(
            c.choices[0].delta.content or ""
            for c in client.stream(**arguments, temperature=0, extra_body={"ignore_eos": True})
        )

    async def read_async(arguments: dict[str, Any]) -> str:
        stream = await client.raw.chat.completions.create(
            model="tiny", stream=True, temperature=0, extra_body={"ignore_eos": True}, **arguments
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def read_all() -> list[str]:
        return await asyncio.gather(*map(read_async, asked))

    before = engine.stats().steps
    if client.is_async:
        said = client.wait(read_all())
    else:
        with ThreadPoolExecutor(64) as pool:
            said = list(pool.map(read, asked))
    used = engine.stats().steps - before
    assert used < 64 * 8 / 2, "they ran one after the other"
    for i in (0, 17, 63):
        assert said[i] == client.chat(**asked[i], extra_body={"ignore_eos": True}).choices[0].message.content


# -- servers -----------------------------------------------------------------------------------------------------------


def test_shutting_down(slow_engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
    """Nobody new is let in; who runs may finish within the grace time and is aborted past it."""
    short: list[Any] = []
    with serve(slow_engine, grace=1.0) as served:
        client = Client.make("http", slow_engine, served.url, loop)
        finishing = threading.Thread(target=lambda: short.append(client.chat(max_tokens=20)))
        cut: list[Any] = []
        cutting = threading.Thread(target=lambda: cut.append(_outcome(client, **LONG)))
        finishing.start()
        cutting.start()
        until(lambda: slow_engine.stats().running == 2)
        started = time.monotonic()
        served.server.should_exit = True
        until(lambda: not _accepts(served))
    finishing.join(5)
    cutting.join(5)
    assert time.monotonic() - started < 4
    assert short[0].usage.completion_tokens > 0
    assert isinstance(cut[0], openai.APIError)
    client.close()


def _outcome(client: Client, **arguments: Any) -> Any:
    try:
        return client.chat(**arguments)
    except openai.APIError as fault:
        return fault


def _accepts(served: Served) -> bool:
    try:
        return served.send("GET", "/health")[0] == 200
    except OSError:
        return False


def test_waiting_queue_is_bounded(checkpoint: Any, loop: asyncio.AbstractEventLoop) -> None:
    engine = Engine(checkpoint, kv_cache_tokens=2048, self_check=False, max_running=1, max_waiting=1)
    with engine, serve(engine) as served:
        client = Client.make("http", engine, served.url, loop)
        streams = [client.stream(**LONG)]
        next(streams[0])
        waiting = threading.Thread(target=lambda: _outcome(client, max_tokens=1))
        waiting.start()
        until(lambda: engine.stats().waiting == 1)
        status, headers, body = served.send("POST", "/v1/chat/completions", {"messages": USER, "max_tokens": 1})
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "1", "rate_limit_exceeded")
        streams[0].close()
        waiting.join(5)
        assert client.chat(max_tokens=1).usage.completion_tokens == 1
        client.close()

"""What is special to the clients in this process: how they are made, copied, closed, and what they leave out."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from radixbackend import Engine
from radixbackend import backend as backends
from radixbackend.errors import ConfigError
from radixbackend.openai import AsyncOpenAI, OpenAI

USER: Any = [{"role": "user", "content": "Hi"}]
SMALL: dict[str, Any] = {"kv_cache_tokens": 1024, "self_check": False}


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests in this process share is not in the way."""
    monkeypatch.setattr(backends, "_shared", backends.SharedBackends())


def ask(client: Any, model: str = "tiny", **arguments: Any) -> Any:
    return client.chat.completions.create(model=model, messages=USER, max_tokens=2, **arguments)


def test_by_model(checkpoint: Path) -> None:
    """Who names the same model and options shares one engine, which goes with the last."""
    first = OpenAI(model=checkpoint, **SMALL)
    second = AsyncOpenAI(model=str(checkpoint), **SMALL)
    assert len(backends._shared._slots) == 1
    for name in ("tiny", str(checkpoint)):
        assert ask(first, name).usage.completion_tokens == 2
    assert asyncio.run(ask(second)).usage.completion_tokens == 2
    assert [m.id for m in first.models.list()] == ["tiny"]
    assert first.models.retrieve("tiny").id == "tiny"
    first.close()
    assert len(backends._shared._slots) == 1
    asyncio.run(second.close())
    assert not backends._shared._slots


def test_by_backend(engine: Engine) -> None:
    with OpenAI(backend=engine, names=["gpt-4o-mini"]) as client:
        assert ask(client, "gpt-4o-mini").model == "gpt-4o-mini"
    assert engine.stats() is not None  # the engine is its owner's to close


def test_copies_share_and_count(checkpoint: Path) -> None:
    client = OpenAI(model=checkpoint, **SMALL)
    patient = client.with_options(timeout=60, max_retries=1)
    assert isinstance(patient, OpenAI)
    client.close()
    client.close()
    assert client.is_closed()
    assert not patient.is_closed()
    assert ask(patient).usage.completion_tokens == 2
    third = patient.copy(default_headers={"x-a": "b"})
    patient.close()
    assert ask(third).usage.completion_tokens == 2
    assert backends._shared._slots
    third.close()
    assert not backends._shared._slots


def test_async_copies(checkpoint: Path) -> None:
    async def run() -> None:
        async with AsyncOpenAI(model=checkpoint, **SMALL) as client:
            async with client.with_options(timeout=5) as copy:
                await ask(copy)
            await ask(client)
            # A second client on the same loop, and many questions at once.
            answers = await asyncio.gather(*(ask(client) for _ in range(20)))
            assert {a.usage.completion_tokens for a in answers} == {2}

    asyncio.run(run())
    asyncio.run(run())  # on another event loop
    assert not backends._shared._slots


def test_dropped_clients_give_the_engine_back(checkpoint: Path) -> None:
    ask(OpenAI(model=checkpoint, **SMALL))
    gc.collect()
    assert not backends._shared._slots


def test_a_stream_keeps_its_client(checkpoint: Path) -> None:
    stream = ask(OpenAI(model=checkpoint, **SMALL), stream=True)
    gc.collect()
    assert list(stream)[-1].choices[0].finish_reason == "length"
    del stream
    gc.collect()
    assert not backends._shared._slots


def test_environment_does_not_leak_in(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.invalid/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.invalid:1")
    with OpenAI(backend=engine) as client:
        assert client.api_key != "secret"
        assert "elsewhere" not in str(client.base_url)
        assert ask(client).usage.completion_tokens == 2
        with client.copy() as copy:
            assert copy.api_key != "secret"
            assert ask(copy).usage.completion_tokens == 2


def test_needs_no_environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with OpenAI(backend=engine) as client:
        assert ask(client).usage.completion_tokens == 2


def test_with_base_url_it_is_the_plain_client() -> None:
    client = OpenAI(base_url="http://127.0.0.1:1/v1", api_key="k", max_retries=0)
    assert isinstance(client, openai.OpenAI)
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    assert str(client.with_options(timeout=3).base_url) == "http://127.0.0.1:1/v1/"
    client.close()


def test_a_copy_with_another_url_is_remote(engine: Engine) -> None:
    with OpenAI(backend=engine) as client:
        remote = client.copy(base_url="http://127.0.0.1:1/v1", max_retries=0)
        with pytest.raises(openai.APIConnectionError):
            ask(remote)
        remote.close()
        assert ask(client).usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass model=… or backend=…"),
        ({"model": "a", "base_url": "http://x/v1"}, "not both"),
        ({"model": "a", "backend": object()}, "not both"),
        ({"model": "a", "http_client": object()}, "not both"),
        ({"model": "a", "kv_tokens": 3}, "kv_tokens"),
        ({"base_url": "http://x/v1", "kv_cache_tokens": 3}, "kv_cache_tokens"),
    ],
)
@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_contradictions(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**options)


def test_in_process_clients_are_told_everything(engine: Engine) -> None:
    from tests.openai_api.test_errors import Failing

    with (
        OpenAI(backend=Failing(engine, RuntimeError("the cause"))) as client,
        pytest.raises(openai.InternalServerError, match="the cause"),
    ):
        ask(client)


def test_in_a_running_event_loop(engine: Engine) -> None:
    """As in a notebook: the blocking client works where a loop is running, and leaves it alone."""

    async def run() -> int:
        with OpenAI(backend=engine) as client:
            text = [c for c in ask(client, stream=True)]  # noqa: C416  # a loop over it, as people write it
            return len(text) + ask(client).usage.completion_tokens

    assert asyncio.run(run()) >= 3


def test_importing_the_dispatch_needs_no_server() -> None:
    script = (
        "import sys, radixbackend.openai; print({'fastapi', 'uvicorn', 'torch', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

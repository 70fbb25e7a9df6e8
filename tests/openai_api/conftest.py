"""A tiny model with a chat template, served in process and over HTTP on loopback, for both of the SDK's clients."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from radixbackend import Engine
from radixbackend.engine.plan import Launched, StepPlan
from tests.chat.fake import TEMPLATE, make_tokenizer
from tests.openai_api.clients import KINDS, Client, Recorder, Served, serve

NAME = "tiny"
QUIET = TEMPLATE[: TEMPLATE.index("{% if enable_thinking")] + "{{ opening | default('') }}{% endif %}"
"""The template without thinking, but with a variable of its own."""


def make_checkpoint(folder: Path, template: str) -> Path:
    """Two layers with random weights that choose clearly, a byte-level tokenizer and a template with tools."""
    tokenizer = make_tokenizer(template)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that does not think."""
    return make_checkpoint(tmp_path_factory.mktemp("served") / NAME, QUIET)


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, kv_cache_tokens=16384, self_check=False) as engine:
        yield engine


@pytest.fixture(scope="session")
def recorder(engine: Engine) -> Recorder:
    """The engine, with a memory of what it was asked."""
    return Recorder(engine)


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, for the asynchronous clients."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def served(recorder: Recorder) -> Iterator[Served]:
    with serve(recorder) as served:
        yield served


@pytest.fixture(scope="session")
def clients(recorder: Recorder, served: Served, loop: asyncio.AbstractEventLoop) -> Iterator[dict[str, Client]]:
    made = {kind: Client.make(kind, recorder, served.url, loop) for kind in KINDS}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    """Each face in turn."""
    return clients[request.param]


@pytest.fixture(scope="session")
def thinkers(
    tmp_path_factory: pytest.TempPathFactory, loop: asyncio.AbstractEventLoop
) -> Iterator[tuple[Recorder, dict[str, Client]]]:
    """A model whose template knows of thinking, behind each face."""
    folder = make_checkpoint(tmp_path_factory.mktemp("thinking") / NAME, TEMPLATE)
    with Engine(folder, kv_cache_tokens=4096, self_check=False) as engine:
        recorder = Recorder(engine)
        with serve(recorder) as served:
            made = {kind: Client.make(kind, recorder, served.url, loop) for kind in KINDS}
            yield recorder, made
            for client in made.values():
                client.close()


@pytest.fixture(scope="session")
def lenient_clients(recorder: Recorder, served: Served, loop: asyncio.AbstractEventLoop) -> Iterator[dict[str, Client]]:
    made = {kind: Client.make(kind, recorder, served.url, loop, strict=False) for kind in KINDS}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(params=KINDS)
def lenient(request: pytest.FixtureRequest, lenient_clients: dict[str, Client]) -> Client:
    """Each face in turn, without the check against the SDK's types, which leave out some of what OpenAI sends: the
    null of a stream's finish_reason, that of a first token's log-probability, and embeddings in base64."""
    return lenient_clients[request.param]


class SlowSteps:
    """Makes every step of an engine take ``seconds``, and counts them."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.seconds = seconds
        self.count = 0
        loop: Any = engine._parts.loop
        launch: Callable[[StepPlan], Launched] = loop._executor.launch

        def slowly(plan: StepPlan) -> Launched:
            self.count += 1
            time.sleep(self.seconds)
            return launch(plan)

        loop._executor.launch = slowly


@pytest.fixture(scope="session")
def slow_engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, kv_cache_tokens=8192, self_check=False) as engine:
        engine.slow = SlowSteps(engine, 0.02)  # type: ignore[attr-defined]
        yield engine


@pytest.fixture(scope="session")
def slow_clients(slow_engine: Engine, loop: asyncio.AbstractEventLoop) -> Iterator[dict[str, Client]]:
    with serve(slow_engine) as served:
        made = {kind: Client.make(kind, slow_engine, served.url, loop) for kind in KINDS}
        yield made
        for client in made.values():
            client.close()


@pytest.fixture(params=KINDS)
def slow(request: pytest.FixtureRequest, slow_clients: dict[str, Client]) -> Client:
    """Each face in turn, over an engine whose steps take 20 ms."""
    return slow_clients[request.param]

"""A tiny model with random weights, a server for it on loopback, and asynchronous tests without a mark."""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before torch and tokenizers are imported: small tensors gain nothing from threads, and nothing is downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from radixbackend.backend import SharedBackend, get_backend
from radixbackend.chat import ChatChoice, ChatDelta, ChatRequest, ChatResult, Message, ToolCallDelta
from radixbackend.openai_api.api import Api
from radixbackend.openai_api.server import create_app, make_server
from radixbackend.types import Usage

HERE = Path(__file__).parent
NAME = "tiny"
THINKER = "thinker"
OPTIONS: dict[str, Any] = {"kv_cache_tokens": 32768, "self_check": False}

TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
Call them in <tool_call></tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{{ opening | default('') }}{% endif %}"""

THINKING = "<think>\n"
"""What the model with reasoning begins each answer with."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "enable_socket: talks to a server on loopback")
    config.addinivalue_line("markers", "ability: needs a model that does as it is asked")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: Any) -> None:
    """Standard tests have no mark as asynchronous ones, and asyncio_mode=auto is not for everybody's tests."""
    if HERE in collector.path.parents and name.startswith("test_") and inspect.iscoroutinefunction(obj):
        pytest.mark.asyncio(obj)


def make_checkpoint(folder: Path, template: str, *added: str) -> None:
    """Two layers with weights that choose clearly, and a byte-level tokenizer that can write everything."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        [template, '{"name": "get_weather", "arguments": {"city": "Rome"}}', "The answer is"], trainer
    )
    bpe.add_tokens([AddedToken(text) for text in ("<tool_call>", "</tool_call>", *added)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `NAME` and `THINKER` are."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / NAME, TEMPLATE)
    make_checkpoint(folder / THINKER, TEMPLATE.replace("{{ opening | default('') }}", THINKING), "<think>", "</think>")
    return folder


@pytest.fixture(scope="session")
def engine(models_folder: Path) -> Iterator[SharedBackend]:
    """A share of the engine that every test's model is in, so that it is built once."""
    with contextlib.chdir(models_folder), get_backend(NAME, **OPTIONS) as share:
        yield share


@pytest.fixture(autouse=True)
def _in_models_folder(engine: SharedBackend, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are named as users and snapshots name them: without the path of this machine."""
    monkeypatch.chdir(models_folder)
    for name in ("RADIX_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "LC_OUTPUT_VERSION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def params() -> dict[str, Any]:
    """Of a model that shares the engine of the tests."""
    return {"model": NAME, "temperature": 0, **OPTIONS}


@contextlib.contextmanager
def serve(backend: Any) -> Iterator[str]:
    """A server in a thread, on a port that is free."""
    server = make_server(create_app(Api(backend, names=(NAME,))), "127.0.0.1", 0, 1.0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.005)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def base_url(engine: SharedBackend) -> Iterator[str]:
    """The engine of the tests behind HTTP; the test is marked ``enable_socket``."""
    with serve(engine) as url:
        yield url


@dataclass
class Scripted:
    """A `Chat` that answers with the next of ``answers``, streamed in pieces, and remembers what it was asked."""

    answers: list[Message] = field(default_factory=list)
    asked: list[ChatRequest] = field(default_factory=list)
    finish: str | None = None
    closed: bool = False
    model_name: str = "scripted"
    max_context: int = 1000
    reasons: bool = False
    sees: bool = False

    def complete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        self.asked.append(request)
        message = self.answers.pop(0)
        reason: Any = self.finish or ("tool_calls" if message.tool_calls else "stop")
        choice = ChatChoice(0, message, reason, complete=reason != "length")
        return ChatResult((choice,), Usage(10, 5, 4), self.model_name)

    async def acomplete(self, request: ChatRequest, *, timeout: float | None = None) -> ChatResult:
        return self.complete(request)

    @contextlib.contextmanager
    def stream(self, request: ChatRequest, *, timeout: float | None = None) -> Iterator[Iterator[ChatDelta]]:
        yield iter(self._deltas(self.complete(request)))

    @contextlib.asynccontextmanager
    async def astream(self, request: ChatRequest, *, timeout: float | None = None) -> AsyncIterator[Any]:
        async def deltas() -> AsyncIterator[ChatDelta]:
            for delta in self._deltas(self.complete(request)):
                yield delta

        yield deltas()

    def token_bytes(self, token_id: int) -> bytes:
        return b"?"

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _deltas(result: ChatResult) -> Iterator[ChatDelta]:
        message = result.message
        for at in range(0, len(message.reasoning or ""), 5):
            yield ChatDelta(reasoning=(message.reasoning or "")[at : at + 5])
        for at in range(0, len(message.text), 3):
            yield ChatDelta(content=message.text[at : at + 3])
        for index, call in enumerate(message.tool_calls):
            yield ChatDelta(tool_calls=(ToolCallDelta(index, "", call.id, call.name),))
            for at in range(0, len(call.arguments), 4):
                yield ChatDelta(tool_calls=(ToolCallDelta(index, call.arguments[at : at + 4]),))
        choice = result.choices[0]
        yield ChatDelta(finish_reason=choice.finish_reason, complete=choice.complete, usage=result.usage)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """What every model that the test makes talks to."""
    chat = Scripted()
    monkeypatch.setattr("langchain_radix.share.open_chat", lambda model, **_: chat)
    return chat

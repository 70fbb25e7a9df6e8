"""`open_chat` in this process: a share of one engine, counted, given back, and nothing kept of what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from radixbackend.backend import _shared
from radixbackend.chat import Chat, ChatRequest, open_chat
from radixbackend.errors import ConfigError, EngineClosedError, ModelNotFoundError
from radixbackend.token_bytes import token_bytes
from radixbackend.types import SamplingParams
from tests import zoo
from tests.chat.fake import make_tokenizer

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
OPTIONS: dict[str, Any] = {"kv_cache_tokens": 8192, "self_check": False}
SYSTEM = "You look up the weather, and nothing but the weather, for whoever asks you for it, day and night."
USER = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "How is the weather?"}]


def make_checkpoint(folder: Path) -> Path:
    """A small Llama that chooses clearly, with a template that knows tools and thinking."""
    disable_progress_bar()
    tokenizer = make_tokenizer(added=MARKERS)
    tokenizer.save_pretrained(folder)
    config = zoo.config("llama")
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    config.max_position_embeddings = 1024
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    zoo._spread(model)
    model.save_pretrained(folder)
    return folder


def ask(messages: Any = USER, max_tokens: int = 6, **fields: Any) -> ChatRequest:
    return ChatRequest.of(messages, **{"sampling": SamplingParams(max_tokens=max_tokens, seed=1), **fields})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("face") / "tiny")


@pytest.fixture
def chat(checkpoint: Path) -> Iterator[Chat]:
    with open_chat(checkpoint, **OPTIONS) as chat:
        yield chat
    assert not _shared._slots


def test_shares_are_counted(checkpoint: Path) -> None:
    first, second = (open_chat(checkpoint, **OPTIONS) for _ in range(2))
    other = open_chat(checkpoint, **{**OPTIONS, "kv_cache_tokens": 1024})
    assert (first.stats().slots_total, other.stats().slots_total) == (8192, 1024)
    first.complete(ask())
    assert second.stats().finished == 1
    assert other.stats().finished == 0
    other.close()
    first.close()
    first.close()
    with pytest.raises(EngineClosedError):
        first.complete(ask())
    assert len(second.complete(ask()).choices) == 1
    assert len(_shared._slots) == 1
    second.close()
    assert not _shared._slots


def test_what_it_is(chat: Chat, checkpoint: Path) -> None:
    assert (chat.model_name, chat.max_context, chat.reasons) == (str(checkpoint), 1024, True)
    assert chat.weights_hash


def test_warm_and_flush(chat: Chat) -> None:
    asked = ask()
    tokens = chat.tokenize(asked)
    assert chat.count_tokens(USER) == len(tokens)
    prefix = chat.tokenize(replace(asked, add_generation_prompt=False))
    usage = chat.warm(asked)
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (len(prefix), 0, 0)
    assert tokens[: len(prefix)] == prefix
    assert chat.complete(asked).usage.cached_tokens == len(prefix) < len(tokens)
    assert chat.complete(replace(asked, cache_salt="another's")).usage.cached_tokens == 0
    assert chat.flush_cache() >= len(tokens)
    assert chat.complete(asked).usage.cached_tokens == 0


def test_pins_stay(chat: Chat) -> None:
    asked = ask()
    pin = chat.pin(asked)
    chat.complete(asked)
    chat.flush_cache()
    assert chat.complete(asked).usage.cached_tokens >= pin.usage.prompt_tokens > 50
    pin.release()
    chat.flush_cache()
    assert chat.complete(asked).usage.cached_tokens == 0


def test_the_four_ways_say_the_same(chat: Chat) -> None:
    async def in_a_loop() -> tuple[str, str]:
        async with chat.astream(ask()) as deltas:
            pieces = [delta.content + delta.reasoning async for delta in deltas]
        result = await chat.acomplete(ask())
        return result.content + (result.reasoning or ""), "".join(pieces)

    whole = chat.complete(ask())
    said = whole.content + (whole.reasoning or "")
    assert said
    with chat.stream(ask()) as deltas:
        assert "".join(delta.content + delta.reasoning for delta in deltas) == said
    assert asyncio.run(in_a_loop()) == (said, said)


def test_vectors(chat: Chat) -> None:
    one, two = chat.embed(["Rome", "Oslo"]).vectors
    assert np.linalg.norm(one) == pytest.approx(1)
    assert abs(float(one @ two)) < 0.999
    again = asyncio.run(chat.aembed("Oslo", dimensions=8))
    np.testing.assert_allclose(again.vectors[0], two[:8] / np.linalg.norm(two[:8]), rtol=1e-5)
    assert again.prompt_tokens > 0


def test_tokens_of_logprobs(chat: Chat, checkpoint: Path) -> None:
    result = chat.complete(ask(sampling=SamplingParams(max_tokens=5, seed=2, logprobs=1)))
    logprobs = result.choices[0].logprobs
    assert logprobs is not None
    vocabulary = token_bytes(make_tokenizer(added=MARKERS))
    found = [chat.token_bytes(entry.token_id) for entry in logprobs]
    assert all(found)
    assert found == [vocabulary[entry.token_id] for entry in logprobs]
    assert chat.token_bytes(10**6) == b""


def test_nothing_is_kept_of_what_failed(tmp_path: Path, checkpoint: Path) -> None:
    bare = zoo.save("llama", tmp_path / "bare")
    with pytest.raises(ConfigError, match="no tokenizer"):
        open_chat(bare, **OPTIONS)
    with pytest.raises(ModelNotFoundError):
        open_chat(tmp_path / "nothing", **OPTIONS)
    with pytest.raises(ConfigError):
        open_chat(checkpoint, no_such_option=1)
    assert not _shared._slots


def test_options_of_the_other_kind() -> None:
    with pytest.raises(ConfigError, match=r"unknown option kv_cache_tokens; with base_url there are api_key, headers"):
        open_chat("tiny", base_url="http://127.0.0.1:1/v1", kv_cache_tokens=8)
    with pytest.raises(ConfigError, match="is a URL"):
        open_chat("tiny", base_url="127.0.0.1:8000")

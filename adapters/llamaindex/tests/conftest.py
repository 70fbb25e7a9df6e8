"""What the tests share: a tiny model with random weights, and one that says what it is told to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from llama_index.llms.radix import Radix
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from radixbackend import hookimpl
from tests import zoo
from tests.chat.fake import TEMPLATE, FakeBackend, make_tokenizer

PLAIN = TEMPLATE.split("{% if enable_thinking")[0] + "{% endif %}"
"""Of a model that answers without thinking first."""

OPTIONS: dict[str, Any] = {"kv_cache_tokens": 16384, "self_check": False}

settings.register_profile(
    "llamaindex", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def save_model(folder: Path, template: str = PLAIN, added: Sequence[str] = ("<tool_call>", "</tool_call>")) -> Path:
    """Write a two-layer model with random weights whose logits are spread out."""
    disable_progress_bar()
    tokenizer = make_tokenizer(template, added=added)
    tokenizer.save_pretrained(folder)
    config = zoo.config("llama")
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    config.max_position_embeddings, config.num_hidden_layers = 4096, 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    zoo._spread(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llamaindex") / "tiny")


@pytest.fixture(scope="session")
def llm(checkpoint: Path) -> Iterator[Radix]:
    """Random words, but always the same ones."""
    with Radix(checkpoint, temperature=1.0, additional_kwargs={"seed": 1}, **OPTIONS) as llm:
        yield llm


class Scripted:
    """A plugin whose backend answers with the next of ``texts``."""

    def __init__(self, texts: Sequence[str], **options: Any) -> None:
        self.backend = FakeBackend(list(texts), **{"inner": make_tokenizer(PLAIN), **options})

    @hookimpl
    def radix_create_backend(self, model: str, options: Any) -> FakeBackend | None:
        return self.backend if model == "scripted" else None


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Radix, FakeBackend]]]:
    """``scripted("first answer", "second", …)`` is an LLM that gives these answers, and its backend."""
    made: list[Radix] = []

    def make(*texts: str, llm_options: Any = None, **options: Any) -> tuple[Radix, FakeBackend]:
        plugin = Scripted(texts, **options)
        made.append(Radix("scripted", plugins=[plugin], **(llm_options or {})))
        return made[-1], plugin.backend

    yield make
    for llm in made:
        llm.close()

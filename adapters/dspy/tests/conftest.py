"""What every test here shares: a quiet machine, DSPy without its disk cache, and a small random model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before torch, tokenizers and DSPy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-radix-tests-")

import dspy
import pytest
from dspy_radix import RadixAdapter, RadixLM
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

CONTEXT = 8192
KV_TOKENS = 100_000
END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_checkpoint(folder: Path, *, seed: int = 0, thinks: bool = False) -> Path:
    """A two-layer Llama with random weights; its tokenizer knows the words that DSPy's prompts are made of.

    One that thinks is made to by its template, which begins a thought.
    """
    import dspy.adapters.chat_adapter as words

    special = [END, "<|system|>", "<|user|>", "<|assistant|>", *(["<think>", "</think>"] if thinks else [])]
    template = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}") if thinks else TEMPLATE
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([Path(words.__file__).read_text(encoding="utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, chat_template=template)
    tokenizer.save_pretrained(folder)
    import torch

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_disk_cache() -> None:
    """DSPy's response cache is in memory, and new for every test."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "my-model")


@pytest.fixture(scope="session")
def make_checkpoint() -> object:
    return write_checkpoint


@pytest.fixture(scope="session")
def engine_lm(checkpoint: Path) -> Iterator[RadixLM]:
    """Keeps one engine open for the whole session."""
    with RadixLM(checkpoint, kv_cache_tokens=KV_TOKENS) as lm:
        yield lm


@pytest.fixture
def lm(engine_lm: RadixLM) -> RadixLM:
    """An LM of the test's own over the session's engine: short answers, no response cache, an empty history."""
    engine_lm.flush_cache()
    copied: RadixLM = engine_lm.copy(max_tokens=24, cache=False)
    return copied


@pytest.fixture(scope="session")
def short_strings(engine_lm: RadixLM) -> dict[str, float]:
    """A bias: random words would go on for long, and a likelier quotation mark ends them."""
    return {str(token): 4.0 for token in range(1024) if engine_lm.engine.chat.token_bytes(token) == b'"'}


@pytest.fixture
def radix(lm: RadixLM, short_strings: dict[str, float]) -> Iterator[RadixLM]:
    """The LM, with room for JSON, configured together with `RadixAdapter`."""
    roomy: RadixLM = lm.copy(max_tokens=160, logit_bias=short_strings)
    with dspy.context(lm=roomy, adapter=RadixAdapter()):
        yield roomy

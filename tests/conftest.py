"""What every test shares: a quiet machine, deterministic property tests, data and a tiny model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch and tokenizers are imported: small tensors gain nothing from threads, and nothing is downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp(prefix="radix-tests-"))  # where DSPy keeps answers
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on a CPU, slowly and exactly

# The same examples in every run, so that a failure is a fact about the code and not about the day.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

END = "<|end|>"
TEXT = (
    "You are the desk clerk of a small hotel by the sea. Answer every question of a guest in one sentence.",
    *("When is breakfast?", "Where may I park?", "Is the sauna open?"),
    '{"type": "object", "properties": {"room": {"type": "integer", "minimum": 1, "maximum": 40}, '
    '"view": {"enum": ["sea", "garden"]}, "breakfast": {"type": "boolean"}}, '
    '"required": ["room", "view", "breakfast"], "additionalProperties": false}',
)
"""What the tiny checkpoint's tokenizer learns its merges from."""

ROOT = Path(__file__).resolve().parents[1]

PROCESSORS: dict[str, set[str]] = {
    "x86-64": set(),
    "haswell": {"avx2", "fma"},
    "skylake-avx512": {"avx512bw", "avx512vl"},
    "cooperlake": {"avx512_vnni", "avx512_bf16"},
}
"""What gcc calls processors for which the kernels differ, and what one must have to run what is compiled for them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--march", choices=list(PROCESSORS), help="compile the CPU kernels for a lesser processor")


def pytest_configure(config: pytest.Config) -> None:
    """With ``--march`` kernels are those of that processor, if this one can run them; otherwise no test runs."""
    march = config.getoption("--march")
    if march is None:
        return
    has = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if lacking := PROCESSORS[march] - has:
        pytest.exit(f"no kernels for {march} here: this processor lacks {', '.join(sorted(lacking))}", returncode=0)
    from radixbackend.engine.native import build

    build.FLAGS = tuple(f"-march={march}" if flag == "-march=native" else flag for flag in build.FLAGS)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Schemas and tokenizers that are not part of the project; tests that need them are skipped without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared test data are not here")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama with random weights and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "my-model"
    make_checkpoint(folder)
    return folder


def make_checkpoint(folder: Path) -> None:
    """Write a tiny Llama in transformers' format, as `save_pretrained` does."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)

"""The self-check passes every model of the zoo on the right path and refuses every attention that is wrong."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
import torch

from radixbackend.builtin_plugin import radix_make_attention
from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.self_check import choose_runner, compare
from radixbackend.engine.sequential_runner import SequentialRunner
from radixbackend.errors import UnsupportedModelError
from tests import zoo


class Without(TorchAttention):
    """Attention that ignores a feature of its layers."""

    def __init__(self, **ignored: object) -> None:
        super().__init__()
        self.ignored = ignored

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        sinks = None if "sinks" in self.ignored else sinks
        return super().attend(replace(layer, **self.ignored), query, key, value, sinks)


class Forgetful(TorchAttention):
    """Attention that sees the packed tokens of its sequence but not the context before them."""

    def begin(self, batch: AttentionBatch) -> None:
        lengths = batch.contexts - batch.starts
        slots = tuple(s[-n:] for s, n in zip(batch.slots, lengths, strict=True))
        super().begin(replace(batch, starts=batch.starts * 0, contexts=lengths, slots=slots))


def test_the_zoo_is_large() -> None:
    assert len(zoo.PACKED) >= 70


def usual() -> AttentionBackend:
    """What an engine takes on a CPU if nobody asks for anything else."""
    kernel = radix_make_attention("auto", "cpu")
    assert kernel is not None
    return kernel


@pytest.mark.parametrize("name", zoo.PACKED)
def test_packed(name: str) -> None:
    runner = choose_runner(LoadedModel.of(zoo.build(name)), usual())
    assert isinstance(runner, ModelRunner)
    runner.close()


@pytest.mark.parametrize("name", zoo.SEQUENTIAL)
def test_sequential(name: str) -> None:
    runner = choose_runner(LoadedModel.of(zoo.build(name)), TorchAttention())
    assert isinstance(runner, SequentialRunner)
    assert not runner.traits.shares_prefixes
    # transformers' own continuation by several tokens loses state in these
    assert runner.traits.chunks == (name not in {"mamba", "falcon_mamba", "jamba", "zamba"})


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot be served exactly; paged: .*; sequential: "):
        choose_runner(LoadedModel.of(zoo.build(name)), TorchAttention())


WRONG = [
    ("mistral", Without(window=None)),
    ("gemma3", Without(window=None)),
    ("mistral", Without(window=zoo.WINDOW - 1)),
    ("llama4", Without(chunk=None)),
    ("gpt_oss", Without(sinks=None)),
    ("llama", Without(scaling=1.0)),
    ("llama", Forgetful()),
    ("deepseek_v3", Forgetful()),
]


@pytest.mark.parametrize(
    ("name", "broken", "dtype"),
    [
        *((*pair, torch.float32) for pair in WRONG),
        *((*pair, torch.bfloat16) for pair in WRONG),
        ("gemma2", Without(softcap=None), torch.float32),  # in bfloat16 a soft cap is lost in the rounding
    ],
)
def test_wrong_attention_is_noticed(name: str, broken: TorchAttention, dtype: torch.dtype) -> None:
    loaded = LoadedModel.of(zoo.build(name).to(dtype))
    runner = ModelRunner(loaded, broken)
    assert not compare(loaded, runner).acceptable
    runner.close()


def test_the_fallback_of_a_wrong_attention_is_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    loaded = LoadedModel.of(zoo.build("llama"))
    with caplog.at_level(logging.INFO, logger="radixbackend"):
        runner = choose_runner(loaded, Forgetful())
    assert isinstance(runner, SequentialRunner)
    assert "sequential path (paged: logits differ by" in caplog.text
    assert loaded.model.config._attn_implementation == "sdpa"


def test_an_attention_that_raises_or_refuses_is_not_used() -> None:
    class Raising(TorchAttention):
        def begin(self, batch: AttentionBatch) -> None:
            raise ValueError("no kernel")

    class Refusing(TorchAttention):
        def refuses(self, layer: AttentionLayer) -> str | None:
            return f"heads of {layer.key_dim}"

    for attention in (Raising(), Refusing()):
        assert isinstance(choose_runner(LoadedModel.of(zoo.build("llama")), attention), SequentialRunner)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2", "gpt_oss", "deepseek_v3"])
def test_low_precision_passes(name: str, dtype: torch.dtype) -> None:
    assert isinstance(choose_runner(LoadedModel.of(zoo.build(name).to(dtype)), TorchAttention()), ModelRunner)


def test_without_a_check_structure_decides() -> None:
    def choose(name: str) -> object:
        return choose_runner(LoadedModel.of(zoo.build(name)), Forgetful(), self_check=False)

    assert isinstance(choose("llama"), ModelRunner)
    runner = choose("lfm2")
    assert isinstance(runner, SequentialRunner)
    assert not runner.traits.chunks
    assert isinstance(choose("falcon"), SequentialRunner)


def test_the_check_is_quick_and_leaves_no_slots() -> None:
    loaded = LoadedModel.of(zoo.build("llama"))
    started = time.monotonic()
    runner = choose_runner(loaded, TorchAttention())
    assert time.monotonic() - started < 1.0
    assert isinstance(runner, ModelRunner)
    assert runner.capacity == 0

"""A token's logits are the same bits in every batch, chunk and cache."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("triton")
from radixbackend import Engine, SamplingParams, errors, hookimpl
from radixbackend.config import EngineConfig
from radixbackend.engine import build
from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer
from radixbackend.engine.attention.deterministic import DeterministicAttention, FixedOrder, addmm, linear, mean
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SequenceId, SequencePlan, StepPlan
from radixbackend.engine.self_check import choose_runner
from radixbackend.errors import UnsupportedModelError
from tests import zoo
from tests.engine.test_attention_triton import DEVICE

pytestmark = pytest.mark.usefixtures("alike_for_every_row")

DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_equals_torch_and_knows_no_other_rows(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 35, 70, device=DEVICE).to(dtype)
    weight = torch.randn(75, 70, device=DEVICE).to(dtype)
    extra = torch.randn(75, device=DEVICE).to(dtype) if bias else None
    found = linear(x, weight, extra)
    torch.testing.assert_close(found, functional.linear(x, weight, extra), atol=2e-2, rtol=1e-2)
    assert torch.equal(linear(x[1, 34:], weight, extra), found[1, 34:])
    assert torch.equal(linear(x[0, 3:9], weight, extra), found[0, 3:9])
    assert torch.equal(linear(x, weight.T.contiguous().T, extra), found)  # wherever the weights lie


def test_mean_equals_torch_and_knows_no_other_rows() -> None:
    x = torch.randn(3, 4, 90, device=DEVICE)
    found = mean(x, -1, keepdim=True)
    torch.testing.assert_close(found, x.mean(-1, keepdim=True))
    assert torch.equal(mean(x[2, 3], -1), found[2, 3, 0])
    assert mean(x, 1) is NotImplemented
    assert mean(x) is NotImplemented


def test_addmm_equals_torch_and_knows_no_other_rows() -> None:
    torch.manual_seed(0)
    bias, x, weight = (torch.randn(size, device=DEVICE) for size in (75, (35, 70), (70, 75)))
    found = addmm(bias, x, weight)
    torch.testing.assert_close(found, torch.addmm(bias, x, weight), atol=2e-2, rtol=1e-2)
    assert torch.equal(addmm(bias, x[3:4], weight), found[3:4])
    assert addmm(bias, x, weight, alpha=2) is NotImplemented
    assert addmm(x[:1], x, weight) is NotImplemented


def test_what_is_replaced_is_replaced_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(20, 20).to(DEVICE), torch.randn(2, 20, device=DEVICE)
    seen: list[str] = []
    plain = FixedOrder.__torch_function__

    def spy(self: FixedOrder, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        seen.append(getattr(func, "__name__", ""))
        return plain(self, func, types, args, kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(FixedOrder, "__torch_function__", spy)
    with torch.inference_mode(), FixedOrder():
        inside = layer(x).pow(2).mean(-1)
        other = threading.Thread(target=lambda: layer(x))
        before = len(seen)
        other.start()
        other.join()
        assert len(seen) == before  # another thread computes as ever
    assert {"linear", "mean"} <= {*seen}
    torch.testing.assert_close(inside, layer(x).pow(2).mean(-1).detach(), atol=1e-4, rtol=1e-4)


def test_a_token_has_the_same_logits_in_every_step() -> None:
    model = LoadedModel.of(zoo.build("llama").to(DEVICE))
    tokens = np.random.default_rng(4).integers(50, zoo.VOCAB - 10, 12).astype(np.int32)
    slots = np.random.default_rng(3).permutation(40).astype(np.int32)

    def plan(*runs: tuple[int, int, int]) -> StepPlan:
        return StepPlan(0, tuple(
            SequencePlan(SequenceId(i), tokens[a:b], a, slots[20 * i : 20 * i + b], None, 0) for i, a, b in runs
        ))  # fmt: skip

    runner = ModelRunner(model, DeterministicAttention())
    runner.allocate(40)
    cold = runner.run(plan((0, 0, 12))).rows
    alone = runner.run(plan((0, 11, 12))).rows
    runner.run(plan((1, 0, 5)))
    warm = runner.run(plan((1, 5, 6), (0, 9, 12))).rows
    runner.close()
    assert torch.equal(alone[-1], cold[-1])
    assert torch.equal(warm[-3:], cold[-3:])
    plain = ModelRunner(model, TorchAttention())
    plain.allocate(40)
    torch.testing.assert_close(cold, plain.run(plan((0, 0, 12))).rows, atol=1e-3, rtol=0)
    plain.close()


def test_a_step_that_fails_leaves_nothing_replaced() -> None:
    runner = ModelRunner(LoadedModel.of(zoo.build("llama").to(DEVICE)), DeterministicAttention())
    runner.allocate(8)
    out_of_vocabulary = np.array([10**6], np.int32)
    if DEVICE == "cpu":
        with pytest.raises(IndexError):
            runner.run(
                StepPlan(0, (SequencePlan(SequenceId(0), out_of_vocabulary, 0, np.zeros(1, np.int32), None, 0),))
            )
    runner.close()
    assert torch.overrides._get_current_function_mode() is None


# -- what is not covered is refused ------------------------------------------------------------------------------------


class Fixed(TorchAttention):
    """Any attention between whose calls sums are fixed: says what else a model adds up, and is fast at it."""

    def begin(self, batch: AttentionBatch) -> None:
        super().begin(batch)
        self.mode = FixedOrder()
        self.mode.__enter__()

    def attend(self, *arguments: Any) -> torch.Tensor:
        self.mode.__exit__(None, None, None)
        try:
            return super().attend(*arguments)
        finally:
            self.mode.__enter__()

    def end(self) -> None:
        self.mode.__exit__(None, None, None)
        super().end()


def one_token(name: str) -> torch.Tensor:
    runner = ModelRunner(LoadedModel.of(zoo.build(name).to(DEVICE)), Fixed())
    try:
        runner.allocate(4)
        tokens = np.array([60], np.int32)
        return runner.run(StepPlan(0, (SequencePlan(SequenceId(0), tokens, 0, tokens * 0, None, 0),))).rows
    finally:
        runner.close()


@pytest.mark.parametrize("name", ["gemma2", "qwen3", "cohere2", "gpt2", "phi3"])
def test_dense_models_are_covered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {functional.linear: functional.linear, torch.addmm: torch.addmm, torch.Tensor.mean: torch.Tensor.mean}
    monkeypatch.setattr("radixbackend.engine.attention.deterministic._REPLACED", plain)  # Triton's interpreter is slow
    assert one_token(name).isfinite().all()


@pytest.mark.parametrize(
    ("name", "op"), [("mixtral", "sum"), ("gpt_oss", "cumsum"), ("llama4", "bmm"), ("gemma3n", "matmul")]
)
def test_other_sums_are_refused(name: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {functional.linear: functional.linear, torch.Tensor.mean: torch.Tensor.mean, torch.mean: torch.mean}
    monkeypatch.setattr("radixbackend.engine.attention.deterministic._REPLACED", plain)
    with pytest.raises(UnsupportedModelError, match=rf"it computes {op}, which is not summed in a fixed order"):
        one_token(name)
    assert torch.overrides._get_current_function_mode() is None


def test_sums_of_integers_are_exact_anyway() -> None:
    with FixedOrder():
        assert torch.arange(4).sum() == 6
        with pytest.raises(UnsupportedModelError, match="cumsum"):
            torch.ones(3).cumsum(0)


def test_an_engine_of_one_bit_or_none() -> None:
    model = LoadedModel.of(zoo.build("llama").to(DEVICE))
    with pytest.raises(UnsupportedModelError, match=r"paged: its logits depend on what else is computed"):
        choose_runner(model, NearlyFixed(), self_check=False, same_bits=True)
    assert model.model.config._attn_implementation == "sdpa"
    with pytest.raises(UnsupportedModelError, match=r"paged: it computes cumsum"):
        choose_runner(LoadedModel.of(zoo.build("gpt_oss").to(DEVICE)), Fixed(), self_check=False, same_bits=True)


class NearlyFixed(TorchAttention):
    """Off by one bit in steps of one sequence."""

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        out = super().attend(layer, query, key, value, sinks)
        alone = self._batch is not None and len(self._batch.starts) == 1
        return torch.nextafter(out, out + 1) if alone else out


def test_images_are_refused() -> None:
    model = replace(LoadedModel.of(zoo.build("llama")), processor=object())
    images, why = build._images(EngineConfig("m", deterministic=True), model, None)  # type: ignore[arg-type]
    assert images is None
    assert "a vision tower is not deterministic" in why


def test_the_option_is_refused_where_it_cannot_be_kept(tiny_checkpoint: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"deterministic=True cannot be kept here: .* takes an NVIDIA GPU"):
        Engine(tiny_checkpoint, deterministic=True, device="cpu")


class Everywhere:
    """A plugin: a model of one layer, and the kernel without a GPU, by Triton's interpreter."""

    @hookimpl
    def radix_load_model(self) -> LoadedModel:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = LlamaConfig(vocab_size=64, max_position_embeddings=128, **sizes)
        return LoadedModel.of(LlamaForCausalLM(config).to(DEVICE))

    @hookimpl
    def radix_make_attention(self, name: str) -> AttentionBackend | None:
        return DeterministicAttention() if name == "triton-deterministic" else None


@pytest.mark.parametrize("kept", ["auto", "fp8"])
def test_answers_are_the_same_bits_cold_warm_alone_and_together(kept: str) -> None:
    params = SamplingParams(max_tokens=3, temperature=0, logprobs=2, ignore_eos=True)
    first, second = [5, 6, 7, 8, 9, 10], [5, 6, 7, 20]
    options = {"deterministic": True, "self_check": False, "kv_cache_tokens": 64, "kv_cache_dtype": kept}
    with Engine("one layer", plugins=[Everywhere()], **options) as engine:
        alone = engine.generate(first, params)
        warm = engine.generate(first, params)
        engine.flush_cache()
        _, together = engine.generate([second, first], params)
    assert warm.usage.cached_tokens == 5
    assert alone.token_ids == warm.token_ids == together.token_ids
    assert alone.logprobs == warm.logprobs == together.logprobs  # every bit of them

"""Prepacked linear layers change how fast a model is and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radixbackend.engine import prepack as prepacking
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.linear import LinearKernels, NativeLinear, load_linear_kernels
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.prepack import PackedLinear, prepack
from radixbackend.engine.self_check import choose_runner
from tests import zoo


@pytest.fixture(params=["onednn", "native"])
def kernels(request: pytest.FixtureRequest) -> LinearKernels | None:
    """Everything by oneDNN, and by the project's own kernels wherever they serve."""
    kernels = load_linear_kernels(torch.device("cpu")) if request.param == "native" else None
    if request.param == "native" and (kernels is None or not kernels.pairs):
        pytest.skip("no gcc here, or a processor without products of bfloat16 pairs")
    return kernels


needs_op = pytest.mark.skipif(not prepacking.available(), reason="this torch or CPU has no packed bfloat16 linear")


def logits(model: nn.Module, length: int = 9) -> torch.Tensor:
    tokens = torch.arange(60, 60 + length)[None]
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@needs_op
@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "gemma2", "qwen3_moe", "deepseek_v3", "phi", "falcon", "nemotron_h"]
)
def test_logits_are_the_same_bits(name: str, kernels: LinearKernels | None) -> None:
    model = zoo.build(name).bfloat16()
    before = [logits(model, length) for length in (1, 9, 40)]
    linears = sum(type(module) is nn.Linear for module in model.modules())
    assert prepack(LoadedModel.of(model), kernels) == linears > 0
    assert not any(type(module) is nn.Linear for module in model.modules())
    for plain, length in zip(before, (1, 9, 40), strict=True):
        assert torch.equal(logits(model, length), plain)


@needs_op
def test_a_deep_model_is_packed_though_its_roundings_add_up(kernels: LinearKernels | None) -> None:
    """Sums of more than a thousand inputs may be made in another order than oneDNN's."""
    model = zoo.build("llama", intermediate_size=4096, num_hidden_layers=16).bfloat16()
    before = logits(model, 40).float()
    assert prepack(LoadedModel.of(model), kernels) == 16 * 7 + 1
    error = (logits(model, 40).float() - before).norm() / before.norm()
    assert error == 0 if kernels is None else error < 0.1


@needs_op
def test_a_packed_model_passes_the_self_check(kernels: LinearKernels | None) -> None:
    loaded = LoadedModel.of(zoo.build("llama").bfloat16())
    assert prepack(loaded, kernels)
    assert isinstance(choose_runner(loaded, TorchAttention()), ModelRunner)


@needs_op
def test_a_packed_model_can_be_served_once_more(kernels: LinearKernels | None) -> None:
    model = zoo.build("llama").bfloat16()
    first = LoadedModel.of(model)
    prepack(first, kernels)
    again = LoadedModel.of(model)
    assert again.vocab_size == first.vocab_size == model.config.vocab_size
    assert prepack(again, kernels) == 0
    assert isinstance(choose_runner(again, TorchAttention()), ModelRunner)


@needs_op
def test_dense_weights_are_gone_except_tied_ones(kernels: LinearKernels | None) -> None:
    model = zoo.build("llama_yarn_tied").bfloat16()
    prepack(LoadedModel.of(model), kernels)
    dense = [name for name, p in model.named_parameters() if p.layout == torch.strided and p.ndim == 2]
    assert dense == ["model.embed_tokens.weight"]
    assert isinstance(model.lm_head, NativeLinear if kernels else PackedLinear)


@needs_op
def test_odd_inputs(kernels: LinearKernels | None) -> None:
    model = zoo.build("llama").bfloat16()
    linear, packed = model.model.layers[0].mlp.up_proj, zoo.build("llama").bfloat16()
    prepack(LoadedModel.of(packed), kernels)
    other = packed.model.layers[0].mlp.up_proj
    wide = torch.randn(64, 6, 5).bfloat16()
    for rows in (wide.permute(1, 2, 0), wide.permute(2, 1, 0)[:, ::2], torch.empty(0, 64).bfloat16(), wide[:, 0, 0]):
        assert torch.equal(other(rows), linear(rows))


@needs_op
def test_a_model_that_reads_weights_itself_is_left_alone(kernels: LinearKernels | None) -> None:
    model = zoo.build("llama_yarn_tied").bfloat16()
    attention = model.model.layers[1].self_attn

    class Reading(type(attention.q_proj)):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows @ attention.k_proj.weight.repeat(2, 1).T

    attention.q_proj.__class__ = Reading
    before = logits(model)
    assert prepack(LoadedModel.of(model), kernels) == 0
    assert torch.equal(logits(model), before)
    assert not any(isinstance(module, (PackedLinear, NativeLinear)) for module in model.modules())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_other_dtypes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepack(LoadedModel.of(zoo.build("llama")), None) == 0
    monkeypatch.setattr(prepacking, "available", lambda: False)
    assert prepack(LoadedModel.of(zoo.build("llama").bfloat16()), None) == 0


def test_without_onednn_the_kernels_serve_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX2 alone, where torch has no packed layers for bfloat16."""
    kernels = load_linear_kernels(torch.device("cpu"))
    if kernels is None or not kernels.pairs:
        pytest.skip("no gcc here, or a processor without products of bfloat16 pairs")
    monkeypatch.setattr(prepacking, "available", lambda: False)
    model = zoo.build("llama").bfloat16()
    model.lm_head = nn.Linear(model.config.hidden_size, 100, bias=False).bfloat16()  # outputs that they do not serve
    before = logits(model, 40).float()
    linears = sum(type(module) is nn.Linear for module in model.modules())
    assert prepack(LoadedModel.of(model), kernels) == linears - 1
    assert type(model.lm_head) is nn.Linear
    error = (logits(model, 40).float() - before).norm() / before.norm()
    assert error < 0.02


@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_who_has_neither_is_told(
    machine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepacking, "available", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert prepack(LoadedModel.of(zoo.build("llama").bfloat16()), None) == 0
    assert ("pass dtype='float32'" in caplog.text) == (machine == "x86_64")

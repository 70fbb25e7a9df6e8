"""Fused layers give what the model's own give; whatever else a layer computes, it keeps its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from radixbackend import Engine, SamplingParams
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.elementwise import TorchOps
from radixbackend.engine.fuse import FusedLayer, fuse, join
from radixbackend.engine.halves import Halves
from radixbackend.engine.linear import LinearKernels, load_linear_kernels
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.prepack import PackedLinear, available, prepack
from radixbackend.engine.quantize import quantize
from radixbackend.engine.self_check import choose_runner
from tests import zoo

FUSED = ["llama", "llama_yarn_tied", "mistral", "qwen2", "qwen2_moe", "qwen3", "mixtral", "smollm3", "seed_oss"]
OTHERWISE = ["gemma2", "olmo2", "glm4", "phi", "cohere", "hunyuan", "ernie4_5", "diffllama", "bitnet", "gpt2"]
OTHERWISE += [name for name in ("doge",) if name in zoo.SEQUENTIAL]  # it makes masks of its own


def logits(model: Any, length: int = 30) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=torch.arange(60, 60 + length)[None], use_cache=False).logits
    return out


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernels of ours between the products."""
    monkeypatch.setattr("radixbackend.engine.fuse.choose_ops", lambda device: TorchOps())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.usefixtures("torch_alone")
def test_logits_are_the_same_bits(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name).to(dtype)
    before = [logits(model, length) for length in (1, 9, 60)]
    assert len(fuse(LoadedModel.of(model))) == model.config.num_hidden_layers
    for plain, length in zip(before, (1, 9, 60), strict=True):
        assert torch.equal(logits(model, length), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FUSED)
def test_kernels_differ_by_the_order_of_sums_alone(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name).to(dtype)
    before = [logits(model, length) for length in (1, 9, 60)]
    assert len(fuse(LoadedModel.of(model))) == model.config.num_hidden_layers
    for plain, length in zip(before, (1, 9, 60), strict=True):
        error = (logits(model, length) - plain).float().norm() / plain.float().norm()
        assert error < (5e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("name", OTHERWISE)
def test_layers_of_another_kind_stay(name: str) -> None:
    model = zoo.build(name)
    modules = [type(module) for module in model.modules()]
    attention = model.config._attn_implementation
    assert len(fuse(LoadedModel.of(model))) == 0
    assert [type(module) for module in model.modules()] == modules
    assert model.config._attn_implementation == attention


def test_a_model_whose_queries_change_with_the_position_stays() -> None:
    """Within the first 64 positions such a layer cannot be told from a Llama's."""
    model = zoo.build("ministral3")
    model.config.rope_parameters["original_max_position_embeddings"] = 64
    assert len(fuse(LoadedModel.of(model))) == 0


def test_a_model_that_cannot_be_probed_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = zoo.build("llama")
    plain = model.forward

    def forward(input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return plain(input_ids=input_ids, use_cache=use_cache)

    model.forward = forward
    with caplog.at_level("INFO"):
        assert len(fuse(LoadedModel.of(model))) == 0
    assert "position_ids" in caplog.text
    assert "q_proj" in dict(model.model.layers[0].self_attn.named_children())


@pytest.mark.usefixtures("torch_alone")
@pytest.mark.parametrize("part", ["input_layernorm", "self_attn", "mlp"])
def test_one_changed_layer_stays_and_the_others_are_fused(part: str) -> None:
    model = zoo.build("llama")
    layer = model.model.layers[1]
    plain = getattr(layer, part).forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        return (out[0] * 1.001, *out[1:]) if isinstance(out, tuple) else out * 1.001

    getattr(layer, part).forward = changed
    before = logits(model)
    assert len(fuse(LoadedModel.of(model))) == 2
    assert "q_proj" in dict(layer.self_attn.named_children())
    assert torch.equal(logits(model), before)


def test_a_layer_that_somebody_listens_to_is_still_heard() -> None:
    model = zoo.build("llama")
    heard: list[torch.Tensor] = []
    model.model.layers[0].register_forward_hook(lambda layer, given, out: heard.append(out))
    fuse(LoadedModel.of(model))
    heard.clear()
    logits(model)
    assert len(heard) == 1


def test_weights_exist_once() -> None:
    model = zoo.build("qwen2")
    count = sum(p.numel() for p in model.parameters())
    fuse(LoadedModel.of(model))
    assert sum(p.numel() for p in model.parameters()) == count
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is nn.Linear}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}


def test_generation_with_a_cache_of_transformers_goes_on_working() -> None:
    model, plain = zoo.build("qwen3"), zoo.build("qwen3")
    fuse(LoadedModel.of(model))
    prompt = torch.arange(70, 90)[None]
    for implementation in ("sdpa", "eager"):
        for m in (model, plain):
            m.set_attn_implementation(implementation)
        found, expected = (m.generate(prompt, max_new_tokens=12, do_sample=False) for m in (model, plain))
        assert torch.equal(found, expected)


@pytest.mark.skipif(not available(), reason="this torch or CPU has no packed bfloat16 linear")
def test_fused_layers_are_packed_and_pass_the_self_check() -> None:
    loaded = LoadedModel.of(zoo.build("llama").bfloat16())
    assert fuse(loaded)
    assert prepack(loaded, None)
    attention: Any = loaded.model.model.layers[0].self_attn
    assert isinstance(attention.qkv_proj, PackedLinear)
    assert isinstance(choose_runner(loaded, TorchAttention()), ModelRunner)


class TestHalves:
    """Layers whose halves are one call each."""

    @pytest.fixture
    def kernels(self) -> LinearKernels:
        kernels = load_linear_kernels(torch.device("cpu"))
        if kernels is None or not kernels.pairs:
            pytest.skip("no gcc here, or a processor without products of bfloat16 pairs")
        return kernels

    @pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])  # plain, with biases, with norms of heads
    def test_they_give_the_same_bits(self, name: str, kernels: LinearKernels) -> None:
        loaded = LoadedModel.of(wide(name).bfloat16())
        layers = fuse(loaded)
        assert prepack(loaded, kernels)
        before = [logits(loaded.model, length) for length in (1, 2, 9, 60)]
        assert join(layers, kernels) == len(layers) == loaded.config.num_hidden_layers
        for plain, length in zip(before, (1, 2, 9, 60), strict=True):
            assert torch.equal(logits(loaded.model, length), plain)

    def test_in_integers_too(self, kernels: LinearKernels) -> None:
        loaded = LoadedModel.of(wide("llama"))
        layers = fuse(loaded)
        quantize(loaded, kernels)
        before = [logits(loaded.model, length) for length in (1, 9)]
        assert join(layers, kernels) == len(layers) > 0
        for plain, length in zip(before, (1, 9), strict=True):
            assert torch.equal(logits(loaded.model, length), plain)

    def test_batches_and_angles_that_they_cannot_be_given(self, kernels: LinearKernels) -> None:
        """A row of positions for several rows of tokens, as transformers hands it on, is computed in steps."""
        loaded = LoadedModel.of(wide("llama").bfloat16())
        layers = fuse(loaded)
        prepack(loaded, kernels)
        tokens = torch.arange(60, 90).view(3, 10)
        with torch.no_grad():
            before = loaded.model(input_ids=tokens, use_cache=False).logits
            join(layers, kernels)
            assert torch.equal(loaded.model(input_ids=tokens, use_cache=False).logits, before)

    def test_layers_that_they_do_not_fit_stay_in_steps(self, kernels: LinearKernels) -> None:
        for name in ("llama", "qwen2_moe"):  # heads too small, another MLP
            loaded = LoadedModel.of((zoo.build if name == "llama" else wide)(name).bfloat16())
            layers = fuse(loaded)
            prepack(loaded, kernels)
            assert layers
            assert join(layers, kernels) == 0
        assert join(layers, None) == 0

    def test_halves_that_differ_are_left_out(self, kernels: LinearKernels, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = LoadedModel.of(wide("llama").bfloat16())
        layers = fuse(loaded)
        prepack(loaded, kernels)
        after = Halves.after
        monkeypatch.setattr(Halves, "after", lambda *given: after(*given) * 1.01)
        assert join(layers, kernels) == 0

    def test_an_engine_has_them(self, tmp_path: Path, kernels: LinearKernels) -> None:
        """And what a request gets is the same alone and together."""
        wide("qwen3").bfloat16().save_pretrained(tmp_path)
        prompts = [list(range(60 + i, 90 + i)) for i in range(5)]
        sampling = SamplingParams(max_tokens=8, temperature=0)
        with Engine(tmp_path, dtype="bfloat16") as engine:
            layer = engine._parts.model.model.model.layers[0]
            assert layer.forward.__self__.halves is not None
            alone = [engine.generate(prompt, sampling).token_ids for prompt in prompts]
            engine.flush_cache()
            assert [answer.token_ids for answer in engine.generate(prompts, sampling)] == alone


def wide(name: str) -> Any:
    """A model of the zoo with heads as large as real ones."""
    return zoo.build(name, head_dim=64) if name != "qwen2" else zoo.build(name, hidden_size=256)


def test_the_switch(tmp_path: Path) -> None:
    zoo.save("llama", tmp_path)
    answers = []
    for fused in (True, False):
        with Engine(tmp_path, dtype="float32", fused_layers=fused) as engine:
            layer = engine._parts.model.model.model.layers[0]
            assert hasattr(layer.self_attn, "q_proj") is not fused
            answers.append(engine.generate(list(range(60, 80)), SamplingParams(max_tokens=8, temperature=0)).token_ids)
    assert answers[0] == answers[1]


def test_only_layers_with_the_parts_fit() -> None:
    fitting = [
        name for name in ("llama", "gemma2", "gpt2", "phi") if any(map(FusedLayer.fits, zoo.build(name).modules()))
    ]
    assert fitting == ["llama"]

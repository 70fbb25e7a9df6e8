"""Keys and values stored in 8 bits: the same answers however they come about, and refused where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from radixbackend import Engine, SamplingParams, hookimpl
from radixbackend.builtin_plugin import radix_make_attention
from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.kv_store import FP8, KVStore
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SequenceId, SequencePlan, StepPlan
from radixbackend.engine.self_check import choose_runner, compare
from radixbackend.errors import ConfigError, UnsupportedModelError
from tests import zoo
from tests.engine.test_attention import native_attention

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
PROMPTS = [list(range(60 + i, 100 + 3 * i)) for i in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.save("llama", tmp_path_factory.mktemp("fp8"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, dtype="float32", kv_cache_dtype="fp8", kv_cache_tokens=2000) as engine:
        yield engine


def tokens(engine: Engine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in engine.generate(prompts, GREEDY)]


# -- the same answers ------------------------------------------------------------------------------------------------


def test_cold_warm_alone_together_and_in_chunks(engine: Engine, folder: Path) -> None:
    cold = tokens(engine, PROMPTS)
    assert tokens(engine, PROMPTS) == cold
    assert engine.generate(PROMPTS[0], GREEDY).usage.cached_tokens == len(PROMPTS[0]) - 1
    engine.flush_cache()
    assert [tokens(engine, [prompt])[0] for prompt in PROMPTS] == cold
    options = {"dtype": "float32", "kv_cache_dtype": "fp8", "kv_cache_tokens": 2000}
    with Engine(folder, max_step_tokens=7, prefix_cache=False, **options) as chunked:
        assert tokens(chunked, PROMPTS) == cold
    with Engine(folder, **options | {"kv_cache_dtype": "auto"}) as plain:
        assert plain.weights_hash != engine.weights_hash
        first, other = (x.generate(PROMPTS[0], GREEDY.replace(logprobs=1)).logprobs[0] for x in (plain, engine))
        assert first.logprob != pytest.approx(other.logprob, abs=1e-3)  # it is rounded


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "gemma3n", "llama4"])
def test_logits_do_not_depend_on_how_a_prompt_is_cut(name: str) -> None:
    runner = ModelRunner(LoadedModel.of(zoo.build(name)), TorchAttention(), FP8)
    runner.allocate(200)
    row = np.random.default_rng(1).integers(50, zoo.VOCAB - 10, 40).astype(np.int32)
    found = []
    for i, cuts in enumerate([[40], [20, 3, 16, 1], [1] * 40]):
        slots = np.random.default_rng(i).permutation(200)[:40].astype(np.int32)
        ends = np.cumsum(cuts)
        plans = [
            SequencePlan(SequenceId(i), row[end - n : end], end - n, slots[:end], None, 0)
            for n, end in zip(cuts, ends.tolist(), strict=True)
        ]
        found.append(torch.cat([runner.run(StepPlan(i, (plan,))).rows for plan in plans]))
    runner.close()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-2, rtol=0)


# -- where it cannot be had ------------------------------------------------------------------------------------------


class Falcon:
    """A plugin: a model for the sequential path."""

    @hookimpl
    def radix_load_model(self) -> LoadedModel:
        return LoadedModel.of(zoo.build("falcon"))


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_dtype takes 'auto' .* or 'fp8', not 'int4'"):
        Engine(folder, kv_cache_dtype="int4")
    with pytest.raises(ConfigError, match=r"kv_cache_dtype='fp8' cannot be had here: .*paged: its attention.*leave it"):
        Engine("falcon", plugins=[Falcon()], kv_cache_tokens=100, kv_cache_dtype="fp8")


@pytest.mark.parametrize("kernel", native_attention())
def test_a_kernel_without_it_is_refused_by_name_and_passed_over_by_auto(
    kernel: type[AttentionBackend], folder: Path
) -> None:
    with pytest.raises(ConfigError, match=r"attention 'native' cannot serve it: .* take attention='auto'"):
        Engine(folder, dtype="float32", attention="native", kv_cache_dtype="fp8")
    auto = radix_make_attention("auto", "cpu")
    assert auto is not None
    runner = choose_runner(LoadedModel.of(zoo.build("llama")), auto, stored=FP8)
    runner.allocate(10)
    assert auto.name == "torch"
    runner.close()


# -- the check when a model loads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "qwen3_moe", "granitemoe_swa"]
)
def test_right_models_pass(name: str, dtype: torch.dtype) -> None:
    loaded = LoadedModel.of(zoo.build(name).to(dtype))
    before = loaded.model.config._attn_implementation
    runner = choose_runner(loaded, TorchAttention(), stored=FP8)
    assert isinstance(runner, ModelRunner)
    assert runner.stored == FP8
    assert loaded.model.config._attn_implementation == runner.name
    assert compare(loaded, runner).median > 1e-3  # more than a small mistake: why storing is checked by itself
    runner.close()
    assert loaded.model.config._attn_implementation == before


class WrongInEightBits(TorchAttention):
    """Right in the model's own type."""

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        super().bind(layers, store)
        self.eight = store.keys[0].dtype == FP8


class NoWindow(WrongInEightBits):
    def attend(self, layer: AttentionLayer, *tensors: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().attend(replace(layer, window=None) if self.eight else layer, *tensors)


class OwnKeysUnrounded(WrongInEightBits):
    """A step sees its own keys as they were before they were stored."""

    def attend(self, layer: AttentionLayer, *tensors: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if not self.eight:
            return super().attend(layer, *tensors)
        batch = self._batch
        assert batch is not None
        assert self._store is not None
        out = super().attend(layer, *tensors)
        for i, start in enumerate(batch.starts):
            if start == 0:
                rows = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
                query, key, value = (x[rows].transpose(0, 1) for x in tensors[:3])
                out[rows] = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, is_causal=True, scale=layer.scaling, enable_gqa=True
                ).transpose(0, 1)
        return out


class Shifted(WrongInEightBits):
    """Values read from the slots of others."""

    def begin(self, batch: AttentionBatch) -> None:
        if self.eight and max(batch.starts) > 0:
            batch = replace(batch, slots=tuple(np.roll(s, 1) for s in batch.slots))
        super().begin(batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "wrong"), [("mistral", NoWindow()), ("gemma3", NoWindow()), ("llama", Shifted())])
def test_what_is_wrong_in_eight_bits_alone_is_noticed(name: str, wrong: TorchAttention, dtype: torch.dtype) -> None:
    loaded = LoadedModel.of(zoo.build(name).to(dtype))
    choose_runner(loaded, wrong).close()
    with pytest.raises(UnsupportedModelError, match=r"stored in torch.float8_e4m3fn are not read as such"):
        choose_runner(loaded, wrong, stored=FP8)
    choose_runner(loaded, wrong, stored=FP8, self_check=False).close()


def test_keys_that_a_step_reads_before_they_are_rounded_are_noticed() -> None:
    with pytest.raises(UnsupportedModelError, match=r"are not read as such"):
        choose_runner(LoadedModel.of(zoo.build("llama")), OwnKeysUnrounded(), stored=FP8)


def test_a_model_that_loses_too_much_is_refused() -> None:
    """Keys far from zero that differ by little, as a large bias makes them: all of the difference is rounded away."""
    model = zoo.build("qwen2")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.fill_(300.0)
    loaded = LoadedModel.of(model)
    choose_runner(loaded, TorchAttention()).close()
    with pytest.raises(UnsupportedModelError, match=r"loses too much with keys and values rounded"):
        choose_runner(loaded, TorchAttention(), stored=FP8)

"""A step's layers in one call give the bits that they give one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend import Engine, SamplingParams
from radixbackend.engine import stack as stacks
from radixbackend.engine.attention.native import NativeAttention
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.fuse import FusedLayer, fuse, join
from radixbackend.engine.linear import LinearKernels, load_linear_kernels
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import ImageInput, PromptImages, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.prepack import prepack
from radixbackend.engine.quantize import quantize
from tests import zoo
from tests.engine.test_fuse import wide


@pytest.fixture
def kernels() -> LinearKernels:
    kernels = load_linear_kernels(torch.device("cpu"))
    if kernels is None or not kernels.pairs:
        pytest.skip("no gcc here, or a processor without products of bfloat16 pairs")
    return kernels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers that each call of a stack computed."""
    found: list[int] = []
    whole = stacks.Stack._all

    def note(self: stacks.Stack, *given: Any) -> torch.Tensor | None:
        out = whole(self, *given)
        if out is not None:
            found.append(len(self._halves))
        return out

    monkeypatch.setattr(stacks.Stack, "_all", note)
    return found


def joined(kernels: LinearKernels, model: Any, *, integers: bool = False) -> tuple[LoadedModel, list[FusedLayer]]:
    loaded = LoadedModel.of(model.bfloat16())
    layers = fuse(loaded)
    if integers:
        quantize(loaded, kernels)
    else:
        prepack(loaded, kernels)
    assert join(layers, kernels) == len(layers) > 1
    return loaded, layers


def plan(number: int, *sequences: tuple[int, int, int]) -> StepPlan:
    """Of each sequence, by its number, the tokens from one position to another; every row is wanted."""
    tokens = [np.random.default_rng(which).integers(50, zoo.VOCAB - 10, 100).astype(np.int32) for which in range(4)]
    slots = np.random.default_rng(9).permutation(400).astype(np.int32).reshape(4, 100)
    return StepPlan(
        number,
        tuple(
            SequencePlan(SequenceId(which), tokens[which][start:end], start, slots[which][:end], None, 0)
            for which, start, end in sequences
        ),
    )


STEPS = (
    plan(0, (0, 0, 40), (1, 0, 7)),  # prompts
    plan(1, (0, 40, 41), (1, 7, 8), (2, 0, 30)),  # decodes beside one
    plan(2, (0, 41, 42), (1, 8, 10), (2, 30, 31)),  # decodes, one of them with a draft
    plan(3, (0, 42, 90), (3, 0, 1)),
)


def run(loaded: LoadedModel, layers: list[FusedLayer], *, stacked: bool) -> list[torch.Tensor]:
    kept = [layer.stack for layer in layers]
    runner = ModelRunner(loaded, NativeAttention())
    runner.allocate(400)
    try:
        if not stacked:
            for layer in layers:
                layer.stack = None
        return [runner.run(step).rows.clone() for step in STEPS]
    finally:
        runner.close()
        for layer, stack in zip(layers, kept, strict=True):
            layer.stack = stack


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: wide("llama"),
    "biases": lambda: wide("qwen2"),
    "norms of heads": lambda: wide("qwen3"),
    "windows": lambda: zoo.build("mistral", head_dim=64, sliding_window=24),
}


@pytest.mark.parametrize("integers", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_bits_are_those_of_layers_one_by_one(
    name: str, integers: bool, kernels: LinearKernels, calls: list[int]
) -> None:
    loaded, layers = joined(kernels, MODELS[name](), integers=integers)
    one_by_one = run(loaded, layers, stacked=False)
    assert calls == []
    found = run(loaded, layers, stacked=True)
    # Where the processor's prompts are torch's, a step of prompts is not all ours.
    assert calls in ([len(layers)] * len(STEPS), [len(layers)])
    for rows, due in zip(found, one_by_one, strict=True):
        assert torch.equal(rows, due)


def test_others_attend_layer_by_layer(kernels: LinearKernels, calls: list[int]) -> None:
    loaded, _ = joined(kernels, wide("llama"))
    runner = ModelRunner(loaded, TorchAttention())
    runner.allocate(400)
    runner.run(STEPS[0])
    runner.close()
    with torch.no_grad():
        loaded.model(input_ids=torch.arange(60, 80)[None], use_cache=False)
    assert calls == []


def test_layers_that_are_no_chain_have_none(kernels: LinearKernels) -> None:
    model = wide("llama").bfloat16()
    between = model.model.layers[1].register_forward_pre_hook(lambda module, given: (given[0].clone(), *given[1:]))
    loaded = LoadedModel.of(model)
    layers = fuse(loaded)
    between.remove()
    prepack(loaded, kernels)
    assert join(layers, kernels) == len(layers) > 1
    assert all(layer.stack is None for layer in layers)


def test_a_step_with_images_goes_layer_by_layer(kernels: LinearKernels, calls: list[int]) -> None:
    """Some models put what they see between layers."""
    loaded, _ = joined(kernels, wide("llama"))
    runner = ModelRunner(loaded, NativeAttention())
    runner.allocate(400)
    text = plan(0, (0, 0, 1), (1, 0, 1))
    due = runner.run(text).rows.clone()
    first, second = text.sequences
    at = {place: ImageInput(-1, place, np.ones(2, np.int32), np.arange(2, dtype=np.int32), {}) for place in (0, 1)}
    elsewhere, within = (replace(first, images=PromptImages((at[place],), np.zeros(3, np.int32))) for place in (1, 0))
    positions = torch.zeros(1, 2, dtype=torch.long)
    eyes: Any = SimpleNamespace(positions=lambda plan: positions, shown=lambda plan: nullcontext(), clear=lambda: None)
    runner.vision = eyes
    calls.clear()
    assert torch.equal(runner.run(StepPlan(1, (within, second))).rows, due)
    assert calls == []
    for without in (StepPlan(2, (elsewhere, second)), text):  # all of the image elsewhere, and no image
        assert torch.equal(runner.run(without).rows, due)
    assert len(calls) == 2
    runner.close()


def test_a_layer_left_out_leaves_none(kernels: LinearKernels) -> None:
    loaded = LoadedModel.of(wide("llama").bfloat16())
    layers = fuse(loaded)
    prepack(loaded, kernels)
    join(layers[1:], kernels)
    layers[0].gate_up = None
    assert join(layers, kernels) == len(layers) - 1
    assert layers[0].stack is None


def test_what_is_not_its_own_is_computed(kernels: LinearKernels) -> None:
    """A layer that is not given what the first returned does not hand it on."""
    loaded, layers = joined(kernels, wide("llama"))
    stack = layers[0].stack
    assert stack is not None
    hidden = torch.randn(1, 3, loaded.config.hidden_size).bfloat16()
    angles = (torch.randn(1, 3, 64).bfloat16(),) * 2
    for index in range(len(layers)):
        assert stack.forward(index, hidden, angles, attend=None) is None


def test_no_room_fails_the_step_alone(kernels: LinearKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, layers = joined(kernels, wide("llama"))
    stack = layers[0].stack
    assert stack is not None
    runner = ModelRunner(loaded, NativeAttention())
    runner.allocate(400)
    start = plan(0, (0, 0, 1), (1, 0, 1), (3, 0, 1))
    due = runner.run(start).rows.clone()
    compute = stack._compute
    monkeypatch.setattr(stack, "_compute", lambda *given: 0)
    with pytest.raises(MemoryError, match="stack of 3 rows"):
        runner.run(start)
    monkeypatch.setattr(stack, "_compute", compute)
    assert torch.equal(runner.run(start).rows, due)
    runner.close()


def test_an_engine_has_one(tmp_path: Path, kernels: LinearKernels, calls: list[int]) -> None:
    wide("qwen3").bfloat16().save_pretrained(tmp_path)
    prompts = [list(range(60 + i, 90 + i)) for i in range(5)]
    sampling = SamplingParams(max_tokens=8, temperature=0)
    with Engine(tmp_path, dtype="bfloat16") as engine:
        calls.clear()
        alone = [engine.generate(prompt, sampling).token_ids for prompt in prompts]
        engine.flush_cache()
        assert [answer.token_ids for answer in engine.generate(prompts, sampling)] == alone
    assert len(calls) >= 5 * 7

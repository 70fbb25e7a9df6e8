"""A token's logits are the same bits in every batch, chunk and cache."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("triton")
from radixbackend.engine.attention.deterministic import DeterministicAttention, FixedOrder, linear, mean
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SequenceId, SequencePlan, StepPlan
from tests import zoo
from tests.engine.test_attention_triton import DEVICE

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

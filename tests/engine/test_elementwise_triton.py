"""Triton kernels between a layer's products compute what torch's operators do: on a GPU, or by Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("triton")
import triton.language as tl
from triton.runtime import interpreter

import radixbackend.engine
from radixbackend.engine import triton_elementwise
from radixbackend.engine.attention.deterministic import DeterministicAttention
from radixbackend.engine.elementwise import LONGEST, RMSNorm, TorchOps, TritonOps, choose_ops
from radixbackend.engine.fuse import fuse
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SequenceId, SequencePlan, StepPlan
from tests import zoo
from tests.engine.test_attention_triton import DEVICE

TORCH = TorchOps()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [(1, 1), (1, 7), (2, 3)]
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts off what becomes bfloat16, where a GPU rounds it as torch does."""
    plain = interpreter._convert_float

    def convert(numbers: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return plain(numbers, given, wanted, mode)
        return torch.tensor(numbers).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


class Launches:
    """The kernels, and which of them were launched."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(triton_elementwise, name)


@pytest.fixture
def ops() -> TritonOps:
    made = TritonOps(torch.device(DEVICE))
    made._kernels = Launches()  # type: ignore[assignment]
    return made


def launched(ops: TritonOps) -> list[str]:
    names: list[str] = ops._kernels.names
    return names


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


def draw(*shape: int, dtype: torch.dtype, spread: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * spread).to(DEVICE, dtype)


def norm_of(*shape: int, dtype: torch.dtype) -> RMSNorm:
    """Of rows, or of rows of heads."""
    weight = nn.Parameter(1 + draw(*shape, dtype=dtype) / 10, requires_grad=False)
    norm = RMSNorm(SimpleNamespace(weight=weight, variance_epsilon=1e-5))
    norm.shape = shape[-1:]
    return norm


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits but for a few steps of float32: a norm's sum has another order, and an exponential is another's.

    In types of 16 bits that is a step before the last product, where a number lay by the middle of two.
    """
    steps = 4 if found.dtype == torch.float32 else 2
    torch.testing.assert_close(found, expected, rtol=steps * torch.finfo(found.dtype).eps, atol=0, equal_nan=True)
    if found.dtype != torch.float32:
        others = (found != expected) & ~expected.isnan()
        assert others.sum() <= 1 + 0.001 * others.numel()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [96, 2048, 4096, 5120])
def test_norm_and_sum(ops: TritonOps, rows: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    norm = norm_of(size, dtype=dtype)
    x, more = draw(*rows, size, dtype=dtype, spread=3.0), draw(*rows, size, dtype=dtype).flip(0)
    kept = x.clone()
    close(ops.norm(x, norm), TORCH.norm(x, norm))
    (total, normed), (plain_total, plain) = ops.add_norm(x, more, norm), TORCH.add_norm(x, more, norm)
    assert torch.equal(total, plain_total)
    close(normed, plain)
    assert torch.equal(x, kept)
    assert launched(ops) == ["norm", "norm"]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_norms_of_heads(ops: TritonOps, rows: tuple[int, int], dim: int, dtype: torch.dtype) -> None:
    mixed, norm = draw(*rows, 8, dim, dtype=dtype, spread=3.0), norm_of(5, dim, dtype=dtype)
    close(ops.norm(mixed[..., :5, :], norm), TORCH.norm(mixed[..., :5, :], norm))
    assert launched(ops) == ["norm"]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("heads", "dim"), [(40, 64), (10, 128), (3, 256), (9, 80)])
def test_rotation_is_the_same_bits(
    ops: TritonOps, rows: tuple[int, int], heads: int, dim: int, dtype: torch.dtype
) -> None:
    mixed = draw(*rows, heads + 2, dim, dtype=dtype)
    turned, rest = mixed[..., :heads, :], mixed[..., heads:, :].clone()
    angles = draw(*rows, dim, dtype=torch.float32, spread=9.0)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    plain = TORCH.rotate(turned.clone(), cos, sin)
    assert ops.rotate(turned, cos, sin) is turned  # in place
    assert torch.equal(turned, plain)
    assert torch.equal(mixed[..., heads:, :], rest)
    assert launched(ops) == ["rotate"]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [96, 90, 2100])
def test_gate(ops: TritonOps, rows: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    pairs = draw(*rows, 2 * size, dtype=dtype, spread=8.0)
    pairs[0, 0, :7] = torch.tensor([0.0, -200.0, 200.0, -1e-3, INF, -INF, NAN])
    close(ops.silu_gate(pairs), TORCH.silu_gate(pairs))
    assert launched(ops) == ["silu_gate"]


@pytest.mark.parametrize("odd", [0.0, INF, -INF, NAN])
def test_odd_rows_are_what_torch_makes_of_them_and_leave_others_alone(
    ops: TritonOps, odd: float, dtype: torch.dtype
) -> None:
    x, pairs, norm = draw(1, 3, 96, dtype=dtype), draw(1, 3, 192, dtype=dtype), norm_of(96, dtype=dtype)
    x[0, 1], pairs[0, 1, 5], pairs[0, 1, 100] = odd, odd, odd
    found = [ops.norm(x, norm), *ops.add_norm(x, x, norm), ops.silu_gate(pairs)]
    for out, plain in zip(
        found, [TORCH.norm(x, norm), *TORCH.add_norm(x, x, norm), TORCH.silu_gate(pairs)], strict=True
    ):
        close(out, plain)
        assert out[0, ::2].isfinite().all()


def test_a_row_is_the_same_bits_in_every_batch(ops: TritonOps, dtype: torch.dtype) -> None:
    norm, heads = norm_of(96, dtype=dtype), norm_of(4, 64, dtype=dtype)
    x, pairs, mixed = draw(1, 20, 96, dtype=dtype), draw(1, 20, 192, dtype=dtype), draw(1, 20, 6, 64, dtype=dtype)
    angles = draw(1, 20, 64, dtype=dtype)

    def every(part: slice) -> list[torch.Tensor]:
        rows = [t[:, part] for t in (x, pairs, angles)]
        turned = ops.norm(mixed[:, part, :4], heads)
        return [ops.norm(rows[0], norm), *ops.add_norm(rows[0], rows[0], norm), ops.silu_gate(rows[1]), turned.clone(),
                ops.rotate(turned, rows[2], rows[2])]  # fmt: skip

    together = every(slice(0, 20))
    for part in (slice(7, 8), slice(15, 20)):
        for alone, out in zip(every(part), together, strict=True):
            assert torch.equal(alone, out[:, part])
    assert len(launched(ops)) == 3 * 5


def test_no_rows(ops: TritonOps, dtype: torch.dtype) -> None:
    x = torch.empty(1, 0, 96, dtype=dtype, device=DEVICE)
    assert ops.norm(x, norm_of(96, dtype=dtype)).shape == (1, 0, 96)
    assert ops.silu_gate(x).shape == (1, 0, 48)
    assert ops.rotate(x.view(1, 0, 3, 32), x[..., :32], x[..., :32]).shape == (1, 0, 3, 32)


F32 = torch.float32
ODD_NORMS: dict[str, Callable[[], tuple[torch.Tensor, RMSNorm]]] = {
    "another size": lambda: (draw(1, 3, 90, dtype=F32), norm_of(90, dtype=F32)),
    "too long": lambda: (draw(1, 2, LONGEST + 16, dtype=F32), norm_of(LONGEST + 16, dtype=F32)),
    "another type": lambda: (draw(1, 3, 96, dtype=torch.float64), norm_of(96, dtype=torch.float64)),
    "two types": lambda: (draw(1, 3, 96, dtype=torch.bfloat16), norm_of(96, dtype=F32)),
    "apart": lambda: (draw(1, 3, 192, dtype=F32)[..., :96], norm_of(96, dtype=F32)),
    "heads apart": lambda: (draw(1, 3, 4, 192, dtype=F32)[..., :96], norm_of(4, 96, dtype=F32)),
    "unaligned": lambda: (draw(1 + 96, dtype=F32)[1:].view(1, 1, 96), norm_of(96, dtype=F32)),
}


@pytest.mark.parametrize("name", ODD_NORMS)
def test_norms_that_no_kernel_takes_are_left_to_torch(ops: TritonOps, name: str) -> None:
    x, norm = ODD_NORMS[name]()
    assert torch.equal(ops.norm(x, norm), TORCH.norm(x, norm))
    assert launched(ops) == []


def test_sums_that_no_kernel_takes_are_left_to_torch(ops: TritonOps) -> None:
    x, norm = draw(1, 3, 96, dtype=F32), norm_of(96, dtype=F32)
    apart, unaligned = draw(1, 3, 192, dtype=F32)[..., :96], draw(1 + 3 * 96, dtype=F32)[1:].view(1, 3, 96)
    for one, other in ((x, apart), (apart, x), (x, unaligned), (unaligned, x), (x, x[:, :1]), (x[:, :1], x)):
        total, normed = ops.add_norm(one, other, norm)
        assert torch.equal(total, one + other)
        close(normed, TORCH.norm(total, norm))
    assert launched(ops) == ["norm"] * 6  # of the sums, which are whole


@pytest.mark.parametrize("given", ["angles for all", "another type", "apart", "heads first"])
def test_rotations_that_no_kernel_takes_are_left_to_torch(ops: TritonOps, given: str) -> None:
    x, angles = draw(2, 3, 4, 32, dtype=F32), draw(2, 3, 32, dtype=F32)
    if given == "angles for all":  # one row of positions for several of tokens
        angles = angles[:1]
    elif given == "another type":
        x, angles = x.double(), angles.double()
    elif given == "apart":
        x = draw(2, 3, 4, 64, dtype=F32)[..., ::2]
    else:
        x = draw(2, 4, 3, 32, dtype=F32).transpose(1, 2)
    plain = TORCH.rotate(x.clone(), angles, angles)
    assert torch.equal(ops.rotate(x, angles, angles), plain)
    assert launched(ops) == []


def test_gates_that_no_kernel_takes_are_left_to_torch(ops: TritonOps) -> None:
    for pairs in (draw(1, 3, 96, dtype=F32)[..., :64], draw(1, 3, 64, dtype=torch.float64)):
        assert torch.equal(ops.silu_gate(pairs), TORCH.silu_gate(pairs))
    assert launched(ops) == []


# -- which are chosen --------------------------------------------------------------------------------------------------


def test_without_triton_torch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(radixbackend.engine, "triton_elementwise")
    monkeypatch.setitem(sys.modules, "radixbackend.engine.triton_elementwise", None)
    caplog.set_level("INFO")
    assert type(choose_ops(torch.device("cuda"))) is TorchOps
    assert "pip install triton" in caplog.text


def test_what_cannot_be_compiled_is_noticed_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: Any) -> None:
        raise subprocess.CalledProcessError(1, "gcc")

    monkeypatch.setattr(triton_elementwise, "silu_gate", fail)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(*shape, device=DEVICE))
    caplog.set_level("INFO")
    assert type(choose_ops(torch.device("cuda"))) is TorchOps
    assert "gcc" in caplog.text


def test_a_gpu_has_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(*shape, device=DEVICE))
    assert type(choose_ops(torch.device("cuda"))) is TritonOps
    assert type(choose_ops(torch.device("meta"))) is TorchOps


# -- in layers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fused_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, TorchOps, torch.dtype], LoadedModel]:
    def made(name: str, ops: TorchOps, dtype: torch.dtype) -> LoadedModel:
        monkeypatch.setattr("radixbackend.engine.fuse.choose_ops", lambda device: ops)
        loaded = LoadedModel.of(zoo.build(name).to(DEVICE, dtype))
        assert len(fuse(loaded)) == loaded.config.num_hidden_layers
        return loaded

    return made


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3"])  # plain, with norms of heads
def test_a_fused_model_computes_the_same(
    ops: TritonOps, name: str, dtype: torch.dtype, fused_by: Callable[..., LoadedModel]
) -> None:
    plain, model = (fused_by(name, by, dtype).model for by in (TORCH, ops))
    launched(ops).clear()
    tokens = torch.arange(60, 65, device=DEVICE)[None]
    with torch.no_grad():
        expected, found = (m(input_ids=tokens, use_cache=False).logits.float() for m in (plain, model))
    layers = model.config.num_hidden_layers
    assert [launched(ops).count(n) for n in ("rotate", "silu_gate")] == [layers, layers]
    assert launched(ops).count("norm") == layers * (3 if name == "qwen3" else 2) + 1
    error = (found - expected).norm() / expected.norm()
    assert error < (5e-6 if dtype == torch.float32 else 5e-3)  # as the C kernels


@pytest.mark.usefixtures("alike_for_every_row")
def test_a_token_has_the_same_logits_in_every_step(ops: TritonOps, fused_by: Callable[..., LoadedModel]) -> None:
    """With fused layers too, where sums are in a fixed order."""
    loaded = fused_by("llama", ops, torch.float32)
    tokens = np.random.default_rng(4).integers(50, zoo.VOCAB - 10, 8).astype(np.int32)
    slots = np.random.default_rng(3).permutation(40).astype(np.int32)

    def rows(*runs: tuple[int, int, int]) -> torch.Tensor:
        return runner.run(StepPlan(0, tuple(
            SequencePlan(SequenceId(i), tokens[a:b], a, slots[20 * i : 20 * i + b], None, 0) for i, a, b in runs
        ))).rows  # fmt: skip

    runner = ModelRunner(loaded, DeterministicAttention())
    runner.allocate(40)
    launched(ops).clear()
    cold = rows((0, 0, 8))
    alone = rows((0, 7, 8))
    together = rows((1, 0, 3), (0, 6, 8))
    runner.close()
    assert {"norm", "rotate", "silu_gate"} == {*launched(ops)}
    assert torch.equal(alone[-1], cold[-1])
    assert torch.equal(together[-2:], cold[-2:])

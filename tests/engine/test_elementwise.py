"""The C kernels between a layer's products compute what torch's operators do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from radixbackend.engine.elementwise import NativeOps, RMSNorm, TorchOps, choose_ops, is_silu
from radixbackend.errors import MissingDependencyError
from tests.engine.test_attention import native_attention

pytestmark = pytest.mark.skipif(not native_attention(), reason="no gcc here")

TORCH = TorchOps()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [(1, 1), (1, 7), (2, 300)]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


def draw(*shape: int, dtype: torch.dtype, spread: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * spread).to(dtype)


def norm_of(size: int, dtype: torch.dtype) -> RMSNorm:
    return RMSNorm(SimpleNamespace(weight=nn.Parameter(1 + draw(size, dtype=dtype) / 10), variance_epsilon=1e-5))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """A few steps of float32, which elsewhere is one step in few places."""
    step = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, expected, rtol=8 * step if found.dtype == torch.float32 else step, atol=step)
    if found.dtype != torch.float32:
        assert (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [96, 90])
def test_norm_and_sum(rows: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    norm = norm_of(size, dtype)
    x, more = draw(*rows, size, dtype=dtype, spread=3.0), draw(*rows, size, dtype=dtype).flip(0)
    kept = x.clone()
    close(NativeOps().norm(x, norm), TORCH.norm(x, norm))
    (total, normed), (plain_total, plain) = NativeOps().add_norm(x, more, norm), TORCH.add_norm(x, more, norm)
    assert torch.equal(total, plain_total)
    close(normed, plain)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dim", [64, 48])
def test_rotation_is_the_same_bits(rows: tuple[int, int], dim: int, dtype: torch.dtype) -> None:
    mixed = draw(*rows, 6, dim, dtype=dtype)
    angles = draw(*rows, dim, dtype=torch.float32, spread=9.0)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    plain = TORCH.rotate(mixed[..., :5, :].clone(), cos, sin)
    last = mixed[..., 5, :].clone()
    close(NativeOps().rotate(mixed[..., :5, :], cos, sin), plain)
    assert torch.equal(mixed[..., 5, :], last)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [96, 90])
def test_gate(rows: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    pairs = draw(*rows, 2 * size, dtype=dtype, spread=8.0)
    pairs[0, 0, :4] = torch.tensor([0.0, -200.0, 200.0, -1e-3]).to(dtype)
    close(NativeOps().silu_gate(pairs), TORCH.silu_gate(pairs))


def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    x, pairs, norm = draw(1, 3, 96, dtype=dtype), draw(1, 3, 192, dtype=dtype), norm_of(96, dtype)
    x[0, 1, 5] = pairs[0, 1, 5] = float("nan")
    for out in (NativeOps().norm(x, norm), NativeOps().silu_gate(pairs)):
        assert out.isfinite().all(-1).tolist() == [[True, False, True]]
    assert NativeOps().norm(x, norm)[0, 1].isnan().all()


def test_rows_do_not_depend_on_their_number(dtype: torch.dtype) -> None:
    x, norm = draw(1, 900, 96, dtype=dtype), norm_of(96, dtype)
    assert torch.equal(NativeOps().norm(x, norm)[:, 7:8], NativeOps().norm(x[:, 7:8].contiguous(), norm))


def test_silu_is_known_and_others_are_not() -> None:
    from transformers.activations import ACT2FN

    assert is_silu(ACT2FN["silu"])
    assert is_silu(nn.SiLU())
    assert not is_silu(ACT2FN["gelu"])
    assert torch.equal(TORCH.silu_gate(torch.ones(1, 4)), TORCH.gate(torch.ones(1, 4), F.silu))


def test_without_kernels_torch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none(name: str) -> None:
        raise MissingDependencyError("CPU kernels need gcc: apt install gcc")

    monkeypatch.setattr("radixbackend.engine.elementwise.load_kernels", none)
    caplog.set_level("INFO")
    assert type(choose_ops(torch.device("cpu"))) is TorchOps
    assert "apt install gcc" in caplog.text

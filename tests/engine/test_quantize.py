"""8-bit linear layers: close to the model's own, each row by itself, and refused where they cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from radixbackend import Engine, SamplingParams
from radixbackend.engine.fuse import fuse
from radixbackend.engine.linear import LinearKernels, NativeLinear, load_linear_kernels
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.quantize import Int8Linear, quantize, sums_exactly
from radixbackend.engine.rounding import TorchRounding, choose_rounding
from radixbackend.errors import ConfigError
from tests import zoo

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.onednn, "qlinear_prepack"), reason="this torch has no oneDNN operators"
)


@pytest.fixture(params=["torch", "rounding", "kernels"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything by torch's operators, rounding by a kernel, and the products too."""
    way: str = request.param
    if way != "kernels" and not sums_exactly():
        pytest.skip("torch's products of 8-bit integers are not exact on this processor")
    if way == "torch":
        monkeypatch.setattr("radixbackend.engine.quantize.choose_rounding", lambda: None)
    elif choose_rounding() is None:
        pytest.skip("no gcc here")
    return way


@pytest.fixture
def kernels(way: str) -> LinearKernels | None:
    kernels = load_linear_kernels(torch.device("cpu")) if way == "kernels" else None
    if way == "kernels" and (kernels is None or not kernels.integers):
        pytest.skip("this processor has no products of 8-bit integers")
    return kernels


def linear(
    kernels: LinearKernels | None, inputs: int = 64, outputs: int = 48, dtype: torch.dtype = torch.float32
) -> tuple[nn.Linear, nn.Linear]:
    """A layer and its quantized twin."""
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    model = zoo.build("llama")
    model.lm_head = nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    model.lm_head.load_state_dict(plain.state_dict())
    quantize(LoadedModel.of(model), kernels)
    return plain, model.lm_head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_within_what_eight_bits_can_say(rows: int, dtype: torch.dtype, kernels: LinearKernels | None) -> None:
    plain, eight = linear(kernels, dtype=dtype)
    x = torch.randn(1, rows, 64).to(dtype)
    found, expected = eight(x), plain(x)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    error = (found - expected).float().norm() / expected.float().norm()
    assert 1e-4 < error < 2e-2  # it is quantized, and well


def test_equals_the_same_integers_multiplied_by_hand(kernels: LinearKernels | None) -> None:
    plain, eight = linear(kernels)
    x = torch.randn(6, 64) * torch.tensor([1e-6, 1e-2, 1.0, 1e2, 1e6, 0.0])[:, None]

    def rounded(values: torch.Tensor) -> torch.Tensor:
        scale = values.abs().amax(-1, keepdim=True) / 127
        return torch.where(scale > 0, (values / scale).round() * scale, 0.0)

    expected = rounded(x) @ rounded(plain.weight).t() + plain.bias
    torch.testing.assert_close(eight(x), expected, rtol=1e-4, atol=1e-6)


def test_a_row_does_not_depend_on_the_others(kernels: LinearKernels | None) -> None:
    _, eight = linear(kernels)
    x = torch.randn(4, 64)
    alone = eight(x[2:3])
    x[0] *= 1e4
    x[1] = float("nan")
    x[3, 5] = float("inf")
    out = eight(x)
    assert torch.equal(out[2:3], alone)
    assert out.isfinite().all(1).tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_kernel_rounds_as_torch_does(dtype: torch.dtype) -> None:
    kernel = choose_rounding()
    if kernel is None:
        pytest.skip("no gcc here")
    rows = (torch.randn(700, 96) * torch.logspace(-6, 6, 700)[:, None]).to(dtype)
    rows[3] = 0.0
    (integers, scales), (expected, expected_scales) = kernel.to_integers(rows), TorchRounding().to_integers(rows)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(integers, expected)
    sums = torch.randn(700, 96) * 1e4
    for bias in (None, torch.randn(96), torch.randn(96).bfloat16()):
        found = kernel.from_integers(sums, scales, bias, dtype)
        torch.testing.assert_close(found, TorchRounding().from_integers(sums.clone(), scales, bias, dtype))


def test_sizes_that_the_kernel_does_not_take(kernels: LinearKernels | None) -> None:
    plain, eight = linear(kernels, inputs=40, outputs=36)
    x = torch.randn(3, 40)
    if not sums_exactly():
        assert type(eight) is nn.Linear
        return
    error = (eight(x) - plain(x)).norm() / plain(x).norm()
    assert 1e-4 < error < 2e-2


def test_nothing_in_nothing_out(kernels: LinearKernels | None) -> None:
    _, eight = linear(kernels)
    assert eight(torch.empty(1, 0, 64)).shape == (1, 0, 48)


def test_all_linear_layers_are_turned_and_the_rest_is_not(kernels: LinearKernels | None) -> None:
    model = zoo.build("qwen2").bfloat16()
    loaded = LoadedModel.of(model)
    fuse(loaded)
    assert quantize(loaded, kernels) == 3 * 4 + 1
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert isinstance(model.model.layers[0].self_attn.qkv_proj, NativeLinear if kernels else Int8Linear)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16


def test_an_engine_in_integers(tmp_path: Path) -> None:
    """Alone or in a batch, cold or warm: the same answers; and another fingerprint than the checkpoint's."""
    zoo.save("llama", tmp_path)
    prompts = [list(range(60 + i, 85 + i)) for i in range(6)]
    sampling = SamplingParams(max_tokens=12, temperature=0)
    with Engine(tmp_path, dtype="float32", quantization="int8") as engine, Engine(tmp_path, dtype="float32") as plain:
        alone = [engine.generate(prompt, sampling).token_ids for prompt in prompts]
        engine.flush_cache()
        assert [answer.token_ids for answer in engine.generate(prompts, sampling)] == alone
        assert [answer.token_ids for answer in engine.generate(prompts, sampling)] == alone
        assert engine.weights_hash[:8] != plain.weights_hash[:8]


def test_where_it_cannot_be_had() -> None:
    with pytest.raises(ConfigError, match="quantization takes None or 'int8', not 'int4'"):
        Engine("radix-tiny", quantization="int4")
    loaded = LoadedModel.of(zoo.build("llama"))
    object.__setattr__(loaded, "device", torch.device("cuda"))
    with pytest.raises(ConfigError, match="runs on a CPU"):
        quantize(loaded, None)


def test_inexact_sums_are_not_taken(kernels: LinearKernels | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixbackend.engine.quantize.sums_exactly", lambda: False)
    if kernels is None:
        with pytest.raises(ConfigError, match="apt install gcc"):
            linear(kernels)
        return
    _, eight = linear(kernels)
    assert isinstance(eight, NativeLinear)
    plain, other = linear(kernels, inputs=40)
    assert type(other) is nn.Linear
    x = torch.randn(3, 40)
    assert torch.equal(other(x), plain(x))

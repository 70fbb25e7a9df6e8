"""Products by the project's own kernels: the same sums whatever the batch, and those of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radixbackend.engine import linear as native
from radixbackend.engine.linear import LinearKernels, NativeLinear, load_linear_kernels
from radixbackend.errors import MissingDependencyError

KINDS = ["pairs", "integers"]
COUNTS = [*range(1, 15), 31, 250, 600]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def kernels() -> LinearKernels:
    kernels = load_linear_kernels(torch.device("cpu"))
    if kernels is None:
        pytest.skip("no gcc here")
    return kernels


def layer(
    inputs: int, outputs: int, kind: str, *, bias: bool = False, dtype: torch.dtype = torch.bfloat16
) -> tuple[nn.Linear, NativeLinear]:
    """A plain layer and its native twin."""
    if not getattr(kernels(), kind):
        pytest.skip("this processor has no such products")
    torch.manual_seed(inputs + outputs)
    plain = nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)
    twin = nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)
    twin.load_state_dict(plain.state_dict())
    assert kernels().serves(twin, integers=kind == "integers")
    NativeLinear.turn(twin, kernels(), integers=kind == "integers")
    assert isinstance(twin, NativeLinear)
    return plain, twin


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (96, 16), (2048, 112), (1024, 320), (16, 208)])
def test_products_are_those_of_torch(inputs: int, outputs: int, bias: bool, kind: str) -> None:
    plain, twin = layer(inputs, outputs, kind, bias=bias)
    dense = plain.weight.double()
    for count in COUNTS:
        rows = torch.randn(count, inputs).bfloat16()
        exact = rows.double()
        if kind == "integers":
            scale = rows.float().abs().amax(1, keepdim=True) / 127
            exact = ((rows.float() / scale) + 128.5).floor().double().sub(128) * scale.double()
            scales = (plain.weight.float().abs().amax(1) / 127)[:, None]
            dense = (plain.weight.float() / scales).round().double() * scales.double()
        expected = exact @ dense.t() + (plain.bias.double() if bias else 0)
        found = twin(rows)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=5e-3, atol=2e-3)


def test_a_row_is_the_same_bits_in_any_batch(kind: str) -> None:
    _, twin = layer(512, 320, kind)
    rows = torch.randn(600, 512).bfloat16()
    whole = twin(rows)
    for count in COUNTS:
        assert torch.equal(twin(rows[3 : 3 + count].contiguous()), whole[3 : 3 + count])


def test_threads_change_nothing(kind: str) -> None:
    _, twin = layer(512, 320, kind)
    rows = torch.randn(7, 512).bfloat16()
    threads, found = torch.get_num_threads(), twin(rows)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(twin(rows), found)
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_finite_stays_in_its_row(kind: str) -> None:
    _, twin = layer(64, 64, kind)
    rows = torch.randn(5, 64).bfloat16()
    alone = twin(rows[2:3])
    rows[0, 7], rows[3, 1], rows[4] = float("nan"), float("inf"), 3e38
    out = twin(rows)
    assert out.isfinite().all(1).tolist()[:4] == [False, True, True, False]
    assert torch.equal(out[2:3], alone)


def test_a_row_of_zeros(kind: str) -> None:
    _, twin = layer(64, 64, kind, bias=True)
    assert torch.equal(twin(torch.zeros(2, 64).bfloat16()), twin.bias.expand(2, -1))


def test_shapes(kind: str) -> None:
    _, twin = layer(64, 48, kind)
    rows = torch.randn(64, 6, 5).bfloat16()
    for x in (rows.permute(1, 2, 0), rows.permute(2, 1, 0)[:, ::2], rows[:, 0, 0], torch.empty(2, 0, 64).bfloat16()):
        assert torch.equal(twin(x), twin(x.clone(memory_format=torch.contiguous_format)))
        assert twin(x).shape == (*x.shape[:-1], 48)


def test_wrong_inputs_are_refused_and_not_read(kind: str) -> None:
    _, twin = layer(64, 48, kind)
    for wrong in (torch.zeros(2, 32).bfloat16(), torch.zeros(2, 64).half(), torch.zeros(2, 64, dtype=torch.long)):
        with pytest.raises(RuntimeError, match="a layer of 64 inputs was given"):
            twin(wrong)


def test_no_room_is_an_error_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    _, twin = layer(64, 48, "integers")
    monkeypatch.setattr(twin.kernels, "product", lambda *given: 0)
    with pytest.raises(MemoryError, match="a product of 3 rows"):
        twin(torch.zeros(3, 64).bfloat16())


def test_the_weight_can_be_had_back(kind: str) -> None:
    plain, twin = layer(96, 80, kind)
    dense = twin.dense()
    if kind == "pairs":
        assert torch.equal(dense, plain.weight)
    else:
        scales = plain.weight.float().abs().amax(1) / 127
        assert torch.equal(dense, (plain.weight.float() / scales[:, None]).round().to(torch.int8))


def test_integers_serve_float32() -> None:
    plain, twin = layer(64, 64, "integers", bias=True, dtype=torch.float32)
    x = torch.randn(9, 64)
    assert twin(x).dtype == torch.float32
    assert 1e-4 < (twin(x) - plain(x)).norm() / plain(x).norm() < 2e-2


def test_what_they_do_not_serve() -> None:
    def serves(inputs: int, outputs: int, dtype: torch.dtype, *, integers: bool) -> bool:
        return kernels().serves(nn.Linear(inputs, outputs).to(dtype), integers=integers)

    assert not serves(64, 50, torch.bfloat16, integers=False)
    assert not serves(63, 64, torch.bfloat16, integers=False)
    assert not serves(64, 64, torch.float32, integers=False)
    assert not serves(40, 64, torch.float32, integers=True)
    assert not serves(64, 64, torch.float16, integers=True)


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none(name: str) -> None:
        raise MissingDependencyError("CPU kernels need gcc: apt install gcc")

    monkeypatch.setattr(native, "load_kernels", none)
    caplog.set_level("INFO")
    assert load_linear_kernels(torch.device("cpu")) is None
    assert "apt install gcc" in caplog.text
    assert load_linear_kernels(torch.device("cuda")) is None

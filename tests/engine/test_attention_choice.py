"""Which kernel a layer gets: the first that takes it, and what `auto` makes of what is installed."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from radixbackend import builtin_plugin
from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer, refusal
from radixbackend.engine.attention.choice import FirstThatServes
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.kv_store import KVShape, KVStore
from radixbackend.errors import ConfigError
from radixbackend.plugins import Plugins
from tests.engine.test_attention import EIGHT_BITS, LAYERS, PLAIN, Bench
from tests.engine.test_attention_triton import batch_of


class Picky(TorchAttention):
    """Takes no windows, and remembers what it computed."""

    name = "picky"

    def __init__(self) -> None:
        super().__init__()
        self.served: list[int] = []

    def refuses(self, layer: AttentionLayer) -> str | None:
        return None if layer.window is None else f"a window of {layer.window}"

    def attend(self, layer: AttentionLayer, *tensors: torch.Tensor, **sinks: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        self.served.append(layer.index)
        return super().attend(layer, *tensors, **sinks)  # type: ignore[arg-type]


def test_each_layer_goes_to_the_first_that_takes_it(caplog: pytest.LogCaptureFixture) -> None:
    picky = Picky()
    layers = tuple(replace(PLAIN, index=i, storage=i, window=(None, 4)[i % 2]) for i in range(4))
    store = KVStore([KVShape(2, 16, 16, torch.float32)] * 4, 8, torch.device("cpu"))
    kernel = FirstThatServes([picky, TorchAttention()])
    with caplog.at_level(logging.INFO):
        kernel.bind(layers, store)
    assert kernel.name == "picky+torch"
    assert [r.getMessage() for r in caplog.records] == [
        "attention: picky does not serve layer 1: a window of 4",
        "attention: picky+torch",
    ]
    batch = batch_of((0, 3))
    kernel.begin(batch)
    for layer in layers:
        kernel.attend(layer, torch.randn(3, 4, 16), torch.randn(3, 2, 16), torch.randn(3, 2, 16), None)
    kernel.end()
    assert picky.served == [0, 2]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_it_keeps_the_contract(layer: AttentionLayer) -> None:
    bench = Bench(FirstThatServes([Picky(), TorchAttention()]), layer, [list(range(9)), list(range(20, 33))])
    bench.check([(0, 0, 5), (1, 0, 12)])
    bench.check([(1, 12, 13), (0, 5, 9)])


def test_it_captures_where_all_in_use_do() -> None:
    class Captures(TorchAttention):
        captures = True

        def reserve(self, rows: int, longest: int, slots: int) -> tuple[int, int, int]:
            return rows, longest, slots

        def begin_reserved(self, batch: AttentionBatch, reserved: tuple[int, int, int]) -> None:
            assert reserved == (1, 64, 128)
            self.begin(batch)

    bench = Bench(FirstThatServes([Captures(), TorchAttention()]), PLAIN, [[3, 1]])
    kernel = bench.backend
    assert kernel.captures  # type: ignore[attr-defined]
    reserved = kernel.reserve(1, 64, 128)  # type: ignore[attr-defined]
    bench.fill()
    bench.begin = lambda batch: kernel.begin_reserved(batch, reserved)  # type: ignore[attr-defined, method-assign]
    bench.check([(0, 1, 2)])
    mixed = FirstThatServes([Picky(), Captures()])
    mixed.bind((PLAIN, replace(PLAIN, index=1, window=3, writes=False)), bench.store)
    assert not mixed.captures


def test_eight_bits_go_to_a_kernel_that_converts_them() -> None:
    class OwnTypeOnly(TorchAttention):
        converts = False

    kernel = FirstThatServes([OwnTypeOnly(), TorchAttention()])
    assert refusal(kernel, PLAIN) is refusal(kernel, EIGHT_BITS["plain"]) is None
    bench = Bench(kernel, EIGHT_BITS["plain"], [[3, 1, 2]])
    assert kernel._used[0] is kernel._kernels[1]
    bench.check([(0, 0, 3)])
    assert "in the model's type alone" in (refusal(FirstThatServes([OwnTypeOnly()]), EIGHT_BITS["plain"]) or "")


def test_it_refuses_what_all_refuse() -> None:
    kernel = FirstThatServes([Picky(), Picky()])
    assert kernel.refuses(PLAIN) is None
    assert kernel.refuses(replace(PLAIN, window=3)) == "picky: a window of 3; picky: a window of 3"


def test_auto_takes_what_is_installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def make(name: str, device: str) -> AttentionBackend:
        if name == "flashinfer":
            raise ConfigError("no nvcc")
        return plain(name, device)

    plain = builtin_plugin.radix_make_attention
    kernel = Plugins(discover=False)
    monkeypatch.setattr(builtin_plugin, "radix_make_attention", make)
    with caplog.at_level(logging.INFO):
        made = kernel.make_attention("auto", "cuda")
    assert made.name == "triton"
    assert [k.name for k in made._kernels] == ["triton", "torch"]  # type: ignore[attr-defined]
    assert "attention: no flashinfer: no nvcc" in caplog.text
    assert kernel.make_attention("auto", "cpu").name in ("native", "torch")

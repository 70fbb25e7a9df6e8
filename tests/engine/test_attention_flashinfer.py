"""FlashInfer's plans and page tables, against a FlashInfer in plain torch; on a GPU that has it, the real one."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend.engine.attention import flashinfer
from radixbackend.engine.attention.base import AttentionLayer
from radixbackend.engine.attention.flashinfer import FlashInferAttention, Pieces
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.kv_store import FP8, KVShape, KVStore, narrowed
from radixbackend.errors import ConfigError, MissingDependencyError
from tests.engine import fake_flashinfer
from tests.engine.test_attention import PLAIN, Bench, bytewise
from tests.engine.test_attention_triton import batch_of

WIDE = replace(PLAIN, key_dim=64, value_dim=64, dtype=torch.bfloat16, scaling=0.1)
LAYERS = {
    "plain": WIDE,
    "one_head_each": replace(WIDE, kv_heads=4),
    "window": replace(WIDE, window=5),
    "window_of_one": replace(WIDE, window=1),
    "chunk": replace(WIDE, chunk=4),
    "softcap": replace(WIDE, softcap=0.5),
    "sinks": replace(WIDE, sinks=True),
    "window_sinks": replace(WIDE, window=5, sinks=True),
    "chunk_softcap": replace(WIDE, chunk=4, softcap=0.5),
    "eight_bits": replace(WIDE, stored=FP8),
    "window_eight_bits": replace(WIDE, window=5, stored=FP8),
}


def copy_in(keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: Any) -> None:
    for place, rows in ((keys, key), (values, value)):
        bytewise(place)[slots] = bytewise(narrowed(rows, place.dtype))


def faked() -> FlashInferAttention:
    return FlashInferAttention(fake_flashinfer, TorchAttention(), copy_in)


def real() -> FlashInferAttention:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    pytest.importorskip("flashinfer")
    return flashinfer.make()


@pytest.mark.parametrize("make", [faked, real])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_equals_torch(layer: AttentionLayer, make: Any) -> None:
    order = np.random.default_rng(0).permutation(80).tolist()
    device = "cuda" if make is real else "cpu"
    slots = [order[:24], order[24:43], order[43:46]]
    kernel, plain = Bench(make(), layer, slots, device), Bench(TorchAttention(), layer, slots, device)
    for runs in (
        [(0, 0, 16), (1, 0, 1)],
        [(1, 1, 18), (0, 16, 17), (2, 0, 3)],
        [(0, 17, 23), (1, 18, 19)],
        [(0, 23, 24)],
    ):
        for out, expected in zip(kernel.step(runs), plain.step(runs), strict=True):
            torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["plain", "window", "window_sinks", "eight_bits"])
def test_reserved_wrappers_serve_every_decode(name: str) -> None:
    bench = Bench(faked(), LAYERS[name], [list(range(20)), list(range(30, 39))])
    plain = Bench(TorchAttention(), LAYERS[name], bench.slots)
    bench.fill()
    plain.fill()
    kernel = bench.backend
    reserved = kernel.reserve(2, 64, 40)  # type: ignore[attr-defined]
    bench.begin = lambda batch: kernel.begin_reserved(batch, reserved)  # type: ignore[attr-defined, method-assign]
    for runs in ([(0, 18, 19), (1, 2, 3)], [(1, 8, 9), (0, 19, 20)]):
        torch.testing.assert_close(bench.step(runs), plain.step(runs), atol=2e-2, rtol=2e-2)
    assert all(wrapper.fixed == (2, 40) for wrapper in reserved.wrappers.values())


def test_images_go_to_the_other_kernel() -> None:
    for blocks in ({0: ((3, 6),)}, {0: ()}):
        bench = Bench(faked(), WIDE, [list(range(9))], blocks=blocks)
        plain = Bench(TorchAttention(), WIDE, [list(range(9))], blocks=blocks)
        torch.testing.assert_close(bench.step([(0, 0, 9)]), plain.step([(0, 0, 9)]), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(bench.step([(0, 8, 9)]), plain.step([(0, 8, 9)]), atol=2e-2, rtol=2e-2)


def test_pieces_cut_windows_and_chunks() -> None:
    batch = batch_of((9, 13), (6, 7))
    whole = Pieces.of(batch, None, None)
    assert (whole.queries.tolist(), whole.keys.tolist()) == ([0, 4, 5], [0, 13, 20])
    window = Pieces.of(batch, 3, None)
    assert window.keys.tolist() == [0, 6, 9]
    assert window.slots.tolist() == [7, 8, 9, 10, 11, 12, 4, 5, 6]
    chunk = Pieces.of(batch, None, 5)
    assert chunk.queries.tolist() == [0, 1, 4, 5]
    assert chunk.slots.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 5, 6]
    assert not chunk.single
    assert Pieces.of(batch_of((4, 6)), None, 5).single  # two queries, of which each begins or ends a chunk


def test_one_plan_for_each_kind_of_layer() -> None:
    layers = tuple(replace(WIDE, index=i, storage=i, window=None if i % 3 == 0 else 8) for i in range(9))
    store = KVStore([KVShape(2, 64, 64, torch.bfloat16)] * 9, 20, torch.device("cpu"))
    kernel = faked()
    kernel.bind(layers, store)
    before = {key: wrapper.plans for key, wrapper in kernel._wrappers.items()}
    assert len(before) == 4  # full and window, for steps of single tokens and for others
    kernel.begin(batch_of((0, 5)))
    kernel.end()
    planned = [wrapper.plans - before[key] for key, wrapper in kernel._wrappers.items()]
    assert sorted(planned) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (replace(WIDE, dtype=torch.float32), "float32"),
        (replace(WIDE, value_dim=128), "values of size 128"),
        (replace(WIDE, key_dim=96, value_dim=96), "heads of size 96"),
        (replace(WIDE, sinks=True, softcap=2.0), "sinks with a soft cap"),
        (replace(WIDE, sinks=True, stored=FP8), "sinks with keys and values in torch.float8_e4m3fn"),
    ],
)
def test_refuses_with_a_reason(layer: AttentionLayer, reason: str) -> None:
    assert reason in (faked().refuses(layer) or "")
    assert faked().refuses(WIDE) is None


def test_an_older_library_has_no_sinks() -> None:
    class Older:
        BatchPrefillWithPagedKVCacheWrapper = fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper

    kernel = FlashInferAttention(Older, TorchAttention(), copy_in)
    assert "BatchAttentionWithAttentionSinkWrapper" in (kernel.refuses(replace(WIDE, sinks=True)) or "")
    assert kernel.refuses(WIDE) is None


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(MissingDependencyError, match=r"radixbackend\[cuda\]"):
        flashinfer.make()
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer)
    monkeypatch.setattr(flashinfer, "_can_compile", lambda: False)
    with pytest.raises(ConfigError, match=r"nvcc.*flashinfer-jit-cache"):
        flashinfer.make()


def test_a_kernel_that_does_not_compile_fails_when_it_is_bound() -> None:
    class Broken(fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper):
        def plan(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("Ninja build failed")

    library = type("Library", (), vars(fake_flashinfer) | {"BatchPrefillWithPagedKVCacheWrapper": Broken})
    with pytest.raises(ConfigError, match=r"Ninja build failed.*nvcc"):
        Bench(FlashInferAttention(library, TorchAttention(), copy_in), WIDE, [[1]])

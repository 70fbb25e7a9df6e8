"""Contract of attention backends: a ragged batch over scattered slots equals a softmax spelled out token by token."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer
from radixbackend.engine.attention.native import NativeAttention
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.kv_store import FP8, KVShape, KVStore, bytes_per_slot, narrowed
from radixbackend.engine.native.build import find_compiler
from radixbackend.engine.plan import Blocks
from radixbackend.errors import MissingDependencyError


def native_attention() -> list[type[AttentionBackend]]:
    """The kernel, where there is a compiler."""
    try:
        find_compiler()
    except MissingDependencyError:
        return []
    return [NativeAttention]


BACKENDS = [TorchAttention, *native_attention()]
PLAIN = AttentionLayer(
    index=0, storage=0, heads=4, kv_heads=2, key_dim=16, value_dim=16, dtype=torch.float32, scaling=0.3
)
LAYERS = {
    "plain": PLAIN,
    "one_head_each": replace(PLAIN, kv_heads=4),
    "window": replace(PLAIN, window=5),
    "window_of_one": replace(PLAIN, window=1),
    "chunk": replace(PLAIN, chunk=4),
    "softcap": replace(PLAIN, softcap=0.5),
    "sinks": replace(PLAIN, sinks=True),
    "window_sinks": replace(PLAIN, window=5, sinks=True),
    "chunk_softcap": replace(PLAIN, chunk=4, softcap=0.5),
    "uneven": replace(PLAIN, kv_heads=4, value_dim=32),
}


def bytewise(tensor: torch.Tensor) -> torch.Tensor:
    """Of 8-bit numbers their bytes, which torch copies and compares on every device."""
    return tensor.view(torch.uint8) if tensor.dtype == FP8 else tensor


class Bench:
    """A store and, per sequence, the keys and values it should hold, position by position."""

    def __init__(
        self,
        backend: AttentionBackend,
        layer: AttentionLayer,
        slots: list[list[int]],
        device: str = "cpu",
        blocks: dict[int, Blocks] | None = None,
    ) -> None:
        self.backend, self.layer, self.slots, self.device, self.blocks = backend, layer, slots, device, blocks or {}
        self.random = torch.Generator().manual_seed(0)
        shape = KVShape(layer.kv_heads, layer.key_dim, layer.value_dim, layer.stored or layer.dtype)
        self.store = KVStore([shape], max(64, *map(max, slots)) + 1, torch.device(device))
        for tensor in (*self.store.keys, *self.store.values):
            tensor.fill_(float("nan"))  # a slot read before it was written shows
        backend.bind((layer,), self.store)
        self.keys = [self._draw(len(s), layer.kv_heads, layer.key_dim) for s in slots]
        self.values = [self._draw(len(s), layer.kv_heads, layer.value_dim) for s in slots]
        self.queries = [self._draw(len(s), layer.heads, layer.key_dim) for s in slots]
        self.sinks = self._draw(layer.heads) if layer.sinks else None

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random).to(self.device, self.layer.dtype)

    def fill(self) -> None:
        """Store every key and value, as earlier steps would have."""
        for slots, keys, values in zip(self.slots, self.keys, self.values, strict=True):
            for place, rows in ((self.store.keys[0], keys), (self.store.values[0], values)):
                bytewise(place)[slots] = bytewise(narrowed(rows, place.dtype))

    def step(self, runs: list[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Attend over ``(sequence, start, end)`` runs in one batch; outputs per run."""
        lengths = [end - start for _, start, end in runs]
        offsets = np.cumsum([0, *lengths])
        batch = AttentionBatch(
            starts=np.array([start for _, start, _ in runs], np.int32),
            contexts=np.array([end for _, _, end in runs], np.int32),
            offsets=offsets.astype(np.int32),
            slots=tuple(np.array(self.slots[i][:end], np.int32) for i, _, end in runs),
            write_slots=np.concatenate([np.array(self.slots[i][start:end], np.int32) for i, start, end in runs]),
            blocks=tuple(self.blocks.get(i, ()) for i, _, _ in runs) if self.blocks else None,
        )
        packed = [
            torch.cat([x[i][start:end] for i, start, end in runs]) for x in (self.queries, self.keys, self.values)
        ]
        self.begin(batch)
        out = self.backend.attend(self.layer, *packed, self.sinks)
        self.backend.end()
        assert out.is_contiguous()  # some models take a view of it
        assert out.shape == (sum(lengths), self.layer.heads, self.layer.value_dim)
        return list(out.split(lengths))

    def begin(self, batch: AttentionBatch) -> None:
        self.backend.begin(batch)

    def expected(self, sequence: int, position: int) -> torch.Tensor:
        layer = self.layer
        seen = [p for p in range(position + 1) if layer.window is None or p > position - layer.window]
        if layer.chunk is not None:
            seen = [p for p in seen if p // layer.chunk == position // layer.chunk]
        for low, high in self.blocks.get(sequence, ()):
            if low <= position < high:
                seen = sorted({*seen, *range(low, high)})
        heads = []
        keys, values = self.keys[sequence], self.values[sequence]
        if layer.stored is not None:
            keys, values = (narrowed(rows, layer.stored).to(layer.dtype) for rows in (keys, values))
        for head in range(layer.heads):
            key_head = head // (layer.heads // layer.kv_heads)
            scores = keys[seen, key_head] @ self.queries[sequence][position, head] * layer.scaling
            if layer.softcap:
                scores = layer.softcap * torch.tanh(scores / layer.softcap)
            if self.sinks is not None:
                scores = torch.cat((scores, self.sinks[head : head + 1]))
            weights = scores.softmax(0)[: len(seen)]
            heads.append(weights @ values[seen, key_head])
        return torch.stack(heads)

    def check(self, runs: list[tuple[int, int, int]]) -> None:
        for out, (sequence, start, end) in zip(self.step(runs), runs, strict=True):
            plain = torch.stack([self.expected(sequence, position) for position in range(start, end)])
            torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_decodes_and_drafts_in_scattered_slots(backend: type[AttentionBackend], layer: AttentionLayer) -> None:
    order = np.random.default_rng(0).permutation(64).tolist()
    bench = Bench(backend(), layer, [order[:14], order[14:23], list(range(3))])
    bench.slots[2] = [order[60], order[61], order[62]]
    bench.check([(0, 0, 6), (1, 0, 1)])
    bench.check([(1, 1, 8), (0, 6, 7), (2, 0, 3)])
    bench.check([(0, 7, 13), (1, 8, 9)])
    bench.check([(0, 13, 14)])


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_chunks(backend: type[AttentionBackend], layer: AttentionLayer) -> None:
    order = np.random.default_rng(2).permutation(64).tolist()
    bench = Bench(backend(), layer, [order[:44], order[44:64]])
    bench.check([(0, 0, 20)])
    bench.check([(1, 0, 19), (0, 20, 44)])


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_in_order(backend: type[AttentionBackend], layer: AttentionLayer) -> None:
    bench = Bench(backend(), layer, [list(range(10, 30)), list(range(30, 45))])
    bench.check([(0, 0, 9), (1, 0, 14)])
    bench.check([(0, 9, 10), (1, 14, 15)])
    bench.check([(0, 10, 20)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prefix_of_another_sequence_is_read_from_its_slots(backend: type[AttentionBackend]) -> None:
    bench = Bench(backend(), PLAIN, [[5, 9, 2, 7, 1], [5, 9, 2, 40, 41, 42]])
    bench.keys[1][:3], bench.values[1][:3] = bench.keys[0][:3], bench.values[0][:3]
    bench.check([(0, 0, 5)])
    bench.check([(1, 3, 6)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_that_shares_keys_writes_nothing(backend: type[AttentionBackend]) -> None:
    bench = Bench(backend(), PLAIN, [[3, 1, 2]])
    bench.step([(0, 0, 3)])
    stored = bench.store.keys[0].clone()
    bench.layer = replace(PLAIN, index=1, writes=False)
    bench.backend.bind((PLAIN, bench.layer), bench.store)
    bench.keys[0] = bench.keys[0] + 1
    bench.step([(0, 0, 3)])
    assert torch.equal(bench.store.keys[0][[3, 1, 2]], stored[[3, 1, 2]])


@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_split_of_any_batch(backend: type[AttentionBackend], data: st.DataObject) -> None:
    layer = data.draw(st.sampled_from(list(LAYERS.values())))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    order = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(64).tolist()
    ends = np.cumsum([0, *lengths])
    bench = Bench(backend(), layer, [order[a:b] for a, b in itertools.pairwise(ends)])
    done = [0] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        runs = []
        for i, (start, length) in enumerate(zip(done, lengths, strict=True)):
            if start < length and (not runs or data.draw(st.booleans())):
                runs.append((i, start, data.draw(st.integers(start + 1, length))))
        bench.check(runs)
        for i, _, end in runs:
            done[i] = end


# -- stored in 8 bits --------------------------------------------------------------------------------------------------

EIGHT_BITS = {name: replace(layer, stored=FP8) for name, layer in LAYERS.items()}


@pytest.mark.parametrize("layer", EIGHT_BITS.values(), ids=EIGHT_BITS)
def test_eight_bits_are_read_as_they_were_stored_by_the_same_step_too(layer: AttentionLayer) -> None:
    order = np.random.default_rng(0).permutation(64).tolist()
    bench = Bench(TorchAttention(), layer, [order[:30], order[30:39], list(range(61, 64))])
    bench.check([(0, 0, 20), (1, 0, 1)])
    bench.check([(1, 1, 8), (0, 20, 21), (2, 0, 3)])
    bench.check([(0, 21, 29), (1, 8, 9)])
    bench.check([(0, 29, 30)])


def test_many_decodes_in_eight_bits() -> None:
    bench = Bench(TorchAttention(), EIGHT_BITS["plain"], [list(range(7 * i, 7 * i + 7)) for i in range(8)])
    bench.fill()
    bench.check([(i, 6, 7) for i in range(8)])


def test_a_layer_that_shares_keys_reads_its_step_in_eight_bits() -> None:
    bench = Bench(TorchAttention(), EIGHT_BITS["plain"], [[3, 1, 2]])
    bench.check([(0, 0, 3)])
    bench.layer = replace(bench.layer, index=1, writes=False)
    bench.backend.bind((bench.layer,), bench.store)
    bench.check([(0, 0, 3)])


def test_what_is_too_large_for_eight_bits_is_the_largest_and_a_fault_stays_one() -> None:
    rows = torch.tensor([1.0, 1.07, 448.0, 500.0, -1e30, float("inf"), float("nan"), 2.0**-9, 2.0**-11])
    for dtype in (torch.float32, torch.bfloat16):
        found = narrowed(rows.to(dtype), FP8).float()
        expected = torch.tensor([1.0, 1.125, 448.0, 448.0, -448.0, 448.0, float("nan"), 2.0**-9, 0.0])
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    bench = Bench(TorchAttention(), EIGHT_BITS["plain"], [[3, 1, 2]])
    bench.keys[0][1], bench.values[0][2] = 1e6, float("nan")
    out = bench.step([(0, 0, 3)])[0]
    assert bench.store.keys[0][1].float().unique().tolist() == [448.0]
    assert bool(out[2].isnan().all())


def test_store_counts_its_memory_and_gives_it_back() -> None:
    shapes = [KVShape(2, 8, 6, torch.float32), KVShape(1, 4, 4, torch.bfloat16)]
    store = KVStore(shapes, 10, torch.device("cpu"))
    assert bytes_per_slot(shapes) == 2 * 14 * 4 + 8 * 2
    assert store.nbytes == 11 * bytes_per_slot(shapes)
    assert bytes_per_slot([replace(shape, dtype=FP8) for shape in shapes]) == 2 * 14 + 8
    assert store.dummy_slot == 10
    assert store.keys[0].shape == (11, 2, 8)
    assert store.values[1].dtype == torch.bfloat16
    store.close()
    assert store.nbytes == store.capacity == 0

"""The Triton kernels: on a GPU where there is one, else by Triton's interpreter.

They keep the contract of `test_attention.py`, and more: what a query's result is, bit for bit, depends on the query
and the keys that it sees, whatever else is in the step and however its context got there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from radixbackend.engine.attention import triton_paged
from radixbackend.engine.attention.base import AttentionBatch
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.attention.triton_paged import SHARED, Geometry, TileShape, TritonAttention, write
from radixbackend.engine.attention.upload import upload
from radixbackend.engine.kv_store import FP8, KVShape, KVStore, narrowed
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SequenceId, SequencePlan, StepPlan
from tests import zoo
from tests.engine.test_attention import EIGHT_BITS, LAYERS, PLAIN, Bench, bytewise

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
APART, TOGETHER = 1 << 20, 1
"""Of ``programs``: every tile's splits are computed apart, or never."""

ODD = {
    "wide_group": replace(PLAIN, heads=10, kv_heads=2),
    "group_of_three": replace(PLAIN, heads=6, kv_heads=2, key_dim=24, value_dim=24),
    "one_key_head": replace(PLAIN, heads=20, kv_heads=1),
}


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits that small tests can have many of; a block of keys is no longer than one."""
    monkeypatch.setattr(triton_paged, "SPLIT_KEYS", 16)
    plain = TileShape.of
    monkeypatch.setattr(TileShape, "of", lambda layer, **options: replace(plain(layer, **options), keys=16))


EVERY = LAYERS | ODD


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("name", EVERY)
def test_chunks_decodes_and_drafts_in_scattered_slots(name: str) -> None:
    order = np.random.default_rng(0).permutation(128).tolist()
    programs = APART if list(EVERY).index(name) % 2 else TOGETHER
    bench = Bench(TritonAttention(programs=programs), EVERY[name], [order[:37], order[37:40]], DEVICE)
    bench.fill()
    bench.check([(0, 30, 36), (1, 0, 1)])
    bench.check([(0, 36, 37), (1, 1, 3)])


def test_a_step_writes_what_it_reads() -> None:
    bench = Bench(TritonAttention(), LAYERS["uneven"], [[9, 4, 7], [2, 8]], DEVICE)
    bench.check([(0, 0, 2), (1, 0, 1)])
    bench.check([(1, 1, 2), (0, 2, 3)])


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("name", ["plain", "window"])
def test_the_tokens_of_an_image_see_each_other(name: str) -> None:
    order = np.random.default_rng(1).permutation(64).tolist()
    bench = Bench(TritonAttention(), LAYERS[name], [order[:24], order[30:33]], DEVICE, blocks={0: ((3, 6), (14, 23))})
    bench.fill()
    bench.check([(0, 12, 24), (1, 1, 3)])


def test_a_layer_that_shares_keys_writes_nothing() -> None:
    bench = Bench(TritonAttention(), PLAIN, [[3, 1, 2]], DEVICE)
    bench.step([(0, 0, 3)])
    stored = bench.store.keys[0].clone()
    bench.backend.bind((replace(PLAIN, index=1, writes=False),), bench.store)
    bench.layer = replace(PLAIN, index=1, writes=False)
    bench.keys[0] = bench.keys[0] + 1
    bench.step([(0, 0, 3)])
    assert torch.equal(bench.store.keys[0][[3, 1, 2]], stored[[3, 1, 2]])


# The interpreter multiplies matrices of bfloat16 as if they were integers.
HALVES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_as_close_as_torch(dtype: torch.dtype) -> None:
    layer = replace(PLAIN, dtype=dtype, heads=8, key_dim=32, value_dim=32)
    errors = []
    for backend in (TritonAttention(), TorchAttention()):
        bench = Bench(backend, layer, [list(range(24)), list(range(30, 39))], DEVICE)
        exact = Bench(TorchAttention(), replace(layer, dtype=torch.float32), bench.slots, DEVICE)
        for name in ("queries", "keys", "values"):
            setattr(exact, name, [x.float() for x in getattr(bench, name)])
        runs = [(0, 0, 24), (1, 0, 9)]
        pairs = zip(bench.step(runs), exact.step(runs), strict=True)
        errors.append(max(float((a.float() - b).abs().max()) for a, b in pairs))
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_model_computes_the_same(name: str) -> None:
    model = zoo.build(name).to(DEVICE)
    slots = np.random.default_rng(3).permutation(40).astype(np.int32)
    tokens = np.random.default_rng(4).integers(50, zoo.VOCAB - 10, 12).astype(np.int32)
    logits = []
    for kernel in (TorchAttention(), TritonAttention()):
        runner = ModelRunner(LoadedModel.of(model), kernel)
        runner.allocate(40)
        steps = [(0, 11), (11, 12)]
        plans = [SequencePlan(SequenceId(0), tokens[a:b], a, slots[:b], None, 0) for a, b in steps]
        logits.append(torch.cat([runner.run(StepPlan(i, (plan,))).rows for i, plan in enumerate(plans)]))
        runner.close()
    torch.testing.assert_close(*logits, atol=1e-3, rtol=0)


def test_kernels_compile_for_a_gpu() -> None:
    """What the interpreter lets pass, a compiler may not: types, layouts, shared memory."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.engine.compile_kernels"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    assert report["prefill"] == report["decode"] == report["linear"] == "wgmma"  # tensor cores, the same for both
    assert report["prefill from fp8"] == report["decode from fp8"] == "wgmma, by hardware"
    assert report["gate"] == "div.rn"  # as exact as torch's
    assert report["fused"] == "0"  # no product is fused with a sum, so no variant differs in a bit


class Reserving(Bench):
    """Steps as they are before a replay: all of the same arrays."""

    reserved = None

    def begin(self, batch: AttentionBatch) -> None:
        if self.reserved is None:
            self.reserved = self.backend.reserve(len(batch.starts), 64, 128)  # type: ignore[attr-defined]
        self.backend.begin_reserved(batch, self.reserved)  # type: ignore[attr-defined]
        kernel = self.backend
        arrays = [kernel._write_slots, kernel._slots, *(a for g in kernel._geometry.values() for a in g.arrays)]  # type: ignore[attr-defined]
        launch = [a.data_ptr() for a in arrays], [(len(g.rows), g.splits) for g in kernel._geometry.values()]  # type: ignore[attr-defined]
        assert launch == getattr(self, "launch", launch)
        self.launch = launch


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("name", ["plain", "window"])
def test_reserved_arrays_serve_every_decode(name: str) -> None:
    bench = Reserving(TritonAttention(programs=APART), LAYERS[name], [list(range(37)), list(range(40, 49))], DEVICE)
    bench.fill()
    bench.check([(0, 35, 36), (1, 2, 3)])
    bench.check([(1, 8, 9), (0, 36, 37)])


# -- stored in 8 bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounds_to_eight_bits_as_torch_does(dtype: torch.dtype) -> None:
    """Every value of the type, every tie and what is next to it, numbers of all sizes, and no numbers."""
    grid = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    ties = (grid[:126] + grid[1:127]) / 2
    large = torch.tensor([448.1, 464.0, 465.0, 1e5, float("inf"), float("nan"), 0.0, 2.0**-10, 1e-30])
    drawn = torch.randn(900, generator=torch.Generator().manual_seed(0)) * torch.logspace(-5, 4, 900)
    values = torch.cat((grid, *(t * s for t in (ties, large) for s in (1, -1, 1 + 1e-6, 1e-6 - 1)), drawn)).to(dtype)
    rows = torch.nn.functional.pad(values, (0, -len(values) % 30)).view(-1, 2, 15).to(DEVICE)
    store = KVStore([KVShape(2, 15, 15, FP8)], len(rows), torch.device(DEVICE))
    slots = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.int32)
    write(store.keys[0], store.values[0], slots, rows, -rows)
    for stored, plain in ((store.keys[0], rows), (store.values[0], -rows)):
        found, expected = (bytewise(x.contiguous()) for x in (stored[slots.long()], narrowed(plain, FP8)))
        number = ~plain.isnan()
        assert torch.equal(found[number], expected[number])
        assert bool((found[~number] & 0x7F == 0x7F).all())


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_eight_bits_are_read_as_they_were_stored_by_the_same_step_too(name: str) -> None:
    order = np.random.default_rng(0).permutation(128).tolist()
    programs = APART if list(EIGHT_BITS).index(name) % 2 else TOGETHER
    bench = Bench(TritonAttention(programs=programs), EIGHT_BITS[name], [order[:37], order[37:40]], DEVICE)
    bench.check([(0, 0, 19)])
    bench.check([(0, 19, 36), (1, 0, 1)])
    bench.check([(0, 36, 37), (1, 1, 3)])


def test_eight_bits_take_a_gpu_that_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, served in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert (TritonAttention().refuses(EIGHT_BITS["plain"]) is None) == served
        assert TritonAttention().refuses(PLAIN) is None


# -- bit for bit -----------------------------------------------------------------------------------------------------

BITWISE = {"plain": PLAIN, "window_sinks": LAYERS["window_sinks"], "eight_bits": EIGHT_BITS["plain"]}


@pytest.mark.usefixtures("short_splits", "alike_for_every_row")
@pytest.mark.parametrize("name", BITWISE)
def test_a_result_depends_on_nothing_but_what_a_query_sees(name: str) -> None:
    """Cold and warm, alone and batched, decoded and prefilled, splits apart and together."""
    end = 37
    steps = [
        (TOGETHER, [(0, 0, end)]),
        (APART, [(1, 0, 19), (0, 0, end)]),
        (APART, [(0, end - 1, end)]),
        (TOGETHER, [(2, 4, 5), (0, end - 3, end), (1, 18, 19)]),
        (TOGETHER, [(1, 18, 19), (0, 17, end)]),
    ]
    results = []
    for programs, runs in steps:
        kernel = TritonAttention(deterministic=True, programs=programs)
        bench = Bench(kernel, BITWISE[name], [list(range(end)), list(range(40, 59)), list(range(60, 65))], DEVICE)
        bench.fill()
        outputs = bench.step(runs)
        results.append(outputs[[i for i, _, _ in runs].index(0)][-1].clone())
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_the_order_of_slots_changes_no_bit() -> None:
    results = []
    for order in (np.arange(20), np.random.default_rng(0).permutation(20)):
        bench = Bench(TritonAttention(deterministic=True), PLAIN, [order.tolist()], DEVICE)
        results.append(bench.step([(0, 0, 20)])[0].clone())
    assert torch.equal(*results)


# -- what is worked out on the host ------------------------------------------------------------------------------------


def batch_of(*runs: tuple[int, int]) -> AttentionBatch:
    contexts = np.array([end for _, end in runs], np.int32)
    return AttentionBatch(
        starts=np.array([start for start, _ in runs], np.int32),
        contexts=contexts,
        offsets=np.cumsum([0, *(b - a for a, b in runs)], dtype=np.int32),
        slots=tuple(np.arange(end, dtype=np.int32) for _, end in runs),
        write_slots=np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in runs]),
    )


def test_geometry() -> None:
    geometry = Geometry.of(batch_of((300, 305), (7, 8), (600, 601)), (100, None, 2))
    assert geometry.rows.tolist() == [0, 2, 4, 5, 6]
    assert geometry.counts.tolist() == [2, 2, 1, 1, 1]
    assert geometry.bases.tolist() == [0, 0, 0, 305, 313]
    assert geometry.lows.tolist() == [201, 203, 205, 0, 501]
    assert geometry.highs.tolist() == [302, 304, 305, 8, 601]
    assert geometry.low.tolist() == [201, 202, 203, 204, 205, 0, 501]
    assert geometry.splits == 2  # 201…304 lies in the first and the second, 501…600 in the second and the third


def test_a_deterministic_tile_does_not_depend_on_the_step() -> None:
    for layer in (PLAIN, replace(PLAIN, key_dim=256, value_dim=256), replace(PLAIN, heads=71, kv_heads=1)):
        shapes = {few: TileShape.of(layer, few=few, deterministic=True) for few in (True, False)}
        assert shapes[True] == shapes[False]
    assert (
        TileShape.of(PLAIN, few=True, deterministic=False).rows
        < TileShape.of(PLAIN, few=False, deterministic=False).rows
    )


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dim", [64, 80, 128, 192, 256, 512])
def test_tiles_fit_into_shared_memory(dim: int, dtype: torch.dtype, few: bool) -> None:
    layer = replace(PLAIN, key_dim=dim, value_dim=dim, dtype=dtype)
    shape = TileShape.of(layer, few=few, deterministic=False)
    wide = 1 << (dim - 1).bit_length()
    assert (shape.rows * wide + shape.stages * shape.keys * 2 * wide) * dtype.itemsize <= SHARED
    assert triton_paged.SPLIT_KEYS % shape.keys == 0
    assert shape.rows >= layer.group


def test_upload_aligns_arrays() -> None:
    arrays = [np.arange(n, dtype=np.int32) for n in (5, 1, 8, 3)]
    sent = upload(arrays, torch.device(DEVICE))
    for array, tensor in zip(arrays, sent, strict=True):
        assert tensor.tolist() == array.tolist()
        assert tensor.storage_offset() % 4 == 0


def test_refuses_what_no_tile_holds() -> None:
    kernel = TritonAttention()
    assert kernel.refuses(PLAIN) is None
    assert "float64" in (kernel.refuses(replace(PLAIN, dtype=torch.float64)) or "")
    assert "128" in (kernel.refuses(replace(PLAIN, heads=256, kv_heads=1)) or "")

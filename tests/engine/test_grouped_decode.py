"""Decodes attended together equal those attended one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.engine.attention import grouped_decode
from radixbackend.engine.attention.base import AttentionLayer
from radixbackend.engine.attention.grouped_decode import SHORTEST_SHARED, make_groups, pays
from radixbackend.engine.attention.torch_native import TorchAttention
from tests.engine.test_attention import LAYERS, PLAIN, Bench

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is grouped that could be, and a few shared slots are enough."""
    monkeypatch.setattr(grouped_decode, "pays", lambda count, own, shared: count > 1)
    monkeypatch.setattr(grouped_decode, "SHORTEST_SHARED", 3)
    monkeypatch.setattr(grouped_decode, "FEW_KEYS", 6)


def family(shared: int, own: list[int], first: int) -> list[list[int]]:
    """Slots of sequences that begin with ``shared`` common ones, from slot ``first`` on."""
    start, sequences = first + shared, []
    for length in own:
        sequences.append([*range(first, first + shared), *range(start, start + length)])
        start += length
    return sequences


def bench_of(layer: AttentionLayer, families: list[list[list[int]]], seed: int = 0) -> Bench:
    """Slots are shuffled; members of a family have the same keys and values where they share slots."""
    count = 1 + max(slot for members in families for slots in members for slot in slots)
    order = np.random.default_rng(seed).permutation(count).tolist()
    bench = Bench(TorchAttention(), layer, [[order[s] for s in slots] for members in families for slots in members])
    held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for slots, keys, values in zip(bench.slots, bench.keys, bench.values, strict=True):
        for position, slot in enumerate(slots):
            keys[position], values[position] = held.setdefault(slot, (keys[position].clone(), values[position].clone()))
    bench.fill()
    return bench


def decodes(bench: Bench) -> list[tuple[int, int, int]]:
    return [(i, len(slots) - 1, len(slots)) for i, slots in enumerate(bench.slots)]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_families_and_loners_in_one_step(layer: AttentionLayer) -> None:
    bench = bench_of(layer, [family(9, [1, 4, 2], 0), family(0, [5, 6, 14], 20), family(4, [1, 1], 50)])
    bench.check(decodes(bench))


@pytest.mark.parametrize("layer", [PLAIN, LAYERS["window"], LAYERS["uneven"]], ids=["plain", "window", "uneven"])
def test_decodes_beside_chunks_keep_their_rows(layer: AttentionLayer) -> None:
    bench = bench_of(layer, [family(6, [3, 3, 3, 3], 0)])
    bench.check([(2, 8, 9), (1, 6, 9), (0, 8, 9), (3, 8, 9)])


def test_a_second_step_sees_what_the_first_wrote() -> None:
    bench = bench_of(PLAIN, [family(5, [3, 4, 3], 0)])
    bench.check([(0, 6, 7), (1, 7, 8), (2, 6, 7)])
    bench.keys[0] = bench.keys[0].clone()
    bench.keys[0][7] += 1
    bench.check([(2, 7, 8), (0, 7, 8), (1, 8, 9)])


def test_one_sequence_that_is_not_finite_harms_no_other() -> None:
    bench = bench_of(PLAIN, [family(5, [2, 6, 4], 0)])
    bench.queries[0][-1] = float("nan")
    bench.store.values[0][bench.slots[0][-2]] = float("inf")
    outputs = bench.step(decodes(bench))
    assert not outputs[0].isfinite().all()
    for i in (1, 2):
        torch.testing.assert_close(outputs[i][0], bench.expected(i, len(bench.slots[i]) - 1), atol=1e-5, rtol=1e-4)


def test_scores_are_not_rounded_to_bfloat16() -> None:
    """Close to float32 of the same numbers, where products kept in bfloat16 would be off by percents."""
    layer = replace(PLAIN, dtype=torch.bfloat16, scaling=8.0)
    bench = bench_of(layer, [family(40, [3, 5, 4], 0)])
    outputs = bench.step(decodes(bench))
    for name in ("queries", "keys", "values"):
        setattr(bench, name, [x.float() for x in getattr(bench, name)])
    for i, output in enumerate(outputs):
        expected = bench.expected(i, len(bench.slots[i]) - 1)
        assert (output[0].float() - expected).norm() < 6e-3 * expected.norm()


@settings(max_examples=60)
@given(st.data())
def test_groups_are_apart_and_hold_what_each_sees(data: st.DataObject) -> None:
    families, first = [], 0
    for _ in range(data.draw(st.integers(1, 3))):
        members = family(data.draw(st.integers(0, 8)), data.draw(st.lists(st.integers(1, 20), min_size=1)), first)
        families.append(members)
        first = 1 + max(slot for slots in members for slot in slots)
    seen = [np.array(slots, np.int32) for members in families for slots in members]
    rows = [3 * i for i in range(len(seen))]
    groups = make_groups(rows, seen, CPU)
    grouped = [row for group in groups for row in group.rows.tolist()]
    assert len(set(grouped)) == len(grouped)
    for group in groups:
        assert group.rows.tolist() == sorted(group.rows.tolist())
        shared = [] if group.shared is None else group.shared.tolist()
        own = group.own.view(len(group.rows), -1)
        for i, row in enumerate(group.rows.tolist()):
            real = own[i] if group.filling is None else own[i][~group.filling[i, 0]]
            assert [*shared, *real.tolist()] == seen[row // 3].tolist()


def test_sequences_of_one_beginning_share_all_of_it() -> None:
    seen = [np.array(slots, np.int32) for slots in family(SHORTEST_SHARED, [1, 2], 0)]
    (group,) = make_groups([0, 1], seen, CPU)
    assert group.shared is not None
    assert group.shared.tolist() == list(range(SHORTEST_SHARED))


def test_what_every_prompt_begins_with_does_not_hide_what_some_share() -> None:
    start, one, other = [0, 1], list(range(10, 20)), list(range(30, 35))
    seen = [np.array([*start, *rest, 50 + i], np.int32) for i, rest in enumerate((one, other, one, other))]
    groups = make_groups(range(4), seen, CPU)
    assert [(group.rows.tolist(), group.shared.tolist()) for group in groups if group.shared is not None] == [
        ([0, 2], [*start, *one]),
        ([1, 3], [*start, *other]),
    ]


def test_like_goes_with_like() -> None:
    seen = [np.arange(1000 * i, 1000 * i + length) for i, length in enumerate((100, 9, 95, 8, 90))]
    assert [group.rows.tolist() for group in make_groups(range(5), seen, CPU)] == [[0, 2, 4], [1, 3]]


def test_what_pays() -> None:
    assert pays(16, 20, 600)  # branches of one prompt
    assert pays(16, 128, 0)  # many short ones
    assert not pays(2, 500, 0)
    assert not pays(16, 2000, 0)  # gathering would cost more than it saves
    assert not pays(1, 10, 1000)

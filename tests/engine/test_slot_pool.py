from __future__ import annotations

import numpy as np
import pytest

from radixbackend.engine.slot_pool import SPREAD, SlotPool
from radixbackend.errors import IntegrityError


def array(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.int32)


def test_fresh_slots_are_one_ascending_run_from_the_bottom() -> None:
    pool = SlotPool(1000)
    slots = pool.allocate(300)
    assert slots.dtype == np.int32
    assert slots.tolist() == list(range(300))
    assert pool.num_free == 700


def test_no_room_is_none_and_changes_nothing() -> None:
    pool = SlotPool(10)
    pool.allocate(7)
    assert pool.allocate(4) is None
    assert pool.allocate(4, near=6) is None
    assert pool.num_free == 3
    assert pool.allocate(3).tolist() == [7, 8, 9]
    assert pool.allocate(1) is None
    pool.check()


def test_nothing_of_nothing() -> None:
    pool = SlotPool(0)
    assert pool.allocate(0).tolist() == []
    assert pool.allocate(1) is None
    pool.free(array())
    pool.check()


def test_a_growing_owner_continues_its_run() -> None:
    pool = SlotPool(100)
    last = pool.allocate(5)[-1].item()
    assert pool.allocate(3, near=last).tolist() == [5, 6, 7]
    assert pool.allocate(1, near=7).tolist() == [8]


def test_owners_that_grow_in_turn_stay_contiguous() -> None:
    pool = SlotPool(8 * 200)
    owners = [pool.allocate(20).tolist() for _ in range(8)]
    for _ in range(70):
        for slots in owners:
            slots += pool.allocate(1, near=slots[-1]).tolist()
    for slots in owners:
        assert slots == list(range(slots[0], slots[0] + 90))


def test_a_short_run_behind_is_used_first_and_the_rest_comes_from_the_largest() -> None:
    pool = SlotPool(12)
    pool.allocate(12)
    pool.free(array(3, 4, 6, 8, 9, 10))
    assert pool.allocate(4, near=2).tolist() == [3, 4, 8, 9]
    assert pool.free_slots().tolist() == [6, 10]
    pool.check()


def test_many_slots_come_from_few_runs_in_ascending_order() -> None:
    pool = SlotPool(20)
    pool.allocate(20)
    pool.free(array(1, 3, 5, 6, 7, 10, 12, 13, 14, 15))
    assert pool.allocate(7).tolist() == [5, 6, 7, 12, 13, 14, 15]


def test_a_long_run_is_entered_in_the_middle_and_a_short_one_at_its_start() -> None:
    pool = SlotPool(1000)
    assert pool.allocate(100)[0] == 0
    assert pool.allocate(100)[0] == 500
    pool = SlotPool(1 + SPREAD)
    assert pool.allocate(1)[0] == 0
    assert pool.allocate(1)[0] == 1


def test_freed_slots_join_their_neighbours() -> None:
    pool = SlotPool(30)
    pool.allocate(30)
    for slots in (array(4, 5), array(8, 9), array(7, 6)):
        pool.free(slots)
    assert pool.allocate(6).tolist() == [4, 5, 6, 7, 8, 9]
    pool.check()


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ((2, 3, 4, 5), "slot 4 freed, but it is free"),
        ((1, 2, 1), "slot 1 freed twice"),
        ((-1, 0), "slots -1 to 0"),
        ((0, 10), "slots 0 to 10"),
    ],
)
def test_freeing_what_is_not_in_use_raises_and_changes_nothing(slots: tuple[int, ...], message: str) -> None:
    pool = SlotPool(10)
    pool.allocate(4)
    with pytest.raises(IntegrityError, match=message):
        pool.free(array(*slots))
    assert pool.free_slots().tolist() == [4, 5, 6, 7, 8, 9]
    assert pool.num_free == 6
    pool.check()


@pytest.mark.parametrize("capacity", [1, 7, 60, 3000])
def test_random_use_against_a_set(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    pool, free, owners = SlotPool(capacity), set(range(capacity)), []
    for step in range(4000):
        if owners and rng.random() < 0.5:
            slots = owners.pop(rng.integers(len(owners)))
            cut = rng.integers(len(slots) + 1)
            pool.free(rng.permutation(slots[cut:]))
            free.update(slots[cut:].tolist())
            if cut:
                owners.append(slots[:cut])
        else:
            want = int(rng.integers(1, max(2, capacity // 8)))
            near = int(owners[rng.integers(len(owners))][-1]) if owners and rng.random() < 0.7 else None
            slots = pool.allocate(want, near)
            assert (slots is None) == (want > len(free))
            if slots is not None:
                assert len(slots) == want
                if near is not None and near + 1 in free:
                    assert slots[0] == near + 1
                assert free.issuperset(slots.tolist())
                free.difference_update(slots.tolist())
                owners.append(slots)
        assert pool.num_free == len(free)
        if step % 50 == 0:
            pool.check()
            assert pool.free_slots().tolist() == sorted(free)


@pytest.mark.parametrize("holes", [0, 1])  # it is rebuilt while freeing, or while allocating
def test_the_heap_of_runs_stays_bounded_and_complete(holes: int) -> None:
    pool = SlotPool(1000)
    pool.allocate(9)
    pool.free(array(*range(3, 3 + holes)))
    for _ in range(300):
        slots = pool.allocate(1)
        pool.check()
        pool.free(slots)
        pool.check()
        assert len(pool._largest) <= 2 * 3 + 64


def test_check_notices_a_lost_slot() -> None:
    pool = SlotPool(10)
    pool.allocate(3)
    pool._used[1] = 0
    with pytest.raises(IntegrityError, match="disagree"):
        pool.check()

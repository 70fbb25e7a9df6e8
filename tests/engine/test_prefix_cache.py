from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from radixbackend.engine.prefix_cache import CacheUsage, Lease, PrefixCache
from radixbackend.errors import IntegrityError


def array(items: Iterable[int]) -> np.ndarray:
    return np.fromiter(items, dtype=np.int32)


def compute(cache: PrefixCache, tokens: np.ndarray, namespace: str | None = None) -> Lease:
    """A lease with everything computed and published, like a sequence after its prefill."""
    lease = cache.acquire(tokens, namespace)
    assert cache.grow(lease, len(tokens))
    cache.publish(lease, tokens)
    return lease


def parts(cache: PrefixCache) -> tuple[int, int, int]:
    cache.check()
    usage = cache.usage()
    return usage.free, usage.cached, usage.held


def test_the_life_of_a_sequence() -> None:
    cache, tokens = PrefixCache(50), array(range(20))
    lease = cache.acquire(tokens[:9])
    assert (len(lease), lease.num_cached, lease.num_shared, lease.namespace) == (0, 0, 0, None)
    assert cache.grow(lease, 10)
    assert parts(cache) == (40, 0, 10)
    cache.publish(lease, tokens[:10])
    assert (len(lease), lease.num_shared) == (10, 10)
    assert cache.match(tokens) == 10
    assert cache.grow(lease, 13)
    assert lease.slots.tolist() == list(range(13))
    cache.release(lease)
    assert parts(cache) == (40, 10, 0)
    follower = cache.acquire(tokens[:8])
    assert follower.num_cached == follower.num_shared == 8
    assert follower.slots.tolist() == list(range(8))
    assert parts(cache) == (40, 2, 8)


def test_growing_is_all_or_nothing() -> None:
    cache = PrefixCache(10)
    cache.release(compute(cache, array(range(4))))
    lease = cache.acquire(array([9]))
    assert cache.grow(lease, 5)
    before, slots = cache.usage(), lease.slots
    assert cache.available() == 5
    assert not cache.grow(lease, 11)
    assert cache.usage() == before
    assert lease.slots.tolist() == slots.tolist()
    assert cache.grow(lease, 10)
    assert cache.usage() == CacheUsage(total=10, free=0, cached=0, held=10, nodes=0, evicted_tokens=4)
    assert cache.grow(lease, 3)
    assert len(lease) == 10
    cache.check()


def test_a_lease_is_never_evicted_by_its_own_growth() -> None:
    cache, tokens = PrefixCache(10), array(range(6))
    cache.release(compute(cache, tokens))
    lease = cache.acquire(tokens[:5])
    assert cache.grow(lease, 10)
    assert cache.match(tokens) == 5
    assert not cache.grow(lease, 11)
    cache.check()


def test_two_that_compute_the_same_end_with_one_copy() -> None:
    cache, tokens = PrefixCache(40), array(range(8))
    first, second = cache.acquire(tokens[:7]), cache.acquire(tokens[:7])
    assert cache.grow(first, 8)
    assert cache.grow(second, 10)
    assert not set(first.slots) & set(second.slots)
    cache.publish(first, tokens)
    tail = second.slots[8:].tolist()
    cache.publish(second, tokens)
    assert second.slots.tolist() == first.slots.tolist() + tail
    assert parts(cache) == (30, 0, 10)
    cache.publish(second, array([*range(8), 50, 51]))
    cache.release(first)
    assert parts(cache) == (30, 0, 10)
    cache.release(second)
    assert parts(cache) == (30, 10, 0)


def test_publishing_again_changes_nothing() -> None:
    cache, tokens = PrefixCache(40), array(range(8))
    lease = compute(cache, tokens)
    before = cache.usage()
    cache.publish(lease, tokens)
    cache.publish(lease, tokens[:3])
    assert cache.usage() == before
    assert lease.num_shared == 8


def test_a_sequence_is_one_node_however_it_is_published() -> None:
    cache, tokens = PrefixCache(2000), array(range(1000))
    lease = cache.acquire(tokens[:99])
    for length in (64, 100):
        assert cache.grow(lease, length)
        cache.publish(lease, tokens[:length])
    for length in range(101, 1001):
        assert cache.grow(lease, length)
    cache.publish(lease, tokens)
    cache.release(lease)
    assert cache.usage().nodes == 1
    assert parts(cache) == (1000, 1000, 0)


def test_drafts_stay_private() -> None:
    cache, tokens = PrefixCache(40), array(range(8))
    lease = cache.acquire(tokens)
    assert cache.grow(lease, 12)
    cache.publish(lease, tokens)
    assert cache.match(array(range(12))) == 8
    cache.release(lease)
    assert parts(cache) == (32, 8, 0)


def test_publishing_more_than_there_are_slots_raises_and_changes_nothing() -> None:
    cache = PrefixCache(40)
    lease = cache.acquire(array(range(8)))
    assert cache.grow(lease, 4)
    with pytest.raises(IntegrityError, match="8 tokens published of a lease with 4"):
        cache.publish(lease, array(range(8)))
    assert parts(cache) == (36, 0, 4)


def test_releasing_twice_is_harmless_and_growing_after_it_is_not() -> None:
    cache, tokens = PrefixCache(40), array(range(8))
    lease = compute(cache, tokens)
    cache.release(lease)
    cache.release(lease)
    cache.publish(lease, array(range(9)))
    assert parts(cache) == (32, 8, 0)
    with pytest.raises(IntegrityError, match="released"):
        cache.grow(lease, 9)


def test_clear_keeps_what_is_held() -> None:
    cache = PrefixCache(40)
    held = compute(cache, array(range(8)))
    cache.release(compute(cache, array([*range(6), 70, 71])))
    assert cache.clear() == 2
    assert parts(cache) == (32, 0, 8)
    assert cache.usage().evicted_tokens == 0
    cache.release(held)
    assert cache.clear() == 8
    assert parts(cache) == (40, 0, 0)


def test_reset_kills_the_leases() -> None:
    cache, tokens = PrefixCache(10), array(range(8))
    lease = compute(cache, tokens)
    cache.reset()
    assert parts(cache) == (10, 0, 0)
    other = compute(cache, tokens)
    cache.publish(lease, tokens)
    cache.release(lease)
    assert parts(cache) == (2, 0, 8)
    cache.release(other)
    assert parts(cache) == (2, 8, 0)


def test_without_sharing_all_else_works() -> None:
    cache, tokens = PrefixCache(20, enabled=False), array(range(8))
    first, second = compute(cache, tokens), compute(cache, tokens)
    assert (first.num_shared, second.num_cached, cache.match(tokens)) == (0, 0, 0)
    assert not set(first.slots) & set(second.slots)
    assert parts(cache) == (4, 0, 16)
    assert cache.available() == 4
    cache.release(first)
    assert parts(cache) == (12, 0, 8)


def test_namespaces_are_apart() -> None:
    cache, tokens = PrefixCache(40), array(range(8))
    compute(cache, tokens, "a")
    assert (cache.match(tokens, "a"), cache.match(tokens, "b"), cache.match(tokens)) == (8, 0, 0)
    assert compute(cache, tokens, "b").num_cached == 0
    assert parts(cache) == (24, 0, 16)


def test_slots_taken_before_stay_as_they_were() -> None:
    cache = PrefixCache(5000)
    lease = cache.acquire(array([]))
    assert cache.grow(lease, 3)
    early, copy = lease.slots, lease.slots.copy()
    assert cache.grow(lease, 4000)
    assert early.tolist() == copy.tolist() == lease.slots[:3].tolist()


def test_the_evicted_are_counted() -> None:
    cache = PrefixCache(10)
    for first in range(5):
        cache.release(compute(cache, array([first] * 4)))
    assert cache.usage().evicted_tokens == 10
    assert parts(cache) == (0, 10, 0)


def test_a_big_pool_evicts_in_batches() -> None:
    cache = PrefixCache(640)
    cache.release(compute(cache, array(range(640))))
    lease = cache.acquire(array([9]))
    assert cache.grow(lease, 1)
    assert cache.usage().evicted_tokens == 10
    assert parts(cache) == (9, 630, 1)


def lose_a_slot(cache: PrefixCache, lease: Lease) -> None:
    cache._pool.allocate(1)


def own_twice(cache: PrefixCache, lease: Lease) -> None:
    lease._buffer[8] = lease._buffer[0]


def own_other_than_the_tree(cache: PrefixCache, lease: Lease) -> None:
    lease._buffer[:2] = lease._buffer[1::-1].copy()


def forget_the_lease(cache: PrefixCache, lease: Lease) -> None:
    cache._leases.clear()
    cache._num_private = 0
    cache._pool.free(lease.slots[lease.num_shared :])


def hold_an_evicted_node(cache: PrefixCache, lease: Lease) -> None:
    assert lease.node is not None
    cache._tree.unlock(lease.node)
    cache._pool.free(cache._tree.evict(100))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_slot, "lost or counted twice"),
        (own_twice, "owners"),
        (own_other_than_the_tree, "not those on its path"),
        (forget_the_lease, "1 locks, but 0 leases"),
        (hold_an_evicted_node, "not in the tree"),
    ],
)
def test_check_names_what_is_off(damage: Callable[[PrefixCache, Lease], None], message: str) -> None:
    cache = PrefixCache(30)
    lease = compute(cache, array(range(8)))
    assert cache.grow(lease, 12)
    cache.check()
    damage(cache, lease)
    with pytest.raises(IntegrityError, match=message):
        cache.check()

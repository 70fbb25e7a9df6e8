"""Leases: a sequence's hold on the slots of its prefix and of its own tokens.

Rules:
- Every slot is free, in the tree, or private to one lease. So free + cached + held = total after every call, where
  cached is what the tree could evict and held is what leases use.
- A lease's slots are a prefix that belongs to the tree, locked, and a private tail:

      position 0            num_shared                 computed                 len(lease)
               | the tree's | private, computed        | private, not computed  |
      grow     |            |                          |                        | + new private ones
      publish  | + what was computed: now the tree's   | stays private          |
      release  | unlocked   | freed                    | freed                  |

- What is published is computed and final: from then on any sequence may read it and nobody writes to it.
- "No room" is False or None and changes nothing. A broken invariant raises `IntegrityError`.
- A lease lives from `acquire` to `release` (or `reset`). Releasing or publishing a dead one does nothing.

Not known here: requests, tensors, and what has been computed beyond what was published.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radixbackend.engine.plan import IntArray
from radixbackend.engine.radix_tree import NO_SLOTS, EvictionKey, Node, RadixTree, lru, path
from radixbackend.engine.slot_pool import SlotPool
from radixbackend.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Where the slots are; free + cached + held = total.

    Attributes:
        total: all slots.
        free: in no use.
        cached: in the tree and evictable.
        held: in use by leases, as a locked prefix or privately.
        nodes: of the tree, roots not counted.
        evicted_tokens: dropped to make room so far; `PrefixCache.clear` and `PrefixCache.reset` do not count.
    """

    total: int
    free: int
    cached: int
    held: int
    nodes: int
    evicted_tokens: int


class Lease:
    """The slots of one sequence. Made and changed by `PrefixCache` alone; others read."""

    __slots__ = ("_buffer", "_length", "namespace", "node", "num_cached", "num_shared")

    def __init__(self, namespace: str | None, node: Node | None, slots: IntArray) -> None:
        self.namespace = namespace
        self.node = node  # where its locked prefix ends; None without sharing
        self.num_cached = len(slots)  # tokens found when it was acquired
        self.num_shared = len(slots)  # positions whose slots belong to the tree
        self._length = len(slots)
        self._buffer = np.empty(len(slots) + 64, np.int32)
        self._buffer[: len(slots)] = slots

    def __len__(self) -> int:
        return self._length

    @property
    def slots(self) -> IntArray:
        """[len] the slot of every position: a view, and one taken before still shows the positions it had.

        `PrefixCache.publish` may replace slots by others that hold the same keys and values.
        """
        return self._buffer[: self._length]

    def _append(self, slots: IntArray) -> None:
        length = self._length + len(slots)
        if length > len(self._buffer):
            grown = np.empty(2 * length, np.int32)
            grown[: self._length] = self.slots
            self._buffer = grown
        self._buffer[self._length : length] = slots
        self._length = length


class PrefixCache:
    """A pool of ``capacity`` slots, shared by leases through a radix tree.

    With ``enabled=False`` nothing is found and nothing is published; all else works the same.
    """

    def __init__(self, capacity: int, *, eviction_key: EvictionKey = lru, enabled: bool = True) -> None:
        self.capacity = capacity
        self.enabled = enabled
        self._eviction_key = eviction_key
        self._evicted_tokens = 0
        # Evicting more than a decode step needs leaves free runs for its sequences to grow into (see slot_pool).
        self._min_evict = capacity // 64
        self.reset()

    def match(self, tokens: IntArray, namespace: str | None = None) -> int:
        """Length of the longest cached prefix. Leaves no trace."""
        return self._tree.match(tokens, namespace) if self.enabled else 0

    def acquire(self, tokens: IntArray, namespace: str | None = None) -> Lease:
        """A lease on the longest cached prefix of ``tokens``, locked and counted as a hit.

        Pass what may come from the cache: a sequence that must compute its last token leaves that one out.
        """
        node, slots = self._tree.lock(tokens, namespace) if self.enabled else (None, NO_SLOTS)
        lease = Lease(namespace, node, slots)
        self._leases.add(lease)
        return lease

    def grow(self, lease: Lease, length: int) -> bool:
        """Give every position below ``length`` a slot, evicting as needed; False (and no change) without room."""
        if lease not in self._leases:
            raise IntegrityError("a released lease was asked to grow")
        have = lease._length
        if length <= have:
            return True
        slots = self._allocate(length - have, lease._buffer.item(have - 1) if have else None)
        if slots is None:
            return False
        lease._append(slots)
        self._num_private += len(slots)
        return True

    def publish(self, lease: Lease, tokens: IntArray, *, keep: bool = False) -> Lease | None:
        """The keys and values of ``tokens``, positions ``0 …`` of the lease, are computed: share them from now on.

        ``tokens`` continues what was published before, which is not compared again: only what lies beyond
        ``num_shared`` costs anything. Where another sequence has published the same run meanwhile, the lease switches
        to those slots and its own are freed; with ``keep`` they are returned as a lease, for who still reads them.
        """
        start, stop = lease.num_shared, len(tokens)
        if lease not in self._leases or lease.node is None or stop <= start:
            return None
        if stop > lease._length:
            raise IntegrityError(f"{stop} tokens published of a lease with {lease._length} slots")
        own = lease._buffer[start:stop]
        lease.node, known = self._tree.insert(lease.node, tokens[start:], own)
        lease.num_shared = stop
        self._num_private -= stop - start
        if not len(known):
            return None
        spare = Lease(lease.namespace, None, NO_SLOTS)
        spare._append(own[: len(known)])
        own[: len(known)] = known
        self._leases.add(spare)
        self._num_private += len(spare)
        if keep:
            return spare
        self.release(spare)
        return None

    def release(self, lease: Lease) -> None:
        """Unlock the prefix and free the private tail. What was published stays cached."""
        if lease not in self._leases:
            return
        self._leases.remove(lease)
        self._pool.free(lease.slots[lease.num_shared :])
        self._num_private -= lease._length - lease.num_shared
        if lease.node is not None:
            self._tree.unlock(lease.node)

    def available(self) -> int:
        """Slots that `grow` can hand out: free, or cached and evictable."""
        return self._pool.num_free + self._tree.num_evictable

    def usage(self) -> CacheUsage:
        return CacheUsage(
            total=self.capacity,
            free=self._pool.num_free,
            cached=self._tree.num_evictable,
            held=self._tree.num_locked + self._num_private,
            nodes=self._tree.num_nodes,
            evicted_tokens=self._evicted_tokens,
        )

    def clear(self) -> int:
        """Drop everything that is not locked; returns how many tokens that were."""
        dropped = self._tree.evict(self._tree.num_evictable)
        self._pool.free(dropped)
        return len(dropped)

    def reset(self) -> None:
        """Forget everything: all slots are free, all leases dead. The way out of a broken invariant."""
        self._pool = SlotPool(self.capacity)
        self._tree = RadixTree(self._eviction_key)
        self._leases: set[Lease] = set()
        self._num_private = 0  # slots of leases beyond num_shared

    @property
    def tree(self) -> RadixTree:
        """To be looked at (`RadixTree.dump`), not changed."""
        return self._tree

    def check_counts(self) -> None:
        """Raises `IntegrityError` unless free + cached + held = total. Cheap enough for every step."""
        usage = self.usage()
        parts = (usage.free, usage.cached, usage.held)
        if sum(parts) != usage.total or min(parts) < 0 or self._num_private < 0:
            raise IntegrityError(f"slots are lost or counted twice: {usage}, {self._num_private} private")

    def check(self) -> None:
        """Full pass over pool, tree and leases; raises `IntegrityError` naming what is off."""
        self.check_counts()
        self._pool.check()
        self._tree.check()
        self._check_owners()
        self._check_locks()

    def _allocate(self, n: int, near: int | None) -> IntArray | None:
        missing = n - self._pool.num_free
        if missing > 0:
            if missing > self._tree.num_evictable:
                return None
            evicted = self._tree.evict(max(missing, self._min_evict))
            self._pool.free(evicted)
            self._evicted_tokens += len(evicted)
        return self._pool.allocate(n, near)

    def _check_owners(self) -> None:
        private = [lease.slots[lease.num_shared :] for lease in self._leases]
        if (found := sum(map(len, private))) != self._num_private:
            raise IntegrityError(f"leases have {found} private slots, the counter says {self._num_private}")
        slots = np.concatenate([self._pool.free_slots(), *private, *(node.slots for node in self._tree.nodes())])
        owners = np.bincount(slots, minlength=self.capacity)
        if len(wrong := np.flatnonzero(owners != 1)):
            raise IntegrityError(f"slots {wrong[:8].tolist()} have {owners[wrong[:8]].tolist()} owners")

    def _check_locks(self) -> None:
        locks = dict.fromkeys(self._tree.nodes(), 0)
        for lease in self._leases:
            if lease.node is None:
                continue
            steps = list(path(lease.node))[::-1]
            if not np.array_equal(np.concatenate([n.slots for n in steps]), lease.slots[: lease.num_shared]):
                raise IntegrityError("a lease's shared slots are not those on its path in the tree")
            for node in steps:
                if node not in locks:
                    raise IntegrityError("a lease holds a node that is not in the tree")
                locks[node] += 1
        for node, expected in locks.items():
            if node.locks != expected:
                raise IntegrityError(f"a node has {node.locks} locks, but {expected} leases go through it")

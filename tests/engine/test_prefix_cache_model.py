"""Tree, pool and leases against a model so plain that it can be believed.

The model knows, per token prefix, its slot and when it was last released; the K/V store is an array that holds, per
slot, what was computed into it. Under LRU it predicts the tree exactly, evictions included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from radixbackend.engine.prefix_cache import CacheUsage, Lease, PrefixCache
from radixbackend.engine.radix_tree import fifo, lfu, lru

Prefix = tuple[str | None, tuple[int, ...]]  # namespace and tokens

namespaces = st.sampled_from([None, None, "salt"])
runs = st.lists(st.integers(0, 2), max_size=12)
which = st.integers(0, 99)  # of the sequences alive
often = st.sampled_from([True, True, True, False])
actions = st.one_of(
    st.tuples(st.just("arrive"), runs, namespaces, st.booleans()),
    st.tuples(st.just("arrive_like"), which, st.sampled_from([0.3, 0.7, 1.0, 1.0]), runs, st.booleans()),
    st.tuples(st.just("arrive_cached"), which, runs, often),
    st.tuples(st.just("compute"), which, runs, st.integers(0, 3), often),
    st.tuples(st.just("compute"), which, runs, st.integers(0, 3), often),
    st.tuples(st.just("publish_some"), which, st.floats(0, 1)),
    st.tuples(st.just("leave"), which, often),
    st.tuples(st.just("leave"), which, often),
    st.tuples(st.just("match"), runs, namespaces),
    st.tuples(st.just("wipe"), st.integers(0, 19)),
)


def array(tokens: list[int] | tuple[int, ...]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


@dataclass(eq=False)
class Sequence:
    """A request as its scheduler would know it."""

    lease: Lease
    namespace: str | None
    tokens: list[int]
    computed: int  # positions whose K/V lie in their slot
    shared: int
    length: int  # positions with a slot

    def prefixes(self, start: int = 0, stop: int | None = None) -> list[Prefix]:
        """Of the positions from ``start`` to before ``stop``."""
        stop = len(self.tokens) if stop is None else stop
        return [(self.namespace, tuple(self.tokens[:end])) for end in range(start + 1, stop + 1)]


@dataclass
class Model:
    capacity: int
    tree: dict[Prefix, int] = field(default_factory=dict)  # slot of each prefix's last token
    released: dict[Prefix, int] = field(default_factory=dict)
    sequences: list[Sequence] = field(default_factory=list)
    now: int = 0
    evicted: int = 0

    def match(self, tokens: list[int], namespace: str | None) -> int:
        length = 0
        while length < len(tokens) and (namespace, tuple(tokens[: length + 1])) in self.tree:
            length += 1
        return length

    @property
    def evictable(self) -> list[Prefix]:
        """In LRU order: those released together lie on one path, and go from its end."""
        locked = {prefix for s in self.sequences for prefix in s.prefixes(0, s.shared)}
        return sorted(self.tree.keys() - locked, key=lambda prefix: (self.released[prefix], -len(prefix[1])))

    @property
    def free(self) -> int:
        return self.capacity - len(self.tree) - sum(s.length - s.shared for s in self.sequences)


class CacheMachine(RuleBasedStateMachine):
    """One rule for all actions: several would be switched off at random, and nothing here is reached by a few."""

    key = staticmethod(lru)
    enabled = True

    @initialize(capacity=st.integers(20, 60))
    def start(self, capacity: int) -> None:
        self.cache = PrefixCache(capacity, eviction_key=self.key, enabled=self.enabled)
        self.model = Model(capacity)
        self.store: list[Prefix | None] = [None] * capacity

    @rule(action=actions)
    def act(self, action: tuple[Any, ...]) -> None:
        name, *arguments = action
        getattr(self, name)(*arguments)

    def arrive(self, tokens: list[int], namespace: str | None, prefill: bool) -> None:
        found = self.model.match(tokens, namespace)
        lease = self.cache.acquire(array(tokens), namespace)
        assert (len(lease), lease.num_cached, lease.num_shared) == (found, found, found)
        self.model.sequences.append(Sequence(lease, namespace, list(tokens), found, found, found))
        if prefill:
            self.compute(-1, [], 0, True)

    def arrive_like(self, which: int, cut: float, more: list[int], prefill: bool) -> None:
        """Another one with the same start, as conversations and few-shot prompts have it."""
        for other in self.chosen(which):
            self.arrive(other.tokens[: round(cut * len(other.tokens))] + more, other.namespace, prefill)

    def arrive_cached(self, which: int, more: list[int], prefill: bool) -> None:
        if self.model.tree:
            namespace, tokens = list(self.model.tree)[which % len(self.model.tree)]
            self.arrive([*tokens, *more], namespace, prefill)

    def compute(self, which: int, more: list[int], drafts: int, publish: bool) -> None:
        """A step: what is known and ``more`` is computed behind what was; drafts get slots only."""
        for sequence in self.chosen(which):
            if not self.grow(sequence, len(sequence.tokens) + len(more) + drafts):
                return
            sequence.tokens += more
            for position, prefix in enumerate(sequence.prefixes(sequence.computed), start=sequence.computed):
                self.store[sequence.lease.slots[position]] = prefix
            sequence.computed = len(sequence.tokens)
            if publish:
                self.publish(sequence, sequence.computed)

    def publish_some(self, which: int, share: float) -> None:
        for sequence in self.chosen(which):
            self.publish(sequence, round(share * sequence.computed))

    def leave(self, which: int, publish: bool) -> None:
        for sequence in self.chosen(which):
            if publish:
                self.publish(sequence, sequence.computed)
            self.cache.release(sequence.lease)
            self.cache.release(sequence.lease)
            self.model.now += 1
            self.model.released.update(dict.fromkeys(sequence.prefixes(0, sequence.shared), self.model.now))
            self.model.sequences.remove(sequence)

    def match(self, tokens: list[int], namespace: str | None) -> None:
        assert self.cache.match(array(tokens), namespace) == self.model.match(tokens, namespace)

    def wipe(self, dice: int) -> None:
        {3: self.clear, 7: self.clear, 11: self.reset}.get(dice, lambda: None)()

    def clear(self) -> None:
        evictable = self.model.evictable
        assert self.cache.clear() == len(evictable)
        self.forget(evictable, len(evictable))

    def reset(self) -> None:
        dead = self.model.sequences
        self.cache.reset()
        self.model.tree, self.model.sequences = {}, []
        for sequence in dead:
            self.cache.publish(sequence.lease, array(sequence.tokens[: sequence.computed]))
            self.cache.release(sequence.lease)

    def chosen(self, which: int) -> list[Sequence]:
        """None or one."""
        sequences = self.model.sequences
        return [sequences[which % len(sequences)]] if sequences else []

    def grow(self, sequence: Sequence, length: int) -> bool:
        need = max(0, length - sequence.length)
        missing = max(0, need - self.model.free)
        evictable = self.model.evictable
        before = self.cache.usage()
        grown = self.cache.grow(sequence.lease, length)
        assert grown == (missing <= len(evictable))
        if grown:
            self.forget(evictable, missing)
            self.model.evicted += missing
            sequence.length += need
        else:
            assert self.cache.usage() == before
        return grown

    def publish(self, sequence: Sequence, length: int) -> None:
        self.cache.publish(sequence.lease, array(sequence.tokens[:length]))
        if self.enabled and length > sequence.shared:
            slots = sequence.lease.slots[sequence.shared : length].tolist()
            for prefix, slot in zip(sequence.prefixes(sequence.shared, length), slots, strict=True):
                self.model.tree.setdefault(prefix, slot)
            sequence.shared = length

    def forget(self, evictable: list[Prefix], count: int) -> None:
        """Drop from the model what the cache evicted: with LRU exactly the first, else any that fit."""
        gone = evictable[:count]
        if self.key is not lru:
            left = self.dumped()
            gone = [prefix for prefix in evictable if prefix not in left]
            assert len(gone) == count
        for prefix in gone:
            del self.model.tree[prefix]

    def dumped(self) -> dict[Prefix, int]:
        """The tree, token by token."""
        found: dict[Prefix, int] = {}
        path: list[int] = []
        starts = [0]
        for node in self.cache.tree.dump():
            del starts[node.depth :], path[starts[node.depth - 1] :]
            for token, slot in zip(node.tokens.tolist(), node.slots.tolist(), strict=True):
                path.append(token)
                prefix = (node.namespace, tuple(path))
                assert prefix not in found
                found[prefix] = slot
            starts.append(len(path))
        return found

    @invariant()
    def agrees(self) -> None:
        self.cache.check()
        model = self.model
        assert self.dumped() == model.tree
        free, cached = model.free, len(model.evictable)
        nodes = sum(1 for _ in self.cache.tree.dump())
        held = model.capacity - free - cached
        assert self.cache.usage() == CacheUsage(model.capacity, free, cached, held, nodes, model.evicted)
        assert self.cache.available() == free + cached

    @invariant()
    def slots_hold_what_was_computed(self) -> None:
        for sequence in self.model.sequences:
            lease = sequence.lease
            assert (len(lease), lease.num_shared) == (sequence.length, sequence.shared)
            stored = [self.store[slot] for slot in lease.slots[: sequence.computed]]
            assert stored == sequence.prefixes(0, sequence.computed)
        for prefix, slot in self.model.tree.items():
            assert self.store[slot] == prefix


class LfuMachine(CacheMachine):
    key = staticmethod(lfu)


class FifoMachine(CacheMachine):
    key = staticmethod(fifo)


class DisabledMachine(CacheMachine):
    enabled = False


@pytest.mark.parametrize(
    ("machine", "examples"),
    [(CacheMachine, 200), (LfuMachine, 60), (FifoMachine, 20), (DisabledMachine, 20)],
)
def test_against_the_model(machine: type[CacheMachine], examples: int) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=50, deadline=None))

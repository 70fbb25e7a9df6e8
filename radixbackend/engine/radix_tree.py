"""A radix tree of token runs: which prefixes are cached, in which slots, and which go first.

Rules:
- A path from a root spells a prefix; every token on it has the slot that holds its keys and values. Each namespace
  has a root of its own, which exists while it has children or locks.
- A lock counts on every node of the path. A locked node stays; an unlocked one is evictable, and since whoever locks
  a child locks its parents, what is below an evictable node is evictable too.
- Only the tail of an unlocked leaf is ever evicted, so what remains is always a prefix. The eviction key chooses the
  leaf: smallest first. It is asked once each time a node becomes an unlocked leaf, and cannot change while it is one.
- To be locked is to be in use, so the last access of a path is when it was last unlocked.

Not known here: who holds a lock, where free slots come from, what the slots contain.

The structure is the one of "SGLang: Efficient Execution of Structured Language Model Programs" (arXiv:2312.07104, §3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple, Protocol

import numpy as np

from radixbackend.engine.plan import IntArray
from radixbackend.errors import IntegrityError, PluginError

NO_SLOTS: IntArray = np.empty(0, np.int32)
NO_SLOTS.setflags(write=False)


class CachedNode(Protocol):
    """What an eviction key may look at. Times are ticks of a logical clock, later is larger."""

    @property
    def last_access(self) -> int:
        """When its path was last in use: when a lock on it was last taken off."""

    @property
    def created(self) -> int:
        """When its first token was inserted."""

    @property
    def hits(self) -> int:
        """How often it was part of the prefix that a new sequence found."""

    @property
    def num_tokens(self) -> int:
        """Length of its run."""


EvictionKey = Callable[[CachedNode], Any]
"""The unlocked leaf with the smallest key is evicted first; keys must compare with each other."""


def lru(node: CachedNode) -> int:
    """Least recently used first."""
    return node.last_access


def lfu(node: CachedNode) -> tuple[int, int]:
    """Least often hit first; among equals the least recently used."""
    return node.hits, node.last_access


def fifo(node: CachedNode) -> int:
    """Oldest first, however often used."""
    return node.created


class Node:
    """A run of tokens that share their fate, and their slots. Only `RadixTree` writes to it."""

    __slots__ = ("children", "created", "hits", "last_access", "locks", "parent", "slots", "ticket", "tokens")

    def __init__(self, parent: Node | None, tokens: IntArray, slots: IntArray, now: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.children: dict[int, Node] = {}  # by the child's first token
        self.locks = 0
        self.hits = 0
        self.created = self.last_access = now
        self.ticket = 0  # of its valid entry in the eviction heap, 0 for none

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


class Root(Node):
    """The empty prefix of a namespace."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: str | None, now: int) -> None:
        super().__init__(None, NO_SLOTS, NO_SLOTS, now)
        self.namespace = namespace


class Match(NamedTuple):
    """The node where a locked prefix ends, and slots that the tree has for it."""

    node: Node
    slots: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class NodeDump:
    """One node as `RadixTree.dump` shows it; ``depth`` is 1 for the first run of a namespace."""

    namespace: str | None
    depth: int
    tokens: IntArray
    slots: IntArray
    locks: int
    hits: int
    children: int


class RadixTree:
    """Prefixes of any number of namespaces under one eviction order.

    Raises:
        PluginError: ``eviction_key`` fails on a plain node, or its keys do not compare.
    """

    def __init__(self, eviction_key: EvictionKey = lru) -> None:
        _probe(eviction_key)
        self.num_nodes = 0  # roots are not counted
        self.num_evictable = 0  # tokens of unlocked nodes
        self.num_locked = 0  # tokens of locked nodes
        self._eviction_key = eviction_key
        self._roots: dict[str | None, Root] = {}
        self._clock = 0
        self._heap: list[tuple[Any, int, Node]] = []  # (key, ticket, unlocked leaf), and entries no longer true
        self._num_leaves = 0  # unlocked ones, so entries that are true
        self._last_ticket = 0

    def match(self, tokens: IntArray, namespace: str | None) -> int:
        """Length of the longest cached prefix. Leaves no trace."""
        root = self._roots.get(namespace)
        return _descend(root, tokens)[1] if root else 0

    def lock(self, tokens: IntArray, namespace: str | None) -> Match:
        """Lock the longest cached prefix, splitting the node it ends in, and count a hit on its path."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Root(namespace, self._clock)
        node, _, inside = _descend(root, tokens)
        if inside:
            node = self._split(node, inside)
        self._clock += 1
        slots = []
        for step in path(node):
            self._add_lock(step)
            step.hits += 1
            slots.append(step.slots)
        return Match(node, np.concatenate(slots[::-1]))

    def unlock(self, node: Node) -> None:
        """Take one lock off the path to ``node``."""
        if node.locks < 1:
            raise IntegrityError("a node was unlocked that is not locked")
        self._clock += 1
        for step in path(node):
            step.locks -= 1
            step.last_access = self._clock
            if not step.locks:
                self.num_locked -= len(step.tokens)
                self.num_evictable += len(step.tokens)
        self._settle(node)

    def insert(self, node: Node, tokens: IntArray, slots: IntArray) -> Match:
        """Put a run below ``node`` and move the caller's lock down to its end.

        Returns:
            the node where the run now ends, and the tree's slots for the leading tokens that were there before
            (slots given for those were not taken over).
        """
        end, known, inside = _descend(node, tokens)
        if inside:
            end = self._split(end, inside)
        self._clock += 1
        found = []
        for step in path(end, below=node):
            self._add_lock(step)
            found.append(step.slots)
        if known < len(tokens):
            end = self._append(end, tokens[known:], slots[known:])
        return Match(end, np.concatenate(found[::-1]) if found else NO_SLOTS)

    def evict(self, n: int) -> IntArray:
        """Drop ``n`` tokens (fewer if fewer are unlocked) and return their slots.

        O(log nodes) for each node that goes; a leaf that is longer than what is still wanted loses its tail only.
        """
        evicted = [NO_SLOTS]
        while n > 0 and self._heap:
            _, ticket, leaf = self._heap[0]
            if leaf.ticket != ticket:
                heappop(self._heap)
                continue
            size = min(n, len(leaf.tokens))
            keep = len(leaf.tokens) - size
            evicted.append(leaf.slots[keep:])
            if keep:
                leaf.tokens, leaf.slots = _head(leaf.tokens, keep), _head(leaf.slots, keep)
            else:
                heappop(self._heap)
                self._remove(leaf)
            self.num_evictable -= size
            n -= size
        return np.concatenate(evicted)

    def nodes(self) -> Iterator[Node]:
        """Every node, roots included, parents before children. The tree must not change meanwhile."""
        stack: list[Node] = [*self._roots.values()]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node

    def dump(self) -> Iterator[NodeDump]:
        """Every node but the roots, parents before children. The tree must not change meanwhile."""
        for namespace, root in self._roots.items():
            stack = [(1, child) for child in root.children.values()]
            while stack:
                depth, node = stack.pop()
                stack += [(depth + 1, child) for child in node.children.values()]
                tokens, slots = node.tokens.copy(), node.slots.copy()
                yield NodeDump(namespace, depth, tokens, slots, node.locks, node.hits, len(node.children))

    def check(self) -> None:
        """Full pass: raises `IntegrityError` unless structure, locks, counters and eviction order agree."""
        count = evictable = locked = leaves = 0
        tickets = {ticket: node for _, ticket, node in self._heap}
        for node in self.nodes():
            _check_node(node)
            leaf = _is_unlocked_leaf(node)
            _require(bool(node.ticket) == leaf, "an unlocked leaf is out of the eviction order, or another node is in")
            _require(not leaf or tickets.get(node.ticket) is node, "an eviction entry is lost")
            count += node.parent is not None
            leaves += leaf
            locked += len(node.tokens) if node.locks else 0
            evictable += 0 if node.locks else len(node.tokens)
        kept = (self.num_nodes, self.num_evictable, self.num_locked, self._num_leaves)
        found = (count, evictable, locked, leaves)
        _require(kept == found, f"(nodes, evictable, locked, unlocked leaves) are {found}, the counters say {kept}")

    def _add_lock(self, node: Node) -> None:
        if not node.locks:
            self.num_evictable -= len(node.tokens)
            self.num_locked += len(node.tokens)
            self._withdraw(node)
        node.locks += 1

    def _append(self, node: Node, tokens: IntArray, slots: IntArray) -> Node:
        """Put a new run below the locked ``node``: into it if nobody else depends on where it ends."""
        self.num_locked += len(tokens)
        if node.parent and not node.children and node.locks == 1:
            node.tokens = np.concatenate((node.tokens, tokens), dtype=np.int32)
            node.slots = np.concatenate((node.slots, slots), dtype=np.int32)
            return node
        child = Node(node, np.array(tokens, np.int32), np.array(slots, np.int32), self._clock)
        child.locks = 1
        node.children[child.tokens.item(0)] = child
        self.num_nodes += 1
        return child

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two and return the new upper part. The lower one keeps its identity, and so its holders."""
        parent = node.parent
        assert parent is not None, "a root has no inside"
        upper = Node(parent, node.tokens[:at].copy(), node.slots[:at].copy(), node.created)
        upper.locks, upper.hits = node.locks, node.hits
        parent.children[upper.tokens.item(0)] = upper
        node.parent, node.tokens, node.slots = upper, node.tokens[at:].copy(), node.slots[at:].copy()
        upper.children[node.tokens.item(0)] = node
        self.num_nodes += 1
        return upper

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None, "roots are not evicted"
        self._withdraw(leaf)
        del parent.children[leaf.tokens.item(0)]
        self.num_nodes -= 1
        self._settle(parent)

    def _settle(self, node: Node) -> None:
        """Put a node that lost its last lock or child into the eviction order; drop a root that is left with none."""
        if node.locks or node.children:
            return
        if isinstance(node, Root):
            del self._roots[node.namespace]
            return
        key = self._eviction_key(node)
        self._last_ticket += 1
        self._num_leaves += 1
        node.ticket = self._last_ticket
        heappush(self._heap, (key, node.ticket, node))
        if len(self._heap) > 2 * self._num_leaves + 64:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapify(self._heap)

    def _withdraw(self, node: Node) -> None:
        """Take a node out of the eviction order; its heap entry goes when it surfaces."""
        if node.ticket:
            node.ticket = 0
            self._num_leaves -= 1


def path(node: Node, below: Node | None = None) -> Iterator[Node]:
    """``node`` and its parents, up to the root, or to the one just below ``below``."""
    step: Node | None = node
    while step is not None and step is not below:
        yield step
        step = step.parent


def _descend(node: Node, tokens: IntArray) -> tuple[Node, int, int]:
    """Follow ``tokens`` down from ``node``.

    Returns (last node reached, tokens matched, tokens matched inside that node if it was not matched to its end, or 0).
    """
    done = 0
    while done < len(tokens):
        child = node.children.get(tokens.item(done))
        if child is None:
            break
        length = min(len(child.tokens), len(tokens) - done)
        differs = child.tokens[:length] != tokens[done : done + length]
        first = int(differs.argmax())
        common = first if differs[first] else length
        done += common
        if common < len(child.tokens):
            return child, done, common
        node = child
    return node, done, 0


def _head(array: IntArray, keep: int) -> IntArray:
    """The first ``keep`` elements: a view while that wastes at most half of the memory, a copy otherwise."""
    owner = array if array.base is None else array.base
    return array[:keep].copy() if 2 * keep < len(owner) else array[:keep]


def _probe(key: EvictionKey) -> None:
    sample = Node(None, NO_SLOTS, NO_SLOTS, 0)
    try:
        key(sample) < key(sample)  # noqa: B015  (whether they compare is the question)
    except Exception as fault:
        raise PluginError(f"the eviction key {key!r} cannot order nodes: {fault}") from fault


def _is_unlocked_leaf(node: Node) -> bool:
    return node.parent is not None and not node.locks and not node.children


def _check_node(node: Node) -> None:
    is_root = isinstance(node, Root)
    _require(is_root == (node.parent is None), "a node without parent, or a root with one")
    _require(is_root == (not len(node.tokens)), "a node without tokens, or a root with some")
    _require(not is_root or bool(node.children or node.locks), "an empty namespace was kept")
    _require(len(node.tokens) == len(node.slots), "a node has not as many slots as tokens")
    _require(sum(child.locks for child in node.children.values()) <= node.locks, "a lock is missing on a parent")
    for first, child in node.children.items():
        _require(child.parent is node and child.tokens[0] == first, "a child is filed under another parent or token")


def _require(good: bool, fault: str) -> None:
    if not good:
        raise IntegrityError(f"the radix tree is broken: {fault}")

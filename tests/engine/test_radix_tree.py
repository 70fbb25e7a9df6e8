from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from radixbackend.engine.radix_tree import EvictionKey, Node, RadixTree, fifo, lfu, lru
from radixbackend.errors import IntegrityError, PluginError


def array(items: Iterable[int]) -> np.ndarray:
    return np.fromiter(items, dtype=np.int32)


def text(tokens: str) -> np.ndarray:
    return array(map(ord, tokens))


class Writer:
    """Puts whole texts into a tree under fresh slots, like a sequence that computes and leaves."""

    def __init__(self, tree: RadixTree) -> None:
        self.tree = tree
        self.next_slot = 0

    def hold(self, tokens: str, namespace: str | None = None) -> Node:
        node, slots = self.tree.lock(text(tokens), namespace)
        rest = text(tokens)[len(slots) :]
        fresh = array(range(self.next_slot, self.next_slot + len(rest)))
        self.next_slot += len(rest)
        return self.tree.insert(node, rest, fresh).node

    def write(self, *texts: str, namespace: str | None = None) -> None:
        for tokens in texts:
            self.tree.unlock(self.hold(tokens, namespace))


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree()


@pytest.fixture
def writer(tree: RadixTree) -> Writer:
    return Writer(tree)


def shown(tree: RadixTree) -> list[tuple[int, str]]:
    """(depth, text) of every node, by text within a level."""
    return sorted((node.depth, "".join(map(chr, node.tokens))) for node in tree.dump())


def slots_of(tree: RadixTree, tokens: str, namespace: str | None = None) -> list[int]:
    node, slots = tree.lock(text(tokens), namespace)
    tree.unlock(node)
    return slots.tolist()


def cached(tree: RadixTree, *texts: str) -> list[int]:
    return [tree.match(text(tokens), None) for tokens in texts]


def test_the_longest_prefix_is_found_with_its_slots(tree: RadixTree, writer: Writer) -> None:
    writer.write("abcdef", "abcxyz")
    assert cached(tree, "abcdef", "abcdzz", "abcxyz!", "ab", "b", "") == [6, 4, 6, 2, 0, 0]
    assert slots_of(tree, "abcxyz") == [0, 1, 2, 6, 7, 8]
    assert slots_of(tree, "abcdefgh") == [0, 1, 2, 3, 4, 5]
    tree.check()


def test_matching_leaves_no_trace_and_locking_splits(tree: RadixTree, writer: Writer) -> None:
    writer.write("abcdef")
    assert tree.match(text("abcx"), None) == 3
    assert shown(tree) == [(1, "abcdef")]
    node, slots = tree.lock(text("abcx"), None)
    assert slots.tolist() == [0, 1, 2]
    assert shown(tree) == [(1, "abc"), (2, "def")]
    assert (tree.num_nodes, tree.num_locked, tree.num_evictable) == (2, 3, 3)
    tree.unlock(node)
    assert (tree.num_locked, tree.num_evictable) == (0, 6)
    tree.check()


def test_a_split_keeps_the_locks_of_those_below(tree: RadixTree, writer: Writer) -> None:
    below = writer.hold("abcdef")
    above = tree.lock(text("abc"), None).node
    assert [node.locks for node in tree.dump()] == [2, 1]
    assert len(tree.evict(100)) == 0
    tree.unlock(above)
    assert [node.locks for node in tree.dump()] == [1, 1]
    tree.unlock(below)
    assert [node.locks for node in tree.dump()] == [0, 0]
    tree.check()
    with pytest.raises(IntegrityError, match="not locked"):
        tree.unlock(below)
    tree.check()


def test_locks_count_on_the_whole_path(tree: RadixTree, writer: Writer) -> None:
    writer.write("abc", "abx")
    deep = writer.hold("abcdef")
    assert {(n.tokens.size, n.locks) for n in tree.dump()} == {(2, 1), (4, 1), (1, 0)}
    assert sorted(tree.evict(100).tolist()) == [3]
    tree.unlock(deep)
    assert sorted(tree.evict(100).tolist()) == [0, 1, 2, 4, 5, 6]
    assert tree.num_nodes == 0
    tree.check()


def test_insert_reports_what_was_there_before(tree: RadixTree) -> None:
    first, second = tree.lock(text(""), None).node, tree.lock(text(""), None).node
    first, known = tree.insert(first, text("abcd"), array([0, 1, 2, 3]))
    assert known.tolist() == []
    second, known = tree.insert(second, text("abxy"), array([10, 11, 12, 13]))
    assert known.tolist() == [0, 1]
    assert slots_of(tree, "abxy") == [0, 1, 12, 13]
    third, known = tree.insert(tree.lock(text(""), None).node, text("abcd"), array([20, 21, 22, 23]))
    assert known.tolist() == [0, 1, 2, 3]
    assert third is first
    tree.check()
    for node in (first, second, third):
        tree.unlock(node)
    assert (tree.num_locked, tree.num_evictable) == (0, 6)
    tree.check()


def test_a_sequence_that_grows_alone_stays_one_node(tree: RadixTree) -> None:
    node = tree.lock(text(""), None).node
    for position, token in enumerate("abcdef"):
        node = tree.insert(node, text(token), array([position])).node
    assert shown(tree) == [(1, "abcdef")]
    tree.unlock(node)
    node = tree.insert(tree.lock(text("abcdef"), None).node, text("gh"), array([6, 7])).node
    assert shown(tree) == [(1, "abcdefgh")]
    assert slots_of(tree, "abcdefgh") == list(range(8))
    tree.check()


def test_a_node_that_others_hold_is_not_extended(tree: RadixTree, writer: Writer) -> None:
    other = writer.hold("abc")
    mine = writer.hold("abcde")
    assert shown(tree) == [(1, "abc"), (2, "de")]
    tree.unlock(other)
    assert len(tree.evict(9)) == 0
    tree.unlock(mine)
    tree.check()


def test_a_leaf_loses_its_tail_and_keeps_its_prefix(tree: RadixTree, writer: Writer) -> None:
    writer.write("abcdefgh")
    assert tree.evict(3).tolist() == [5, 6, 7]
    assert cached(tree, "abcdefgh") == [5]
    assert tree.evict(3).tolist() == [2, 3, 4]
    assert (tree.num_nodes, tree.num_evictable) == (1, 2)
    tree.check()
    assert sorted(tree.evict(3).tolist()) == [0, 1]
    assert (tree.num_nodes, tree.num_evictable) == (0, 0)
    tree.check()


def test_a_long_leaf_that_shrinks_gives_its_memory_back(tree: RadixTree) -> None:
    node = tree.insert(tree.lock(array([]), None).node, array(range(1000)), array(range(1000))).node
    tree.unlock(node)
    for _ in range(990):
        tree.evict(1)
    assert node.num_tokens == 10
    for kept in (node.tokens, node.slots):
        assert (kept.base if kept.base is not None else kept).nbytes <= 4 * 20


def test_eviction_goes_up_to_parents_that_become_leaves(tree: RadixTree, writer: Writer) -> None:
    writer.write("abcd", "abxy", "q")
    assert sorted(tree.evict(4).tolist()) == [2, 3, 4, 5]
    assert shown(tree) == [(1, "ab"), (1, "q")]
    assert tree.evict(2).tolist() == [0, 1]
    assert shown(tree) == [(1, "q")]
    tree.check()


def use(tree: RadixTree, tokens: str, times: int = 1) -> None:
    for _ in range(times):
        tree.unlock(tree.lock(text(tokens), None).node)


@pytest.mark.parametrize(("key", "order"), [(lru, "dbca"), (lfu, "dcba"), (fifo, "abcd")])
def test_eviction_order(key: EvictionKey, order: str) -> None:
    tree = RadixTree(key)
    Writer(tree).write("aa", "bb", "cc", "dd")
    for tokens, times in (("bb", 2), ("cc", 1), ("aa", 3)):
        use(tree, tokens, times)
    assert tree.evict(8)[::2].tolist() == [2 * "abcd".index(letter) for letter in order]


def test_a_split_keeps_age_and_hits_of_both_parts() -> None:
    tree = RadixTree(fifo)
    Writer(tree).write("abcd", "q")
    use(tree, "abcd", 2)
    use(tree, "ab")
    assert [(node.tokens.size, node.hits) for node in tree.dump() if node.tokens[0] != ord("q")] == [(2, 3), (2, 2)]
    tree.evict(4)
    assert shown(tree) == [(1, "q")]


def test_a_long_held_prefix_was_just_used_when_it_is_released(tree: RadixTree, writer: Writer) -> None:
    held = writer.hold("old")
    writer.write("new")
    tree.unlock(held)
    tree.evict(3)
    assert shown(tree) == [(1, "old")]


def test_namespaces_share_nothing_and_vanish_when_empty(tree: RadixTree, writer: Writer) -> None:
    writer.write("abc", namespace="x")
    writer.write("abc", namespace="")
    assert tree.match(text("abc"), None) == 0
    assert slots_of(tree, "abc", "x") == [0, 1, 2]
    assert slots_of(tree, "abc", "") == [3, 4, 5]
    assert [node.namespace for node in tree.dump()] == ["x", ""]
    tree.evict(6)
    assert list(tree.nodes()) == []
    tree.unlock(tree.lock(text("nothing"), "y").node)
    assert list(tree.nodes()) == []
    tree.check()


def test_dump_shows_the_tree(tree: RadixTree, writer: Writer) -> None:
    writer.write("abcd", "abxy")
    use(tree, "abcd")
    held = tree.lock(text("abxy"), None).node
    top, *leaves = sorted(tree.dump(), key=lambda node: (node.depth, node.tokens.tolist()))
    assert (top.depth, top.tokens.tolist(), top.slots.tolist(), top.children) == (1, [97, 98], [0, 1], 2)
    assert (top.hits, top.locks) == (3, 1)
    assert [(leaf.depth, leaf.children, leaf.hits, leaf.locks) for leaf in leaves] == [(2, 0, 1, 0), (2, 0, 1, 1)]
    top.tokens[0] = 0  # a copy
    tree.unlock(held)
    assert cached(tree, "ab") == [2]


def test_the_eviction_heap_stays_bounded(tree: RadixTree, writer: Writer) -> None:
    writer.write(*"abcdefgh")
    for _ in range(500):
        for letter in "abcdefgh":
            use(tree, letter)
    assert len(tree._heap) <= 2 * 8 + 64
    tree.check()
    assert len(tree.evict(8)) == 8


def test_a_wide_tree_is_evicted_in_order_of_use() -> None:
    tree, rng = RadixTree(), np.random.default_rng(0)
    for first in range(300):
        node = tree.insert(tree.lock(array([]), None).node, array([first, 0]), array([2 * first, 2 * first + 1])).node
        tree.unlock(node)
    order = rng.permutation(300)
    for first in order:
        tree.unlock(tree.lock(array([first, 0]), None).node)
    assert (tree.evict(600)[::2] // 2).tolist() == order.tolist()


@pytest.mark.parametrize("key", [lambda node: node.colour, lambda node: object(), lambda node: 1 / 0])
def test_an_eviction_key_that_cannot_order_is_refused_at_construction(key: Callable[[object], object]) -> None:
    with pytest.raises(PluginError, match="eviction key"):
        RadixTree(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree, node: setattr(tree, "num_evictable", 5), "counters"),
        (lambda tree, node: setattr(node, "tokens", node.tokens[:-1]), "slots as tokens"),
        (lambda tree, node: setattr(node, "locks", 2), "missing on a parent"),
        (lambda tree, node: setattr(node, "ticket", 0), "eviction order"),
        (lambda tree, node: tree._heap.clear(), "entry is lost"),
        (lambda tree, node: setattr(node, "tokens", node.tokens + 1), "filed under"),
    ],
)
def test_check_notices(
    tree: RadixTree, writer: Writer, damage: Callable[[RadixTree, Node], None], message: str
) -> None:
    writer.write("abc")
    leaf = next(node for node in tree.nodes() if node.parent is not None)
    tree.check()
    damage(tree, leaf)
    with pytest.raises(IntegrityError, match=message):
        tree.check()

"""Deterministic automata over whole-match trees: what two patterns share, and one without the other.

Rules. Everything is bounded, in states and in the size of the tree that is read back; past a bound the answer is
None. Construction by subsets of Thompson's automaton, products for the set operations, partition refinement before
states are eliminated one by one to get a tree again (Hopcroft, Motwani, Ullman: Introduction to Automata Theory,
chapters 2 to 4).

Must not know: how patterns are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from radixbackend.structured.pattern import (
    EMPTY,
    LAST,
    Chars,
    Either,
    Group,
    Node,
    Ranges,
    Repeat,
    Sequence,
    complement,
    union,
)

_MAX_NFA = 2_000
_MAX_STATES = 128
_MAX_WORK = 30_000
_MAX_TREE = 500


class _TooLargeError(Exception):
    """A bound of this module was met."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """``edges[state]`` are disjoint ranges with the state they lead to; state 0 starts; a missing edge rejects."""

    edges: tuple[tuple[tuple[Ranges, int], ...], ...]
    accepting: frozenset[int]

    @property
    def is_empty(self) -> bool:
        return not self.accepting

    def without(self, other: Automaton) -> Automaton | None:
        """The texts of this one that are not of ``other``."""
        return _bounded(lambda: _product(self, other, lambda mine, theirs: mine and not theirs))

    def and_also(self, other: Automaton) -> Automaton | None:
        """The texts of both."""
        return _bounded(lambda: _product(self, other, lambda mine, theirs: mine and theirs))

    def tree(self) -> Node | None:
        """A tree that matches the same texts, if it is not too large; meaningless where there are none."""
        return _bounded(lambda: _eliminate(self))


EVERY_TEXT = Automaton((((((0, LAST),), 0),),), frozenset((0,)))


def build(tree: Node) -> Automaton | None:
    """The automaton of a whole-match tree; None where it is too large or compares Unicode properties."""
    return _bounded(lambda: _determinize(tree))


_Result = TypeVar("_Result")


def _bounded(compute: Callable[[], _Result]) -> _Result | None:
    try:
        return compute()
    except (_TooLargeError, RecursionError):
        return None


class _Thompson:
    """Thompson's automaton: ``silent[state]`` without reading, ``edges[state]`` on a character of the ranges."""

    def __init__(self) -> None:
        self.silent: list[list[int]] = []
        self.edges: list[list[tuple[Ranges, int]]] = []

    def _state(self) -> int:
        if len(self.silent) > _MAX_NFA:
            raise _TooLargeError
        self.silent.append([])
        self.edges.append([])
        return len(self.silent) - 1

    def add(self, node: Node) -> tuple[int, int]:
        """Add ``node``; returns its first and last state."""
        first, last = self._state(), self._state()
        match node:
            case Chars(ranges, properties, _) if not properties:
                self.edges[first].append((ranges, last))
            case Sequence(items):
                self.silent[self._chain(first, items)].append(last)
            case Either(options):
                for option in options:
                    self.silent[self._chain(first, (option,))].append(last)
            case Repeat(item, low, None, _):
                at = self._chain(first, [item] * low)
                start, end = self.add(item)
                self.silent[at].extend((start, last))
                self.silent[end].extend((start, last))
            case Repeat(item, low, high, _):
                at = self._chain(first, [item] * low)
                for _ in range((high or 0) - low):
                    self.silent[at].append(last)
                    at = self._chain(at, (item,))
                self.silent[at].append(last)
            case Group(item=item):
                self.silent[self._chain(first, (item,))].append(last)
            case _:
                raise _TooLargeError
        return first, last

    def _chain(self, at: int, items: Iterable[Node]) -> int:
        for item in items:
            start, end = self.add(item)
            self.silent[at].append(start)
            at = end
        return at

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        reached = set(states)
        todo = list(reached)
        while todo:
            for state in self.silent[todo.pop()]:
                if state not in reached:
                    reached.add(state)
                    todo.append(state)
        return frozenset(reached)


def _determinize(tree: Node) -> Automaton:
    thompson = _Thompson()
    first, last = thompson.add(tree)
    numbers = {thompson.closure((first,)): 0}
    edges: list[tuple[tuple[Ranges, int], ...]] = []
    work = 0
    for states in (pending := list(numbers)):  # grows while it is walked
        leaving = [edge for state in states for edge in thompson.edges[state]]
        targets: dict[frozenset[int], list[tuple[int, int]]] = {}
        for low, high, reached in _cells(leaving):
            target = thompson.closure(reached)
            targets.setdefault(target, []).append((low, high))
            work += len(states) + len(target)
        for target in targets:
            if target not in numbers:
                numbers[target] = len(numbers)
                pending.append(target)
        if len(numbers) > _MAX_STATES or work > _MAX_WORK:
            raise _TooLargeError
        edges.append(tuple((union(tuple(cells)), numbers[target]) for target, cells in targets.items()))
    accepting = frozenset(number for states, number in numbers.items() if last in states)
    return _minimize(_trim(edges, accepting))


def _cells(leaving: list[tuple[Ranges, int]]) -> Iterable[tuple[int, int, set[int]]]:
    """The largest intervals whose characters all lead to the same states."""
    cuts = sorted({cut for ranges, _ in leaving for low, high in ranges for cut in (low, high + 1)})
    if len(cuts) * len(leaving) > _MAX_WORK:
        raise _TooLargeError
    for low, beyond in pairwise(cuts):
        reached = {target for ranges, target in leaving if any(a <= low <= b for a, b in ranges)}
        if reached:
            yield low, beyond - 1, reached


def _product(first: Automaton, second: Automaton, keep: Callable[[bool, bool], bool]) -> Automaton:
    """Pairs of states; the second is None once its automaton has rejected."""
    numbers: dict[tuple[int, int | None], int] = {(0, 0): 0}
    edges: list[tuple[tuple[Ranges, int], ...]] = []
    for one, other in (pending := list(numbers)):  # grows while it is walked
        theirs = () if other is None else second.edges[other]
        out: list[tuple[Ranges, tuple[int, int | None]]] = []
        for ranges, target in first.edges[one]:
            rest = ranges
            for other_ranges, other_target in theirs:
                if shared := _intersect(ranges, other_ranges):
                    out.append((shared, (target, other_target)))
                    rest = _subtract(rest, other_ranges)
            if rest:
                out.append((rest, (target, None)))
        for _, pair in out:
            if pair not in numbers:
                numbers[pair] = len(numbers)
                pending.append(pair)
        if len(numbers) > _MAX_STATES:
            raise _TooLargeError
        edges.append(tuple((ranges, numbers[pair]) for ranges, pair in out))
    accepting = frozenset(
        number
        for (one, other), number in numbers.items()
        if keep(one in first.accepting, other is not None and other in second.accepting)
    )
    return _minimize(_trim(edges, accepting))


def _intersect(first: Ranges, second: Ranges) -> Ranges:
    return tuple((max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) <= min(b, d))


def _subtract(first: Ranges, second: Ranges) -> Ranges:
    return _intersect(first, complement(second))


def _trim(edges: list[tuple[tuple[Ranges, int], ...]], accepting: frozenset[int]) -> Automaton:
    """Without the states that lead nowhere."""
    live = set(accepting)
    grown = True
    while grown:
        found = {s for s, out in enumerate(edges) if s not in live and any(target in live for _, target in out)}
        live |= found
        grown = bool(found)
    if 0 not in live:
        return Automaton(((),), frozenset())
    numbers = {state: number for number, state in enumerate(sorted(live))}
    kept = tuple(
        tuple((ranges, numbers[target]) for ranges, target in edges[state] if target in live) for state in sorted(live)
    )
    return Automaton(kept, frozenset(numbers[state] for state in accepting))


def _minimize(automaton: Automaton) -> Automaton:
    """Moore's refinement: states with the same future become one."""
    count = len(automaton.edges)
    block = [int(state in automaton.accepting) for state in range(count)]
    while True:
        signatures: dict[Any, int] = {}
        refined = []
        for state in range(count):
            by_block: dict[int, list[Ranges]] = {}
            for ranges, target in automaton.edges[state]:
                by_block.setdefault(block[target], []).append(ranges)
            future = frozenset((target, union(*parts)) for target, parts in by_block.items())
            refined.append(signatures.setdefault((block[state], future), len(signatures)))
        if len(signatures) == len(set(block)):
            break
        block = refined
    edges: dict[int, tuple[tuple[Ranges, int], ...]] = {}
    for state in range(count):  # numbered in order of first appearance, so the start stays 0
        if refined[state] not in edges:
            by_target: dict[int, list[Ranges]] = {}
            for ranges, target in automaton.edges[state]:
                by_target.setdefault(refined[target], []).append(ranges)
            edges[refined[state]] = tuple((union(*parts), target) for target, parts in by_target.items())
    accepting = frozenset(refined[state] for state in automaton.accepting)
    return Automaton(tuple(edges[number] for number in range(len(edges))), accepting)


def _eliminate(automaton: Automaton) -> Node:
    """State elimination, cheapest state first."""
    count = len(automaton.edges)
    start, end = count, count + 1
    paths: dict[int, dict[int, Node]] = {state: {} for state in range(count + 2)}
    for state, edges in enumerate(automaton.edges):
        for ranges, target in edges:
            _widen(paths[state], target, Chars(ranges))
    paths[start][0] = EMPTY
    for state in automaton.accepting:
        paths[state][end] = EMPTY
    remaining = set(range(count))
    while remaining:
        state = min(remaining, key=lambda s: (_cost(paths, s), s))
        remaining.discard(state)
        through = paths.pop(state)
        loop = through.pop(state, None)
        for out in paths.values():
            if (before := out.pop(state, None)) is not None:
                for target, after in through.items():
                    middle = [] if loop is None else [Repeat(loop, 0, None)]
                    _widen(out, target, _joined([before, *middle, after]))
        if sum(_size(node) for out in paths.values() for node in out.values()) > _MAX_TREE:
            raise _TooLargeError
    return paths[start][end]


def _cost(paths: dict[int, dict[int, Node]], state: int) -> int:
    entering = sum(_size(out[state]) for source, out in paths.items() if source != state and state in out)
    leaving = sum(_size(node) for target, node in paths[state].items() if target != state)
    entries = sum(state in out for source, out in paths.items() if source != state)
    return entering * len(paths[state]) + leaving * entries


def _widen(out: dict[int, Node], target: int, node: Node) -> None:
    known = out.get(target)
    if known is None:
        out[target] = node
    elif isinstance(known, Chars) and isinstance(node, Chars):
        out[target] = Chars(union(known.ranges, node.ranges))
    else:
        options = known.options if isinstance(known, Either) else (known,)
        out[target] = Either((*options, *(node.options if isinstance(node, Either) else (node,))))


def _joined(nodes: list[Node]) -> Node:
    items = [item for node in nodes for item in (node.items if isinstance(node, Sequence) else (node,))]
    return items[0] if len(items) == 1 else Sequence(tuple(items))


def _size(node: Node) -> int:
    match node:
        case Chars(ranges, _, _):
            return 1 + len(ranges)
        case Sequence(parts) | Either(parts):
            return 1 + sum(map(_size, parts))
        case Repeat(item=item):
            return 1 + _size(item)
        case _:
            return 1

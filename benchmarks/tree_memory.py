"""What the radix tree costs: bytes per cached token, and microseconds per operation as it grows.

    python benchmarks/tree_memory.py [--nodes 1000 10000 50000 200000]

Memory is what tracemalloc counts for the tree alone (no K/V). Times are medians over 1,000 operations, with the
garbage collector off, on runs of 20 tokens below 100 shared prefixes of 100.
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

from radixbackend.engine.plan import IntArray
from radixbackend.engine.radix_tree import RadixTree

OPERATIONS = 1000
VOCABULARY = 50_000


def store(tree: RadixTree, tokens: IntArray) -> None:
    """What a sequence does: lock what is cached, insert the rest, leave."""
    node, slots = tree.lock(tokens[:-1], None)
    rest = tokens[len(slots) :]
    tree.unlock(tree.insert(node, rest, rest).node)  # any int will do for a slot


def followed(tokens: IntArray, rng: np.random.Generator, count: int) -> IntArray:
    """With ``count`` random tokens behind it."""
    return np.concatenate((tokens, rng.integers(VOCABULARY, size=count, dtype=np.int32)))


def few_shot(rng: np.random.Generator) -> Iterator[IntArray]:
    """5,000 questions with their answers behind one prompt of 800 tokens."""
    prompt = rng.integers(VOCABULARY, size=800, dtype=np.int32)
    for _ in range(5000):
        yield followed(prompt, rng, int(rng.integers(60, 140)))


def conversations(rng: np.random.Generator) -> Iterator[IntArray]:
    """500 conversations of ten turns behind one prompt of 200 tokens, all of them talking in turn."""
    prompt = rng.integers(VOCABULARY, size=200, dtype=np.int32)
    talks = [prompt] * 500
    for _ in range(10):
        for i, talk in enumerate(talks):
            talks[i] = followed(talk, rng, int(rng.integers(50, 250)))
            yield talks[i]


def report_memory(name: str, load: Callable[[np.random.Generator], Iterator[IntArray]]) -> None:
    texts = list(load(np.random.default_rng(0)))
    tracemalloc.start()
    tree = RadixTree()
    for tokens in texts:
        store(tree, tokens)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    count, nodes = tree.num_evictable, tree.num_nodes
    print(f"{name:14} {count:9,} {nodes:9,} {count / nodes:12.1f} {size / count:12.1f} {size / nodes:12.0f}")


def timed(operation: Callable[[IntArray], object], texts: list[IntArray]) -> float:
    """Median µs."""
    times = []
    for tokens in texts:
        start = time.perf_counter_ns()
        operation(tokens)
        times.append(time.perf_counter_ns() - start)
    return median(times) / 1000


def report_times(sizes: list[int]) -> None:
    rng, tree = np.random.default_rng(1), RadixTree()
    prefixes = rng.integers(VOCABULARY, size=(100, 100), dtype=np.int32)

    def fresh(count: int) -> list[IntArray]:
        return [followed(prefixes[i % len(prefixes)], rng, 20) for i in range(count)]

    for size in sizes:
        known = fresh(max(OPERATIONS, size - tree.num_nodes))
        for tokens in known:
            store(tree, tokens)
        nodes = tree.num_nodes
        match = timed(lambda tokens: tree.match(tokens, None), known[-OPERATIONS:])
        insert = timed(lambda tokens: store(tree, tokens), fresh(OPERATIONS))
        evict = timed(lambda tokens: tree.evict(20), [prefixes[0]] * OPERATIONS)
        print(f"{nodes:9,} {match:12.2f} {insert:12.2f} {evict:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10_000, 50_000, 200_000], help="tree sizes")
    nodes = parser.parse_args().nodes
    print(f"{'load':14} {'tokens':>9} {'nodes':>9} {'tokens/node':>12} {'bytes/token':>12} {'bytes/node':>12}")
    report_memory("few-shot", few_shot)
    report_memory("conversations", conversations)
    gc.collect()
    gc.disable()
    print(f"\n{'nodes':>9} {'match µs':>12} {'insert µs':>12} {'evict µs':>12}")
    report_times(nodes)


if __name__ == "__main__":
    main()

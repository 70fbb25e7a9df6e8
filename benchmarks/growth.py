"""How the cost of a step grows: with waiting requests, with nodes of the tree, with the context.

    python -m benchmarks.growth [--only waiting nodes context] [--plot growth.svg]

``waiting`` and ``nodes`` run the scheduler, the prefix cache and the radix tree over a model that costs nothing, and
without torch: 16 running sequences with short answers, so that some request ends and another begins in nearly every
step, behind a queue of so many, or over a full pool whose tree has so many nodes, in which every prompt finds a prefix
and room is made by evicting. ``context`` decodes one sequence of that length with a tiny random Llama in torch; its
overhead (schedule and commit) and its model are curves of their own. Tokens per second are those of the curve's own
cost alone.

How growth is judged: by the exponent, the slope of a line through the logarithms of cost over size, fitted by least
squares to the larger half of the sizes, where what a step costs anyway hides least. 0 means that size costs nothing, 1
that cost is in proportion to it. A step must not grow with what it does not compute, so all but the model must stay
under 0.25, which leaves room for logarithms and for the processor's caches; attention reads every token of its context,
so the model must stay under 1.1. The exit code is 1 where a curve does not. Everything is kept as JSON in
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import record
from radixbackend.builtin_plugin import radix_rank_waiting
from radixbackend.engine.plan import ExecutorTraits, IntArray, Sampled, StepPlan, StepResult
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import Request
from radixbackend.engine.scheduler import Limits, Scheduler
from radixbackend.types import RequestId, SamplingParams, StepRecord

WAITING = (1, 8, 64, 256, 512, 1024, 2048, 5000)
NODES = (1, 100, 1000, 10_000, 50_000, 100_000, 200_000)
CONTEXTS = (1024, 2048, 4096, 8192, 16_384)
FLAT, LINEAR = 0.25, 1.1
VOCABULARY = 50_000
RUNNING, ANSWER = 16, 8
RUN = 20
"""Tokens of a node."""


@dataclass(frozen=True)
class Point:
    """What a step costs at one size."""

    size: int
    microseconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Curve:
    """Cost over size, and the exponent it must stay under."""

    name: str
    size: str
    points: tuple[Point, ...]
    most: float

    @property
    def exponent(self) -> float:
        return exponent([p.size for p in self.points], [p.microseconds for p in self.points])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope on log-log axes over the larger half of the sizes."""
    upper = slice(len(sizes) // 2 if len(sizes) > 3 else 0, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(costs[upper]), 1)[0])


# -- the scheduler, without a model ----------------------------------------------------------------------------------


class Driver:
    """A scheduler over a model that costs nothing, stepped by hand; whoever ends is followed by another."""

    def __init__(self, cache: PrefixCache, prompts: Iterator[IntArray], waiting: int) -> None:
        self._scheduler = Scheduler(
            cache,
            Limits(running=RUNNING, step_tokens=256),
            traits=ExecutorTraits(),
            end_tokens=(),
            rank=radix_rank_waiting,
            on_leave=lambda sequence_id: None,
        )
        self._ids = itertools.count()
        self._prompts = prompts
        self._scheduler.add([self._request() for _ in range(RUNNING + waiting)])

    def run(self, steps: int) -> tuple[float, float]:
        """Microseconds per step, to let requests begin, to schedule and to commit, and tokens per second (means)."""
        spent = tokens = 0
        coming: list[Request] = []
        for _ in range(steps):
            started = time.perf_counter_ns()
            self._scheduler.add(coming)
            plan, _ = self._scheduler.schedule()
            scheduled = time.perf_counter_ns()
            assert plan is not None, "there is always something to run"
            result = _execute(plan)
            executed = time.perf_counter_ns()
            updates = self._scheduler.commit(plan, result)
            spent += scheduled - started + time.perf_counter_ns() - executed
            tokens += sum(len(sampled.tokens) for sampled in result.sampled)
            coming = [self._request() for update in updates if update.last]
        return spent / steps / 1000, tokens / (spent / 1e9)

    def _request(self) -> Request:
        prompt = next(self._prompts)
        params = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
        # Answers of different lengths, or all would end in the same step.
        longest, number = len(prompt) + ANSWER // 2 + len(prompt) % ANSWER, next(self._ids)
        return Request(RequestId(number), prompt, params, longest, (0,), sink=lambda update: None)


def _execute(plan: StepPlan) -> StepResult:
    """Tokens that nobody's prompt contains."""
    return StepResult(
        tuple(Sampled((VOCABULARY + s.context,)) if s.sample is not None else Sampled() for s in plan.sequences)
    )


def _tokens(rng: np.random.Generator, count: int) -> IntArray:
    return rng.integers(VOCABULARY, size=count, dtype=np.int32)


def waiting_curve(sizes: Sequence[int] = WAITING, steps: int = 600) -> Curve:
    """Prompts of about 64 tokens that begin with the same 32."""
    points = []
    for size in sizes:
        rng = np.random.default_rng(0)
        shared = _tokens(rng, 32)
        prompts = (np.concatenate((shared, _tokens(rng, 24 + i % 16))) for i in itertools.count())
        driver = Driver(PrefixCache(16_384), prompts, size)
        driver.run(steps // 4)
        points.append(Point(size, *driver.run(steps)))
    return Curve("step overhead", "waiting requests", tuple(points), FLAT)


def nodes_curve(sizes: Sequence[int] = NODES, steps: int = 600) -> Curve:
    """A tree of so many runs below 100 shared prefixes; every prompt continues one of the runs."""
    points = []
    for size in sizes:
        rng = np.random.default_rng(0)
        prefixes = [_tokens(rng, 5 * RUN) for _ in range(min(100, size))]
        runs = [np.concatenate((prefixes[i % len(prefixes)], _tokens(rng, RUN))) for i in range(size)]
        room = RUNNING * (6 * RUN + 2 * ANSWER + 16)
        cache = PrefixCache(size * RUN + len(prefixes) * 5 * RUN + room)
        for run in runs:
            _store(cache, run)
        picks = rng.integers(size, size=1 << 20)
        prompts = (np.concatenate((runs[picks[i % len(picks)]], _tokens(rng, 8 + i % 16))) for i in itertools.count())
        driver = Driver(cache, prompts, RUNNING)
        driver.run(steps // 4)
        # What is evicted at once is a share of the pool: enough steps for the stalls to count as often as they come.
        fresh_per_step = RUNNING // ANSWER * RUN
        points.append(Point(size, *driver.run(max(steps, 2 * cache.capacity // 64 // fresh_per_step))))
    return Curve("step overhead", "nodes of the tree", tuple(points), FLAT)


def _store(cache: PrefixCache, tokens: IntArray) -> None:
    lease = cache.acquire(tokens)
    cache.grow(lease, len(tokens))
    cache.publish(lease, tokens)
    cache.release(lease)


# -- the engine, with a tiny model -----------------------------------------------------------------------------------


def context_curves(sizes: Sequence[int] = CONTEXTS, decodes: int = 64) -> tuple[Curve, Curve]:
    """Median decode step: what surrounds the model, and the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from radixbackend import Engine, hookimpl
    from radixbackend.engine.model_loader import LoadedModel

    class Watch:
        """The tiny model, and the steps that decoded."""

        def __init__(self) -> None:
            self.steps: list[StepRecord] = []

        @hookimpl
        def radix_load_model(self) -> LoadedModel:
            torch.manual_seed(0)
            return LoadedModel.of(
                LlamaForCausalLM(
                    LlamaConfig(
                        vocab_size=512,
                        hidden_size=128,
                        intermediate_size=256,
                        num_hidden_layers=2,
                        num_attention_heads=8,
                        num_key_value_heads=4,
                        max_position_embeddings=max(sizes) + decodes,
                    )
                )
            )

        @hookimpl
        def radix_step_finished(self, record: StepRecord) -> None:
            if record.decode_tokens and not record.prefill_tokens:
                self.steps.append(record)

    overhead, model = [], []
    watch = Watch()
    sampling = SamplingParams(max_tokens=decodes, temperature=0, ignore_eos=True)
    pool = max(sizes) + decodes + 64
    with Engine("tiny", plugins=[watch], self_check=False, kv_cache_tokens=pool) as engine:
        for size in sizes:
            engine.flush_cache()
            prompt = np.random.default_rng(size).integers(1, 512, size - decodes // 2).tolist()
            watch.steps.clear()
            engine.generate(prompt, sampling)
            around = median(step.schedule_seconds + step.commit_seconds for step in watch.steps)
            within = median(step.execute_seconds for step in watch.steps)
            overhead.append(Point(size, around * 1e6, 1 / around))
            model.append(Point(size, within * 1e6, 1 / within))
    return (
        Curve("step overhead", "tokens of context", tuple(overhead), FLAT),
        Curve("model", "tokens of context", tuple(model), LINEAR),
    )


# -- what came out ---------------------------------------------------------------------------------------------------

CURVES: dict[str, Callable[[], tuple[Curve, ...]]] = {
    "waiting": lambda: (waiting_curve(),),
    "nodes": lambda: (nodes_curve(),),
    "context": context_curves,
}


def table(curves: Sequence[Curve]) -> Table:
    drawn = Table(title="what a step costs as things grow")
    for column in ("of", "against", "size", "µs per step", "tok/s", "exponent", "must be under"):
        drawn.add_column(column, justify="left" if column in ("of", "against") else "right")
    for curve in curves:
        for point in curve.points:
            cells = (f"{point.size:,}", f"{point.microseconds:,.0f}", f"{point.tokens_per_second:,.0f}")
            last = point is curve.points[-1]
            verdict = (f"{curve.exponent:.2f}", f"{curve.most:g}") if last else ()
            drawn.add_row(curve.name, curve.size, *cells, *verdict, end_section=last)
    return drawn


def plot(curves: Sequence[Curve], file: Path) -> None:
    """Cost over size on log-log axes, a panel for each kind of size; needs the extra ``bench``."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(curve.size for curve in curves))
    figure, panels = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3), layout="constrained", squeeze=False)
    for axes, kind in zip(panels.flat, kinds, strict=True):
        for curve in curves:
            if curve.size == kind:
                sizes, costs = [p.size for p in curve.points], [p.microseconds for p in curve.points]
                axes.loglog(
                    sizes, costs, marker="o", markersize=3, label=f"{curve.name}, exponent {curve.exponent:.2f}"
                )
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 10), max(high, 1000))  # or noise would look like growth
        axes.set(xlabel=kind, ylabel="µs per step")
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--plot", type=Path, help="where to draw the curves: a file like growth.svg")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="where the JSON file goes")
    asked = parser.parse_args(arguments)
    curves = [curve for name in asked.only for curve in CURVES[name]()]
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table(curves))
    kept: dict[str, Any] = {"curves": [{**asdict(curve), "exponent": curve.exponent} for curve in curves]}
    console.print(f"kept in {record.keep('growth', {'benchmark': 'growth', **kept}, asked.results)}")
    if asked.plot:
        plot(curves, asked.plot)
    if grown := [f"{curve.name} against {curve.size}" for curve in curves if curve.exponent > curve.most]:
        sys.exit(f"grows too fast: {', '.join(grown)}")


if __name__ == "__main__":
    main()

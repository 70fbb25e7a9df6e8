"""Decode steps as CUDA graphs: which steps, how they are padded, and the capture.

Rules. A graph replays the same kernels on the same addresses, so what is captured is a forward of a fixed number of
single tokens (a bucket), and everything that differs from step to step lies in arrays that are filled before a replay:
token ids, positions, and what attention reserves for itself. A step runs by graph if each of its sequences brings one
token that it samples from, without images; every other step runs as it always did. Short steps are padded with tokens
at position 0 of contexts of their own, in the slot that belongs to no one; their logits are dropped. Graphs are
captured when first needed, the most likely ones ahead of time by `warm_up`, and share one pool of memory, since only
one of them runs at a time. The first step of each graph is computed plainly as well: where a capture fails, or a replay
is not what the model says, one warning is logged and every step is plain from then on.

It must not know of modeling code: it is given a function from ids and positions to logits.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from radixbackend.engine.attention.base import AttentionBatch, Capturable
from radixbackend.engine.plan import IntArray, StepPlan
from radixbackend.engine.transfer import Staging, fill_in, send

log = logging.getLogger(__name__)

SHORTEST = 1024
"""Contexts up to so many tokens share a graph; beyond, each graph is for contexts four times as long as the last."""

APART = 0.1
"""Of a row's own length: how far its logits may be from those of the plain step, which is computed by other kernels for
another number of rows. What reads a wrong token, position or slot is off by about 1."""

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``ids [1, T]`` and ``positions [1, T]`` to logits ``[T, vocab]``, between ``begin`` and ``end`` of attention."""

Plain = Callable[[StepPlan, torch.Tensor | None], torch.Tensor]
"""A step, and what the one before drew, to the logits of its sampled rows, without any graph."""


class Bucket(NamedTuple):
    """What a graph is captured for."""

    rows: int
    longest: int  # context


def sizes(most: int) -> tuple[int, ...]:
    """Batch sizes with a graph: close enough that padding costs little, few enough to be captured in seconds."""
    steps = [1, 2, 4, *range(8, 33, 8), *range(48, 129, 16), *range(160, 257, 32), *range(320, most + 64, 64)]
    return tuple(dict.fromkeys(min(size, most) for size in steps))


def contexts(most: int) -> tuple[int, ...]:
    """Lengths of contexts with a graph; the last is ``most``."""
    lengths = [SHORTEST]
    while lengths[-1] < most:
        lengths.append(4 * lengths[-1])
    return tuple(min(length, most) for length in lengths)


def is_decode(plan: StepPlan) -> bool:
    """Whether every sequence brings one token that it samples from, and nothing else."""
    return all(
        len(s.tokens) == 1 and s.sample is not None and s.images is None and s.prompt_logprobs is None
        for s in plan.sequences
    )


def padded(batch: AttentionBatch, rows: int, dummy_slot: int) -> AttentionBatch:
    """With sequences of one token in the slot of no one, up to ``rows``."""
    more = rows - len(batch.starts)
    slot = np.array([dummy_slot], np.int32)
    return AttentionBatch(
        starts=_extended(batch.starts, more, 0),
        contexts=_extended(batch.contexts, more, 1),
        offsets=np.arange(rows + 1, dtype=np.int32),
        slots=(*batch.slots, *[slot] * more),
        write_slots=_extended(batch.write_slots, more, dummy_slot),
    )


def _extended(array: IntArray, more: int, value: int) -> IntArray:
    return np.concatenate([array, np.full(more, value, np.int32)])


class Capture(Protocol):
    """How a function's kernels are recorded: `CudaCapture`, or a fake without a device."""

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """What ``run`` returns, and a function that computes it again, in place."""


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    ids: torch.Tensor  # [1, rows]
    positions: torch.Tensor
    reserved: Any
    logits: torch.Tensor  # [rows, vocab], overwritten by each replay of any graph
    replay: Callable[[], None]


class DecodeGraphs:
    """Runs decode steps by graph, for as long as that gives what ``plain`` gives.

    Args:
        forward: what is captured; it must launch the same kernels whatever the values of its arguments are.
        attention: bound to a store; again bound, it needs new graphs (`clear`).
        slots: capacity of the store; padding is written behind it.
    """

    def __init__(
        self,
        forward: Forward,
        plain: Plain,
        attention: Capturable,
        *,
        max_rows: int,
        max_context: int,
        slots: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._forward, self._plain, self._attention = forward, plain, attention
        self._device, self._slots = device, slots
        self._sizes, self._contexts = sizes(max_rows), contexts(max_context)
        self._capture = capture
        self._staging = Staging(device)
        self._graphs: dict[Bucket, _Captured] = {}
        self._checked: set[Bucket] = set()
        self._failed = False

    def bucket(self, plan: StepPlan) -> Bucket | None:
        """Which graph runs a step; None: none does."""
        if self._failed or not is_decode(plan) or len(plan.sequences) > self._sizes[-1]:
            return None
        lengths = [s.context for s in plan.sequences]
        if max(lengths) > self._contexts[-1]:
            return None
        rows = self._sizes[bisect.bisect_left(self._sizes, len(lengths))]
        bucket = Bucket(rows, self._contexts[bisect.bisect_left(self._contexts, max(lengths))])
        return bucket if sum(lengths) + rows - len(lengths) <= self._room(bucket) else None

    def run(self, plan: StepPlan, drawn: torch.Tensor | None = None) -> torch.Tensor | None:
        """Logits ``[sequences, vocab]``, good until the next run; None where the step runs without a graph.

        ``drawn``: see `Runner.run`.
        """
        bucket = self.bucket(plan)
        if bucket is None:
            return None
        batch = padded(AttentionBatch.of(plan), bucket.rows, self._slots)
        graph = self._graph(bucket, batch)
        if graph is None:
            return None
        logits = self._replay(graph, plan, drawn, batch)
        if bucket not in self._checked:
            plain = self._plain(plan, drawn)
            if not _alike(logits, plain):
                self._give_up(f"a replay for {bucket.rows} sequences gives other logits than the model")
                return plain
            self._checked.add(bucket)
        return logits

    def _replay(
        self, graph: _Captured, plan: StepPlan, drawn: torch.Tensor | None, batch: AttentionBatch
    ) -> torch.Tensor:
        count = len(plan.sequences)
        graph.ids[0, :count] = send([s.tokens[0] for s in plan.sequences], self._device, torch.long)
        fill_in(graph.ids[0], plan, drawn)
        graph.positions[0] = send(batch.starts, self._device, torch.long)
        with self._staging:
            self._attention.begin_reserved(batch, graph.reserved)
        try:
            graph.replay()
        finally:
            self._attention.end()
        return graph.logits[:count]

    def warm_up(self, rows: int | None = None) -> None:
        """Capture the graphs of short contexts up to ``rows``, the largest first: the others fit into its memory."""
        for size in reversed(self._sizes):
            bucket = Bucket(size, self._contexts[0])
            if rows is None or size <= rows:
                none = np.zeros(0, np.int32)
                empty = AttentionBatch(none, none, np.zeros(1, np.int32), (), none)
                if self._graph(bucket, padded(empty, size, self._slots)) is None:
                    return

    def clear(self) -> None:
        """Forget every graph, before the store or the model goes."""
        self._graphs.clear()
        self._checked.clear()

    def _room(self, bucket: Bucket) -> int:
        """Slots that all contexts of a step may add up to: shared prefixes count once for each sequence."""
        return min(bucket.rows * bucket.longest, 2 * self._slots + bucket.rows)

    def _graph(self, bucket: Bucket, batch: AttentionBatch) -> _Captured | None:
        """Of this bucket, captured now if it was not yet; None once a capture has failed."""
        if bucket not in self._graphs and not self._failed:
            try:
                self._graphs[bucket] = self._record(bucket, batch)
            except Exception as fault:  # whatever a model or a library does that cannot be captured
                self._give_up(f"{type(fault).__name__}: {fault}")
        return self._graphs.get(bucket)

    def _give_up(self, reason: str) -> None:
        log.warning("decodes run without CUDA graphs, so more slowly: %s", reason)
        self._failed = True
        self.clear()

    def _record(self, bucket: Bucket, batch: AttentionBatch) -> _Captured:
        ids = torch.zeros(1, bucket.rows, dtype=torch.long, device=self._device)
        positions = torch.zeros_like(ids)
        reserved = self._attention.reserve(bucket.rows, bucket.longest, self._room(bucket))
        self._attention.begin_reserved(batch, reserved)
        try:
            logits, replay = self._capture(lambda: self._forward(ids, positions))
        finally:
            self._attention.end()
        return _Captured(ids, positions, reserved, logits, replay)


def _alike(found: torch.Tensor, plain: torch.Tensor) -> bool:
    """In the median, since a router's near tie may turn a single row."""
    found, plain = found.float(), plain.float()
    lengths = (plain - plain.mean(-1, keepdim=True)).norm(dim=-1).clamp_min(1e-6)
    apart = ((found - plain).norm(dim=-1) / lengths).nan_to_num(nan=float("inf"))
    return bool(apart.median() < APART)


class CudaCapture:
    """Records by `torch.cuda.CUDAGraph`; all graphs of one object share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None  # one for all: memory is shared on the same stream alone
        self._pool: Any = None

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        current = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(current)
        try:
            return self._record(run, self._stream)
        finally:
            torch.cuda.set_stream(current)  # a capture that fails would leave us on its own
            current.wait_stream(self._stream)

    def _record(
        self, run: Callable[[], torch.Tensor], stream: torch.cuda.Stream
    ) -> tuple[torch.Tensor, Callable[[], None]]:
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(2):  # kernels are compiled and libraries make their workspaces now: a capture cannot
                run()
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile is their own business: embed texts, say.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local")
        with torch.inference_mode(), recording:
            logits = run()
        if self._pool is None:
            self._pool = graph.pool()
        return logits, graph.replay

"""Decode steps as CUDA graphs: which steps, how they are padded, and the capture.

Rules. A graph replays the same kernels on the same addresses, so what is captured is a forward of a fixed number of
single tokens (a bucket), and everything that differs from step to step lies in arrays that are filled before a replay:
token ids, positions, and what attention reserves for itself. A step runs by graph if each of its sequences brings one
token that it samples from, without images; every other step runs as it always did. Short steps are padded with tokens
at position 0 of contexts of their own, in the slot that belongs to no one; their logits are dropped. Graphs are
captured when first needed, the most likely ones ahead of time by `warm_up`, and share one pool of memory, since only
one of them runs at a time.

It must not know of modeling code: it is given a function from ids and positions to logits.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from radixbackend.engine.attention.base import AttentionBatch, Capturable
from radixbackend.engine.plan import IntArray, StepPlan

SHORTEST = 1024
"""Contexts up to so many tokens share a graph; beyond, each graph is for contexts four times as long as the last."""

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``ids [1, T]`` and ``positions [1, T]`` to logits ``[T, vocab]``, between ``begin`` and ``end`` of attention."""


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
    """How a function's kernels are recorded; `cuda_capture`, or a fake without a device."""

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
    """Runs decode steps by graph.

    Args:
        forward: what is captured; it must launch the same kernels whatever the values of its arguments are.
        attention: bound to a store; again bound, it needs new graphs (`clear`).
        slots: capacity of the store; padding is written behind it.
    """

    def __init__(
        self,
        forward: Forward,
        attention: Capturable,
        *,
        max_rows: int,
        max_context: int,
        slots: int,
        device: torch.device,
        capture: Capture | None = None,
    ) -> None:
        self._forward, self._attention, self._device, self._slots = forward, attention, device, slots
        self._sizes, self._contexts = sizes(max_rows), contexts(max_context)
        self._capture = capture or CudaCapture(device)
        self._graphs: dict[Bucket, _Captured] = {}

    def bucket(self, plan: StepPlan) -> Bucket | None:
        """Which graph runs a step; None: none does."""
        if not is_decode(plan) or len(plan.sequences) > self._sizes[-1]:
            return None
        lengths = [s.context for s in plan.sequences]
        rows = self._sizes[bisect.bisect_left(self._sizes, len(lengths))]
        if max(lengths) > self._contexts[-1] or sum(lengths) + rows - len(lengths) > self._room(rows):
            return None
        return Bucket(rows, self._contexts[bisect.bisect_left(self._contexts, max(lengths))])

    def run(self, plan: StepPlan) -> torch.Tensor | None:
        """Logits ``[sequences, vocab]``, good until the next run; None where the step runs without a graph."""
        bucket = self.bucket(plan)
        if bucket is None:
            return None
        batch = padded(AttentionBatch.of(plan), bucket.rows, self._slots)
        graph = self._graphs.get(bucket)
        if graph is None:
            graph = self._graphs[bucket] = self._record(bucket, batch)
        self._send(graph.ids, np.array([s.tokens[0] for s in plan.sequences]))
        self._send(graph.positions, batch.starts)
        self._attention.begin_reserved(batch, graph.reserved)
        try:
            graph.replay()
        finally:
            self._attention.end()
        return graph.logits[: len(plan.sequences)]

    def warm_up(self, rows: int | None = None) -> None:
        """Capture the graphs of short contexts up to ``rows``, the largest first: the others fit into its memory."""
        for size in reversed(self._sizes):
            bucket = Bucket(size, self._contexts[0])
            if bucket not in self._graphs and (rows is None or size <= rows) and size <= self._room(size):
                none = np.zeros(0, np.int32)
                empty = AttentionBatch(none, none, np.zeros(1, np.int32), (), none)
                self._graphs[bucket] = self._record(bucket, padded(empty, size, self._slots))

    def clear(self) -> None:
        """Forget every graph, before the store or the model goes."""
        self._graphs.clear()

    def _room(self, rows: int) -> int:
        """Slots that all contexts of a step may add up to: shared prefixes count once for each sequence."""
        return min(rows * self._contexts[-1], 2 * self._slots + rows)

    def _record(self, bucket: Bucket, batch: AttentionBatch) -> _Captured:
        ids = torch.zeros(1, bucket.rows, dtype=torch.long, device=self._device)
        positions = torch.zeros_like(ids)
        reserved = self._attention.reserve(bucket.rows, bucket.longest, self._room(bucket.rows))
        self._attention.begin_reserved(batch, reserved)
        try:
            logits, replay = self._capture(lambda: self._forward(ids, positions))
        finally:
            self._attention.end()
        return _Captured(ids, positions, reserved, logits, replay)

    def _send(self, place: torch.Tensor, values: IntArray) -> None:
        """The first of ``place``; a fresh piece of pinned memory, so that none is overwritten before it is sent."""
        host = torch.empty(len(values), dtype=torch.long, pin_memory=self._device.type == "cuda")
        host.numpy()[:] = values
        place[0, : len(values)].copy_(host, non_blocking=True)


class CudaCapture:
    """Records by `torch.cuda.CUDAGraph`; all graphs of one object share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(2):  # kernels are compiled and libraries make their workspaces now: a capture cannot
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile is their own business: embed texts, say.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local")
        with torch.inference_mode(), recording:
            logits = run()
        if self._pool is None:
            self._pool = graph.pool()
        return logits, graph.replay

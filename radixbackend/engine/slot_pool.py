"""Which KV slots are free, and which to hand out next.

Rules:
- A slot is free or used; who uses it, and for which token, is not known here.
- "No room" is None. Freeing what is not in use raises `IntegrityError`, and nothing changes.
- Runs first: an owner that grows gets the slot behind its last one while that is free, and a fresh owner starts in
  the middle of the largest free run, with room to grow and without blocking whoever grows into that run from below.
  An attention kernel can read a run of slots without a gather.

Free slots are kept as maximal runs, found by either end, plus a heap of the largest. Taking the front of a run, which
is what decoding does, leaves the heap alone: an entry names its run by the end and holds an upper bound of the
length, and is corrected when it surfaces.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from radixbackend.engine.plan import IntArray
from radixbackend.errors import IntegrityError

SPREAD = 16
"""Free runs up to this length are used from their start: halving them would leave crumbs."""


class SlotPool:
    """Slots ``0 … capacity - 1``, all free at first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._num_free = 0
        self._used = bytearray(b"\1") * capacity  # one byte a slot: quick for a single one,
        self._used_array = np.frombuffer(self._used, dtype=np.bool_)  # and the same bytes for many
        self._end_of: dict[int, int] = {}  # free run [start, end): start → end
        self._start_of: dict[int, int] = {}  # and end → start
        self._largest: list[tuple[int, int]] = []  # heap of (-upper bound of the length, end)
        if capacity:
            self._add(0, capacity)

    @property
    def num_free(self) -> int:
        return self._num_free

    def allocate(self, n: int, near: int | None = None) -> IntArray | None:
        """``n`` slots, ascending runs one after the other, or None (and no change) if fewer are free.

        ``near`` is the last slot of a sequence that grows; the run behind it is used first, so the result may need
        no second one.
        """
        if n > self._num_free:
            return None
        if near is not None and (end := self._end_of.get(near + 1)) is not None:
            stop = min(end, near + 1 + n)
            head = self._take(near + 1, end, near + 1, stop)
            rest = n - (stop - near - 1)
        else:
            head, rest = np.empty(0, np.int32), n
        return np.concatenate([head, *self._take_fresh(rest)]) if rest > 0 else head

    def free(self, slots: IntArray) -> None:
        """Give slots back, in any order.

        Raises:
            IntegrityError: a slot out of range, already free, or named twice; nothing was freed.
        """
        if not len(slots):
            return
        steps = np.diff(slots)
        if len(steps) and steps.min() < 1:
            slots = np.sort(slots)
            steps = np.diff(slots)
        self._check_used(slots, steps)
        breaks = np.flatnonzero(steps > 1)
        starts = slots[np.concatenate(([0], breaks + 1))].tolist()
        ends = (slots[np.concatenate((breaks, [-1]))] + 1).tolist()
        for start, end in zip(starts, ends, strict=True):
            self._add(start, end)

    def free_slots(self) -> IntArray:
        """All free slots, ascending. A full pass, for checks."""
        return np.flatnonzero(~self._used_array).astype(np.int32)

    def check(self) -> None:
        """Full pass: raises `IntegrityError` unless runs, map and count agree."""
        runs = sorted(self._end_of.items())
        listed = np.concatenate([np.empty(0, np.int64), *(np.arange(start, end) for start, end in runs)])
        if not np.array_equal(listed, np.flatnonzero(~self._used_array)) or len(listed) != self._num_free:
            raise IntegrityError(f"the free runs {runs} disagree with the map of used slots or with {self._num_free=}")
        if {end: start for start, end in runs} != self._start_of or set(self._end_of) & set(self._start_of):
            raise IntegrityError(f"the free runs {runs} are not maximal, or not found by their end")
        bounds: dict[int, int] = {}
        for bound, end in self._largest:
            bounds[end] = max(-bound, bounds.get(end, 0))
        if any(bounds.get(end, 0) < end - start for start, end in runs):
            raise IntegrityError("a free run is missing from the heap of the largest")

    def _check_used(self, slots: IntArray, steps: IntArray) -> None:
        if slots[0] < 0 or slots[-1] >= self.capacity:
            raise IntegrityError(f"slots {slots[0]} to {slots[-1]} freed in a pool of {self.capacity}")
        if len(steps) and not steps.min():
            raise IntegrityError(f"slot {slots[np.argmin(steps)]} freed twice at once")
        used = self._used_array[slots]
        if not used.all():
            raise IntegrityError(f"slot {slots[np.argmin(used)]} freed, but it is free")

    def _take_fresh(self, n: int) -> list[IntArray]:
        """``n`` slots from the largest runs: all of a run that is too short, else its middle (or its start)."""
        taken = []
        while n > 0:
            start, end = self._largest_run()
            size = min(n, end - start)
            spread = start > 0 and end - start > SPREAD  # below slot 0 nobody grows
            first = start + (end - start - size) // 2 if spread else start
            taken.append(self._take(start, end, first, first + size))
            n -= size
        return sorted(taken, key=lambda run: int(run[0]))

    def _largest_run(self) -> tuple[int, int]:
        heap = self._largest
        while True:
            bound, end = heap[0]
            start = self._start_of.get(end)
            if start is None:
                heappop(heap)
            elif end - start < -bound:
                heapreplace(heap, (start - end, end))
            else:
                return start, end

    def _take(self, start: int, end: int, first: int, stop: int) -> IntArray:
        """Use ``[first, stop)`` out of the free run ``[start, end)``."""
        size = stop - first
        del self._end_of[start], self._start_of[end]
        # Both remainders are noted before one is pushed: a push may rebuild the heap from them.
        if stop < end:
            self._end_of[stop], self._start_of[end] = end, stop
        if start < first:
            self._end_of[start], self._start_of[first] = first, start
            self._push(start, first)
        self._used[first:stop] = b"\1" * size
        self._num_free -= size
        return np.arange(first, stop, dtype=np.int32)

    def _add(self, start: int, end: int) -> None:
        """Free the used run ``[start, end)`` and join it with its neighbours."""
        self._used[start:end] = bytes(end - start)
        self._num_free += end - start
        below = self._start_of.pop(start, start)
        above = self._end_of.pop(end, end)
        self._end_of[below], self._start_of[above] = above, below
        self._push(below, above)

    def _push(self, start: int, end: int) -> None:
        heappush(self._largest, (start - end, end))
        if len(self._largest) > 2 * len(self._end_of) + 64:
            self._largest = [(start - end, end) for start, end in self._end_of.items()]
            heapify(self._largest)

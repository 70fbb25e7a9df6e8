"""The waiting queue, and the estimate of room that admission leaves for what runs.

Rules. The queue is ordered by when a sequence is due: the step it arrived in, less what its priority is worth in
steps. Since everybody ages alike, that order never changes while they wait, so nothing starves and nothing is
sorted again. No slots, no policy: which of those due first starts is the scheduler's to decide.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from radixbackend.engine.request import Sequence
from radixbackend.errors import IntegrityError

PRIORITY_STEPS = 1024
"""One level of priority counts as much as having waited this many steps."""


class WaitingQueue:
    """Sequences in the order in which they are due."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self._sequences, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        at = bisect.bisect_left(self._sequences, _order(sequence), key=_order)
        if at == len(self._sequences) or self._sequences[at] is not sequence:
            raise IntegrityError(f"sequence {sequence.id} is not in the queue")
        del self._sequences[at]

    def first(self, count: int) -> list[Sequence]:
        return self._sequences[:count]


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.arrived_step - PRIORITY_STEPS * sequence.request.priority, sequence.arrival


class GrowthEstimate:
    """How much of what running sequences may still generate to set slots aside for when admitting another.

    Few outputs reach their max_tokens, so reserving for all would idle the pool, and reserving nothing would
    retract often. The share starts high, decays while all goes well and jumps back on a retraction (the scheme of
    SGLang's schedule policy).
    """

    START, FLOOR, DECAY, CLIP = 0.7, 0.1, 0.997, 4096

    def __init__(self) -> None:
        self._share = self.START

    def step(self) -> None:
        self._share = max(self.FLOOR, self._share * self.DECAY)

    def retracted(self) -> None:
        self._share = self.START

    def reserve(self, sequences: Iterable[Sequence]) -> int:
        return int(self._share * sum(min(s.remaining, self.CLIP) for s in sequences))

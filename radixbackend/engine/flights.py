"""Steps in flight: launched and not landed, and the slots that must stay as they are until they have.

Rules. Steps land in the order in which they were launched. A lease that is given up while a step in flight reads or
writes its slots is kept until the last such step has landed, whatever became of its sequence: its slots count as held,
so nobody else is given them. Not known here: requests, and what a step computes.
"""

from __future__ import annotations

from collections import deque

from radixbackend.engine.plan import SequenceId, StepPlan
from radixbackend.engine.prefix_cache import Lease, PrefixCache
from radixbackend.errors import IntegrityError


class Flights:
    """False as long as nothing is in flight."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._plans: deque[StepPlan] = deque()
        self._rows: deque[dict[SequenceId, int]] = deque()  # of each plan, where its sequences are in it
        self._landing: list[tuple[StepPlan, Lease]] = []  # the last step in flight that uses the lease

    def __bool__(self) -> bool:
        return bool(self._plans)

    def take_off(self, plan: StepPlan) -> None:
        self._plans.append(plan)
        self._rows.append({share.sequence_id: i for i, share in enumerate(plan.sequences)})

    def land(self, plan: StepPlan) -> None:
        """The oldest one has landed, or failed: what was kept for it is free."""
        if not self._plans or self._plans.popleft() is not plan:
            raise IntegrityError(f"step {plan.step} landed out of turn")
        self._rows.popleft()
        for last, lease in self._landing:
            if last is plan:
                self._cache.release(lease)
        self._landing = [(last, lease) for last, lease in self._landing if last is not plan]

    def row(self, sequence_id: SequenceId) -> int:
        """Where a sequence is in the step launched last."""
        return self._rows[-1][sequence_id]

    def uses(self, sequence_id: SequenceId) -> bool:
        """Whether a step in flight reads or writes the sequence's slots."""
        return self._last(sequence_id) is not None

    def release(self, lease: Lease, sequence_id: SequenceId) -> None:
        """Release what the sequence held, now or as soon as no step in flight uses it."""
        last = self._last(sequence_id)
        if last is None:
            self._cache.release(lease)
        else:
            self._landing.append((last, lease))

    def clear(self) -> None:
        """Nothing is in flight any more, and the leases are dead."""
        self._plans.clear()
        self._rows.clear()
        self._landing.clear()

    def _last(self, sequence_id: SequenceId) -> StepPlan | None:
        plans = zip(reversed(self._plans), reversed(self._rows), strict=True)
        return next((plan for plan, rows in plans if sequence_id in rows), None)

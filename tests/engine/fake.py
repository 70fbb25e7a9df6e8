"""A stand-in for model and sampler: pure Python, and strict about slots."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile

import numpy as np

from radixbackend.engine.plan import ExecutorTraits, Sampled, SequenceId, SequencePlan, StepPlan, StepResult

VOCAB = 50
GARBAGE = 51
"""What nobody asked for comes out as; no model says it."""


def next_token(prefix: Iterable[int]) -> int:
    """What the fake model says after ``prefix``; never 0, so that 0 can be an end token nobody hits by chance."""
    digest = hashlib.blake2b(np.array(list(prefix), np.int32).tobytes(), digest_size=4).digest()
    return 1 + int.from_bytes(digest, "little") % (VOCAB - 1)


class FakeExecutor:
    """Computes from what its slots hold alone: a wrong, stale or shared-by-mistake slot gives other tokens.

    A queue like a device's: a step is computed when its result is asked for, in the order of the launches, and one
    that goes ahead takes its tokens from the one before it. That is computed earlier if a grammar waits for its draws;
    to be masked, a matcher has to stand where the plan says, and what it does not accept makes anything come out.
    """

    def __init__(self, traits: ExecutorTraits | None = None) -> None:
        self.traits = traits or ExecutorTraits()
        self.store: dict[int, tuple[int, int]] = {}  # slot → (token, position)
        self.plans: list[StepPlan] = []
        self.in_flight: deque[FakeLaunched] = deque()
        self.poison: set[int] = set()  # a token that makes the step raise
        self.refused: set[int] = set()  # a token that makes it raise at once
        self.left: list[SequenceId] = []
        self.redrawn: set[int] = set()  # a token of which the device first draws another
        self.drawn: list[int] = []  # by the last step computed

    def launch(self, plan: StepPlan) -> FakeLaunched:
        if any(self.refused & set(s.tokens.tolist()) for s in plan.sequences):
            raise RuntimeError("refused step")
        launched = FakeLaunched(self, plan)
        launched.spoilt |= {s.sequence_id for s in plan.sequences if not self._walk(s)}
        self.plans.append(plan)
        self.in_flight.append(launched)
        return launched

    def _walk(self, sequence: SequencePlan) -> bool:
        """Lead a matcher behind what the step before draws, and back; whether it got there."""
        spec = sequence.sample
        if spec is None or spec.matcher is None:
            return True
        assert spec.matcher.at == spec.num_generated - spec.assumed - spec.unknown, "the matcher stands elsewhere"
        if sequence.ahead is None:
            return True
        self.in_flight[-1].computed()
        coming = [*spec.history[len(spec.history) - spec.assumed :].tolist(), self.drawn[sequence.ahead]]
        accepted = len(list(takewhile(spec.matcher.accept, coming)))
        spec.matcher.rollback(accepted)
        return accepted == len(coming)

    def compute(self, plan: StepPlan, slots: list[list[int]], spoilt: set[SequenceId]) -> StepResult:
        """``spoilt`` are sequences whose share counts for nothing: anything comes out."""
        drawn, self.drawn = self.drawn, [GARBAGE] * len(plan.sequences)
        tokens = [s.tokens.tolist() for s in plan.sequences]
        for sequence, own in zip(plan.sequences, tokens, strict=True):
            if sequence.ahead is not None:
                own[0] = drawn[sequence.ahead]
        for sequence, places, own in zip(plan.sequences, slots, tokens, strict=True):
            assert 0 < len(own) <= len(places) == sequence.context == len(set(places))
            for i, token in enumerate(own, sequence.start):
                self.store[places[i]] = (token, i)
        if any(self.poison & set(own) for own in tokens):
            for behind in self.in_flight:
                behind.spoilt |= {s.sequence_id for s in plan.sequences}
            raise RuntimeError("poisoned step")
        sampled = tuple(
            Sampled((GARBAGE,)) if s.sequence_id in spoilt else self._sample(s, places)
            for s, places in zip(plan.sequences, slots, strict=True)
        )
        sampled = tuple(replace(s, redrawn=bool(self.redrawn & set(s.tokens))) for s in sampled)
        self.drawn = [
            s.tokens[-1] if s.tokens and len(s.tokens) == share.num_drawn and not s.redrawn else GARBAGE
            for s, share in zip(sampled, plan.sequences, strict=True)
        ]
        return StepResult(sampled)

    def _sample(self, sequence: SequencePlan, slots: list[int]) -> Sampled:
        held = [self.store[slot] for slot in slots]
        assert [position for _, position in held] == list(range(sequence.context)), "a slot holds another position"
        spec = sequence.sample
        if spec is None:
            return Sampled()
        tokens = [token for token, _ in held]
        plain = len(tokens) - len(spec.drafts)
        assert tokens[: plain - spec.unknown] == spec.history.tolist(), "the slots hold another prefix"
        assert plain == spec.num_prompt + spec.num_generated
        assert len(spec.drafts) < spec.remaining
        out = [next_token(tokens[:plain])]
        for i, draft in enumerate(spec.drafts):
            if out[-1] != draft:
                break
            out.append(next_token(tokens[: plain + i + 1]))
        return Sampled(tuple(out))

    def forget(self, sequence_id: SequenceId) -> None:
        self.left.append(sequence_id)


class FakeLaunched:
    """``slots`` are a copy, as a device has one: those of each sequence, which nobody else may be given meanwhile."""

    def __init__(self, executor: FakeExecutor, plan: StepPlan) -> None:
        self.executor, self.plan = executor, plan
        self.slots = [s.slots.tolist() for s in plan.sequences]
        self.spoilt: set[SequenceId] = set()  # those whose last step raised when this one was launched already
        self._outcome: StepResult | RuntimeError | None = None

    def result(self) -> StepResult:
        assert self.executor.in_flight.popleft() is self, "results are asked for in order"
        return self.computed()

    def computed(self) -> StepResult:
        if self._outcome is None:
            try:
                self._outcome = self.executor.compute(self.plan, self.slots, self.spoilt)
            except RuntimeError as fault:
                self._outcome = fault
        if isinstance(self._outcome, RuntimeError):
            raise self._outcome
        return self._outcome


def plain(prompt: list[int], count: int) -> list[int]:
    """What undisturbed decoding gives."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]

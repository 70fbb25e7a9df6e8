"""A stand-in for model and sampler: pure Python, and strict about slots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from radixbackend.engine.plan import ExecutorTraits, Sampled, SequenceId, SequencePlan, StepPlan, StepResult

VOCAB = 50


def next_token(prefix: Iterable[int]) -> int:
    """What the fake model says after ``prefix``; never 0, so that 0 can be an end token nobody hits by chance."""
    digest = hashlib.blake2b(np.array(list(prefix), np.int32).tobytes(), digest_size=4).digest()
    return 1 + int.from_bytes(digest, "little") % (VOCAB - 1)


class FakeExecutor:
    """Computes from what its slots hold alone: a wrong, stale or shared-by-mistake slot gives other tokens."""

    def __init__(self, traits: ExecutorTraits | None = None) -> None:
        self.traits = traits or ExecutorTraits()
        self.store: dict[int, tuple[int, int]] = {}  # slot → (token, position)
        self.plans: list[StepPlan] = []
        self.poison: set[int] = set()  # a token that makes the step raise
        self.left: list[SequenceId] = []

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        for sequence in plan.sequences:
            assert len(sequence.tokens) > 0
            assert len(sequence.slots) == sequence.context == len(set(sequence.slots.tolist()))
            for i, token in enumerate(sequence.tokens.tolist()):
                self.store[int(sequence.slots[sequence.start + i])] = (token, sequence.start + i)
        if any(self.poison & set(s.tokens.tolist()) for s in plan.sequences):
            raise RuntimeError("poisoned step")
        return StepResult(tuple(self._sample(s) for s in plan.sequences))

    def _sample(self, sequence: SequencePlan) -> Sampled:
        held = [self.store[int(slot)] for slot in sequence.slots]
        assert [position for _, position in held] == list(range(sequence.context)), "a slot holds another position"
        if sequence.sample is None:
            return Sampled()
        tokens = [token for token, _ in held]
        plain = len(tokens) - len(sequence.sample.drafts)
        assert tokens[:plain] == sequence.sample.history.tolist(), "the slots hold another prefix"
        out = [next_token(tokens[:plain])]
        for i, draft in enumerate(sequence.sample.drafts):
            if out[-1] != draft:
                break
            out.append(next_token(tokens[: plain + i + 1]))
        return Sampled(tuple(out))

    def forget(self, sequence_id: SequenceId) -> None:
        self.left.append(sequence_id)


def plain(prompt: list[int], count: int) -> list[int]:
    """What undisturbed decoding gives."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]

"""Model and sampler as the one thing that the loop runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from radixbackend.engine.plan import SequenceId, StepPlan
from radixbackend.engine.runner import Runner
from radixbackend.engine.sampler import Drawn, Draws, Sampler


class ModelExecutor:
    """A step: logits, then tokens, which stay on the device for the step behind it.

    ``around`` is entered around each forward.
    """

    def __init__(self, runner: Runner, sampler: Sampler, around: AbstractContextManager[None] | None = None) -> None:
        self._runner = runner
        self._around = around or nullcontext()
        self._sampler = sampler
        self.traits = runner.traits
        self._drawn: Drawn | None = None  # by the last step launched, if it was launched without a fault

    def launch(self, plan: StepPlan) -> Draws:
        drawn, self._drawn = self._drawn, None
        with self._around:
            logits = self._runner.run(plan, None if drawn is None else drawn.tokens)
        draws = self._sampler.launch(plan, logits, drawn)
        self._drawn = draws.drawn
        return draws

    def forget(self, sequence_id: SequenceId) -> None:
        self._runner.forget(sequence_id)

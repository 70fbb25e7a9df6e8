"""Model and sampler as the one thing that the loop runs."""

from __future__ import annotations

from radixbackend.engine.plan import SequenceId, StepPlan, StepResult
from radixbackend.engine.runner import Runner
from radixbackend.engine.sampler import Sampler


class ModelExecutor:
    """A step: logits, then tokens."""

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler
        self.traits = runner.traits

    def execute(self, plan: StepPlan) -> StepResult:
        return self._sampler.sample(plan, self._runner.run(plan))

    def forget(self, sequence_id: SequenceId) -> None:
        self._runner.forget(sequence_id)

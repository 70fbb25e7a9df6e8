"""What a step asks of a model: plan in, logits out.

Rules. A runner computes; it queues nothing, samples nothing and never decides what a slot holds. It belongs to the
engine's thread alone. Which rows get logits follows from the plan (`wanted_rows`), so runner and sampler agree on
them without talking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from radixbackend.engine.plan import ExecutorTraits, IntArray, SequenceId, SequencePlan, StepPlan


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """The rows that were asked for, in the order of the plan.

    Attributes:
        rows: ``[L, vocab]`` on the model's device, in the model's type; not to be written to.
        offsets: rows of ``plan.sequences[i]`` are ``rows[offsets[i]:offsets[i + 1]]``: with ``prompt_logprobs`` one
            per token of its chunk, else the last ``1 + len(drafts)`` where it samples, else none.
    """

    rows: torch.Tensor
    offsets: tuple[int, ...]

    def of(self, index: int) -> torch.Tensor:
        """Rows of the plan's sequence ``index``, ``[r, vocab]``."""
        return self.rows[self.offsets[index] : self.offsets[index + 1]]


def num_wanted(sequence: SequencePlan) -> int:
    """How many of a sequence's last tokens need logits in this step."""
    if sequence.prompt_logprobs is not None:
        return len(sequence.tokens)
    return sequence.num_drawn


def wanted_rows(plan: StepPlan) -> tuple[IntArray, tuple[int, ...]]:
    """Indices of the wanted rows among the packed tokens of ``plan``, and `Logits.offsets`."""
    rows: list[IntArray] = []
    offsets = [0]
    end = 0
    for sequence in plan.sequences:
        end += len(sequence.tokens)
        wanted = num_wanted(sequence)
        rows.append(np.arange(end - wanted, end, dtype=np.int32))
        offsets.append(offsets[-1] + wanted)
    return np.concatenate(rows) if rows else np.empty(0, np.int32), tuple(offsets)


class Runner(Protocol):
    """One way to run a model. `ModelRunner` is the fast one, `SequentialRunner` the one for everything else.

    Attributes:
        traits: what the scheduler must respect.
        bytes_per_slot: memory one token of KV cache takes, in every layer together.
        encoded_images: computed so far.
    """

    traits: ExecutorTraits
    bytes_per_slot: int

    @property
    def encoded_images(self) -> int: ...

    def allocate(self, capacity: int) -> None:
        """Make room for slots ``0 … capacity - 1``; must be called before `run`. Again: drops what was stored."""

    def capture_decodes(self, rows: int, context: int) -> None:
        """Record decodes of up to ``rows`` sequences, contexts up to ``context``, as CUDA graphs where that can be.

        After `allocate`, which drops them. Does nothing on a CPU.
        """

    def run(self, plan: StepPlan, drawn: torch.Tensor | None = None) -> Logits:
        """Compute one step. On an exception the slots the plan writes to hold garbage and nothing else changed.

        ``drawn [n]`` is what the sequences of the step before drew last, on the device, for those that go on with it.
        With ``traits.ahead`` nobody waits for the device here.
        """

    def forget(self, sequence_id: SequenceId) -> None:
        """Drop what is kept for a sequence beyond its slots."""

    def close(self) -> None:
        """Give back the KV memory and every registration; safe to call twice."""

"""The two values that cross between scheduler and executor in each step, once each.

A step is a ragged batch: some sequences bring a chunk of prompt, some one new token, some a new token and a few
drafts. To the model they are one thing: tokens whose keys and values must be computed, at given positions, next
to a context that lies in given slots. Arrays are numpy (no torch above the executor) and never written to after
the plan is made.

A step may be planned and launched while the one before it is in flight: not yet landed, its tokens not yet known on the
host. Where its sequences go on with what they draw there, the plan says whose draw it is instead of the token, and
takes the drafts that they verify there for right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from radixbackend.engine.grammar.base import Matcher
from radixbackend.types import SamplingParams, TokenLogprob

SequenceId = NewType("SequenceId", int)
"""One choice of one request, unique within an engine."""

IntArray = NDArray[np.int32]

Blocks = tuple[tuple[int, int], ...]
"""Stretches of a prompt, from and to, in which every token sees every other, later ones too."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One image as the model takes it, and the stretch of the prompt that stands for it."""

    key: int  # below 0; equal for equal images and for no others, as long as the engine lives
    start: int  # position of tokens[0]
    tokens: IntArray  # from the first placeholder to the last; some models have other tokens between them
    rows: IntArray  # which of the tokens are placeholders
    tensors: Mapping[str, NDArray[Any]]  # by the names that the model's forward gives them

    @property
    def positions(self) -> IntArray:
        """[placeholders] in the prompt."""
        return self.start + self.rows


@dataclass(frozen=True, slots=True, eq=False)
class PromptImages:
    """The images of a prompt, and what they mean for its other tokens."""

    images: tuple[ImageInput, ...]
    keys: IntArray  # [prompt] tokens as prefixes are compared: what depends on an image has a number below 0 instead
    grid: IntArray | None = None  # [3, prompt] positions in time, height and width, for models that have them
    shift: int = 0  # what is generated has its position plus this, in all three
    blocks: Blocks = ()

    def usable(self, cached: int) -> int:
        """How much of a cached prefix of this length can be used: none of it may end within a block."""
        return next((start for start, stop in self.blocks if start < cached < stop), cached)

    def chunk(self, start: int, count: int) -> int:
        """How many tokens to compute instead of ``count``, so that no chunk ends within a block."""
        for low, high in self.blocks:
            if low < start + count < high:
                return (low if low > start else high) - start
        return count


@dataclass(frozen=True, slots=True, eq=False)
class SequencePlan:
    """One sequence's share of a step: compute ``tokens`` at positions ``start …``, then maybe sample."""

    sequence_id: SequenceId
    tokens: IntArray  # [q] prompt chunk, or last token, or last token + drafts; one that is not known yet is 0 here
    start: int  # position of tokens[0]; K/V of every earlier position is in its slot
    slots: IntArray  # [start + q] slot of every position, the new ones included
    sample: SampleSpec | None  # None: a prompt chunk that is not the last
    prompt_logprobs: int | None = None  # asked for: logits of every row of this chunk are wanted
    next_token: int | None = None  # the prompt token that follows this chunk; None at the prompt's end
    images: PromptImages | None = None  # of the prompt, where it has any
    ahead: int | None = None  # the first token is what sequence ``ahead`` of the step launched before this one draws

    @property
    def context(self) -> int:
        """Length of the sequence once this step has run."""
        return self.start + len(self.tokens)

    @property
    def sees(self) -> bool:
        """Whether parts of an image are among its tokens."""
        images = () if self.images is None else self.images.images
        return any(x.start < self.context and x.start + len(x.tokens) > self.start for x in images)

    @property
    def num_drawn(self) -> int:
        """Rows that are drawn from, and the tokens that come of it if every draft is right."""
        return 0 if self.sample is None else len(self.sample.drafts) + 1


@dataclass(frozen=True, slots=True, eq=False)
class SampleSpec:
    """How to choose a sequence's next tokens.

    With k drafts the last k + 1 rows of the sequence have logits. Row i is drawn as if the first i drafts had been
    generated before it; the sampler keeps drafts for as long as the draw at their row equals them, then one more.
    """

    params: SamplingParams
    seed: int  # of this choice; the draw of output token t depends on (seed, t) alone
    history: IntArray  # [prompt + generated] tokens so far, without drafts of this step
    num_prompt: int  # history[num_prompt:] was generated
    drafts: tuple[int, ...]
    matcher: Matcher | None  # at the state after history, less what is assumed; the sampler leaves it as it found it
    remaining: int  # tokens the budget still allows, the next one included
    unknown: int = 0  # tokens behind history that the step in flight draws
    assumed: int = 0  # last tokens of history that are drafts of the step in flight, taken for right

    @property
    def num_generated(self) -> int:
        return len(self.history) + self.unknown - self.num_prompt


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """What to run in one packed forward."""

    step: int
    sequences: tuple[SequencePlan, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.sequences)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What came out for one sequence."""

    tokens: tuple[int, ...] = ()  # accepted drafts and one more; empty if it was not to sample
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token, where asked for
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens at start + 1 … (within the prompt), where asked for
    error: str | None = None  # no token could be drawn, and why; the request ends
    redrawn: bool = False  # a step launched ahead may have gone on with another token: its result is worth nothing here


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What one forward produced; ``sampled[i]`` belongs to ``plan.sequences[i]``."""

    sampled: tuple[Sampled, ...]


@dataclass(frozen=True, slots=True)
class ExecutorTraits:
    """What the scheduler must respect.

    Attributes:
        shares_prefixes: K/V lie in slots, so a prefix computed by one sequence serves all. Without it every
            sequence is computed from its first token, and slots merely count tokens.
        chunks: a prompt may be computed in several steps.
        drafts: several new tokens may be verified in one step.
        ahead: a step may be launched while the one before it is in flight, with tokens that that one draws.
    """

    shares_prefixes: bool = True
    chunks: bool = True
    drafts: bool = True
    ahead: bool = True


class Launched(Protocol):
    """A step in flight."""

    def result(self) -> StepResult:
        """Wait until it has landed; called once. On an exception see `Executor.launch`."""


class Executor(Protocol):
    """Runs plans: the model and the sampler, or a fake in the scheduler's tests."""

    traits: ExecutorTraits

    def launch(self, plan: StepPlan) -> Launched:
        """Start one step behind those launched before; results are asked for in the same order.

        May wait for what the step before draws, while this one is being computed.

        On an exception, here or of the result, the slots the plan writes to hold garbage and nothing else changed.
        What was launched behind it counts for none of its sequences.
        """

    def forget(self, sequence_id: SequenceId) -> None:
        """The sequence left the batch (finished, failed or retracted); drop what is kept for it."""

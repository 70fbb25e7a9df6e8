"""The state of a request and of its choices, and the table of their transitions.

Rules. A `Request` is what a caller submitted; it owns n `Sequence`s, one per choice, and ends when the last of
them does. A sequence waits, runs, may be sent back to wait (retraction) and ends once. An illegal transition
raises and changes nothing. Only the engine's thread touches these objects after submission. Nothing here knows
about slots (the lease does), steps, text or threads.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from radixbackend.engine.grammar.base import Grammar, Matcher
from radixbackend.engine.plan import IntArray, PromptImages, SequenceId, SequencePlan
from radixbackend.engine.prefix_cache import Lease
from radixbackend.errors import IntegrityError, RequestError
from radixbackend.types import RequestId, SamplingParams, TokenEvent, TokenLogprob, Usage


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.ENDED}),
    Status.RUNNING: frozenset({Status.WAITING, Status.ENDED}),
    Status.ENDED: frozenset(),
}


class StopCheck(Protocol):
    """Watches one choice for stop strings; knows text so that the scheduler need not."""

    def feed(self, token: int) -> bool:
        """Whether the output ends with this token."""


class Update(NamedTuple):
    """What a request's caller is told: one event, or the error that ended the request."""

    request: Request
    event: TokenEvent | None = None
    error: RequestError | None = None
    last: bool = False
    """Nothing follows for this request."""


class ConsumerGone(Exception):
    """Raised by a sink when nobody can listen any more (its event loop is closed); the request is aborted."""


@dataclass(slots=True, eq=False)
class Request:
    """One submitted request: what was asked, and what its choices have in common."""

    id: RequestId
    prompt: IntArray
    params: SamplingParams
    max_length: int  # prompt + generated, capped by the context and the pool
    seeds: tuple[int, ...]  # one per choice
    sink: Callable[[Update], None]  # called by the engine's thread; must not block
    namespace: str | None = None
    priority: int = 0
    grammar: Future[Grammar] | None = None
    stop_checks: tuple[StopCheck, ...] | None = None  # one per choice
    images: PromptImages | None = None
    stream: bool = True  # told of tokens as they come; else of each choice once, when it has ended
    pin: bool = False  # keep the prompt's prefix locked when the request ends
    submitted: float = 0.0
    admitted: float | None = None
    first_token: float | None = None
    retractions: int = 0
    sequences: list[Sequence] = field(default_factory=list)
    ended: bool = False

    @property
    def goes_ahead(self) -> bool:
        """Whether a token can be drawn while the one before it is not known.

        Penalties depend on it. So does a grammar's mask, but that is not needed before the model has computed.
        Log-probabilities and images only have the host wait for the device.
        """
        params = self.params
        return (
            self.images is None
            and params.logprobs is None
            and params.prompt_logprobs is None
            and params.repetition_penalty == 1.0
            and not params.frequency_penalty
            and not params.presence_penalty
        )

    @property
    def usage(self) -> Usage:
        first = self.sequences[0]
        return Usage(
            prompt_tokens=len(self.prompt),
            completion_tokens=sum(s.num_generated for s in self.sequences),
            cached_tokens=first.num_cached or 0,
            forced_tokens=sum(s.num_forced for s in self.sequences),
        )


class TokenBuffer:
    """A growing int32 array, so that slices for matching and for plans are views, not copies."""

    __slots__ = ("_array", "_length")

    def __init__(self, tokens: IntArray) -> None:
        self._length = len(tokens)
        self._array = np.empty(max(16, len(tokens) + len(tokens) // 4), np.int32)
        self._array[: self._length] = tokens

    def __len__(self) -> int:
        return self._length

    def append(self, token: int) -> None:
        if self._length == len(self._array):
            # A new array: views handed out in plans keep the old one.
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self._length] = token
        self._length += 1

    def view(self, start: int = 0, stop: int | None = None) -> IntArray:
        return self._array[start : self._length if stop is None else stop]


class Sequence:
    """One choice being generated.

    To the scheduler it is ``tokens`` of which the first ``num_computed`` have their keys and values in slots; the
    rest, and the drafts after them, are to catch up. Steps ``in_flight`` will have computed the first ``reach`` of
    them, and add as many as are ``coming``: the drafts ``assumed`` to be right, and one that is not known.
    """

    __slots__ = (
        "arrival",
        "arrived_step",
        "coming",
        "drafts",
        "goes_ahead",
        "id",
        "in_flight",
        "index",
        "keys",
        "lease",
        "logprobs",
        "matcher",
        "num_cached",
        "num_computed",
        "num_forced",
        "num_prompt",
        "prompt_logprobs",
        "queued_step",
        "queued_time",
        "request",
        "seed",
        "status",
        "stop_check",
        "tokens",
    )

    def __init__(self, sequence_id: SequenceId, request: Request, index: int) -> None:
        self.id = sequence_id
        self.request = request
        self.index = index
        self.seed = request.seeds[index]
        self.tokens = TokenBuffer(request.prompt)
        # What the tree knows the tokens by: an image's placeholders look like those of any other image.
        self.keys = self.tokens if request.images is None else TokenBuffer(request.images.keys)
        self.num_prompt = len(request.prompt)
        self.status = Status.WAITING
        self.arrival = int(sequence_id)
        self.arrived_step = 0  # a retracted sequence keeps its place in the queue
        self.queued_step = 0
        self.queued_time = 0.0
        self.lease: Lease | None = None
        self.num_computed = 0
        self.num_cached: int | None = None  # of the prompt, when first admitted
        self.num_forced = 0
        self.in_flight: list[SequencePlan] = []  # its shares of steps that have not landed; those that still count
        self.coming = 0  # tokens drawn in flight, if every draft there is right
        self.goes_ahead = request.goes_ahead
        self.drafts: tuple[int, ...] = ()
        self.matcher: Matcher | None = None
        self.stop_check = request.stop_checks[index] if request.stop_checks else None
        self.prompt_logprobs: list[TokenLogprob] = []
        self.logprobs: list[TokenLogprob] = []  # not told yet

    def move(self, status: Status) -> None:
        """Change status, or raise `IntegrityError` and change nothing."""
        if status not in TRANSITIONS[self.status]:
            raise IntegrityError(f"sequence {self.id} cannot go from {self.status.value} to {status.value}")
        self.status = status

    def take_off(self, share: SequencePlan) -> None:
        """Its share of a step is in flight."""
        self.in_flight.append(share)
        self.coming += share.num_drawn

    def ground(self) -> None:
        """Nothing that is in flight counts any more."""
        self.in_flight.clear()
        self.coming = 0

    def land(self, share: SequencePlan) -> bool:
        """Its share of a step has landed; whether that still counts."""
        if share not in self.in_flight:
            return False
        self.in_flight.remove(share)
        self.coming -= share.num_drawn
        return True

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.tokens.append(token)
        if self.keys is not self.tokens:
            self.keys.append(token)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def remaining(self) -> int:
        """Tokens it may still generate."""
        return self.request.max_length - len(self.tokens)

    @property
    def reach(self) -> int:
        """Tokens that have their keys and values once everything in flight has landed."""
        return self.in_flight[-1].context if self.in_flight else self.num_computed

    @property
    def pending(self) -> int:
        """Tokens to catch up now. The last one waits while the grammar that masks its logits is being compiled."""
        if self.coming and self.coming >= self.remaining:
            return 0  # it ends with what is in flight
        return len(self.tokens) + self.coming - self.reach - self.needs_matcher

    @property
    def assumed(self) -> tuple[int, ...]:
        """Drafts that the step in flight verifies; what is planned ahead takes them for right."""
        sample = self.in_flight[-1].sample if self.in_flight else None
        return () if sample is None else sample.drafts

    @property
    def prefill_only(self) -> bool:
        return self.request.max_length == self.num_prompt

    @property
    def needs_matcher(self) -> bool:
        return self.request.grammar is not None and self.matcher is None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.params.prompt_logprobs is not None and self.index == 0 and self.num_generated == 0

    @property
    def matchable(self) -> IntArray:
        """The keys a cached prefix may cover: at least one must be computed, or there is nothing to sample from."""
        if self.wants_prompt_logprobs:
            return self.keys.view(0, 0)  # every prompt row's logits are wanted
        return self.keys.view(0, len(self.keys) - (0 if self.prefill_only else 1))

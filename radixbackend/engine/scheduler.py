"""Which tokens the next step computes.

Rules.
- There is no prefill phase and no decode phase. A sequence has tokens whose keys and values are missing: a prompt,
  the last token, drafts. Each step gives every running sequence as many as the budget allows, those with one to
  go first, and admits waiting ones with what is left.
- A waiting sequence that shares a long prefix with one being prefilled is held until that prefix is in the tree,
  so simultaneous requests compute it once.
- When slots run out, cached prefixes are evicted, then the sequence that came last goes back to waiting with its
  tokens; it resumes exactly. The one that came first is never sent back, so something always finishes.
- With ``overlap`` a step is planned while the one before it is in flight, as if that had landed: its sequences have
  computed what it computes, the drafts it verifies are right, and those that sample have one token more, unknown yet.
  Where one of them cannot go on like that, or there is no slot for it, the next step is planned once this one has
  landed. A sequence that ended meanwhile, or one of whose drafts was refused, is in the next step for nothing: its
  share there counts no more, and its slots stay its own until that has landed.

What a step's result means is for `commit` to say; where sequences go, the `roster` keeps. All three must not know of
torch, threads, text or tensors: the tests drive them with a fake executor. One thread calls them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from radixbackend.engine.commit import Committer
from radixbackend.engine.plan import (
    ExecutorTraits,
    IntArray,
    SampleSpec,
    SequenceId,
    SequencePlan,
    StepPlan,
    StepResult,
)
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import Request, Sequence, Status, Update
from radixbackend.engine.roster import Roster
from radixbackend.engine.waiting import GrowthEstimate
from radixbackend.errors import IntegrityError, RequestAbortedError, RequestError
from radixbackend.types import EngineStats, RequestId, WaitingView

log = logging.getLogger(__name__)

RANK_WINDOW = 128
"""Waiting sequences ranked per step, those due first: bounds the cost of a step however long the queue."""

HOLD_TOKENS = 16
"""A sequence waits for a prefix being computed by another if they share at least this many tokens."""


class Share(NamedTuple):
    """What one sequence computes in a step: ``own`` tokens of its own and some drafts."""

    own: int
    drafts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a step."""

    running: int = 64
    step_tokens: int = 256


class Scheduler:
    """Budget, ranking and admission; every other part of the engine reaches the `roster` and `commit` through it.

    ``rank`` orders waiting views (indices, first to be admitted first). ``on_leave`` hears of each sequence that
    leaves the batch. ``compile_seconds`` tells what grammars took so far, ``encoded_images`` how many images the model
    has computed, both for the stats. With ``overlap``, if the executor can (then ``overlaps`` is set), `schedule` may
    be called while a step is in flight.
    """

    def __init__(
        self,
        cache: PrefixCache,
        limits: Limits,
        *,
        traits: ExecutorTraits,
        end_tokens: tuple[int, ...],
        rank: Callable[[Seq[WaitingView]], Seq[int]],
        on_leave: Callable[[SequenceId], None],
        compile_seconds: Callable[[], float] = lambda: 0.0,
        encoded_images: Callable[[], int] = lambda: 0,
        jump_forward: bool = True,
        overlap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._traits = traits
        self._rank = rank
        self._compile_seconds = compile_seconds
        self._encoded_images = encoded_images
        self.overlaps = overlap and traits.ahead
        self._roster = Roster(cache, on_leave, clock)
        self._committer = Committer(self._roster, cache, traits, end_tokens, jump_forward=jump_forward)
        self._growth = GrowthEstimate()

    # -- requests come and go ------------------------------------------------------------------------------------

    def add(self, requests: Iterable[Request]) -> list[Update]:
        """Queue the choices of these requests."""
        self._roster.add(requests)
        return self._roster.take_updates()

    def abort(self, request_id: RequestId, error: RequestError | None = None) -> list[Update]:
        """End a request in whatever state it is; unknown or ended ids do nothing."""
        if request := self._roster.find(request_id):
            self._roster.fail(request, error or RequestAbortedError("the request was aborted"))
        return self._roster.take_updates()

    def abort_all(self, reason: str) -> list[Update]:
        for request in self._roster.unfinished():
            self._roster.fail(request, RequestAbortedError(reason))
        return self._roster.take_updates()

    def unpin(self, request_id: RequestId) -> None:
        """Unlock the prefix that a request with ``pin`` kept; unknown ids do nothing."""
        self._roster.unpin(request_id)

    @property
    def has_work(self) -> bool:
        return self._roster.has_work

    def stats(self) -> EngineStats:
        usage = self._cache.usage()
        return EngineStats(
            steps=self._roster.step,
            running=len(self._roster.running),
            waiting=len(self._roster.waiting),
            slots_total=usage.total,
            slots_free=usage.free,
            slots_cached=usage.cached,
            slots_held=usage.held,
            tree_nodes=usage.nodes,
            evicted_tokens=usage.evicted_tokens,
            grammar_seconds=self._compile_seconds(),
            encoded_images=self._encoded_images(),
            **self._roster.count,
        )

    # -- steps land ----------------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult) -> list[Update]:
        """Take in what a step produced; returns what callers are to be told."""
        self._committer.commit(plan, result)
        return self._roster.take_updates()

    def fail_step(self, plan: StepPlan, fault: Exception) -> list[Update]:
        """A step raised, so it produced nothing."""
        self._committer.fail(plan, fault)
        return self._roster.take_updates()

    def quarantine(self, fault: Exception) -> list[Update]:
        """The books do not balance. Forget every cached prefix and compute what was running anew.

        Every step in flight has landed by now, and what it produced is forgotten, too.
        """
        log.error("cache quarantined, every prefix is dropped: %s", fault)
        self._roster.quarantine()
        return self._roster.take_updates()

    # -- schedule ------------------------------------------------------------------------------------------------

    def schedule(self) -> tuple[StepPlan | None, list[Update]]:
        """The next step, or None when nothing can run now; and what ended before it could run.

        The step is in flight from now on, until `commit` or `fail_step`.
        """
        if self._roster.flights and not self._can_go_ahead():
            return None, []
        self._growth.step()
        for sequence in [s for s in self._roster.running.values() if s.needs_matcher]:
            self._committer.attach_matcher(sequence)
        while self._roster.suspects and self._roster.suspects[0].status is Status.ENDED:
            self._roster.suspects.popleft()
        shares = self._share_out_alone(self._roster.suspects[0]) if self._roster.suspects else self._share_out()
        plan = None
        if shares:
            self._roster.step += 1
            plan = StepPlan(self._roster.step, tuple(self._plan(sequence, share) for sequence, share in shares.items()))
            for sequence, planned in zip(shares, plan.sequences, strict=True):
                sequence.take_off(planned)
            self._roster.flights.take_off(plan)
        return plan, self._roster.take_updates()

    def _can_go_ahead(self) -> bool:
        """Whether everybody in flight can go on without knowing what is drawn there, and all have slots for that."""
        return (
            self.overlaps
            and not self._roster.suspects
            and all(
                (s.goes_ahead or not s.in_flight)
                and s.lease is not None
                and self._cache.grow(s.lease, len(s.tokens) + s.coming)
                for s in self._roster.running.values()
            )
        )

    def _share_out(self) -> dict[Sequence, Share]:
        """What each sequence computes in this step."""
        budget = max(self._limits.step_tokens, self._limits.running)
        retractions = self._roster.count["retractions"]
        shares: dict[Sequence, Share] = {}
        # One token to go, then prompts: a prompt must not stall an answer being written.
        todo = [(pending > 1, s.arrival, s, pending) for s in self._roster.running.values() if (pending := s.pending)]
        for _, _, sequence, pending in sorted(todo):  # no two arrived together, so no sequences are compared
            if sequence.status is Status.RUNNING:  # not sent back a moment ago
                budget -= self._share(sequence, pending, budget, shares)
        if self._roster.waiting and retractions == self._roster.count["retractions"]:
            self._admit(budget, shares)
        return shares

    def _share_out_alone(self, sequence: Sequence) -> dict[Sequence, Share]:
        """After a failed step its sequences run one at a time, so that the fault ends only the one that causes it."""
        shares: dict[Sequence, Share] = {}
        if sequence.status is Status.WAITING and not self._try_start(sequence, alone=True):
            return self._share_out()  # no room until others go on; the suspect keeps its turn
        if sequence.id in self._roster.running and not sequence.pending:
            self._roster.suspects.rotate(-1)  # its grammar is still being compiled
            return self._share_out()
        if sequence.id in self._roster.running:
            self._share(sequence, sequence.pending, self._limits.step_tokens, shares)
        return shares or self._share_out()

    def _share(self, sequence: Sequence, pending: int, budget: int, shares: dict[Sequence, Share]) -> int:
        """Give one running sequence its share of the budget; returns how many tokens that is."""
        count = pending if budget > 0 and not self._traits.chunks else min(pending, max(budget, 0))
        if count and sequence.request.images is not None:
            count = sequence.request.images.chunk(sequence.reach, count)
            count = count if count <= pending else 0  # a block is computed as a whole, when its last token can be
        if not count or not self._make_room(sequence, count, shares):
            return 0
        drafts: tuple[int, ...] = ()
        if count == pending and sequence.drafts:
            drafts = self._room_for_drafts(sequence, budget - count)
        shares[sequence] = Share(count, drafts)
        return count + len(drafts)

    def _make_room(self, sequence: Sequence, count: int, shares: dict[Sequence, Share]) -> bool:
        """Slots for ``count`` more tokens, sending back later sequences if need be; False if it had to go itself."""
        assert sequence.lease is not None
        while not self._cache.grow(sequence.lease, sequence.reach + count):
            if self._roster.flights:
                raise IntegrityError(f"sequence {sequence.id} was to have its slots before the step in flight landed")
            victim = max(self._roster.running.values(), key=lambda s: (-s.request.priority, s.arrival))
            if victim is sequence and len(self._roster.running) == 1:
                self._roster.exhaust(sequence.request)
                return False
            shares.pop(victim, None)
            self._roster.retract(victim)
            self._growth.retracted()
            if victim is sequence:
                return False
        return True

    def _room_for_drafts(self, sequence: Sequence, budget: int) -> tuple[int, ...]:
        """The proposed drafts that fit the budget, if there are slots: nobody is sent back for a draft.

        They follow what is known. So the first of them are not for now, but what is in flight, if it comes as proposed.
        """
        coming = sequence.coming
        drafts = sequence.drafts[coming : coming + max(0, budget)]
        length = len(sequence.tokens) + coming + len(drafts)
        assert sequence.lease is not None
        return drafts if drafts and self._cache.grow(sequence.lease, length) else ()

    def _plan(self, sequence: Sequence, share: Share) -> SequencePlan:
        assert sequence.lease is not None
        params, start = sequence.request.params, sequence.reach
        stop = start + share.own
        unknown = stop > len(sequence.tokens)
        tokens = np.zeros(1, np.int32) if unknown else sequence.tokens.view(start, stop)
        sample = None
        if stop == len(sequence.tokens) + sequence.coming and not sequence.prefill_only:
            history, assumed = sequence.tokens.view(), sequence.assumed
            sample = SampleSpec(
                params=params,
                seed=sequence.seed,
                history=np.concatenate([history, np.array(assumed, np.int32)]) if assumed else history,
                num_prompt=sequence.num_prompt,
                drafts=share.drafts,
                matcher=sequence.matcher,
                remaining=sequence.remaining - sequence.coming,
                assumed=len(assumed),
                unknown=int(unknown),
            )
        return SequencePlan(
            sequence_id=sequence.id,
            tokens=np.concatenate([tokens, np.array(share.drafts, np.int32)]) if share.drafts else tokens,
            start=start,
            slots=sequence.lease.slots[: stop + len(share.drafts)],
            sample=sample,
            prompt_logprobs=params.prompt_logprobs if sequence.wants_prompt_logprobs else None,
            next_token=int(sequence.tokens.view()[stop]) if stop < sequence.num_prompt else None,
            images=sequence.request.images,
            ahead=self._roster.flights.row(sequence.id) if unknown else None,
        )

    # -- admission -----------------------------------------------------------------------------------------------

    def _admit(self, budget: int, shares: dict[Sequence, Share]) -> None:
        """Start waiting sequences in the order of the policy until the budget, the batch or the pool is full."""
        if budget <= 0 or len(self._roster.running) >= self._limits.running:
            return
        candidates = self._roster.waiting.first(RANK_WINDOW)
        cached = [self._cache.match(s.matchable, s.request.namespace) for s in candidates]
        for i in self._rank([self._view(s, hit) for s, hit in zip(candidates, cached, strict=True)]):
            if budget <= 0 or len(self._roster.running) >= self._limits.running:
                return
            sequence = candidates[i]
            if sequence.status is not Status.WAITING or self._is_held(sequence, cached[i]):
                continue
            if not self._try_start(sequence):
                return  # the first in line waits for room rather than be overtaken for ever
            if sequence.id in self._roster.running:  # not ended at once for having nothing to compute
                budget -= self._share(sequence, sequence.pending, budget, shares)

    def _view(self, sequence: Sequence, cached: int) -> WaitingView:
        return WaitingView(
            prompt_tokens=len(sequence.tokens),
            cached_tokens=cached,
            priority=sequence.request.priority,
            waited_steps=self._roster.step - sequence.queued_step,
            waited_seconds=self._roster.clock() - sequence.queued_time,
        )

    def _is_held(self, sequence: Sequence, cached: int) -> bool:
        """Whether a running sequence is about to compute more of a prefix that is worth waiting for."""
        mine = sequence.matchable
        least = max(cached + 1, HOLD_TOKENS)
        if not self._cache.enabled or len(mine) < least:
            return False
        for leader in self._roster.running.values():
            coming = len(leader.tokens) - leader.needs_matcher  # what its prefill will have computed
            if (
                leader.num_computed < leader.num_prompt
                and leader.request.namespace == sequence.request.namespace
                and coming >= least
                and np.array_equal(leader.keys.view(0, least), mine[:least])
            ):
                return True
        return False

    def _try_start(self, sequence: Sequence, *, alone: bool = False) -> bool:
        """Lease slots for all of the sequence's tokens and make it running; False if it must wait for room.

        A sequence that would not fit even alone ends with an error.
        """
        lease = self._cache.acquire(self._usable(sequence), sequence.request.namespace)
        length = len(sequence.tokens)
        running = list(self._roster.running.values())
        others = bool(running or self._roster.flights)  # who will give slots back
        reserve = self._growth.reserve([*running, sequence]) if others and not alone else 0
        roomy = self._cache.available() >= length - lease.num_cached + reserve
        if (not roomy and others) or not self._cache.grow(lease, length):
            self._cache.release(lease)
            if others:
                return False
            self._roster.exhaust(sequence.request)
            return True
        self._roster.start(sequence, lease)
        self._committer.attach_matcher(sequence)
        if sequence.prefill_only and not sequence.pending:
            self._roster.end(sequence, (), (), "length")
        return True

    def _usable(self, sequence: Sequence) -> IntArray:
        """The keys of which a cached prefix may be used."""
        images = sequence.request.images
        if images is None or not images.blocks:
            return sequence.matchable
        # Of a block that is cached to its end, the last token may be computed once more.
        cached = self._cache.match(sequence.keys.view(), sequence.request.namespace)
        return sequence.matchable[: images.usable(cached)]

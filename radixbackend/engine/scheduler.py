"""Which tokens the next step computes, and what its result means for each sequence.

Rules.
- There is no prefill phase and no decode phase. A sequence has tokens whose keys and values are missing: a prompt,
  the last token, drafts. Each step gives every running sequence as many as the budget allows, those with one to
  go first, and admits waiting ones with what is left.
- A waiting sequence that shares a long prefix with one being prefilled is held until that prefix is in the tree,
  so simultaneous requests compute it once.
- When slots run out, cached prefixes are evicted, then the sequence that came last goes back to waiting with its
  tokens; it resumes exactly. The one that came first is never sent back, so something always finishes.
- What goes wrong with one sequence ends its request and nothing else.
- With ``overlap`` a step is planned while the one before it is in flight, as if that had landed: its sequences have
  computed what it computes, the drafts it verifies are right, and those that sample have one token more, unknown yet.
  Where one of them cannot go on like that, or there is no slot for it, the next step is planned once this one has
  landed. A sequence that ended meanwhile, or one of whose drafts was refused, is in the next step for nothing: its
  share there counts no more, and its slots stay its own until that has landed.

It must not know of torch, threads, text or tensors: the tests drive it with a fake executor. One thread calls it.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from radixbackend.engine.flights import Flights
from radixbackend.engine.plan import (
    ExecutorTraits,
    IntArray,
    Sampled,
    SampleSpec,
    SequenceId,
    SequencePlan,
    StepPlan,
    StepResult,
)
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import Request, Sequence, Status, Update
from radixbackend.engine.waiting import GrowthEstimate, WaitingQueue
from radixbackend.errors import (
    CacheExhaustedError,
    GrammarCompileError,
    IntegrityError,
    RequestAbortedError,
    RequestError,
    StepError,
)
from radixbackend.types import EngineStats, FinishReason, RequestId, TokenEvent, TokenLogprob, Usage, WaitingView

log = logging.getLogger(__name__)

RANK_WINDOW = 128
"""Waiting sequences ranked per step, those due first: bounds the cost of a step however long the queue."""

HOLD_TOKENS = 16
"""A sequence waits for a prefix being computed by another if they share at least this many tokens."""

MAX_DRAFTS = 64
"""Forced tokens proposed at once."""


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
    """Queues, budget, ranking, retraction and commit.

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
        self._end_tokens = frozenset(end_tokens)
        self._rank = rank
        self._on_leave = on_leave
        self._compile_seconds = compile_seconds
        self._encoded_images = encoded_images
        self._use_drafts = jump_forward and traits.drafts
        self.overlaps = overlap and traits.ahead
        self._flights = Flights(cache)
        self._clock = clock
        self._ids = itertools.count()
        self._step = 0
        self._requests: dict[RequestId, Request] = {}
        self._running: dict[SequenceId, Sequence] = {}  # in order of admission
        self._waiting = WaitingQueue()
        self._suspects: deque[Sequence] = deque()  # of a failed step; each is run alone to find the culprit
        self._pins: dict[RequestId, Sequence] = {}
        self._growth = GrowthEstimate()
        self._updates: list[Update] = []
        self._count = dict.fromkeys(_COUNTERS, 0)

    # -- requests come and go ------------------------------------------------------------------------------------

    def add(self, requests: Iterable[Request]) -> list[Update]:
        """Queue the choices of these requests."""
        for request in requests:
            for i in range(len(request.seeds)):
                sequence = Sequence(SequenceId(next(self._ids)), request, i)
                sequence.arrived_step = self._step
                request.sequences.append(sequence)
                self._enqueue(sequence)
            self._requests[request.id] = request
        return self._take_updates()

    def abort(self, request_id: RequestId, error: RequestError | None = None) -> list[Update]:
        """End a request in whatever state it is; unknown or ended ids do nothing."""
        if request := self._requests.get(request_id):
            self._fail(request, error or RequestAbortedError("the request was aborted"))
        return self._take_updates()

    def abort_all(self, reason: str) -> list[Update]:
        for request in list(self._requests.values()):
            self._fail(request, RequestAbortedError(reason))
        return self._take_updates()

    def unpin(self, request_id: RequestId) -> None:
        """Unlock the prefix that a request with ``pin`` kept; unknown ids do nothing."""
        if sequence := self._pins.pop(request_id, None):
            self._give_back(sequence)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def stats(self) -> EngineStats:
        usage = self._cache.usage()
        return EngineStats(
            steps=self._step,
            running=len(self._running),
            waiting=len(self._waiting),
            slots_total=usage.total,
            slots_free=usage.free,
            slots_cached=usage.cached,
            slots_held=usage.held,
            tree_nodes=usage.nodes,
            evicted_tokens=usage.evicted_tokens,
            grammar_seconds=self._compile_seconds(),
            encoded_images=self._encoded_images(),
            **self._count,
        )

    # -- schedule ------------------------------------------------------------------------------------------------

    def schedule(self) -> tuple[StepPlan | None, list[Update]]:
        """The next step, or None when nothing can run now; and what ended before it could run.

        The step is in flight from now on, until `commit` or `fail_step`.
        """
        if self._flights and not self._can_go_ahead():
            return None, []
        self._growth.step()
        for sequence in [s for s in self._running.values() if s.needs_matcher]:
            self._attach_matcher(sequence)
        while self._suspects and self._suspects[0].status is Status.ENDED:
            self._suspects.popleft()
        shares = self._share_out_alone(self._suspects[0]) if self._suspects else self._share_out()
        plan = None
        if shares:
            self._step += 1
            plan = StepPlan(self._step, tuple(self._plan(sequence, share) for sequence, share in shares.items()))
            for sequence, planned in zip(shares, plan.sequences, strict=True):
                sequence.take_off(planned)
            self._flights.take_off(plan)
        return plan, self._take_updates()

    def _can_go_ahead(self) -> bool:
        """Whether everybody in flight can go on without knowing what is drawn there, and all have slots for that."""
        return (
            self.overlaps
            and not self._suspects
            and all(
                (s.goes_ahead or not s.in_flight)
                and s.lease is not None
                and self._cache.grow(s.lease, len(s.tokens) + s.coming)
                for s in self._running.values()
            )
        )

    def _share_out(self) -> dict[Sequence, Share]:
        """What each sequence computes in this step."""
        budget = max(self._limits.step_tokens, self._limits.running)
        retractions = self._count["retractions"]
        shares: dict[Sequence, Share] = {}
        # One token to go, then prompts: a prompt must not stall an answer being written.
        todo = [(pending > 1, s.arrival, s, pending) for s in self._running.values() if (pending := self._pending(s))]
        for _, _, sequence, pending in sorted(todo):  # no two arrived together, so no sequences are compared
            if sequence.status is Status.RUNNING:  # not sent back a moment ago
                budget -= self._share(sequence, pending, budget, shares)
        if self._waiting and retractions == self._count["retractions"]:
            self._admit(budget, shares)
        return shares

    def _share_out_alone(self, sequence: Sequence) -> dict[Sequence, Share]:
        """After a failed step its sequences run one at a time, so that the fault ends only the one that causes it."""
        shares: dict[Sequence, Share] = {}
        if sequence.status is Status.WAITING and not self._try_start(sequence, alone=True):
            return self._share_out()  # no room until others go on; the suspect keeps its turn
        if sequence.id in self._running and not self._pending(sequence):
            self._suspects.rotate(-1)  # its grammar is still being compiled
            return self._share_out()
        if sequence.id in self._running:
            self._share(sequence, self._pending(sequence), self._limits.step_tokens, shares)
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

    @staticmethod
    def _pending(sequence: Sequence) -> int:
        """Tokens to catch up now. The last one waits while the grammar that masks its logits is being compiled."""
        if sequence.coming and sequence.coming >= sequence.remaining:
            return 0  # it ends with what is in flight
        return len(sequence.tokens) + sequence.coming - sequence.reach - sequence.needs_matcher

    def _make_room(self, sequence: Sequence, count: int, shares: dict[Sequence, Share]) -> bool:
        """Slots for ``count`` more tokens, sending back later sequences if need be; False if it had to go itself."""
        assert sequence.lease is not None
        while not self._cache.grow(sequence.lease, sequence.reach + count):
            if self._flights:
                raise IntegrityError(f"sequence {sequence.id} was to have its slots before the step in flight landed")
            victim = max(self._running.values(), key=lambda s: (-s.request.priority, s.arrival))
            if victim is sequence and len(self._running) == 1:
                self._exhausted(sequence.request)
                return False
            shares.pop(victim, None)
            self._retract(victim)
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
            ahead=self._flights.row(sequence.id) if unknown else None,
        )

    # -- admission -----------------------------------------------------------------------------------------------

    def _admit(self, budget: int, shares: dict[Sequence, Share]) -> None:
        """Start waiting sequences in the order of the policy until the budget, the batch or the pool is full."""
        if budget <= 0 or len(self._running) >= self._limits.running:
            return
        candidates = self._waiting.first(RANK_WINDOW)
        cached = [self._cache.match(s.matchable, s.request.namespace) for s in candidates]
        for i in self._rank([self._view(s, hit) for s, hit in zip(candidates, cached, strict=True)]):
            if budget <= 0 or len(self._running) >= self._limits.running:
                return
            sequence = candidates[i]
            if sequence.status is not Status.WAITING or self._is_held(sequence, cached[i]):
                continue
            if not self._try_start(sequence):
                return  # the first in line waits for room rather than be overtaken for ever
            if sequence.id in self._running:  # not ended at once for having nothing to compute
                budget -= self._share(sequence, self._pending(sequence), budget, shares)

    def _view(self, sequence: Sequence, cached: int) -> WaitingView:
        return WaitingView(
            prompt_tokens=len(sequence.tokens),
            cached_tokens=cached,
            priority=sequence.request.priority,
            waited_steps=self._step - sequence.queued_step,
            waited_seconds=self._clock() - sequence.queued_time,
        )

    def _is_held(self, sequence: Sequence, cached: int) -> bool:
        """Whether a running sequence is about to compute more of a prefix that is worth waiting for."""
        mine = sequence.matchable
        least = max(cached + 1, HOLD_TOKENS)
        if not self._cache.enabled or len(mine) < least:
            return False
        for leader in self._running.values():
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
        running = list(self._running.values())
        others = bool(running or self._flights)  # who will give slots back
        reserve = self._growth.reserve([*running, sequence]) if others and not alone else 0
        roomy = self._cache.available() >= length - lease.num_cached + reserve
        if (not roomy and others) or not self._cache.grow(lease, length):
            self._cache.release(lease)
            if others:
                return False
            self._exhausted(sequence.request)
            return True
        self._waiting.remove(sequence)
        sequence.move(Status.RUNNING)
        sequence.lease = lease
        sequence.num_computed = lease.num_cached
        self._running[sequence.id] = sequence
        self._note_admission(sequence, lease.num_cached)
        self._attach_matcher(sequence)
        if sequence.prefill_only and not self._pending(sequence):
            self._end_choice(sequence, (), (), "length")
        return True

    def _usable(self, sequence: Sequence) -> IntArray:
        """The keys of which a cached prefix may be used."""
        images = sequence.request.images
        if images is None or not images.blocks:
            return sequence.matchable
        # Of a block that is cached to its end, the last token may be computed once more.
        cached = self._cache.match(sequence.keys.view(), sequence.request.namespace)
        return sequence.matchable[: images.usable(cached)]

    def _note_admission(self, sequence: Sequence, cached: int) -> None:
        if sequence.num_cached is None:
            sequence.num_cached = cached
            self._count["prompt_tokens"] += sequence.num_prompt
            self._count["cached_tokens"] += cached
        if sequence.request.admitted is None:
            sequence.request.admitted = self._clock()

    def _attach_matcher(self, sequence: Sequence) -> None:
        """Start the grammar of a sequence once it is compiled; a grammar that failed ends the request."""
        future = sequence.request.grammar
        if sequence.matcher is not None or future is None or not future.done():
            return
        try:
            sequence.matcher = future.result().matcher()
            sequence.drafts = self._propose(sequence)
        except RequestError as fault:
            self._fail(sequence.request, fault)
        except Exception as fault:
            self._fail(sequence.request, chained(GrammarCompileError(f"the grammar cannot be used: {fault}"), fault))

    def _propose(self, sequence: Sequence) -> tuple[int, ...]:
        """What the grammar forces next, to be verified as drafts."""
        limit = min(sequence.remaining - 1, MAX_DRAFTS)
        if not self._use_drafts or sequence.matcher is None or limit < 1:
            return ()
        return sequence.matcher.forced_tokens(limit)

    # -- commit --------------------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult) -> list[Update]:
        """Take in what a step produced; returns what callers are to be told."""
        self._flights.land(plan)
        for share, sampled in zip(plan.sequences, result.sampled, strict=True):
            sequence = self._running.get(share.sequence_id)
            if sequence is None or not sequence.land(share):
                continue  # it ended, with its request or by the token before, or this was computed from another token
            if sampled.redrawn or len(sampled.tokens) < share.num_drawn:
                sequence.ground()  # what was planned ahead of this goes on from other tokens
            try:
                self._commit_sequence(sequence, share, sampled)
            except Exception as fault:
                log.exception("committing sequence %d failed", sequence.id)
                self._fail(sequence.request, chained(StepError(f"the step's result could not be used: {fault}"), fault))
            if self._suspects and self._suspects[0] is sequence:
                self._suspects.popleft()  # it ran alone and did no harm
        self._cache.check_counts()
        return self._take_updates()

    def _commit_sequence(self, sequence: Sequence, share: SequencePlan, sampled: Sampled) -> None:
        assert sequence.lease is not None
        if sampled.error is not None:
            # What this step wrote may be as broken as its logits: it is not counted as computed, so nobody reuses it.
            self._fail(sequence.request, StepError(sampled.error))
            return
        drafts = len(share.sample.drafts) if share.sample else 0
        accepted = max(len(sampled.tokens) - 1, 0)
        computed = len(share.tokens) - drafts
        sequence.num_computed = share.start + computed + accepted
        sequence.prompt_logprobs.extend(sampled.prompt_logprobs)
        if share.start < sequence.num_prompt or computed > 1:
            # Decoded tokens are published when the sequence leaves, in one piece.
            self._publish(sequence, share.start + computed)
            self._count["prefilled_tokens"] += computed
        if share.sample is not None:
            self._count["drafted_tokens"] += drafts
            self._count["accepted_tokens"] += accepted
            self._append(sequence, sampled)
        elif sequence.prefill_only and not sequence.in_flight and not self._pending(sequence):
            self._end_choice(sequence, (), (), "length")

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        """Append new tokens one by one until one of them ends the choice."""
        reason: FinishReason | None = None
        stop_reason: int | None = None
        kept = 0
        for token in sampled.tokens:
            kept += 1
            sequence.append(token)
            reason, stop_reason = self._ends(sequence, token)
            if reason:
                break
        sequence.num_forced += min(kept, len(sampled.tokens) - 1)
        sequence.num_computed = min(sequence.num_computed, len(sequence.tokens) - 1)
        self._count["generated_tokens"] += kept
        if sequence.request.first_token is None:
            sequence.request.first_token = self._clock()
        tokens, logprobs = sampled.tokens[:kept], sampled.logprobs[:kept]
        stream = sequence.request.stream
        if not stream:
            sequence.logprobs += logprobs
        if reason:
            if not stream:
                tokens, logprobs = tuple(sequence.tokens.view(sequence.num_prompt).tolist()), tuple(sequence.logprobs)
            self._end_choice(sequence, tokens, logprobs, reason, stop_reason)
            return
        if sequence.matcher is not None:
            sequence.drafts = self._propose(sequence)
        if stream:
            self._tell(sequence, TokenEvent(sequence.index, tokens, logprobs=logprobs))

    def _ends(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        """Whether the choice ends with this token, just appended, and by which stop token if by one."""
        params, matcher = sequence.request.params, sequence.matcher
        if matcher is not None and not matcher.accept(token):
            raise IntegrityError(f"token {token} was drawn although the grammar does not allow it")
        if token in params.stop_token_ids:
            return "stop", token
        if token in self._end_tokens and not params.ignore_eos:
            return "stop", None
        if matcher is not None and matcher.is_finished():
            return "stop", None
        if sequence.stop_check is not None and sequence.stop_check.feed(token):
            return "stop", None
        return ("length" if sequence.remaining <= 0 else None), None

    def _end_choice(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason,
        stop_reason: int | None = None,
    ) -> None:
        """A choice is finished; with its last choice the request is."""
        request = sequence.request
        matcher = sequence.matcher
        usage = Usage(sequence.num_prompt, sequence.num_generated, sequence.num_cached or 0, sequence.num_forced)
        pin = request.pin and sequence.index == 0
        self._leave(sequence, keep_lease=pin)
        sequence.move(Status.ENDED)
        if pin and sequence.lease is not None:
            self._pins[request.id] = sequence
        last = all(s.status is Status.ENDED for s in request.sequences)
        if last:
            request.ended = True
            del self._requests[request.id]
            self._count["finished"] += 1
        complete = matcher is None or matcher.is_complete()
        event = TokenEvent(
            sequence.index,
            tokens,
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
            complete=complete,
            usage=usage,
        )
        self._tell(sequence, event, last=last)

    def _tell(self, sequence: Sequence, event: TokenEvent, *, last: bool = False) -> None:
        if sequence.prompt_logprobs:
            event = replace(event, prompt_logprobs=(None, *sequence.prompt_logprobs))
            sequence.prompt_logprobs = []
        self._updates.append(Update(sequence.request, event, last=last))

    # -- faults --------------------------------------------------------------------------------------------------

    def fail_step(self, plan: StepPlan, fault: Exception) -> list[Update]:
        """A step raised. One sequence in it: its request ends. Several: each is tried alone in the next steps."""
        self._flights.land(plan)
        affected = [s for p in plan.sequences if (s := self._running.get(p.sequence_id)) and s.land(p)]
        for sequence in affected:
            sequence.ground()  # nobody knows what the step behind it went on with
        if affected and len(plan.sequences) == 1:
            error = StepError(f"the model failed on this request: {type(fault).__name__}: {fault}")
            self._fail(affected[0].request, chained(error, fault))
        elif not self._traits.shares_prefixes:
            for sequence in affected:  # what the executor keeps for them is half a step ahead
                self._retract(sequence)
        if len(plan.sequences) > 1:
            self._suspects.extend(s for s in affected if s not in self._suspects)
        return self._take_updates()

    def quarantine(self, fault: Exception) -> list[Update]:
        """The books do not balance. Forget every cached prefix and compute what was running anew.

        Every step in flight has landed by now, and what it produced is forgotten, too.
        """
        log.error("cache quarantined, every prefix is dropped: %s", fault)
        for sequence in list(self._running.values()):
            del self._running[sequence.id]
            self._on_leave(sequence.id)
            self._back_to_waiting(sequence)
        self._pins.clear()
        self._flights.clear()
        self._cache.reset()
        self._count["quarantines"] += 1
        return self._take_updates()

    def _exhausted(self, request: Request) -> None:
        usage = self._cache.usage()
        self._fail(
            request,
            CacheExhaustedError(
                f"no KV slot can be freed for this request: {usage.held} of {usage.total} are held, by its own tokens "
                "and by pinned prefixes; unpin some or raise kv_cache_tokens"
            ),
        )

    def _fail(self, request: Request, error: RequestError) -> None:
        """End a request with an error, whatever states its choices are in."""
        if request.ended:
            return
        request.ended = True
        del self._requests[request.id]
        for sequence in request.sequences:
            if sequence.status is Status.RUNNING:
                self._leave(sequence)
            elif sequence.status is Status.WAITING:
                self._waiting.remove(sequence)
            if sequence.status is not Status.ENDED:
                sequence.move(Status.ENDED)
        self.unpin(request.id)
        self._count["aborted" if isinstance(error, RequestAbortedError) else "failed"] += 1
        self._updates.append(Update(request, error=error, last=True))

    # -- moving sequences ----------------------------------------------------------------------------------------

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.queued_step = self._step
        sequence.queued_time = self._clock()
        self._waiting.add(sequence)

    def _leave(self, sequence: Sequence, *, keep_lease: bool = False) -> None:
        """Out of the batch: what it computed stays in the tree, its other slots are free."""
        del self._running[sequence.id]
        self._on_leave(sequence.id)
        self._publish(sequence, sequence.num_computed)
        sequence.ground()
        if not keep_lease:
            self._give_back(sequence)

    def _publish(self, sequence: Sequence, length: int) -> None:
        assert sequence.lease is not None
        in_use = self._flights.uses(sequence.id)
        spare = self._cache.publish(sequence.lease, sequence.keys.view(0, length), keep=in_use)
        if spare is not None:
            self._flights.release(spare, sequence.id)

    def _give_back(self, sequence: Sequence) -> None:
        lease, sequence.lease = sequence.lease, None
        if lease is not None:
            self._flights.release(lease, sequence.id)

    def _retract(self, sequence: Sequence) -> None:
        self._leave(sequence)
        self._back_to_waiting(sequence)
        self._growth.retracted()
        self._count["retractions"] += 1
        sequence.request.retractions += 1

    def _back_to_waiting(self, sequence: Sequence) -> None:
        sequence.move(Status.WAITING)
        sequence.lease = None
        sequence.ground()
        sequence.num_computed = 0
        if not sequence.num_generated:
            sequence.prompt_logprobs.clear()
        self._enqueue(sequence)

    def _take_updates(self) -> list[Update]:
        updates, self._updates = self._updates, []
        return updates


E = TypeVar("E", bound=BaseException)

_COUNTERS = (
    "prompt_tokens",
    "cached_tokens",
    "prefilled_tokens",
    "generated_tokens",
    "drafted_tokens",
    "accepted_tokens",
    "retractions",
    "finished",
    "failed",
    "aborted",
    "quarantines",
)


def chained(error: E, cause: BaseException) -> E:
    """``raise error from cause`` for an error that is delivered instead of raised."""
    error.__cause__ = cause
    return error

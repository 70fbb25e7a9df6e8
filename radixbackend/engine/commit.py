"""What a step's result means for each sequence.

Rules. Of a step's tokens those are kept that come before an end; the drafts that were right count as computed. A
sequence that ended meanwhile, or whose share was computed from another token, is passed over. What goes wrong with one
sequence ends its request and nothing else; where a whole step failed and nobody knows by whose fault, its sequences are
suspects, for the scheduler to run alone. It must not know of budgets, torch or text. One thread calls it.
"""

from __future__ import annotations

import logging

from radixbackend.engine.plan import ExecutorTraits, Sampled, SequencePlan, StepPlan, StepResult
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import Sequence
from radixbackend.engine.roster import Roster, chained
from radixbackend.errors import GrammarCompileError, IntegrityError, RequestError, StepError
from radixbackend.types import FinishReason, TokenEvent

log = logging.getLogger(__name__)

MAX_DRAFTS = 64
"""Forced tokens proposed at once."""


class Committer:
    """Takes in what steps produced. With ``jump_forward`` what a grammar forces is proposed as drafts."""

    def __init__(
        self,
        roster: Roster,
        cache: PrefixCache,
        traits: ExecutorTraits,
        end_tokens: tuple[int, ...],
        *,
        jump_forward: bool,
    ) -> None:
        self._roster = roster
        self._cache = cache
        self._shares_prefixes = traits.shares_prefixes
        self._end_tokens = frozenset(end_tokens)
        self._use_drafts = jump_forward and traits.drafts

    def attach_matcher(self, sequence: Sequence) -> None:
        """Start the grammar of a sequence once it is compiled; a grammar that failed ends the request."""
        future = sequence.request.grammar
        if sequence.matcher is not None or future is None or not future.done():
            return
        try:
            sequence.matcher = future.result().matcher()
            sequence.drafts = self._propose(sequence)
        except RequestError as fault:
            self._roster.fail(sequence.request, fault)
        except Exception as fault:
            error = GrammarCompileError(f"the grammar cannot be used: {fault}")
            self._roster.fail(sequence.request, chained(error, fault))

    def commit(self, plan: StepPlan, result: StepResult) -> None:
        """A step has landed."""
        roster = self._roster
        roster.flights.land(plan)
        for share, sampled in zip(plan.sequences, result.sampled, strict=True):
            sequence = roster.running.get(share.sequence_id)
            if sequence is None or not sequence.land(share):
                continue  # it ended, with its request or by the token before, or this was computed from another token
            if sampled.redrawn or len(sampled.tokens) < share.num_drawn:
                sequence.ground()  # what was planned ahead of this goes on from other tokens
            try:
                self._take_in(sequence, share, sampled)
            except Exception as fault:
                log.exception("committing sequence %d failed", sequence.id)
                error = StepError(f"the step's result could not be used: {fault}")
                roster.fail(sequence.request, chained(error, fault))
            if roster.suspects and roster.suspects[0] is sequence:
                roster.suspects.popleft()  # it ran alone and did no harm
        self._cache.check_counts()

    def fail(self, plan: StepPlan, fault: Exception) -> None:
        """A step raised. One sequence in it: its request ends. Several: each is tried alone in the next steps."""
        roster = self._roster
        roster.flights.land(plan)
        affected = [s for p in plan.sequences if (s := roster.running.get(p.sequence_id)) and s.land(p)]
        for sequence in affected:
            sequence.ground()  # nobody knows what the step behind it went on with
        if affected and len(plan.sequences) == 1:
            error = StepError(f"the model failed on this request: {type(fault).__name__}: {fault}")
            roster.fail(affected[0].request, chained(error, fault))
        elif not self._shares_prefixes:
            for sequence in affected:  # what the executor keeps for them is half a step ahead
                roster.retract(sequence)
        if len(plan.sequences) > 1:
            roster.suspects.extend(s for s in affected if s not in roster.suspects)

    def _take_in(self, sequence: Sequence, share: SequencePlan, sampled: Sampled) -> None:
        roster = self._roster
        if sampled.error is not None:
            # What this step wrote may be as broken as its logits: it is not counted as computed, so nobody reuses it.
            roster.fail(sequence.request, StepError(sampled.error))
            return
        drafts = len(share.sample.drafts) if share.sample else 0
        accepted = max(len(sampled.tokens) - 1, 0)
        computed = len(share.tokens) - drafts
        sequence.num_computed = share.start + computed + accepted
        sequence.prompt_logprobs.extend(sampled.prompt_logprobs)
        if share.start < sequence.num_prompt or computed > 1:
            # Decoded tokens are published when the sequence leaves, in one piece.
            roster.publish(sequence, share.start + computed)
            roster.count["prefilled_tokens"] += computed
        if share.sample is not None:
            roster.count["drafted_tokens"] += drafts
            roster.count["accepted_tokens"] += accepted
            self._append(sequence, sampled)
        elif sequence.prefill_only and not sequence.in_flight and not sequence.pending:
            roster.end(sequence, (), (), "length")

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        """Append new tokens one by one until one of them ends the choice."""
        roster = self._roster
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
        roster.count["generated_tokens"] += kept
        if sequence.request.first_token is None:
            sequence.request.first_token = roster.clock()
        tokens, logprobs = sampled.tokens[:kept], sampled.logprobs[:kept]
        stream = sequence.request.stream
        if not stream:
            sequence.logprobs += logprobs
        if reason:
            if not stream:
                tokens, logprobs = tuple(sequence.tokens.view(sequence.num_prompt).tolist()), tuple(sequence.logprobs)
            roster.end(sequence, tokens, logprobs, reason, stop_reason)
            return
        if sequence.matcher is not None:
            sequence.drafts = self._propose(sequence)
        if stream:
            roster.tell(sequence, TokenEvent(sequence.index, tokens, logprobs=logprobs))

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

    def _propose(self, sequence: Sequence) -> tuple[int, ...]:
        """What the grammar forces next, to be verified as drafts."""
        limit = min(sequence.remaining - 1, MAX_DRAFTS)
        if not self._use_drafts or sequence.matcher is None or limit < 1:
            return ()
        return sequence.matcher.forced_tokens(limit)

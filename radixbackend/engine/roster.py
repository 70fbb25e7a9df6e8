"""Who waits, who runs, who has ended, and what their callers are to be told.

Rules. Wherever a sequence goes, all that hangs on it goes along here: its place in the queue or the batch, its lease on
slots, what the tree keeps of it, the counters, the news for its caller. A request ends once, with its last choice or
with an error, and nothing is told after that. Not known here: budgets and policies (the scheduler's), and what a step
computed (for `commit`). One thread calls it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from radixbackend.engine.flights import Flights
from radixbackend.engine.plan import SequenceId
from radixbackend.engine.prefix_cache import Lease, PrefixCache
from radixbackend.engine.request import Request, Sequence, Status, Update
from radixbackend.engine.waiting import WaitingQueue
from radixbackend.errors import CacheExhaustedError, RequestAbortedError, RequestError
from radixbackend.types import FinishReason, RequestId, TokenEvent, TokenLogprob, Usage

COUNTERS = (
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
"""What is counted over an engine's life, by the names that `EngineStats` has for it."""

E = TypeVar("E", bound=BaseException)


class Roster:
    """The requests of an engine and the states of their choices.

    ``on_leave`` hears of each sequence that leaves the batch.

    Attributes:
        step: the number of the last step that was planned.
        running: by id, in the order of admission.
        suspects: the sequences of a failed step; each is run alone to find the culprit.
        flights: the steps in flight.
        count: by name, see `COUNTERS`.
    """

    def __init__(self, cache: PrefixCache, on_leave: Callable[[SequenceId], None], clock: Callable[[], float]) -> None:
        self._cache = cache
        self._on_leave = on_leave
        self.clock = clock
        self.step = 0
        self.running: dict[SequenceId, Sequence] = {}
        self.waiting = WaitingQueue()
        self.suspects: deque[Sequence] = deque()
        self.flights = Flights(cache)
        self.count = dict.fromkeys(COUNTERS, 0)
        self._ids = itertools.count()
        self._requests: dict[RequestId, Request] = {}
        self._pins: dict[RequestId, Sequence] = {}
        self._updates: list[Update] = []

    # -- requests ------------------------------------------------------------------------------------------------

    def add(self, requests: Iterable[Request]) -> None:
        """Queue the choices of these requests."""
        for request in requests:
            for i in range(len(request.seeds)):
                sequence = Sequence(SequenceId(next(self._ids)), request, i)
                sequence.arrived_step = self.step
                request.sequences.append(sequence)
                self._enqueue(sequence)
            self._requests[request.id] = request

    def find(self, request_id: RequestId) -> Request | None:
        """The request of that id, unless it is unknown or ended."""
        return self._requests.get(request_id)

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended."""
        return bool(self._requests)

    def unfinished(self) -> list[Request]:
        return list(self._requests.values())

    def fail(self, request: Request, error: RequestError) -> None:
        """End a request with an error, whatever states its choices are in."""
        if request.ended:
            return
        request.ended = True
        del self._requests[request.id]
        for sequence in request.sequences:
            if sequence.status is Status.RUNNING:
                self._leave(sequence)
            elif sequence.status is Status.WAITING:
                self.waiting.remove(sequence)
            if sequence.status is not Status.ENDED:
                sequence.move(Status.ENDED)
        self.unpin(request.id)
        self.count["aborted" if isinstance(error, RequestAbortedError) else "failed"] += 1
        self._updates.append(Update(request, error=error, last=True))

    def exhaust(self, request: Request) -> None:
        """End a request that cannot have the slots it needs."""
        usage = self._cache.usage()
        self.fail(
            request,
            CacheExhaustedError(
                f"no KV slot can be freed for this request: {usage.held} of {usage.total} are held, by its own tokens "
                "and by pinned prefixes; unpin some or raise kv_cache_tokens"
            ),
        )

    def unpin(self, request_id: RequestId) -> None:
        """Unlock the prefix that a request with ``pin`` kept; unknown ids do nothing."""
        if sequence := self._pins.pop(request_id, None):
            self._give_back(sequence)

    # -- sequences -----------------------------------------------------------------------------------------------

    def start(self, sequence: Sequence, lease: Lease) -> None:
        """Out of the queue and into the batch, with slots for all of its tokens."""
        self.waiting.remove(sequence)
        sequence.move(Status.RUNNING)
        sequence.lease = lease
        sequence.num_computed = lease.num_cached
        self.running[sequence.id] = sequence
        if sequence.num_cached is None:
            sequence.num_cached = lease.num_cached
            self.count["prompt_tokens"] += sequence.num_prompt
            self.count["cached_tokens"] += lease.num_cached
        if sequence.request.admitted is None:
            sequence.request.admitted = self.clock()

    def publish(self, sequence: Sequence, length: int) -> None:
        """Give the tree its first so many tokens."""
        assert sequence.lease is not None
        in_use = self.flights.uses(sequence.id)
        spare = self._cache.publish(sequence.lease, sequence.keys.view(0, length), keep=in_use)
        if spare is not None:
            self.flights.release(spare, sequence.id)

    def retract(self, sequence: Sequence) -> None:
        """Back to waiting with its tokens; what it computed stays in the tree for as long as there is room."""
        self._leave(sequence)
        self._back_to_waiting(sequence)
        self.count["retractions"] += 1
        sequence.request.retractions += 1

    def end(
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
            self.count["finished"] += 1
        event = TokenEvent(
            sequence.index,
            tokens,
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
            complete=matcher is None or matcher.is_complete(),
            usage=usage,
        )
        self.tell(sequence, event, last=last)

    def quarantine(self) -> None:
        """Forget every cached prefix and every step in flight, and compute what was running anew."""
        for sequence in list(self.running.values()):
            del self.running[sequence.id]
            self._on_leave(sequence.id)
            self._back_to_waiting(sequence)
        self._pins.clear()
        self.flights.clear()
        self._cache.reset()
        self.count["quarantines"] += 1

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.queued_step = self.step
        sequence.queued_time = self.clock()
        self.waiting.add(sequence)

    def _leave(self, sequence: Sequence, *, keep_lease: bool = False) -> None:
        """Out of the batch: what it computed stays in the tree, its other slots are free."""
        del self.running[sequence.id]
        self._on_leave(sequence.id)
        self.publish(sequence, sequence.num_computed)
        sequence.ground()
        if not keep_lease:
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        lease, sequence.lease = sequence.lease, None
        if lease is not None:
            self.flights.release(lease, sequence.id)

    def _back_to_waiting(self, sequence: Sequence) -> None:
        sequence.move(Status.WAITING)
        sequence.lease = None
        sequence.ground()
        sequence.num_computed = 0
        if not sequence.num_generated:
            sequence.prompt_logprobs.clear()
        self._enqueue(sequence)

    # -- news ----------------------------------------------------------------------------------------------------

    def tell(self, sequence: Sequence, event: TokenEvent, *, last: bool = False) -> None:
        """Have the caller told of an event, and of the prompt's log-probabilities with the first."""
        if sequence.prompt_logprobs:
            event = replace(event, prompt_logprobs=(None, *sequence.prompt_logprobs))
            sequence.prompt_logprobs = []
        self._updates.append(Update(sequence.request, event, last=last))

    def take_updates(self) -> list[Update]:
        """What has come up since this was asked last."""
        updates, self._updates = self._updates, []
        return updates


def chained(error: E, cause: BaseException) -> E:
    """``raise error from cause`` for an error that is delivered instead of raised."""
    error.__cause__ = cause
    return error

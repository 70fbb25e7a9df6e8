"""The engine's one thread: commands in, steps, updates out.

Rules. Everything that happens to the scheduler happens here, as a command taken from the inbox between two steps,
so nothing below needs a lock. No policy: what to run is the scheduler's, how to run it the executor's. Nothing that
a request, a sink or an observer does ends the thread.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

from radixbackend.engine.plan import Executor, Launched, SequencePlan, StepPlan, StepResult
from radixbackend.engine.request import ConsumerGone, Request, Update
from radixbackend.engine.scheduler import Scheduler
from radixbackend.errors import EngineClosedError, QueueFullError, RequestAbortedError
from radixbackend.types import EngineStats, RequestRecord, StepRecord

log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[], list[Update]]

POLL_SECONDS = 0.05
"""How long the thread sleeps at most while there is work that cannot run (grammars are being compiled)."""

LULL_SECONDS = 3e-4
"""How long after a command an idle engine waits for the next one."""

BURST_SECONDS = 5e-3
"""How long it does so at most."""


class Observer(Protocol):
    """Hears of every step and of every ended request, on the engine's thread; must not raise."""

    @property
    def hears_steps(self) -> bool:
        """Whether anybody does: otherwise steps are not told."""

    def step_finished(self, record: StepRecord) -> None: ...

    def request_finished(self, record: RequestRecord) -> None: ...


def start(make: Callable[[], T], loop_of: Callable[[T], EngineLoop]) -> T:
    """Make something on a new thread, which then runs its loop until that is closed; returns what was made.

    All that an engine computes, the loading included, it computes on this one thread: OpenMP keeps a pool of workers
    for each thread that computes, and as soon as two pools together have more threads than there are cores, libgomp
    puts workers to sleep between operators. Decode steps of a small model then take twice as long.
    """
    made: Future[T] = Future()

    def live() -> None:
        try:
            thing = make()
        except BaseException as fault:
            made.set_exception(fault)
            return
        loop = loop_of(thing)
        made.set_result(thing)
        loop.run()

    threading.Thread(target=live, name="radix-engine", daemon=True).start()

    def discard(late: Future[T]) -> None:
        if late.exception() is None:
            loop_of(late.result()).close()

    try:
        return made.result()
    except BaseException:  # an interrupt: nobody will close what is still being made
        made.add_done_callback(discard)
        raise


class _Flight(NamedTuple):
    """A step in flight."""

    plan: StepPlan
    launched: Launched
    started: float  # when its scheduling began
    launched_at: float  # when that was done
    ahead: bool  # while the one before it was in flight

    @property
    def failed(self) -> bool:
        return isinstance(self.launched, _Failed)


class _Failed:
    """A step that did not even start. Said when it is its turn: what it went on from may have failed before."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def result(self) -> StepResult:
        raise self._fault


class EngineLoop:
    """Runs a scheduler and an executor on the thread that it was made on, see `start`, until `close`.

    ``max_open`` bounds the choices that are unfinished at once. ``on_exit`` runs on that thread once nothing steps
    any more: it gives memory back.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        observer: Observer,
        *,
        max_open: int,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._observer = observer
        self._on_exit = on_exit
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False  # nothing is posted after the closing None
        self._max_open = max_open
        self._open = 0  # choices submitted and not ended
        self._flights: deque[_Flight] = deque()  # launched and not landed
        self._most_flights = 2 if scheduler.overlaps else 1  # the device computes one, and then finds the next
        self._landed = 0.0  # when the last step did
        self._pid = os.getpid()
        self.stats: EngineStats = scheduler.stats()
        self._thread = threading.current_thread()

    # -- any thread ----------------------------------------------------------------------------------------------

    def post(self, command: Command) -> None:
        """Have ``command`` run between two steps; raises `EngineClosedError` after `close` or in a forked child."""
        if os.getpid() != self._pid:
            raise EngineClosedError(
                "this process was forked from the engine's, whose thread did not come along: "
                "build the engine after forking, or use the spawn start method"
            )
        with self._gate:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            self._inbox.put(command)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue all of these requests, or raise `QueueFullError` (or as `post` does) and queue none."""
        coming = sum(len(request.seeds) for request in requests)
        with self._gate:
            if self._open + coming > self._max_open:
                raise QueueFullError(
                    f"{self._open} requests are unfinished, and {coming} more would exceed max_running + max_waiting "
                    f"= {self._max_open}; try again later or raise max_waiting"
                )
            self._open += coming
        try:
            self.post(lambda: self._scheduler.add(requests))
        except EngineClosedError:
            self._open -= coming
            raise

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` on the engine's thread between two steps."""
        future: Future[T] = Future()

        def command() -> list[Update]:
            try:
                future.set_result(function())
            except Exception as fault:
                future.set_exception(fault)
            return []

        self.post(command)
        return future

    def wake(self) -> None:
        """Look again for something to run (a grammar is ready); does nothing once closed."""
        if not self._closed:
            self._inbox.put(list)

    def close(self) -> None:
        """End every request with `RequestAbortedError`, stop the thread, wait for it. Safe to call twice."""
        if os.getpid() != self._pid:
            return
        with self._gate:
            if not self._closed:
                self._closed = True
                self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the engine's thread -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Step until `close`; called once, by `start`."""
        busy = False
        try:
            while self._take_commands(0.0 if busy else POLL_SECONDS if self._scheduler.has_work else None):
                busy = self._step()
            while self._flights:
                self._land(self._flights.popleft())
        finally:
            with self._gate:
                self._closed = True  # also if a fault of ours brought the thread here: nobody must wait for ever
            self._wait()
            self._take_commands(0.0)
            self._deliver(self._scheduler.abort_all("the engine was closed"))
            self._on_exit()

    def _take_commands(self, timeout: float | None) -> bool:
        """Run what is in the inbox, waiting that long for a first command; False when it is time to stop.

        Who was idle waits a moment after each command for one more: requests come in bursts, and a step that the first
        of a burst has to itself is one that all others wait for.
        """
        try:
            command = self._inbox.get(timeout=timeout) if timeout != 0.0 else self._inbox.get(block=False)
            idle_until = time.monotonic() + BURST_SECONDS if timeout is None else 0.0
            while command is not None:
                self._guarded(command)
                waits = time.monotonic() < idle_until
                command = self._inbox.get(timeout=LULL_SECONDS) if waits else self._inbox.get(block=False)
        except queue.Empty:
            return True
        return False

    def _step(self) -> bool:
        """Launch the next step, and if it can be the one behind it; land the first. False if there was none."""
        while self._may_launch() and (flight := self._launch()):
            self._flights.append(flight)
        if not self._flights:
            return False
        self._land(self._flights.popleft())
        return True

    def _may_launch(self) -> bool:
        """Whether there is room for one more in flight, and the one before it did start."""
        return not self._flights or (len(self._flights) < self._most_flights and not self._flights[-1].failed)

    def _launch(self) -> _Flight | None:
        """Start the next step; None if there is none now."""
        started = time.monotonic()
        plan = self._guarded_schedule()
        if plan is None:
            return None
        scheduled = time.monotonic()
        try:
            launched = self._executor.launch(plan)
        except Exception as fault:
            launched = _Failed(fault)
        return _Flight(plan, launched, started, scheduled, ahead=bool(self._flights))

    def _land(self, flight: _Flight) -> None:
        """Wait for a step, take in what it produced, and tell who hears of it."""
        plan = flight.plan
        commit = self._outcome(flight)
        landed = time.monotonic()
        self._guarded(commit)
        committed = time.monotonic()
        since, self._landed = max(flight.launched_at, self._landed), landed
        if not self._observer.hears_steps:
            return
        prompts = [p for p in plan.sequences if len(p.tokens) - _drafts(p) > 1]
        drafts = sum(_drafts(p) for p in plan.sequences)
        prefill = sum(len(p.tokens) - _drafts(p) for p in prompts)
        self._observer.step_finished(
            StepRecord(
                step=plan.step,
                started=flight.started,
                schedule_seconds=flight.launched_at - flight.started,
                execute_seconds=landed - since,
                commit_seconds=committed - landed,
                sequences=len(plan.sequences),
                prefill_tokens=prefill,
                decode_tokens=plan.num_tokens - prefill - drafts,
                draft_tokens=drafts,
                stats=self.stats,
                ahead=flight.ahead,
            )
        )

    def _guarded_schedule(self) -> StepPlan | None:
        plan: StepPlan | None = None

        def command() -> list[Update]:
            nonlocal plan
            plan, updates = self._scheduler.schedule()
            return updates

        self._guarded(command, counts=False)  # commit will count, once a step
        return plan

    def _outcome(self, flight: _Flight) -> Command:
        """Wait for a step; returns what the scheduler has to do about its result."""
        plan = flight.plan
        try:
            result = flight.launched.result()
        except Exception as fault:
            log.warning("step %d failed: %s: %s", plan.step, type(fault).__name__, fault, exc_info=True)
            # The traceback would keep the step's tensors alive for as long as the caller keeps the error.
            failure = fault.with_traceback(None)
            return lambda: self._scheduler.fail_step(plan, failure)
        return lambda: self._scheduler.commit(plan, result)

    def _wait(self) -> None:
        """Until nothing is in flight, whatever comes of it."""
        while self._flights:
            self._outcome(self._flights.popleft())

    def _guarded(self, command: Command, *, counts: bool = True) -> None:
        """Run a command and deliver its updates; a fault of the scheduler's own books is contained, not fatal.

        Without ``counts`` the stats stay as they were if there is nothing to deliver.
        """
        try:
            updates = command()
        except Exception as fault:
            log.exception("the scheduler failed")
            self._wait()  # slots are about to be given to others
            updates = self._scheduler.quarantine(fault)
        if updates or counts:
            self._deliver(updates)

    def _deliver(self, updates: list[Update]) -> None:
        self.stats = self._scheduler.stats()  # first, so that a caller who has its answer finds it counted
        pending = deque(updates)
        while pending:
            update = pending.popleft()
            if update.last:
                with self._gate:
                    self._open -= len(update.request.seeds)
                self._observer.request_finished(_record(update, self.stats))
            try:
                update.request.sink(update)
            except Exception as fault:
                if not isinstance(fault, ConsumerGone):
                    log.exception("the consumer of request %d failed; the request is aborted", update.request.id)
                if not update.last:
                    pending.extend(self._scheduler.abort(update.request.id))
                    self.stats = self._scheduler.stats()


def _drafts(sequence: SequencePlan) -> int:
    return len(sequence.sample.drafts) if sequence.sample else 0


def _record(update: Update, stats: EngineStats) -> RequestRecord:
    request = update.request
    if isinstance(update.error, RequestAbortedError):
        outcome = "aborted"
    elif update.error is not None:
        outcome = type(update.error).__name__
    else:
        outcome = update.event.finish_reason if update.event and update.event.finish_reason else "stop"
    return RequestRecord(
        request_id=request.id,
        outcome=outcome,
        usage=request.usage,
        priority=request.priority,
        submitted=request.submitted,
        admitted=request.admitted,
        first_token=request.first_token,
        finished=time.monotonic(),
        retractions=request.retractions,
        stats=stats,
    )

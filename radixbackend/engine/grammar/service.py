"""Compiling grammars off the engine's thread: a small pool, one cache, deadlines that hold.

Rules. ``submit`` never compiles and never blocks; its future always completes, with a grammar or a typed error,
whatever the library underneath does. Equal constraints share one compilation and its result, good or bad. A
compilation cannot be cancelled: one that misses its deadline fails its requests at once, keeps its thread until it
returns, and is replaced in the pool, up to a bound. Nothing here knows about requests, masks or schedulers.

    queued ──→ running ──→ compiled | refused        waiters told, result cached
                  └─ deadline ─→ stuck ──→ late      waiters told, refusal cached; a late result replaces it
"""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

from radixbackend.engine.grammar.base import Grammar, GrammarBackend
from radixbackend.errors import ConstraintError, EngineClosedError, GrammarCompileError, RadixError
from radixbackend.types import Constraint

MAX_REFUSALS = 1024  # kept in the cache

Outcome = Grammar | RadixError


@dataclass(frozen=True, slots=True)
class _Key:
    """What a result depends on: a service makes one backend per name, so its version and vocabulary are fixed."""

    backend: str
    constraint: Constraint


@dataclass(eq=False, slots=True)
class _Job:
    key: _Key
    timeout: float
    future: Future[Grammar] = field(default_factory=Future)
    timer: threading.Timer | None = None
    settled: bool = False  # its waiters have been, or are about to be, told
    stuck: bool = False  # past its deadline and still running


class GrammarService:
    """Compiles constraints by name of backend and remembers the results.

    Attributes:
        seconds: spent compiling so far, all threads together.
    """

    def __init__(
        self,
        backends: Callable[[str], GrammarBackend],
        *,
        workers: int = 2,
        max_bytes: int = 256 << 20,
        timeout: float = 30.0,
        max_stuck: int = 4,
    ) -> None:
        """``backends`` makes a backend by name; it is called on a worker, once per name.

        Args:
            workers: compilations at a time.
            max_bytes: of compiled grammars kept, by `Grammar.nbytes`; those in use live on beyond it.
            timeout: seconds of compiling until a request fails, shared evenly by the backends of its route.
            max_stuck: compilations past their deadline that the pool replaces. With more of them it shrinks, and
                with no thread left nothing is compiled until one returns.
        """
        self.seconds = 0.0
        self._make = backends
        self._workers = workers
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._max_stuck = max_stuck
        self._wake = threading.Condition()
        self._making = threading.Lock()
        self._made: dict[str, GrammarBackend] = {}
        self._queue: deque[_Job] = deque()
        self._jobs: dict[_Key, _Job] = {}  # queued or running, not stuck
        self._grammars: OrderedDict[_Key, Grammar] = OrderedDict()
        self._refusals: OrderedDict[_Key, RadixError] = OrderedDict()
        self._bytes = 0
        self._threads = 0  # alive and not stuck
        self._idle = 0  # of these, waiting for a job
        self._stuck = 0
        self._closed = False

    def submit(self, route: Sequence[str], constraint: Constraint) -> Future[Grammar]:
        """The grammar by the first backend of ``route`` that compiles it.

        The future fails with `ConstraintError` if a backend refused it and none took it, with
        `GrammarCompileError` if compiling took too long or failed, with `EngineClosedError` after `close`.
        """
        if not route:
            raise ValueError("a route names at least one backend")
        future: Future[Grammar] = Future()
        # What to do about keywords that are not enforced was settled before; it does not change the grammar.
        plain = replace(constraint, on_unsupported="fallback")
        self._follow(future, tuple(route), plain, self._timeout / len(route), ())
        return future

    def close(self) -> None:
        """Fail what is pending and let the threads go; does not wait for a compilation that is running."""
        with self._wake:
            self._closed = True
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._queue.clear()
            self._grammars.clear()
            self._refusals.clear()
            self._bytes = 0
            for job in jobs:
                job.settled = True
            self._wake.notify_all()
        for job in jobs:
            if job.timer is not None:
                job.timer.cancel()
            _tell(job.future, EngineClosedError("the engine was closed while a grammar was being compiled"))

    def _follow(
        self,
        future: Future[Grammar],
        route: tuple[str, ...],
        constraint: Constraint,
        timeout: float,
        failures: tuple[RadixError, ...],
    ) -> None:
        """Try the first of ``route``; go on with the rest when it fails."""

        def done(attempt: Future[Grammar]) -> None:
            fault = attempt.exception()
            if fault is None:
                _tell(future, attempt.result())
                return
            seen = (*failures, fault if isinstance(fault, RadixError) else GrammarCompileError(str(fault)))
            if len(route) == 1 or isinstance(fault, EngineClosedError):
                _tell(future, _verdict(seen))
            else:
                self._follow(future, route[1:], constraint, timeout, seen)

        self._attempt(_Key(route[0], constraint), timeout).add_done_callback(done)

    def _attempt(self, key: _Key, timeout: float) -> Future[Grammar]:
        """The result of one backend: cached, under way, or newly queued."""
        with self._wake:
            job = self._jobs.get(key)
            if job is not None:
                return job.future
            known = self._known(key)
            if known is None:
                job = self._jobs[key] = _Job(key, timeout)
                self._queue.append(job)
                self._provide_thread()
                return job.future
        future: Future[Grammar] = Future()
        _tell(future, known)
        return future

    def _known(self, key: _Key) -> Outcome | None:
        if self._closed:
            return EngineClosedError("the engine is closed")
        for cache in (self._grammars, self._refusals):
            if key in cache:
                cache.move_to_end(key)
                return cache[key]
        if self._threads == 0 and not self._may_spawn():
            return GrammarCompileError(f"{self._stuck} grammars compile past their deadline; try again later")
        return None

    def _may_spawn(self) -> bool:
        return self._threads < self._workers and self._threads + self._stuck < self._workers + self._max_stuck

    def _provide_thread(self) -> None:
        """See to it that somebody takes the newest job."""
        if self._idle >= len(self._queue):
            self._wake.notify()
        elif self._may_spawn():
            self._threads += 1
            # A daemon: a compilation that never returns must not keep the process from ending.
            threading.Thread(target=self._work, name="radix-grammar", daemon=True).start()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            started = time.monotonic()
            timer = job.timer = threading.Timer(job.timeout, self._overdue, (job,))
            timer.daemon = True
            timer.start()
            outcome = self._compile(job.key)
            timer.cancel()
            if not self._finish(job, outcome, time.monotonic() - started):
                return

    def _take(self) -> _Job | None:
        """The next job; None when closed."""
        with self._wake:
            while not self._queue:
                if self._closed:
                    self._threads -= 1
                    return None
                self._idle += 1
                self._wake.wait()
                self._idle -= 1
            return self._queue.popleft()

    def _compile(self, key: _Key) -> Outcome:
        try:
            with self._making:
                backend = self._made.get(key.backend) or self._made.setdefault(key.backend, self._make(key.backend))
            return backend.compile(key.constraint)
        except RadixError as fault:
            return fault
        except BaseException as fault:  # libraries in Rust panic with one that is no Exception
            error = GrammarCompileError(
                f"{key.backend} failed on this {key.constraint.kind}: {type(fault).__name__}: {fault}"
            )
            error.__cause__ = fault
            return error

    def _finish(self, job: _Job, outcome: Outcome, seconds: float) -> bool:
        """Store and tell; False if this thread was replaced meanwhile and has to go."""
        with self._wake:
            self.seconds += seconds
            told, job.settled = job.settled, True
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]
            if not self._closed:
                self._store(job.key, outcome)
            stays = True
            if job.stuck:
                self._stuck -= 1
                stays = self._threads < self._workers and not self._closed
                self._threads += stays
        if not told:
            _tell(job.future, outcome)
        return stays

    def _store(self, key: _Key, outcome: Outcome) -> None:
        self._refusals.pop(key, None)
        if isinstance(outcome, RadixError):
            if isinstance(outcome, ConstraintError | GrammarCompileError) and not _passing(outcome):
                self._refusals[key] = _bare(outcome)
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)
            return
        self._grammars[key] = outcome
        self._bytes += outcome.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._grammars.popitem(last=False)[1].nbytes

    def _overdue(self, job: _Job) -> None:
        """The deadline of a job passed: fail it, and have its thread replaced."""
        error = GrammarCompileError(
            f"{job.key.backend} did not compile this {job.key.constraint.kind} within {job.timeout:g} s; simplify it"
        )
        with self._wake:
            if job.settled:
                return
            job.settled = job.stuck = True
            self._stuck += 1
            self._threads -= 1
            self._jobs.pop(job.key, None)
            self._store(job.key, error)
            starved: list[_Job] = []
            if self._queue:
                self._provide_thread()
            if self._threads == 0:
                starved = list(self._queue)
                self._queue.clear()
                for other in starved:
                    other.settled = True
                    self._jobs.pop(other.key, None)
        _tell(job.future, error)
        for other in starved:
            _tell(other.future, GrammarCompileError("every compiler is past its deadline; try again later"))


def _tell(future: Future[Grammar], outcome: Outcome) -> None:
    with suppress(InvalidStateError):  # its owner cancelled it
        if isinstance(outcome, RadixError):
            future.set_exception(_bare(outcome))
        else:
            future.set_result(outcome)


def _bare(error: RadixError) -> RadixError:
    """A copy of its own for each receiver, without the frames that the original keeps alive."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__.with_traceback(None) if error.__cause__ is not None else None
    return fresh.with_traceback(None)


def _passing(error: RadixError) -> bool:
    """Whether the next try may well succeed."""
    return isinstance(error.__cause__, MemoryError)


def _verdict(failures: tuple[RadixError, ...]) -> RadixError:
    """One error for a route on which every backend failed: a refusal if there is one, as it says what to change."""
    if len(failures) == 1 or isinstance(failures[-1], EngineClosedError):
        return failures[-1]
    text = "; ".join(str(failure) for failure in failures)
    refusals = [failure for failure in failures if isinstance(failure, ConstraintError)]
    if not refusals:
        return GrammarCompileError(text)
    return ConstraintError(text, pointer=next((refusal.pointer for refusal in refusals if refusal.pointer), ""))

"""The engine's thread over a fake executor: commands, faults of sinks, observers and of our own books."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from radixbackend.builtin_plugin import radix_rank_waiting
from radixbackend.engine.loop import EngineLoop, start
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import ConsumerGone, Request, Update
from radixbackend.engine.scheduler import Limits, Scheduler
from radixbackend.errors import EngineClosedError, QueueFullError, RequestAbortedError
from radixbackend.types import RequestId, RequestRecord, SamplingParams, StepRecord
from tests.engine.fake import FakeExecutor, plain


class Heard:
    hears_steps = True

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.requests: list[RequestRecord] = []

    def step_finished(self, record: StepRecord) -> None:
        self.steps.append(record)

    def request_finished(self, record: RequestRecord) -> None:
        self.requests.append(record)


class Bench:
    def __init__(self, max_open: int = 100, *, overlap: bool = False) -> None:
        self.cache = PrefixCache(2000)
        self.executor = FakeExecutor()
        self.scheduler = Scheduler(
            self.cache,
            Limits(),
            traits=self.executor.traits,
            end_tokens=(0,),
            rank=radix_rank_waiting,
            on_leave=self.executor.forget,
            overlap=overlap,
        )
        self.heard = Heard()
        self.exited = threading.Event()
        self.loop = start(
            lambda: EngineLoop(self.scheduler, self.executor, self.heard, max_open=max_open, on_exit=self.exited.set),
            lambda loop: loop,
        )

    def request(self, number: int, count: int = 10, sink=None) -> tuple[Request, queue.SimpleQueue[Update]]:
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        prompt = np.array([number % 40 + 1, 7, 8], np.int32)
        params = SamplingParams(max_tokens=count)
        request = Request(RequestId(number), prompt, params, 3 + count, (0,), sink or updates.put)
        return request, updates


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(overlap=request.param)
    yield bench
    bench.loop.close()
    assert bench.exited.is_set()


def answer(updates: queue.SimpleQueue[Update]) -> list[int]:
    tokens: list[int] = []
    while True:
        update = updates.get(timeout=5)
        if update.error:
            raise update.error
        assert update.event
        tokens += update.event.token_ids
        if update.last:
            return tokens


def test_requests_are_answered_and_observed(bench: Bench) -> None:
    asked = [bench.request(i) for i in range(5)]
    bench.loop.submit([request for request, _ in asked])
    for i, (_, updates) in enumerate(asked):
        assert answer(updates) == plain([i + 1, 7, 8], 10)
    assert sorted(r.request_id for r in bench.heard.requests) == [0, 1, 2, 3, 4]
    assert bench.loop.stats.finished == 5


@pytest.mark.parametrize("fault", [RuntimeError("sink"), ConsumerGone()])
def test_a_sink_that_raises_ends_its_request_and_no_other(bench: Bench, fault: Exception) -> None:
    def sink(update: Update) -> None:
        raise fault

    bad, _ = bench.request(1, 500, sink)
    good, updates = bench.request(2, 20)
    bench.loop.submit([bad, good])
    assert answer(updates) == plain([3, 7, 8], 20)
    assert [r.outcome for r in bench.heard.requests] == ["aborted", "length"]
    bench.loop.submit([bench.request(i)[0] for i in range(3, 103)])  # the failed one does not count as open


def test_a_burst_that_finds_the_engine_idle_shares_its_first_step(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr("radixbackend.engine.loop.LULL_SECONDS", 0.3)
    monkeypatch.setattr("radixbackend.engine.loop.BURST_SECONDS", 5.0)
    burst = [bench.request(number) for number in range(3)]
    for request, _ in burst:
        bench.loop.submit([request])
    for _, updates in burst:
        assert len(answer(updates)) == 10
    assert bench.heard.steps[0].sequences == 3


def test_commands_run_between_steps_and_report_their_own_errors(bench: Bench) -> None:
    assert bench.loop.call(lambda: threading.current_thread().name).result(5) == "radix-engine"
    with pytest.raises(ZeroDivisionError):
        bench.loop.call(lambda: 1 / 0).result(5)
    request, updates = bench.request(1)
    bench.loop.submit([request])
    assert answer(updates)


def test_a_fault_in_our_own_books_is_contained(bench: Bench) -> None:
    request, updates = bench.request(1, 30)
    commits = []
    commit = bench.scheduler.commit

    def failing(plan, result):
        commits.append(plan)
        if len(commits) == 5:
            raise AssertionError("our own fault")
        return commit(plan, result)

    bench.scheduler.commit = failing  # type: ignore[method-assign]
    bench.loop.submit([request])
    assert answer(updates) == plain([2, 7, 8], 30)
    assert bench.loop.stats.quarantines == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting(bench: Bench) -> None:
    def broken(*_):
        raise SystemError("twice")

    bench.scheduler.schedule = broken  # type: ignore[method-assign]
    bench.scheduler.quarantine = broken  # type: ignore[method-assign]
    request, updates = bench.request(1)
    bench.loop.submit([request])
    with pytest.raises(RequestAbortedError):
        answer(updates)
    bench.loop.close()
    with pytest.raises(EngineClosedError):
        bench.loop.submit([bench.request(2)[0]])


def test_updates_are_delivered_while_the_next_step_is_in_flight_and_records_say_so() -> None:
    bench = Bench(overlap=True)
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    in_flight = []

    def sink(update: Update) -> None:
        in_flight.append(len(bench.executor.in_flight))
        updates.put(update)

    request, _ = bench.request(1, 6, sink)
    bench.loop.submit([request])
    assert answer(updates) == plain([2, 7, 8], 6)
    bench.loop.close()
    assert in_flight == [1, 1, 1, 1, 1, 0]
    assert [r.ahead for r in bench.heard.steps] == [False, True, True, True, True, True]
    assert [r.step for r in bench.heard.steps] == [1, 2, 3, 4, 5, 6]
    assert all(min(r.schedule_seconds, r.execute_seconds, r.commit_seconds) >= 0 for r in bench.heard.steps)
    ends = [r.started + r.schedule_seconds for r in bench.heard.steps]
    assert ends == sorted(ends)


def test_close_waits_for_what_is_in_flight() -> None:
    bench = Bench(overlap=True)
    request, updates = bench.request(1, 1500)
    request.max_length = 1500
    bench.loop.submit([request])
    updates.get(timeout=5)
    bench.loop.close()
    assert not bench.executor.in_flight
    with pytest.raises(RequestAbortedError):
        answer(updates)
    assert bench.loop.stats.slots_held == 0


def test_the_bound_counts_what_is_unfinished() -> None:
    bench = Bench(max_open=3)
    bench.loop.call(lambda: None).result(5)
    held = threading.Event()
    bench.loop.call(lambda: held.wait(5))
    asked = [bench.request(i) for i in range(3)]
    bench.loop.submit([r for r, _ in asked])
    with pytest.raises(QueueFullError):
        bench.loop.submit([bench.request(9)[0]])
    held.set()
    for _, updates in asked:
        answer(updates)
    request, updates = bench.request(10)
    bench.loop.submit([request])
    assert answer(updates)
    bench.loop.close()


def test_close_ends_what_waits_and_what_comes_later(bench: Bench) -> None:
    asked = [bench.request(i, 100_000) for i in range(3)]
    for request, _ in asked:
        request.max_length = 1500
    bench.loop.submit([r for r, _ in asked])
    asked[0][1].get(timeout=5)
    bench.loop.close()
    for _, updates in asked:
        with pytest.raises(RequestAbortedError):
            answer(updates)
    with pytest.raises(EngineClosedError):
        bench.loop.post(list)
    bench.loop.wake()


def test_what_is_made_while_nobody_waits_any_more_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(BaseException):
        pass

    plain_result, waits = Future.result, iter([True])

    def result(self: Future[EngineLoop], timeout: float | None = None) -> EngineLoop:
        if next(waits, False):
            raise Interrupted
        return plain_result(self, timeout)

    monkeypatch.setattr(Future, "result", result)
    abandoned = Bench.__new__(Bench)
    with pytest.raises(Interrupted):
        abandoned.__init__()  # type: ignore[misc]
    assert abandoned.exited.wait(5)

"""The compile service: it never blocks, its futures always complete, and hostile input ends in an error."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from radixbackend.engine.grammar.base import Grammar, Matcher
from radixbackend.engine.grammar.service import GrammarService
from radixbackend.errors import ConstraintError, EngineClosedError, GrammarCompileError, MissingDependencyError
from radixbackend.types import Constraint
from tests.engine.grammar_tools import ENDLESS, accepts, tiny_backend, tiny_vocabulary

SOON = 5.0  # seconds: far more than any of these takes


@dataclass
class FakeGrammar:
    nbytes: int = 10

    def matcher(self) -> Matcher:
        raise NotImplementedError


class Panic(BaseException):
    """As Rust libraries raise it."""


@dataclass
class FakeBackend:
    """Compiles ``act(pattern)``; waits on ``gate`` first."""

    name: str = "fake"
    version: str = "1"
    act: Callable[[str], Grammar] = lambda pattern: FakeGrammar()
    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def compile(self, constraint: Constraint) -> Grammar:
        self.calls.append(constraint.source)
        if constraint.source.startswith("stuck"):
            self.gate.wait()
        return self.act(constraint.source)

    def unsupported(self, constraint: Constraint) -> Sequence[str]:
        return ()


def raising(fault: BaseException) -> Callable[[str], Grammar]:
    def act(pattern: str) -> Grammar:
        raise copy.copy(fault)

    return act


@pytest.fixture
def serve() -> Iterator[Callable[..., GrammarService]]:
    services: list[GrammarService] = []

    def make(*backends: FakeBackend, **options: float) -> GrammarService:
        by_name = {backend.name: backend for backend in backends}
        services.append(GrammarService(by_name.__getitem__, **options))  # type: ignore[arg-type]
        return services[-1]

    yield make
    for service in services:
        service.close()


def regex(pattern: str) -> Constraint:
    return Constraint.regex(pattern)


def error(future: Future[Grammar]) -> BaseException | None:
    return future.exception(SOON)


def test_equal_constraints_share_one_compilation(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend)
    waiting = [service.submit(("fake",), regex("stuck")) for _ in range(20)]
    assert not any(future.done() for future in waiting)
    backend.gate.set()
    assert len({id(future.result(SOON)) for future in waiting}) == 1
    assert service.submit(("fake",), regex("stuck")).done()
    assert backend.calls == ["stuck"]
    other = Constraint("regex", "stuck", on_unsupported="error")
    assert service.submit(("fake",), other).done()  # what to do about keywords does not change the grammar
    assert service.seconds > 0


def test_the_cache_is_bounded_in_bytes_and_drops_the_least_recently_used(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    service = serve(backend, max_bytes=30)
    for pattern in ("a", "b", "c", "a", "d", "a", "b"):
        service.submit(("fake",), regex(pattern)).result(SOON)
    assert backend.calls == ["a", "b", "c", "d", "b"]
    backend.act = lambda pattern: FakeGrammar(nbytes=1000)
    for _ in range(2):
        service.submit(("fake",), regex("huge")).result(SOON)
    assert backend.calls.count("huge") == 2


def test_refusals_are_remembered_and_each_receiver_gets_its_own(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend(act=raising(ConstraintError("no", pointer="/a")))
    service = serve(backend)
    faults = [error(service.submit(("fake",), regex("x"))) for _ in range(3)]
    assert backend.calls == ["x"]
    assert len({id(fault) for fault in faults}) == 3
    for fault in faults:
        assert isinstance(fault, ConstraintError)
        assert fault.pointer == "/a"


@pytest.mark.parametrize("fault", [ValueError("bad"), Panic("ouch"), SystemExit(1), MemoryError(), RecursionError()])
def test_any_exception_becomes_a_typed_error(fault: BaseException, serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend(act=raising(fault))
    service = serve(backend)
    seen = error(service.submit(("fake",), regex("x")))
    assert isinstance(seen, GrammarCompileError)
    assert type(fault).__name__ in str(seen)
    error(service.submit(("fake",), regex("x")))
    assert len(backend.calls) == (2 if isinstance(fault, MemoryError) else 1)  # memory may be free again
    backend.act = lambda pattern: FakeGrammar()
    assert service.submit(("fake",), regex("y")).result(SOON)  # and the worker goes on


def test_a_backend_that_cannot_be_made_is_an_error_and_tried_again(serve: Callable[..., GrammarService]) -> None:
    service = serve()  # no backend at all: KeyError
    assert isinstance(error(service.submit(("fake",), regex("x"))), GrammarCompileError)

    def missing(name: str) -> FakeBackend:
        raise MissingDependencyError("install it")

    service = GrammarService(missing)
    assert isinstance(error(service.submit(("fake",), regex("x"))), MissingDependencyError)
    service.close()


def test_a_route_is_followed_until_a_backend_compiles(serve: Callable[..., GrammarService]) -> None:
    refusing = FakeBackend("refusing", act=raising(ConstraintError("first", pointer="/p")))
    failing = FakeBackend("failing", act=raising(Panic("second")))
    good = FakeBackend("good")
    service = serve(refusing, failing, good)
    assert service.submit(("refusing", "failing", "good"), regex("x")).result(SOON)
    assert [len(backend.calls) for backend in (refusing, failing, good)] == [1, 1, 1]
    fault = error(service.submit(("refusing", "failing"), regex("x")))
    assert isinstance(fault, ConstraintError)
    assert fault.pointer == "/p"
    assert "first" in str(fault)
    assert "second" in str(fault)
    assert len(refusing.calls) == 1
    with pytest.raises(ValueError, match="at least one"):
        service.submit((), regex("x"))


def test_a_deadline_fails_its_own_requests_and_no_other(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend, workers=1, timeout=0.1, max_stuck=2)
    started = time.monotonic()
    stuck = service.submit(("fake",), regex("stuck"))
    behind = service.submit(("fake",), regex("quick"))  # waits for the only worker, which is then replaced
    fault = error(stuck)
    assert isinstance(fault, GrammarCompileError)
    assert "within 0.1 s" in str(fault)
    assert behind.result(SOON)
    assert time.monotonic() - started < SOON
    again = service.submit(("fake",), regex("stuck"))
    assert again.done()  # the refusal is cached at once, though the thread still runs
    assert isinstance(error(again), GrammarCompileError)
    assert backend.calls == ["stuck", "quick"]


def test_a_late_result_replaces_the_refusal(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend, timeout=0.05)
    assert isinstance(error(service.submit(("fake",), regex("stuck"))), GrammarCompileError)
    backend.gate.set()
    deadline = time.monotonic() + SOON
    while error(service.submit(("fake",), regex("stuck"))) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.submit(("fake",), regex("stuck")).result(SOON)
    assert backend.calls == ["stuck"]


def test_time_is_shared_by_the_backends_of_a_route(serve: Callable[..., GrammarService]) -> None:
    slow, good = FakeBackend("slow"), FakeBackend("good")
    slow.gate.clear()
    service = serve(slow, good, timeout=0.4)
    started = time.monotonic()
    assert service.submit(("slow", "good"), regex("stuck")).result(SOON)
    assert 0.15 < time.monotonic() - started < SOON


def test_stuck_compilations_are_bounded_and_end_in_errors_not_hangs(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend, workers=2, timeout=0.05, max_stuck=2)
    faults = [error(service.submit(("fake",), regex(f"stuck{n}"))) for n in range(8)]
    assert all(isinstance(fault, GrammarCompileError) for fault in faults)
    assert len(backend.calls) == 4  # two workers and two replacements
    assert "try again later" in str(faults[-1])
    assert isinstance(error(service.submit(("fake",), regex("innocent"))), GrammarCompileError)
    backend.gate.set()
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline and error(service.submit(("fake",), regex("innocent"))) is not None:
        time.sleep(0.01)
    assert service.submit(("fake",), regex("innocent")).result(SOON)  # it recovers


def test_queued_jobs_do_not_hang_when_the_last_worker_gets_stuck(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend, workers=1, timeout=0.05, max_stuck=0)
    futures = [service.submit(("fake",), regex(pattern)) for pattern in ("stuck", "a", "b")]
    assert all(isinstance(error(future), GrammarCompileError) for future in futures)


def test_closing_does_not_wait_for_a_stuck_compilation(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend, workers=1)
    running, queued = (service.submit(("fake",), regex(pattern)) for pattern in ("stuck", "b"))
    while not backend.calls:
        time.sleep(0.001)
    started = time.monotonic()
    service.close()
    assert time.monotonic() - started < 1
    for future in (
        running,
        queued,
        service.submit(("fake",), regex("c")),
        service.submit(("fake", "fake"), regex("d")),
    ):
        assert isinstance(error(future), EngineClosedError)
    service.close()
    backend.gate.set()


def test_threads_go_when_the_service_closes() -> None:
    before = set(threading.enumerate())
    service = GrammarService(lambda name: FakeBackend(), workers=3)
    for pattern in "abcdefgh":
        service.submit(("fake",), regex(pattern)).result(SOON)
    started = set(threading.enumerate()) - before
    assert 1 <= sum(thread.name == "radix-grammar" for thread in started) <= 3
    assert all(thread.daemon for thread in started)
    service.close()
    for thread in started:
        thread.join(SOON)
        assert not thread.is_alive()


def test_a_cancelled_future_disturbs_nobody(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    service = serve(backend)
    gone, stays = (service.submit(("fake",), regex("stuck")) for _ in range(2))
    assert gone.cancel()
    backend.gate.set()
    assert stays.result(SOON)


def test_many_threads_submit_at_once(serve: Callable[..., GrammarService]) -> None:
    backend = FakeBackend()
    service = serve(backend)
    results: list[Grammar] = []

    def submit(offset: int) -> None:
        for n in range(50):
            results.append(service.submit(("fake",), regex(f"p{(n + offset) % 10}")).result(SOON))

    threads = [threading.Thread(target=submit, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len(results) == 200
    assert sorted(backend.calls) == [f"p{n}" for n in range(10)]


HOSTILE = {
    "parentheses": Constraint.regex("(" * 200_000 + ")" * 200_000),
    "groups in a grammar": Constraint.grammar("root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "a NUL": Constraint.json_schema({"const": "a\0b"}),
    "a NUL in a pattern": Constraint.regex("a\0b"),
    "100k enum": Constraint.json_schema({"enum": [f"item {n}" for n in range(100_000)]}),
    "100k choices": Constraint.choice([f"item {n}" for n in range(100_000)]),
    "nested objects": Constraint.json_schema(
        '{"type":"object","properties":{"a":' * 3_000 + "{}" + '},"required":["a"]}' * 3_000
    ),
    "optional properties": Constraint.json_schema(
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}
    ),
    "a large repetition": Constraint.regex("(a{1000000}){1000}"),
    "recursion without an end": Constraint.json_schema(ENDLESS),
    "recursion behind a choice": Constraint.json_schema({**ENDLESS, "$ref": "#/$defs/b"}),
    "broken JSON": Constraint.json_schema('{"type": "object"'),
    "no schema": Constraint.json_schema("[]"),
    "a sink of alternatives": Constraint.regex("(a|aa|aaa)*" * 40 + "b"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_hostile_input_ends_in_time_and_in_an_error_or_a_grammar(name: str, backend: str) -> None:
    service = GrammarService(tiny_backend, timeout=4.0)
    started = time.monotonic()
    fault = service.submit((backend,), HOSTILE[name]).exception(20)
    assert fault is None or isinstance(fault, ConstraintError | GrammarCompileError)
    assert time.monotonic() - started < 10
    if fault is not None:
        assert len(str(fault)) < 1000
    follow_up = service.submit((backend,), Constraint.json_schema({"const": name}))
    assert accepts(follow_up.result(20).matcher(), tiny_vocabulary(), json.dumps(name))
    service.close()

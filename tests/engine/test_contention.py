"""When the threads of a forward spin while they wait, and when they sleep."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psutil
import pytest
import torch

from radixbackend.engine import contention
from radixbackend.engine.contention import Contention, watch_contention
from radixbackend.errors import MissingDependencyError

CPU = torch.device("cpu")


class Clocks:
    """Of a forward: how long it takes, how long its thread runs meanwhile, and how often the process is put off."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.put_off = 0.0

    def forward(
        self, guard: Contention, seconds: float, *, share: float, put_off: float = 0.0, fault: Exception | None = None
    ) -> None:
        with guard:
            self.wall += seconds
            self.cpu += seconds * share
            self.put_off += seconds * put_off
            if fault is not None:
                raise fault


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    clock = SimpleNamespace(perf_counter=lambda: clocks.wall, thread_time=lambda: clocks.cpu)
    monkeypatch.setattr(contention, "time", clock)
    monkeypatch.setattr(contention, "_put_off", lambda: clocks.put_off)
    return clocks


@pytest.fixture
def guard(clocks: Clocks) -> Iterator[Contention]:
    try:
        guard = Contention(2)
    except MissingDependencyError:
        pytest.skip("no gcc here")
    yield guard
    guard.close()


def idle_teams() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "radix-idle-team"]


def test_threads_spin_while_they_have_their_cores(guard: Contention, clocks: Clocks) -> None:
    for _ in range(100):
        clocks.forward(guard, 0.01, share=0.97, put_off=5_000)
    assert not guard.crowded


def test_threads_sleep_while_somebody_else_wants_their_cores(guard: Contention, clocks: Clocks) -> None:
    for _ in range(12):
        clocks.forward(guard, 0.01, share=0.6)
    assert guard.crowded
    for _ in range(300):  # who sleeps hardly runs, too; that alone says nothing
        clocks.forward(guard, 0.01, share=0.6, put_off=2_000)
    assert guard.crowded
    for _ in range(110):
        clocks.forward(guard, 0.01, share=0.6, put_off=20)
    assert not guard.crowded


def test_one_slow_forward_is_not_a_crowd(guard: Contention, clocks: Clocks) -> None:
    for i in range(60):
        clocks.forward(guard, 0.01, share=0.3 if i % 10 == 5 else 0.98)
    assert not guard.crowded


def test_the_idle_team_is_there_for_as_long_as_it_is_needed(
    guard: Contention, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    process = psutil.Process()
    _until(lambda: not idle_teams())
    time.sleep(0.2)  # threads of a team end a little after the one that made it
    before = process.num_threads()
    for _ in range(12):
        clocks.forward(guard, 0.01, share=0.5)
    assert caplog.text.count("other work wants the cores") == 1
    _until(lambda: process.num_threads() >= before + 2)  # the one that made it, and at least one more
    assert len(idle_teams()) == 1
    guard.close()
    guard.close()
    assert not guard.crowded
    _until(lambda: not idle_teams() and process.num_threads() <= before)


def test_a_forward_that_fails_is_counted_and_fails(guard: Contention, clocks: Clocks) -> None:
    for _ in range(12):
        with pytest.raises(ZeroDivisionError):
            clocks.forward(guard, 0.01, share=0.5, fault=ZeroDivisionError())
    assert guard.crowded


def test_where_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert watch_contention(CPU, 1) is None
    assert watch_contention(torch.device("meta"), 8) is None
    with monkeypatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        assert watch_contention(CPU, 2) is None

    def fail(name: str) -> None:
        raise MissingDependencyError("no gcc")

    monkeypatch.setattr(contention, "load_kernels", fail)
    with caplog.at_level(logging.INFO):
        assert watch_contention(CPU, 2) is None
    assert "spin" in caplog.text


def _until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)

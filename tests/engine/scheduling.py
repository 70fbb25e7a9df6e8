"""What the scheduler's tests share: a bench that steps it by hand, and grammars that foretell the fake model."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from radixbackend.builtin_plugin import radix_rank_waiting
from radixbackend.engine.plan import ExecutorTraits, SequencePlan, StepPlan
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import Request, Update
from radixbackend.engine.scheduler import Limits, Scheduler
from radixbackend.types import RequestId, SamplingParams, TokenEvent
from tests.engine.fake import FakeExecutor, FakeLaunched

NEVER = 50
"""A token that the fake model never says."""


@dataclass
class Outcome:
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[int, str] = field(default_factory=dict)
    events: list[TokenEvent] = field(default_factory=list)
    error: Exception | None = None
    ends: int = 0


class Bench:
    """A scheduler, its cache and a fake executor, stepped as the loop does it; the books are checked every time."""

    def __init__(
        self,
        slots: int = 2000,
        *,
        traits: ExecutorTraits | None = None,
        cache: bool = True,
        overlap: bool = False,
        **limits: int,
    ):
        traits = traits or ExecutorTraits()
        self.cache = PrefixCache(slots, enabled=cache and traits.shares_prefixes)
        self.executor = FakeExecutor(traits)
        self.scheduler = Scheduler(
            self.cache,
            Limits(**limits),
            traits=traits,
            end_tokens=(0,),
            rank=radix_rank_waiting,
            on_leave=self.executor.forget,
            overlap=overlap,
        )
        self.in_flight: deque[tuple[StepPlan, FakeLaunched | RuntimeError]] = deque()
        self.ahead = 0  # steps launched while another was in flight
        self.outcomes: dict[RequestId, Outcome] = {}
        self.ids = itertools.count()

    def add(self, prompt: list[int], max_tokens: int = 8, *, n: int = 1, priority: int = 0, **options) -> RequestId:
        params = options.pop("params", SamplingParams(max_tokens=max_tokens, n=n))
        request = Request(
            id=RequestId(next(self.ids)),
            prompt=np.array(prompt, np.int32),
            params=params,
            max_length=len(prompt) + max_tokens,
            seeds=tuple(range(n)),
            sink=lambda update: None,
            priority=priority,
            **options,
        )
        self.outcomes[request.id] = Outcome()
        self.scheduler.add([request])
        return request.id

    def take(self, updates: list[Update]) -> None:
        for update in updates:
            outcome = self.outcomes[update.request.id]
            assert not outcome.ends, "an update after the last"
            outcome.ends += update.last
            outcome.error = update.error
            if event := update.event:
                outcome.events.append(event)
                outcome.tokens[event.index] += event.token_ids
                if event.finish_reason:
                    outcome.reasons[event.index] = event.finish_reason

    def step(self) -> StepPlan | None:
        while len(self.in_flight) < 2 and self.launch():
            pass
        return self.land() if self.in_flight else None

    def launch(self) -> bool:
        if self.in_flight and isinstance(self.in_flight[-1][1], RuntimeError):
            return False
        plan, updates = self.scheduler.schedule()
        self.take(updates)
        if plan is None:
            return False
        self.ahead += bool(self.in_flight)
        try:
            self.in_flight.append((plan, self.executor.launch(plan)))
        except RuntimeError as fault:
            self.in_flight.append((plan, fault))
        self.check()
        return True

    def land(self) -> StepPlan:
        plan, launched = self.in_flight.popleft()
        try:
            if isinstance(launched, RuntimeError):
                raise launched
            result = launched.result()
        except RuntimeError as fault:
            self.take(self.scheduler.fail_step(plan, fault))
        else:
            self.take(self.scheduler.commit(plan, result))
        self.check()
        return plan

    def check(self) -> None:
        """The books balance, and what is in flight is nobody else's."""
        self.cache.check()
        free = set(self.cache._pool.free_slots().tolist())
        for _, launched in self.in_flight:
            if not isinstance(launched, RuntimeError):
                for share, slots in zip(launched.plan.sequences, launched.slots, strict=True):
                    assert not free & set(slots), "a slot in flight is free"
                    self.writes_alone(share, slots[share.start :])

    def writes_alone(self, share: SequencePlan, written: list[int]) -> None:
        for sequence in self.scheduler._roster.running.values():
            if sequence.id != share.sequence_id:
                assert not set(sequence.lease.slots.tolist()) & set(written), "another one was given a slot in flight"

    def run(self, limit: int = 5000) -> int:
        for step in range(limit):
            if not self.scheduler.has_work:
                while self.in_flight:
                    self.land()
                self.idle()
                return step
            before = sum(o.ends for o in self.outcomes.values())
            assert self.step() or sum(o.ends for o in self.outcomes.values()) > before, "work, but nothing to run"
        raise AssertionError("not done")

    def idle(self) -> None:
        """Nothing is leaked and every request ended exactly once."""
        stats = self.scheduler.stats()
        assert (stats.slots_held, stats.running, stats.waiting) == (0, 0, 0)
        assert all(o.ends == 1 for o in self.outcomes.values())


def prompt(seed: int, length: int, shared: list[int] = ()) -> list[int]:
    rng = random.Random(seed)
    return list(shared) + [rng.randrange(1, 50) for _ in range(length - len(shared))]


class FakeMatcher:
    """Allows what the fake model says anyway; foretells it, at most so many tokens, sometimes wrongly."""

    def __init__(self, tokens: list[int], wrong_from: int | None = None, most: int = 5) -> None:
        self.script, self.at, self.wrong_from, self.most = tokens, 0, wrong_from, most

    def accept(self, token: int) -> bool:
        good = self.at < len(self.script) and self.script[self.at] == token
        self.at += good
        return good

    def rollback(self, count: int) -> None:
        assert count <= self.at
        self.at -= count

    def forced_tokens(self, limit: int) -> tuple[int, ...]:
        out = list(self.script[self.at : self.at + min(limit, self.most)])
        if self.wrong_from is not None:
            out = [NEVER if i >= self.wrong_from else t for i, t in enumerate(out)]
        return tuple(out)

    def is_complete(self) -> bool:
        return self.at == len(self.script)

    is_finished = is_complete


class FakeGrammar:
    nbytes = 0

    def __init__(self, *args) -> None:
        self.args = args

    def matcher(self) -> FakeMatcher:
        return FakeMatcher(*self.args)


def done(grammar: FakeGrammar) -> Future:
    future: Future = Future()
    future.set_result(grammar)
    return future

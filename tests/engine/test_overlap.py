"""A step is launched while the one before it is in flight: the same tokens, and no slot changes hands too early."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.engine.flights import Flights
from radixbackend.engine.plan import ExecutorTraits, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.errors import IntegrityError, RequestAbortedError, StepError
from radixbackend.types import RequestId, SamplingParams
from tests.engine.fake import plain
from tests.engine.scheduling import NEVER, Bench, FakeGrammar, done, prompt


def overlapping(slots: int = 2000, **options: Any) -> Bench:
    return Bench(slots, overlap=True, **options)


# -- what goes ahead ---------------------------------------------------------------------------------------------------


def test_decodes_go_ahead_with_tokens_that_are_not_known():
    bench = overlapping()
    ids = [bench.add([3 + i, 9, 9], 12) for i in range(3)]
    steps = bench.run()
    for i, request in enumerate(ids):
        assert bench.outcomes[request].tokens[0] == plain([3 + i, 9, 9], 12)
    assert steps == len(bench.executor.plans) == 12  # nobody is in a step for nothing when it ends by its length
    assert bench.ahead == 11
    second = bench.executor.plans[1]
    assert [(s.ahead, s.tokens.tolist(), s.start) for s in second.sequences] == [(i, [0], 3) for i in range(3)]
    assert all(s.sample and s.sample.num_generated == 1 and s.sample.remaining == 11 for s in second.sequences)


def test_without_it_or_where_the_executor_cannot_nothing_goes_ahead():
    for bench in (Bench(), overlapping(traits=ExecutorTraits(ahead=False))):
        request = bench.add([3, 9, 9], 12)
        bench.run()
        assert bench.outcomes[request].tokens[0] == plain([3, 9, 9], 12)
        assert bench.ahead == 0


def test_chunks_go_ahead_and_waiting_ones_are_admitted_behind_a_step_in_flight():
    bench = overlapping(step_tokens=16, running=4)
    first = bench.add([3], 30)
    bench.step()
    late = bench.add(prompt(1, 60), 5)
    assert len(bench.in_flight) == 1
    bench.step()
    newest = bench.executor.plans[-1]
    assert [len(s.tokens) for s in newest.sequences] == [1, 15]
    bench.run()
    assert bench.outcomes[first].tokens[0] == plain([3], 30)
    assert bench.outcomes[late].tokens[0] == plain(prompt(1, 60), 5)
    assert bench.ahead == len(bench.executor.plans) - 1  # every step but the first


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"logprobs": 0},
        {"prompt_logprobs": 0},
    ],
)
def test_who_needs_the_last_token_keeps_the_batch_from_going_ahead(params: dict[str, Any]):
    bench = overlapping()
    other = bench.add([4, 9, 9], 20)
    request = bench.add([3, 9, 9], 8, params=SamplingParams(max_tokens=8, **params))
    bench.step()
    for _ in range(6):
        assert not bench.in_flight
        bench.step()
    bench.run()
    assert bench.outcomes[request].tokens[0] == plain([3, 9, 9], 8)
    assert bench.outcomes[other].tokens[0] == plain([4, 9, 9], 20)
    assert bench.ahead > 5  # once it was gone


def test_a_grammar_goes_ahead():
    bench = overlapping()
    request = bench.add([3, 9, 9], 12, grammar=done(FakeGrammar(plain([3, 9, 9], 12), None, 0)))
    other = bench.add([4, 9, 9], 12)
    steps = bench.run()
    assert bench.outcomes[request].tokens[0] == plain([3, 9, 9], 12)
    assert bench.outcomes[other].tokens[0] == plain([4, 9, 9], 12)
    assert (steps, bench.ahead) == (12, 11)
    sample = bench.executor.plans[1].sequences[0].sample
    assert sample
    assert (sample.history.tolist(), sample.assumed, sample.unknown, sample.remaining) == ([3, 9, 9], 0, 1, 11)


def test_drafts_in_flight_are_taken_for_right_and_others_follow_what_is_not_known():
    bench = overlapping()
    tokens = plain([3, 9, 9], 12)
    request = bench.add([3, 9, 9], 12, grammar=done(FakeGrammar(tokens, None, 3)))
    bench.run()
    assert bench.outcomes[request].tokens[0] == tokens
    first, second, third = [plan.sequences[0] for plan in bench.executor.plans[:3]]
    assert first.tokens.tolist() == [3, 9, 9, *tokens[:3]]
    assert (second.tokens.tolist(), second.start, second.ahead) == ([0], 6, 0)
    assert second.sample
    assert second.sample.history.tolist() == [3, 9, 9, *tokens[:3]]
    assert (second.sample.assumed, second.sample.unknown, second.sample.remaining) == (3, 1, 8)
    # With four tokens known, the next three are foretold: one comes of the step in flight, two are verified behind it.
    assert (third.tokens.tolist(), third.start, third.ahead) == ([0, *tokens[5:7]], 7, 0)
    assert third.sample
    assert (third.sample.assumed, third.sample.unknown, third.sample.remaining) == (0, 1, 7)
    assert bench.ahead == len(bench.executor.plans) - 1
    stats = bench.scheduler.stats()
    drafts = sum(len(plan.sequences[0].sample.drafts) for plan in bench.executor.plans if plan.sequences[0].sample)
    assert stats.drafted_tokens == stats.accepted_tokens == drafts  # none was refused
    assert stats.generated_tokens == 12 == drafts + len(bench.executor.plans)


@pytest.mark.parametrize("wrong_from", [0, 1, 2])
def test_a_refused_draft_makes_the_step_behind_it_worthless(wrong_from: int):
    bench = overlapping()
    tokens = plain([3, 9, 9], 30)
    request = bench.add([3, 9, 9], 30, grammar=done(FakeGrammar(tokens, wrong_from)))
    other = bench.add([4, 9, 9], 30)
    bench.run()
    assert bench.outcomes[request].tokens[0] == tokens
    assert bench.outcomes[other].tokens[0] == plain([4, 9, 9], 30)
    assert [len(plan.sequences) for plan in bench.executor.plans[:12]] == [2] * 12  # nobody ever sits out
    assert bench.ahead >= 12
    stats = bench.scheduler.stats()
    usage = bench.outcomes[request].events[-1].usage
    assert usage
    assert stats.accepted_tokens == usage.forced_tokens <= stats.drafted_tokens
    assert stats.generated_tokens == 60


@pytest.mark.parametrize("left", range(6, 12))
def test_whom_the_drafts_of_others_keep_out_of_a_step_has_its_slots_before_the_next_is_planned(left: int):
    """Else it might find none while that step is in flight, when nobody can be sent back."""
    bench = overlapping(step_tokens=8, running=4)
    grammar: Future[Any] = Future()
    drafting = [bench.add([3, 9], 14, grammar=grammar) for _ in range(2)]
    waiting = bench.add([4, 9], 5, params=SamplingParams(max_tokens=5, presence_penalty=1.0))
    kept_out = bench.add([5, 9], 14)
    while not bench.outcomes[waiting].ends:  # until then all wait for each step
        bench.step()
    grammar.set_result(FakeGrammar(plain([3, 9], 14)))
    usage, occupied = bench.cache.usage(), bench.cache.acquire(np.zeros(0, np.int32))
    assert bench.cache.grow(occupied, usage.free + usage.cached - left)
    bench.launch()
    assert [len(s.tokens) for s in bench.executor.plans[-1].sequences] == [6, 2]
    bench.step()
    bench.cache.release(occupied)
    bench.run()
    assert [bench.outcomes[i].tokens[0] for i in drafting] == [plain([3, 9], 14)] * 2
    assert bench.outcomes[kept_out].tokens[0] == plain([5, 9], 14)


def test_a_matcher_that_waits_for_a_step_that_fails():
    bench = overlapping()
    tokens = plain([3, 9, 9], 12)
    bench.executor.poison = {tokens[4]}
    bad = bench.add([3, 9, 9], 12, grammar=done(FakeGrammar(tokens, None, 0)))
    other = next(p for p in ([40, i] for i in range(50)) if tokens[4] not in plain(p, 20) + p)
    good = [bench.add(other, 20, grammar=done(FakeGrammar(plain(other, 20), None, most))) for most in (0, 5)]
    bench.run()
    assert bench.outcomes[bad].tokens[0] == tokens[: tokens.index(tokens[4]) + 1]
    assert isinstance(bench.outcomes[bad].error, StepError)
    for request in good:
        assert bench.outcomes[request].tokens[0] == plain(other, 20)
    assert bench.ahead > 10


def test_a_grammar_that_is_ready_joins_behind_a_step_in_flight():
    bench = overlapping(step_tokens=16)
    future: Future[Any] = Future()
    request = bench.add(prompt(1, 20), 6, grammar=future)
    other = bench.add([4, 9, 9], 20)
    for _ in range(5):
        bench.step()
    future.set_result(FakeGrammar(plain(prompt(1, 20), 6)))
    bench.run()
    assert bench.outcomes[request].tokens[0] == plain(prompt(1, 20), 6)
    assert bench.outcomes[other].tokens[0] == plain([4, 9, 9], 20)


# -- what ended meanwhile ----------------------------------------------------------------------------------------------


def test_who_ends_by_a_token_is_in_the_next_step_for_nothing_and_keeps_its_slots_until_that_has_landed():
    bench = overlapping()
    expected = plain([5, 6], 9)
    stop = expected[3]
    request = bench.add([5, 6], 9, params=SamplingParams(max_tokens=9, stop_token_ids=(stop,)))
    other = bench.add([7, 8], 20)
    while not bench.outcomes[request].ends:
        bench.step()
    assert bench.outcomes[request].tokens[0] == expected[: expected.index(stop) + 1]
    held = len(bench.in_flight[0][1].slots[0])
    stats = bench.scheduler.stats()
    assert stats.running == 1
    assert stats.slots_held + stats.slots_cached >= held  # what is not in the tree is still held
    bench.step()
    bench.run()
    assert bench.outcomes[other].tokens[0] == plain([7, 8], 20)
    # What it left in the tree is what it computed, without the token of the step that did not count.
    longer = [5, 6, *bench.outcomes[request].tokens[0], 9]
    again = bench.add(longer, 5)
    bench.run()
    assert bench.outcomes[again].tokens[0] == plain(longer, 5)


def test_an_abort_with_a_step_in_flight():
    bench = overlapping(60)
    request = bench.add([3, 9, 9], 40)
    for _ in range(5):
        bench.step()
    bench.take(bench.scheduler.abort(request))
    bench.check()
    assert bench.scheduler.stats().slots_held > 0  # the step in flight writes there
    assert not bench.scheduler.has_work
    follower = bench.add(prompt(1, 58), 2)  # needs nearly all slots: waits until they are free, instead of failing
    bench.run()
    assert bench.outcomes[follower].tokens[0] == plain(prompt(1, 58), 2)
    assert isinstance(bench.outcomes[request].error, RequestAbortedError)


def test_a_pin_released_while_its_sequence_is_in_flight():
    bench = overlapping()
    pinned = bench.add(
        [3, 9, 9], 30, pin=True, params=SamplingParams(max_tokens=30, stop_token_ids=(plain([3, 9, 9], 9)[8],))
    )
    other = bench.add([4, 9, 9], 30)
    while not bench.outcomes[pinned].ends:
        bench.step()
    bench.scheduler.unpin(pinned)
    bench.check()
    bench.run()
    assert bench.outcomes[other].tokens[0] == plain([4, 9, 9], 30)


@pytest.mark.parametrize("forced", [None, (None, 0), (None, 5), (1, 5)])
def test_no_room_for_going_ahead_waits_and_then_sends_back(forced: tuple[int | None, int] | None):
    bench = overlapping(120, step_tokens=32, running=8)
    prompts = [prompt(i, 10) for i in range(8)]
    grammars = [forced and done(FakeGrammar(plain(p, 60), *forced)) for p in prompts]
    ids = [bench.add(p, 60, grammar=grammar) for p, grammar in zip(prompts, grammars, strict=True)]
    bench.run()
    assert bench.scheduler.stats().retractions > 0
    assert bench.ahead > 0
    for request, p in zip(ids, prompts, strict=True):
        assert bench.outcomes[request].tokens[0] == plain(p, 60)


def test_equal_prefixes_computed_at_once_keep_their_slots_until_nobody_reads_them():
    # Shorter than what is worth waiting for, so both compute it, and the second one's slots become superfluous.
    bench = overlapping()
    shared = prompt(0, 12)
    ids = [bench.add([*shared, i], 6) for i in (1, 2)]
    bench.run()
    for i, request in zip((1, 2), ids, strict=True):
        assert bench.outcomes[request].tokens[0] == plain([*shared, i], 6)


def test_a_token_drawn_again_makes_the_step_behind_it_worthless():
    expected = {i: plain([3 + i, 9, 9], 12) for i in range(3)}
    bench = overlapping()
    bench.executor.redrawn = {expected[0][4], expected[1][7], expected[1][8]}
    grammars = [None, done(FakeGrammar(expected[1], None, 0)), done(FakeGrammar(expected[2], None, 2))]
    ids = [bench.add([3 + i, 9, 9], 12, grammar=grammars[i]) for i in range(3)]
    bench.run()
    for i, request in enumerate(ids):
        assert bench.outcomes[request].tokens[0] == expected[i]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["poison", "refused"])
def test_a_poisonous_request_fails_alone(when: str):
    bench = overlapping()
    good = [bench.add(prompt(i, 20), 10) for i in range(5)]
    bench.step()
    setattr(bench.executor, when, {0} if when == "poison" else {49})
    bad = bench.add([*prompt(9, 10), 0 if when == "poison" else 49, 5], 10)
    goods = [i for i in range(5) if 49 not in prompt(i, 20)]
    bench.run()
    assert isinstance(bench.outcomes[bad].error, StepError)
    for i in goods:
        assert bench.outcomes[good[i]].tokens[0] == plain(prompt(i, 20), 10)


def test_a_token_that_is_poison_as_input_fails_its_own_request_in_a_step_that_went_ahead():
    expected = plain([3, 9, 9], 12)
    bench = overlapping()
    bench.executor.poison = {expected[4]}
    bad = bench.add([3, 9, 9], 12)
    other = next(p for p in ([40, i] for i in range(50)) if expected[4] not in plain(p, 20) + p)
    good = bench.add(other, 20)
    bench.run()
    assert bench.outcomes[bad].tokens[0] == expected[: expected.index(expected[4]) + 1]
    assert isinstance(bench.outcomes[bad].error, StepError)
    assert bench.outcomes[good].tokens[0] == plain(other, 20)


def test_nobody_is_blamed_for_one_that_was_aborted_in_flight():
    bench = overlapping()
    bad, good = bench.add([3, 9, 9], 12), bench.add([4, 9, 9], 12)
    bench.step()
    bench.executor.poison = {plain([3, 9, 9], 1)[0]}
    assert not bench.executor.poison & set(plain([4, 9, 9], 12))
    bench.take(bench.scheduler.abort(bad))
    bench.run()
    assert bench.outcomes[good].tokens[0] == plain([4, 9, 9], 12)


def test_suspects_wait_for_what_is_in_flight():
    bench = overlapping()
    for first in (3, 4):
        bench.add([first, 9, 9], 12)
    bench.step()
    bench.executor.poison = {plain([3, 9, 9], 1)[0]}
    bench.step()
    assert len(bench.in_flight) == 1
    assert not bench.launch()
    bench.land()
    assert bench.launch()
    assert len(bench.executor.plans[-1].sequences) == 1
    bench.run()


def test_broken_books_are_quarantined_once_everything_has_landed():
    bench = overlapping()
    ids = [bench.add(prompt(i, 20), 10) for i in range(3)]
    for _ in range(4):
        bench.step()
    while bench.in_flight:  # as the loop does
        bench.in_flight.popleft()[1].result()
    bench.take(bench.scheduler.quarantine(IntegrityError("test")))
    bench.run()
    for i, request in enumerate(ids):
        assert bench.outcomes[request].tokens[0] == plain(prompt(i, 20), 10)


def test_steps_land_in_order():
    flights = Flights(PrefixCache(10))
    first, second = StepPlan(1, ()), StepPlan(2, ())
    flights.take_off(first)
    flights.take_off(second)
    with pytest.raises(IntegrityError, match="step 2 landed out of turn"):
        flights.land(second)


def test_a_lease_stays_until_the_last_step_that_uses_it_has_landed():
    cache = PrefixCache(10)
    flights = Flights(cache)

    def plan(step: int, *ids: int) -> StepPlan:
        none = np.zeros(0, np.int32)
        return StepPlan(step, tuple(SequencePlan(SequenceId(i), none, 0, none, None) for i in ids))

    plans = [plan(1, 7, 8), plan(2, 8), plan(3, 9)]
    for made in plans:
        flights.take_off(made)
    for i in (7, 8, 5):
        lease = cache.acquire(np.zeros(0, np.int32))
        assert cache.grow(lease, 2)
        flights.release(lease, SequenceId(i))
    found = []
    for made in plans:
        found.append(cache.usage().held)
        flights.land(made)
    assert found == [4, 2, 0]


# -- anything at any time ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request, and after how many of its tokens something stops it."""

    family: int
    shared: int
    own: tuple[int, ...]
    count: int
    choices: int
    stop: int | None
    kind: str
    forced: tuple[int | None, int]  # what its grammar proposes: wrong from there, and so many at once
    pin: bool

    @property
    def prompt(self) -> list[int]:
        return [*prompt(self.family, 30)[: self.shared], *self.own]

    @property
    def stops(self) -> tuple[int, ...]:
        return () if self.stop is None or not self.count else (plain(self.prompt, self.count)[self.stop % self.count],)

    def expected(self, poison: set[int]) -> tuple[list[int], bool]:
        """Its tokens, and whether it fails."""
        if poison & set(self.prompt):
            return [], True
        tokens = []
        for token in plain(self.prompt, self.count):
            tokens.append(token)
            if token in self.stops or len(tokens) == self.count:
                break
            if token in poison:
                return tokens, True
        return tokens, False


asks = st.builds(
    Ask,
    family=st.integers(0, 2),
    shared=st.integers(0, 30),
    own=st.lists(st.integers(1, 49), min_size=1, max_size=8).map(tuple),
    count=st.integers(0, 25),
    choices=st.sampled_from([1, 1, 1, 2]),
    stop=st.none() | st.integers(0, 24),
    kind=st.sampled_from(["free", "free", "penalty", "grammar", "grammar", "late grammar"]),
    forced=st.tuples(st.sampled_from([None, None, 0, 1, 2]), st.sampled_from([0, 1, 2, 5, 5])),
    pin=st.booleans(),
)
Act = Ask | tuple[str, int]
acts = st.one_of(
    asks,
    asks,
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("abort"), st.integers(0, 20)),
    st.tuples(st.just("unpin"), st.integers(0, 20)),
    st.tuples(st.just("ready"), st.integers(0, 0)),
)


class Traffic:
    """The same requests and the same mishaps on one bench."""

    def __init__(self, overlap: bool, slots: int, poison: set[int], redrawn: set[int]) -> None:
        self.bench = Bench(slots, overlap=overlap, step_tokens=16, running=4)
        self.bench.executor.poison, self.bench.executor.redrawn = poison, redrawn
        self.asked: dict[RequestId, Ask] = {}
        self.compiling: list[tuple[Future[Any], Ask]] = []

    def do(self, act: Act) -> None:
        bench = self.bench
        if isinstance(act, Ask):
            self.ask(act)
            return
        verb, number = act
        if verb == "step":
            for _ in range(number):
                bench.step()
        elif verb == "abort":
            bench.take(bench.scheduler.abort(RequestId(number)))
        elif verb == "unpin":
            bench.scheduler.unpin(RequestId(number))
        else:
            self.ready()
        bench.check()

    def ask(self, ask: Ask) -> None:
        penalty = 1.5 if ask.kind == "penalty" else 0.0
        options: dict[str, Any] = {}
        if "grammar" in ask.kind and ask.count:
            options["grammar"] = Future()
            self.compiling.append((options["grammar"], ask))
            if ask.kind == "grammar":
                self.ready()
        params = SamplingParams(max_tokens=ask.count, n=ask.choices, stop_token_ids=ask.stops, presence_penalty=penalty)
        pin = ask.pin and ask.choices == 1
        request = self.bench.add(ask.prompt, ask.count, n=ask.choices, params=params, pin=pin, **options)
        self.asked[request] = ask

    def ready(self) -> None:
        for future, ask in self.compiling:
            future.set_result(FakeGrammar([*ask.expected(set())[0], NEVER, NEVER], *ask.forced))
        self.compiling.clear()

    def finish(self) -> None:
        bench = self.bench
        self.ready()
        while bench.scheduler.has_work or bench.in_flight:
            bench.step()
        for request in self.asked:
            bench.scheduler.unpin(request)
        bench.idle()


@settings(max_examples=60, deadline=None)
@given(
    program=st.lists(acts, min_size=3, max_size=20),
    slots=st.sampled_from([90, 150, 600]),
    poison=st.sets(st.integers(1, 49), max_size=2),
    redrawn=st.sets(st.integers(1, 49), max_size=6),
)
def test_whatever_comes_the_tokens_are_the_same(
    program: Sequence[Act], slots: int, poison: set[int], redrawn: set[int]
) -> None:
    poison = poison - {stop for act in program if isinstance(act, Ask) for stop in act.stops}  # read if it is a draft
    for overlap in (False, True):
        traffic = Traffic(overlap, slots, poison, redrawn)
        for act in program:
            traffic.do(act)
        traffic.finish()
        for request, ask in traffic.asked.items():
            outcome = traffic.bench.outcomes[request]
            tokens, fails = ask.expected(poison)
            if isinstance(outcome.error, RequestAbortedError):
                assert all(found == tokens[: len(found)] for found in outcome.tokens.values())
            elif fails:
                assert isinstance(outcome.error, StepError)
            else:
                assert outcome.error is None
                assert [outcome.tokens[i] for i in range(ask.choices)] == [tokens] * ask.choices
        told = sum(len(tokens) for outcome in traffic.bench.outcomes.values() for tokens in outcome.tokens.values())
        stats = traffic.bench.scheduler.stats()
        assert stats.generated_tokens == told
        assert stats.accepted_tokens <= min(stats.drafted_tokens, told)

"""The scheduler over a fake executor: no torch, no threads, exact tokens."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from radixbackend.engine.plan import ExecutorTraits
from radixbackend.engine.request import TRANSITIONS, Request, Sequence, Status
from radixbackend.engine.scheduler import HOLD_TOKENS
from radixbackend.errors import CacheExhaustedError, GrammarCompileError, IntegrityError, RequestAbortedError, StepError
from radixbackend.types import RequestId, SamplingParams
from tests.engine.fake import plain
from tests.engine.scheduling import Bench, FakeGrammar, done, prompt


def test_mixed_lengths_in_one_batch_each_get_their_own_tokens():
    bench = Bench(step_tokens=16)
    prompts = [prompt(i, length) for i, length in enumerate((1, 3, 40, 7, 90))]
    ids = [bench.add(p, 10) for p in prompts]
    bench.run()
    for request, p in zip(ids, prompts, strict=True):
        assert bench.outcomes[request].tokens[0] == plain(p, 10)
        assert bench.outcomes[request].reasons[0] == "length"


def test_a_long_prompt_is_chunked_while_others_decode_every_step():
    bench = Bench(step_tokens=16, running=4)
    first = bench.add([3], 30)
    bench.step()
    bench.add(prompt(1, 200), 2)
    for _ in range(10):
        plan = bench.step()
        assert plan is not None
        assert plan.num_tokens <= 16
        assert len(plan.sequences) == 2
    assert len(bench.outcomes[first].tokens[0]) == 11
    bench.run()
    assert bench.outcomes[first].tokens[0] == plain([3], 30)


def test_without_chunks_a_prompt_is_one_piece():
    bench = Bench(step_tokens=8, traits=ExecutorTraits(shares_prefixes=False, chunks=False, drafts=False))
    p = prompt(1, 50)
    request = bench.add(p, 4)
    plan = bench.step()
    assert plan is not None
    assert plan.num_tokens == 50
    bench.run()
    assert bench.outcomes[request].tokens[0] == plain(p, 4)


def test_a_follower_hits_what_an_earlier_request_computed_and_generated():
    bench = Bench()
    p = prompt(1, 100)
    bench.add(p, 20)
    bench.run()
    longer = p + plain(p, 20) + [7]
    bench.add(longer, 5)
    bench.run()
    usage = bench.outcomes[RequestId(1)].events[-1].usage
    assert usage is not None
    assert usage.cached_tokens == 119  # all but the last generated token, whose keys were never computed
    assert bench.outcomes[RequestId(1)].tokens[0] == plain(longer, 5)


@pytest.mark.parametrize("overlap", [False, True])
def test_who_wants_no_stream_is_told_once_for_each_choice(overlap):
    bench = Bench(slots=160, overlap=overlap)
    p = prompt(1, 40)
    silent = bench.add(p, 12, n=2, stream=False)
    others = [bench.add(prompt(i, 50), 30) for i in (2, 3)]
    bench.run()
    told = bench.outcomes[silent]
    assert [len(event.token_ids) for event in told.events] == [12, 12]
    assert told.tokens == {0: plain(p, 12), 1: plain(p, 12)}
    assert told.reasons == {0: "length", 1: "length"}
    assert all(len(bench.outcomes[request].events) == 30 for request in others)


def test_an_identical_prompt_computes_one_token():
    bench = Bench()
    p = prompt(1, 100)
    for _ in range(2):
        bench.add(p, 3)
        bench.run()
    usage = bench.outcomes[RequestId(1)].events[-1].usage
    assert usage is not None
    assert usage.cached_tokens == 99


def test_cold_wave_computes_the_shared_prefix_once():
    bench = Bench(40_000, step_tokens=256)
    shared = prompt(0, 1000)
    prompts = [prompt(i, 1050, shared) for i in range(1, 33)]
    for p in prompts:
        bench.add(p, 8)
    bench.run()
    prefilled = bench.scheduler.stats().prefilled_tokens
    assert prefilled <= 1.05 * (1000 + 32 * 50)
    for i, p in enumerate(prompts):
        assert bench.outcomes[RequestId(i)].tokens[0] == plain(p, 8)


def test_the_cold_wave_is_there_without_the_cache():
    bench = Bench(80_000, step_tokens=256, cache=False)
    shared = prompt(0, 1000)
    for i in range(1, 9):
        bench.add(prompt(i, 1050, shared), 2)
    bench.run()
    assert bench.scheduler.stats().prefilled_tokens == 8 * 1050


def test_namespaces_share_nothing():
    bench = Bench()
    p = prompt(1, 100)
    for salt in ("a", "b", None):
        bench.add(p, 2, namespace=salt)
    bench.run()
    assert bench.scheduler.stats().cached_tokens == 0


def test_choices_are_forks_of_one_prefill():
    bench = Bench()
    p = prompt(1, 600)
    request = bench.add(p, 8, n=16)
    bench.run()
    assert bench.scheduler.stats().prefilled_tokens <= 600 + 15
    assert set(bench.outcomes[request].tokens) == set(range(16))
    assert all(bench.outcomes[request].tokens[i] == plain(p, 8) for i in range(16))


def test_retraction_resumes_exactly_and_the_oldest_is_never_sent_back():
    bench = Bench(120, step_tokens=32, running=8)
    prompts = [prompt(i, 10) for i in range(8)]
    ids = [bench.add(p, 60) for p in prompts]
    bench.run()
    assert bench.scheduler.stats().retractions > 0
    for request, p in zip(ids, prompts, strict=True):
        assert bench.outcomes[request].tokens[0] == plain(p, 60)


def test_the_later_request_is_the_victim_unless_it_has_priority():
    # Two that cannot both stay: the pool holds 100 tokens, each grows to 80.
    for priority, survivor in ((0, 0), (5, 1)):
        bench = Bench(100)
        bench.scheduler._growth._share = 0.0  # admit optimistically
        bench.scheduler._growth.START = bench.scheduler._growth.FLOOR = 0.0
        bench.add(prompt(1, 20), 60)
        bench.add(prompt(2, 20), 60, priority=priority)
        while not any(o.ends for o in bench.outcomes.values()):
            bench.step()
        assert bench.outcomes[RequestId(survivor)].ends == 1
        bench.run()
        assert bench.scheduler.stats().retractions >= 1


def test_nothing_starves_behind_a_stream_of_cache_hits():
    bench = Bench(4000, step_tokens=32, running=2)
    shared = prompt(0, 200)
    bench.add(shared, 1)
    bench.run()
    victim = bench.add(prompt(99, 60), 2)
    for i in range(1, 400):
        bench.add(prompt(i, 210, shared), 2)
        bench.step()
        if bench.outcomes[victim].ends:
            break
    assert bench.outcomes[victim].ends, "overtaken for ever by newcomers with longer cached prefixes"
    assert i > 2, "a longer cached prefix goes first for a while"


def test_priority_goes_first_but_does_not_starve_the_rest():
    bench = Bench(running=1)
    low = bench.add(prompt(1, 5), 2)
    low2 = bench.add(prompt(2, 5), 2)
    high = bench.add(prompt(3, 5), 2, priority=1)
    order: list[RequestId] = []
    while bench.scheduler.has_work:
        bench.step()
        order += [r for r, o in bench.outcomes.items() if o.ends and r not in order]
    assert order == [high, low, low2]
    # A low priority beats a high one that comes PRIORITY_STEPS later.
    late = Bench(running=1)
    first = late.add(prompt(1, 5), 2)
    late.scheduler._roster.step += 2000
    second = late.add(prompt(2, 5), 2, priority=1)
    late.run()
    finished = [r for r, o in late.outcomes.items() if o.ends]
    assert set(finished) == {first, second}
    admitted = [late.executor.plans[0].sequences[0].tokens.tolist()]
    assert admitted == [prompt(1, 5)]


@pytest.mark.parametrize("when", ["waiting", "prefilling", "decoding", "retracted", "ended", "unknown"])
def test_abort_in_every_state(when):
    bench = Bench(120, step_tokens=8, running=3)
    request = bench.add(prompt(1, 30), 50)
    other = bench.add(prompt(2, 10), 20)
    if when == "prefilling":
        bench.step()
    elif when == "decoding":
        for _ in range(10):
            bench.step()
        assert bench.outcomes[request].tokens[0]
    elif when == "retracted":
        for _ in range(6):
            bench.step()
        bench.scheduler._roster.retract(bench.scheduler._roster.running[0])
    elif when == "ended":
        bench.run()
    target = RequestId(77) if when == "unknown" else request
    bench.take(bench.scheduler.abort(target))
    bench.cache.check()
    bench.run()
    assert bench.outcomes[other].tokens[0] == plain(prompt(2, 10), 20)
    if when not in ("ended", "unknown"):
        assert isinstance(bench.outcomes[request].error, RequestAbortedError)


def test_prefill_only_caches_the_prompt_and_generates_nothing():
    bench = Bench()
    p = prompt(1, 50)
    for _ in range(2):
        request = bench.add(p, 0)
        bench.run()
        assert bench.outcomes[request].tokens[0] == []
        assert bench.outcomes[request].reasons[0] == "length"
    assert bench.cache.match(np.array(p, np.int32)) == 50
    assert bench.scheduler.stats().prefilled_tokens == 50


def test_a_pinned_prefix_survives_pressure_until_it_is_unpinned():
    bench = Bench(200)
    p = prompt(1, 50)
    pinned = bench.add(p, 0, pin=True)
    while bench.scheduler.has_work:
        bench.step()
    for i in range(2, 12):
        bench.add(prompt(i, 80), 20)
    while bench.scheduler.has_work:
        bench.step()
    assert bench.cache.match(np.array(p, np.int32)) == 50
    assert bench.scheduler.stats().slots_held == 50
    bench.scheduler.unpin(pinned)
    bench.idle()


def test_a_request_that_pins_leave_no_room_for_ends_with_an_error():
    bench = Bench(100)
    bench.add(prompt(1, 60), 0, pin=True)
    while bench.scheduler.has_work:
        bench.step()
    request = bench.add(prompt(2, 50), 5)
    grows = bench.add(prompt(3, 20), 60)
    while bench.scheduler.has_work:
        bench.step()
    assert isinstance(bench.outcomes[request].error, CacheExhaustedError)
    assert isinstance(bench.outcomes[grows].error, CacheExhaustedError)


def test_a_poisonous_request_fails_alone():
    bench = Bench()
    good = [bench.add(prompt(i, 20), 10) for i in range(5)]
    bench.executor.poison = {0}
    bad = bench.add([*prompt(9, 10), 0, 5], 10)
    bench.run()
    assert isinstance(bench.outcomes[bad].error, StepError)
    for i, request in enumerate(good):
        assert bench.outcomes[request].tokens[0] == plain(prompt(i, 20), 10)


def test_a_poisonous_request_fails_alone_where_state_is_kept_per_sequence():
    bench = Bench(traits=ExecutorTraits(shares_prefixes=False, chunks=False, drafts=False))
    good = [bench.add(prompt(i, 20), 10) for i in range(5)]
    bench.step()
    bench.executor.poison = {0}
    bad = bench.add([*prompt(9, 10), 0, 5], 10)
    bench.run()
    assert isinstance(bench.outcomes[bad].error, StepError)
    for i, request in enumerate(good):
        assert bench.outcomes[request].tokens[0] == plain(prompt(i, 20), 10)


def test_a_model_that_always_fails_ends_every_request():
    bench = Bench()
    bench.executor.poison = set(range(50))
    ids = [bench.add(prompt(i, 20), 10) for i in range(5)]
    bench.run()
    assert all(isinstance(bench.outcomes[r].error, StepError) for r in ids)


def test_end_tokens_stop_unless_ignored():
    end = plain([5, 6], 4)[2]
    for ignore in (False, True):
        bench = Bench()
        bench.scheduler._committer._end_tokens = frozenset({end})
        request = bench.add([5, 6], 4, params=SamplingParams(max_tokens=4, ignore_eos=ignore))
        bench.run()
        expected = plain([5, 6], 4)
        assert bench.outcomes[request].tokens[0] == (expected if ignore else expected[: expected.index(end) + 1])
        assert bench.outcomes[request].reasons[0] == ("length" if ignore else "stop")


def test_stop_tokens_report_which():
    stop = plain([5, 6], 4)[2]
    bench = Bench()
    request = bench.add([5, 6], 4, params=SamplingParams(max_tokens=4, stop_token_ids=(stop,)))
    bench.run()
    assert bench.outcomes[request].events[-1].stop_reason == stop


@pytest.mark.parametrize("wrong_from", [None, 0, 1, 3])
def test_drafts_change_the_number_of_steps_not_the_tokens(wrong_from):
    p = prompt(1, 30)
    expected = plain(p, 23)
    bench = Bench(step_tokens=16)
    request = bench.add(p, 60, grammar=done(FakeGrammar(expected, wrong_from)))
    steps = bench.run()
    assert bench.outcomes[request].tokens[0] == expected
    assert bench.outcomes[request].reasons[0] == "stop"  # the grammar finished: no end token was needed
    assert steps < 25 or wrong_from == 0
    stats = bench.scheduler.stats()
    usage = bench.outcomes[request].events[-1].usage
    assert usage is not None
    assert usage.forced_tokens == stats.accepted_tokens
    if wrong_from is None:
        assert steps < 10


def test_drafts_respect_the_budget_of_tokens():
    p = prompt(1, 10)
    bench = Bench()
    request = bench.add(p, 7, grammar=done(FakeGrammar(plain(p, 23))))
    bench.run()
    assert bench.outcomes[request].tokens[0] == plain(p, 7)
    assert bench.outcomes[request].reasons[0] == "length"
    assert bench.outcomes[request].events[-1].complete is False


def test_a_prompt_prefills_while_its_grammar_compiles():
    bench = Bench(step_tokens=16, running=4)
    p = prompt(1, 40)
    future: Future = Future()
    request = bench.add(p, 5, grammar=future)
    for _ in range(3):
        assert bench.step() is not None
    assert bench.step() is None  # all but the last token is computed
    assert bench.scheduler.stats().prefilled_tokens == 39
    other = bench.add(prompt(2, 5), 5)
    for _ in range(6):
        bench.step()
    assert bench.outcomes[other].ends
    future.set_result(FakeGrammar(plain(p, 5)))
    bench.run()
    assert bench.outcomes[request].tokens[0] == plain(p, 5)


def test_a_grammar_that_fails_ends_its_own_request():
    bench = Bench()
    future: Future = Future()
    request = bench.add(prompt(1, 40), 5, grammar=future)
    other = bench.add(prompt(2, 5), 5)
    bench.step()
    future.set_exception(GrammarCompileError("too slow"))
    bench.run()
    assert isinstance(bench.outcomes[request].error, GrammarCompileError)
    assert bench.outcomes[other].tokens[0] == plain(prompt(2, 5), 5)


def test_a_token_outside_its_grammar_ends_its_own_request():
    bench = Bench()
    request = bench.add(prompt(1, 10), 5, grammar=done(FakeGrammar([49, 49, 49])))
    other = bench.add(prompt(2, 5), 5)
    bench.run()
    assert isinstance(bench.outcomes[request].error, StepError)
    assert bench.outcomes[other].tokens[0] == plain(prompt(2, 5), 5)


def test_a_sequence_whose_logits_are_broken_leaves_nothing_of_that_step_in_the_cache():
    bench = Bench(step_tokens=16, running=4)
    p = prompt(1, 40)
    request = bench.add(p, 5)
    other = bench.add(prompt(2, 5), 5)
    sample = bench.executor._sample

    def spoilt(s, slots):
        return replace(sample(s, slots), error="not finite") if s.context == 40 else sample(s, slots)

    bench.executor._sample = spoilt
    bench.run()
    assert isinstance(bench.outcomes[request].error, StepError)
    assert bench.cache.match(np.array(p, np.int32)) < 40
    assert bench.outcomes[other].tokens[0] == plain(prompt(2, 5), 5)


def test_broken_books_are_quarantined_and_everything_is_recomputed():
    bench = Bench()
    ids = [bench.add(prompt(i, 20), 10) for i in range(3)]
    for _ in range(4):
        bench.step()
    bench.take(bench.scheduler.quarantine(IntegrityError("test")))
    bench.run()
    for i, request in enumerate(ids):
        assert bench.outcomes[request].tokens[0] == plain(prompt(i, 20), 10)
    assert bench.scheduler.stats().quarantines == 1


def test_illegal_transitions_raise_and_change_nothing():
    request = Request(RequestId(0), np.array([1], np.int32), SamplingParams(), 2, (0,), lambda update: None)
    for start in Status:
        for target in Status:
            sequence = Sequence(0, request, 0)
            sequence.status = start
            if target in TRANSITIONS[start]:
                sequence.move(target)
                assert sequence.status is target
            else:
                with pytest.raises(IntegrityError):
                    sequence.move(target)
                assert sequence.status is start


def test_random_traffic_is_exact_and_leaks_nothing():
    rng = random.Random(7)
    families = [prompt(i, 60) for i in range(4)]
    bench = Bench(300, step_tokens=24, running=6)
    asked: dict[RequestId, tuple[list[int], int]] = {}
    for _ in range(300):
        shared = rng.choice(families)[: rng.randrange(0, 60)]
        p = prompt(rng.randrange(10**6), len(shared) + rng.randrange(1, 30), shared)
        count = rng.randrange(0, 40)
        grammar = (
            done(FakeGrammar([*plain(p, count), 1, 1], rng.choice([None, 0, 2])))
            if rng.random() < 0.3 and count
            else None
        )
        request = bench.add(p, count, n=rng.choice([1, 1, 3]), priority=rng.randrange(3), grammar=grammar)
        asked[request] = (p, count)
        for _ in range(rng.randrange(4)):
            bench.step()
        if rng.random() < 0.15:
            bench.take(bench.scheduler.abort(rng.choice(list(asked))))
    bench.run()
    aborted = 0
    for request, (p, count) in asked.items():
        outcome = bench.outcomes[request]
        if outcome.error is not None:
            assert isinstance(outcome.error, RequestAbortedError)
            aborted += 1
        else:
            assert all(tokens == plain(p, count) for tokens in outcome.tokens.values())
    assert 0 < aborted < 100
    assert bench.scheduler.stats().retractions > 0


def test_waiting_short_of_the_hold_threshold_is_not_held():
    bench = Bench(step_tokens=256)
    p = prompt(1, HOLD_TOKENS)
    bench.add(p, 2)
    bench.add(p, 2)
    plan = bench.step()
    assert plan is not None
    assert len(plan.sequences) == 2

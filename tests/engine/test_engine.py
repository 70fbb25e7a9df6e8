"""The engine as its users see it, on a tiny random model with a tokenizer."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from radixbackend import Engine, GenerationRequest, SamplingParams, errors, hookimpl

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
LONG = GREEDY.replace(max_tokens=2000)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Iterator[Engine]:
    with Engine(tiny_checkpoint, max_running=8, max_step_tokens=64) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_leaked(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        settle(request.getfixturevalue("engine"))


def settle(engine: Engine) -> None:
    """Nothing runs, nothing is held, and the books balance."""
    end = time.monotonic() + 5
    while (stats := engine.stats()).running or stats.waiting or stats.slots_held:
        assert time.monotonic() < end, f"something is left: {stats}"
        time.sleep(0.01)
    engine._parts.loop.call(engine._parts.cache.check).result()


# -- generating ----------------------------------------------------------------------------------------------------


def test_text_and_tokens_give_the_same(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("Hello there")
    assert engine.generate("Hello there", GREEDY).token_ids == engine.generate(ids, GREEDY).token_ids
    assert engine.generate(GenerationRequest("Hello there", GREEDY)).text == engine.generate(ids, GREEDY).text


def test_a_list_of_prompts_gives_a_list_of_results_in_order(engine: Engine) -> None:
    prompts = ["one", "two two", "three three three"]
    together = engine.generate(prompts, GREEDY)
    assert [r.token_ids for r in together] == [engine.generate(p, GREEDY).token_ids for p in prompts]


def test_usage_says_what_came_from_the_cache(engine: Engine) -> None:
    prompt = list(range(3, 80))
    engine.flush_cache()
    assert engine.generate(prompt, GREEDY).usage.cached_tokens == 0
    usage = engine.generate(prompt, GREEDY).usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (77, 76, 12)
    assert engine.generate(GenerationRequest(tuple(prompt), GREEDY, cache_salt="x")).usage.cached_tokens == 0


def test_the_stream_joined_is_the_result(engine: Engine) -> None:
    params = GREEDY.replace(max_tokens=40, logprobs=2)
    events = list(engine.stream("Once upon a time", params))
    result = engine.generate("Once upon a time", params)
    assert "".join(e.text for e in events) == result.text
    assert sum((e.token_ids for e in events), ()) == result.token_ids
    # The second time all but the prompt's last token is cached, and that one is computed by another kernel.
    for one, other in zip(sum((e.logprobs for e in events), ()), result.logprobs, strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert [e.finish_reason for e in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish_reason == result.finish_reason == "length"
    assert events[-1].usage is not None


def test_async_gives_the_same_as_sync(engine: Engine) -> None:
    async def both() -> None:
        result = await engine.agenerate("Once upon a time", GREEDY)
        events = [event async for event in engine.astream("Once upon a time", GREEDY)]
        expected = engine.generate("Once upon a time", GREEDY)
        assert result.token_ids == sum((e.token_ids for e in events), ()) == expected.token_ids
        assert result.text == "".join(e.text for e in events) == expected.text

    asyncio.run(both())


def test_the_same_seed_gives_the_same_tokens_whatever_else_runs(engine: Engine) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=7, ignore_eos=True)
    alone = engine.generate("A seed", params).token_ids
    others = [SamplingParams(max_tokens=30, temperature=2.0, ignore_eos=True)] * 6
    streams = [engine.stream(f"Noise {i}", p) for i, p in enumerate(others)]
    assert engine.generate("A seed", params).token_ids == alone
    for stream in streams:
        stream.close()
    assert engine.generate("A seed", params.replace(seed=8)).token_ids != alone


def test_choices_differ_and_the_first_is_that_of_n_1(engine: Engine) -> None:
    params = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)
    result = engine.generate("Fork me, please, into several", params.replace(n=5))
    assert [c.index for c in result.choices] == [0, 1, 2, 3, 4]
    assert len({c.token_ids for c in result.choices}) == 5
    assert result.token_ids == engine.generate("Fork me, please, into several", params).token_ids
    assert result.usage.completion_tokens == 60


def test_stop_strings_end_the_text_across_token_borders(engine: Engine) -> None:
    text = engine.generate("Stop here", GREEDY.replace(max_tokens=40)).text
    stop = text[10:13]
    cut = text[: text.index(stop)]
    result = engine.generate("Stop here", GREEDY.replace(max_tokens=40, stop=(stop,)))
    assert (result.text, result.finish_reason, result.choices[0].stop_reason) == (cut, "stop", stop)
    shown = engine.generate("Stop here", GREEDY.replace(max_tokens=40, stop=(stop,), include_stop=True))
    assert shown.text == cut + stop
    events = list(engine.stream("Stop here", GREEDY.replace(max_tokens=40, stop=(stop,))))
    assert "".join(e.text for e in events) == cut
    assert events[-1].stop_reason == stop
    assert len(result.token_ids) < 40, "it went on after the stop string"


def test_stop_tokens_and_min_tokens(engine: Engine) -> None:
    tokens = engine.generate("Stop here", GREEDY).token_ids
    stop = tokens[4]
    result = engine.generate("Stop here", GREEDY.replace(stop_token_ids=(stop,)))
    assert result.token_ids == tokens[: tokens.index(stop) + 1]
    assert result.choices[0].stop_reason == stop
    longer = engine.generate("Stop here", GREEDY.replace(stop_token_ids=(stop,), min_tokens=10))
    assert len(longer.token_ids) >= 10


def test_logprobs_of_prompt_and_output_are_those_of_one_forward(engine: Engine) -> None:
    import torch

    prompt = list(range(5, 45))
    params = GREEDY.replace(max_tokens=5, logprobs=3, prompt_logprobs=2)
    for _ in range(2):  # the second time everything is cached
        result = engine.generate(prompt, params)
        assert result.prompt_logprobs is not None
        assert result.logprobs is not None
        model = engine._parts.model.model
        with torch.inference_mode():
            implementation = model.config._attn_implementation
            model.set_attn_implementation("eager")
            logits = model(torch.tensor([[*prompt, *result.token_ids]])).logits[0]
            model.set_attn_implementation(implementation)
        expected = logits.float().log_softmax(-1)
        assert result.prompt_logprobs[0] is None
        reported = [p.logprob for p in result.prompt_logprobs[1:] if p] + [p.logprob for p in result.logprobs]
        chosen = [expected[i, t].item() for i, t in enumerate([*prompt[1:], *result.token_ids])]
        assert reported == pytest.approx(chosen, abs=1e-3)
        assert [len(p.top) for p in result.logprobs] == [3] * 5
        assert all(p.top[0] == (p.token_id, pytest.approx(p.logprob)) for p in result.logprobs)


def test_max_tokens_0_computes_the_prompt_and_nothing_else(engine: Engine) -> None:
    prompt = list(range(100, 160))
    result = engine.generate(prompt, SamplingParams(max_tokens=0))
    assert (result.token_ids, result.text, result.finish_reason) == ((), "", "length")
    assert engine.generate(prompt, GREEDY).usage.cached_tokens == 59


def test_max_tokens_none_goes_as_far_as_the_context(tiny_checkpoint: Path) -> None:
    with Engine(tiny_checkpoint, max_context=40) as engine:
        result = engine.generate([5] * 10, GREEDY.replace(max_tokens=None))
        assert (len(result.token_ids), result.finish_reason) == (30, "length")


# -- the cache -----------------------------------------------------------------------------------------------------


def test_warm_pin_and_flush(engine: Engine) -> None:
    engine.flush_cache()
    prefix = list(range(50, 120))
    assert engine.warm(prefix).cached_tokens == 0
    assert engine.generate([*prefix, 7], GREEDY).usage.cached_tokens == 70
    with engine.pin(prefix) as pin:
        assert pin.usage.cached_tokens == 70
        engine.flush_cache()
        assert engine.generate([*prefix, 8], GREEDY).usage.cached_tokens == 70
    pin.release()
    engine.flush_cache()
    assert engine.generate([*prefix, 9], GREEDY).usage.cached_tokens == 0


def test_the_cache_can_be_off(tiny_checkpoint: Path) -> None:
    with Engine(tiny_checkpoint, prefix_cache=False) as engine:
        for _ in range(2):
            assert engine.generate(list(range(5, 60)), GREEDY).usage.cached_tokens == 0
        settle(engine)


# -- threads and event loops ---------------------------------------------------------------------------------------


def test_many_threads_and_event_loops_at_once(engine: Engine) -> None:
    prompts = [f"Prompt number {i}, " * (1 + i % 3) for i in range(24)]
    expected = [r.token_ids for r in engine.generate(prompts, GREEDY)]
    got: dict[int, tuple[int, ...]] = {}

    def thread(i: int) -> None:
        if i % 3 == 0:
            got[i] = engine.generate(prompts[i], GREEDY).token_ids
        elif i % 3 == 1:
            got[i] = sum((e.token_ids for e in engine.stream(prompts[i], GREEDY)), ())
        else:
            got[i] = asyncio.run(engine.agenerate(prompts[i], GREEDY)).token_ids

    threads = [threading.Thread(target=thread, args=(i,)) for i in range(24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [got[i] for i in range(24)] == expected


def test_leaving_a_stream_early_aborts_it(engine: Engine) -> None:
    before = engine.stats().aborted
    with engine.stream("Endless", LONG) as stream:
        next(stream)
    for _ in engine.stream("Endless", LONG):
        break  # dropped
    gc.collect()
    settle(engine)
    assert engine.stats().aborted == before + 2


def test_cancelling_a_task_aborts_its_request(engine: Engine) -> None:
    before = engine.stats().aborted

    async def cancel() -> None:
        task = asyncio.create_task(engine.agenerate("Endless", LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = engine.astream("Endless", LONG)
        await anext(stream)
        await stream.aclose()

    asyncio.run(cancel())
    settle(engine)
    assert engine.stats().aborted == before + 2


def test_an_event_loop_that_dies_takes_its_request_with_it(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    stream = engine.astream("Endless", LONG)
    loop.run_until_complete(anext(stream))
    loop.close()
    settle(engine)
    assert engine.generate("Still there?", GREEDY).token_ids


def test_a_timeout_aborts(engine: Engine) -> None:
    with pytest.raises(errors.RequestTimeoutError):
        engine.generate("Endless", LONG, timeout=0.05)
    with pytest.raises(errors.RequestTimeoutError):
        for _ in engine.stream("Endless", LONG, timeout=0.05):
            pass
    with pytest.raises(errors.RequestTimeoutError):
        asyncio.run(engine.agenerate("Endless", LONG, timeout=0.05))


# -- the end -------------------------------------------------------------------------------------------------------


def test_close_ends_what_is_unfinished_and_frees_the_model(tiny_checkpoint: Path) -> None:
    engine = Engine(tiny_checkpoint)
    model = weakref.ref(engine._parts.model.model)
    caught: list[BaseException] = []

    def endless() -> None:
        try:
            engine.generate("Endless", GREEDY.replace(max_tokens=None))
        except errors.RadixError as fault:
            caught.append(fault)

    thread = threading.Thread(target=endless)
    stream = engine.stream("Endless", LONG)
    thread.start()
    next(stream)
    while engine.stats().running < 2:
        time.sleep(0.001)
    engine.close()
    engine.close()
    thread.join(5)
    assert [type(c) for c in caught] == [errors.RequestAbortedError]
    with pytest.raises(errors.RequestAbortedError):
        list(stream)
    for use in (lambda: engine.generate("x"), engine.stats, engine.flush_cache, lambda: engine.stream("x")):
        with pytest.raises(errors.EngineClosedError):
            use()
    del stream
    caught.clear()
    gc.collect()
    assert model() is None


def test_a_dropped_engine_stops_by_itself(tiny_checkpoint: Path) -> None:
    engine = Engine(tiny_checkpoint)
    engine.generate("x", GREEDY)
    thread, model = engine._parts.loop._thread, weakref.ref(engine._parts.model.model)
    del engine
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert model() is None


def test_a_forked_child_gets_a_clear_error(engine: Engine) -> None:
    def child(answers: multiprocessing.SimpleQueue) -> None:
        try:
            engine.stream([5], GREEDY)
        except errors.EngineClosedError as fault:
            answers.put(str(fault))
        os._exit(0)

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    process.join(20)
    assert "fork" in answers.get()


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "param"),
    [("", "prompt"), ([], "prompt"), ([1, 10**9], "prompt"), ([-1], "prompt"), (3.5, "prompt"), ([True], "prompt")],
)
def test_bad_prompts_are_refused(engine: Engine, prompt: object, param: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        engine.generate(prompt, GREEDY)  # type: ignore[call-overload]
    assert caught.value.param == param


@pytest.mark.parametrize(
    "params",
    [{"logit_bias": {10**9: 1.0}}, {"stop_token_ids": (10**9,)}, {"logprobs": 10**6}],
)
def test_params_outside_the_vocabulary_are_refused(engine: Engine, params: dict) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        engine.generate("x", SamplingParams(**params))
    assert caught.value.param == next(iter(params))


def test_a_prompt_over_the_context_says_how_long_it_is(engine: Engine) -> None:
    with pytest.raises(errors.ContextLengthError) as caught:
        engine.generate([5] * (engine.max_context + 1), GREEDY)
    assert caught.value.prompt_tokens == engine.max_context + 1
    assert caught.value.max_tokens == engine.max_context


def test_one_bad_prompt_of_a_list_queues_none(engine: Engine) -> None:
    steps = engine.stats().steps
    with pytest.raises(errors.InvalidRequestError):
        engine.generate(["good", ""], GREEDY)
    assert engine.stats().steps == steps


def test_the_queue_is_bounded(tiny_checkpoint: Path) -> None:
    with Engine(tiny_checkpoint, max_running=1, max_waiting=2) as engine:
        streams = [engine.stream("Endless", LONG) for _ in range(3)]
        with pytest.raises(errors.QueueFullError):
            engine.stream("Endless", LONG)
        for stream in streams:
            stream.close()
        settle(engine)
        assert engine.generate("x", GREEDY).token_ids


def test_a_model_that_fails_in_a_step_ends_that_request_alone(tiny_checkpoint: Path) -> None:
    with Engine(tiny_checkpoint) as engine:
        expected = engine.generate(["good one", "good two"], GREEDY)
        engine.flush_cache()
        runner = engine._parts.loop._executor._runner
        run = runner.run

        def failing(plan, drawn):
            if any(7 in s.tokens for s in plan.sequences):
                raise MemoryError("not today")
            return run(plan, drawn)

        runner.run = failing
        answers = engine.generate([[9] * 5, [9, 7, 9], [8] * 5], GREEDY, return_exceptions=True)
        assert isinstance(answers[1], errors.StepError)
        assert "not today" in str(answers[1])
        assert isinstance(answers[1].__cause__, MemoryError)
        runner.run = run
        again = engine.generate(["good one", "good two"], GREEDY)
        assert [r.token_ids for r in again] == [r.token_ids for r in expected]
        settle(engine)


def test_observers_hear_of_every_step_and_request_and_may_fail(tiny_checkpoint: Path) -> None:
    class Observer:
        def __init__(self) -> None:
            self.steps, self.requests = [], []

        @hookimpl
        def radix_step_finished(self, record) -> None:
            self.steps.append(record)

        @hookimpl
        def radix_request_finished(self, record) -> None:
            self.requests.append(record)
            raise RuntimeError("observer fails")

    observer = Observer()
    with Engine(tiny_checkpoint, plugins=[observer]) as engine:
        engine.generate(["a b c", "d e f"], GREEDY)
        assert len(observer.steps) == engine.stats().steps
    assert [r.outcome for r in observer.requests] == ["length", "length"]
    record = observer.requests[0]
    assert record.submitted <= record.admitted <= record.first_token <= record.finished
    assert sum(s.prefill_tokens + s.decode_tokens for s in observer.steps) == engine_tokens(observer.requests)


def engine_tokens(records: list) -> int:
    """Each request computes its prompt and all but its last token."""
    return sum(r.usage.prompt_tokens + r.usage.completion_tokens - 1 - r.usage.cached_tokens for r in records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float7"}, "dtype"),
        ({"device": "abacus"}, "device"),
        ({"attention": "magic"}, "attention"),
        ({"eviction": "random"}, "eviction"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"kv_cache_tokens": 10**12}, "kv_cache_tokens"),
    ],
)
def test_bad_options_are_refused_with_the_option(tiny_checkpoint: Path, options: dict, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        Engine(tiny_checkpoint, **options)


def test_bad_checkpoints_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError):
        Engine(tmp_path / "nothing")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(errors.ModelLoadError):
        Engine(broken)

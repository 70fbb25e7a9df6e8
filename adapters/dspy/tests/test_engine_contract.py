"""The contract of DSPy's engines, kept by ours: attempts, streams, errors, usage, history, the response cache."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import dspy
import pytest
from dspy import lm15
from dspy.clients.engines.stream_guard import checked_stream
from dspy.utils.usage_tracker import track_usage
from dspy_radix import AsyncRadixEngine, RadixEngine, RadixLM

from radixbackend.errors import QueueFullError

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
WEATHER = lm15.FunctionTool(
    "weather",
    "Of a city.",
    {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
)


def request(lm: RadixLM, text: str = "How is the weather?", **config: Any) -> lm15.Request:
    tools = config.pop("tools", ())
    config = {"max_tokens": 24, "temperature": 0.0, **config}
    return lm15.Request(
        lm.model, (lm15.Message.user(text),), system="Answer in a word.", tools=tools, config=lm15.Config(**config)
    )


REQUESTS: dict[str, Callable[[RadixLM], lm15.Request]] = {
    "text": request,
    "schema": lambda lm: request(lm, response_format={"type": "json_schema", "schema": SCHEMA}, max_tokens=60),
    "call": lambda lm: request(lm, tools=(WEATHER,), tool_choice=lm15.ToolChoice("required"), max_tokens=60),
    "logprobs": lambda lm: request(lm, logprobs=2),
    "stop": lambda lm: request(lm, stop=("e",)),
}


async def collect(events: Any) -> list[Any]:
    return [event async for event in events]


@pytest.mark.parametrize("kind", REQUESTS)
def test_all_four_ways_to_ask_give_one_answer(lm: RadixLM, kind: str) -> None:
    engine, asked = lm.engine, REQUESTS[kind](lm)
    engine.complete(asked)  # a prompt that is computed whole and one that is cached may differ in a logprob's last bit
    whole = engine.complete(asked)

    async def others() -> tuple[lm15.Response, list[Any]]:
        pair = AsyncRadixEngine(engine)
        return await pair.complete(asked), await collect(pair.stream(asked))

    again, pieces = asyncio.run(others())
    streams = [list(checked_stream(engine.stream(asked))), pieces]
    answers = [again, *(lm15.materialize_response(iter(events), asked) for events in streams)]
    for answer in answers:
        assert content(answer) == content(whole)
        assert answer.finish_reason == whole.finish_reason
        assert answer.usage.output_tokens == whole.usage.output_tokens
        assert answer.logprobs == whole.logprobs
        assert answer.model == lm.model


def content(response: lm15.Response) -> list[Any]:
    """Parts without the ids of calls, which are new in every answer, and without empty text."""
    return [
        (part.name, part.input) if part.type == "tool_call" else (part.type, getattr(part, "text", None) or part.value)
        for part in response.message.parts
        if part.type != "text" or part.text
    ]


@pytest.mark.parametrize("kind", REQUESTS)
def test_streams_start_once_and_end_once(lm: RadixLM, kind: str) -> None:
    events = list(lm.engine.stream(REQUESTS[kind](lm)))
    assert [event.type for event in events] == ["start", *["delta"] * (len(events) - 2), "end"]
    assert len(events) > 2 or kind == "stop"
    assert events[-1].usage.output_tokens > 0


def test_answers_keep_what_was_asked(lm: RadixLM) -> None:
    (answer,) = lm.engine.complete(REQUESTS["schema"](lm)).message.parts
    assert answer.value.keys() == {"city", "sunny"}  # data, because a boolean is a judgment to DSPy
    called = lm.engine.complete(REQUESTS["call"](lm))
    assert called.finish_reason == "tool_call"
    assert all(call.name == "weather" and call.input["city"] in ("Oslo", "Rome") for call in called.tool_calls)
    scored = lm.engine.complete(REQUESTS["logprobs"](lm))
    assert scored.logprobs is not None
    assert len(scored.logprobs) == scored.usage.output_tokens
    for entry in scored.logprobs:
        assert len(entry.top) == 2
        assert entry.top[0].logprob == entry.logprob  # greedy
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_capabilities_are_those_of_the_engine(lm: RadixLM) -> None:
    assert lm.supports_function_calling
    assert lm.supports_response_schema
    assert not lm.supports_reasoning
    assert {"response_format", "tools", "logprobs", "seed"} <= lm.supported_params
    assert "reasoning_effort" not in lm.supported_params


# -- DSPy around it ------------------------------------------------------------------------------------------------


def test_usage_and_history_tell_what_came_from_the_cache(lm: RadixLM) -> None:
    with track_usage() as tracker:
        lm("The same words again and again.")
        lm("The same words again and again.")
    first, second = (entry["usage"] for entry in lm.history)
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == first["prompt_tokens"] - 1
    total = tracker.get_total_tokens()[lm.model]
    assert total["prompt_tokens"] == 2 * first["prompt_tokens"]
    assert lm.history[-1]["response_model"] == lm.model
    assert lm.history[-1]["response"].provider_data["radix"]["complete"] is True


def test_n_answers_cost_one_prompt(lm: RadixLM) -> None:
    before = lm.stats()
    answers = lm("Say something.", n=4, temperature=1.0)
    after = lm.stats()
    assert len(answers) == len(set(answers)) == 4
    assert len(lm.history) == 1
    computed = after.prefilled_tokens - before.prefilled_tokens
    prompt = (after.prompt_tokens - before.prompt_tokens) // 4
    assert computed < prompt + 24 * 4 + 4


def test_dspys_response_cache_answers_without_the_engine(engine_lm: RadixLM) -> None:
    lm = engine_lm.copy(max_tokens=8, cache=True)
    first = lm("Once.")
    finished = lm.stats().finished
    assert lm("Once.") == first
    assert asyncio.run(lm.acall("Twice.")) == asyncio.run(lm.acall("Twice."))
    assert lm.stats().finished == finished + 1
    assert lm.history[1]["usage"] == {}


def test_models_never_share_cached_answers(
    engine_lm: RadixLM, checkpoint: Path, tmp_path: Path, make_checkpoint: Any
) -> None:
    """Two checkpoints of one name and one shape: their answers differ, and so do their keys."""
    other_folder = make_checkpoint(tmp_path / checkpoint.name, seed=1)
    with RadixLM(other_folder, cache=True, max_tokens=8, temperature=0, kv_cache_tokens=2048) as other:
        lm = engine_lm.copy(cache=True, max_tokens=8, temperature=0)
        assert lm.model != other.model
        assert lm.model.split("@")[0] == other.model.split("@")[0] == "radix/my-model"
        assert lm("Who are you?") != other("Who are you?")


def test_explicit_requests_get_responses(lm: RadixLM) -> None:
    asked = request(lm)
    answer = lm(asked)
    assert isinstance(answer, lm15.Response)
    assert lm.history[-1]["request"] is asked
    with pytest.raises(ValueError, match=r"must match LM\.model"):
        lm(lm15.Request("another", (lm15.Message.user("hi"),)))


@pytest.mark.parametrize(
    "setting", [{"api_key": "k"}, {"base_url": "http://x"}, {"timeout": 1}, {"headers": {"a": "b"}}]
)
def test_calls_cannot_move_the_connection(lm: RadixLM, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="custom engine owns its own"):
        lm("hi", **setting)
    with pytest.raises(ValueError, match="custom engine owns its own"):
        asyncio.run(lm.acall("hi", **setting))
    assert lm.history == []


def test_a_copy_keeps_the_pair_and_a_new_engine_replaces_it(lm: RadixLM) -> None:
    copied = lm.copy(temperature=0.5)
    assert copied.engine is lm.engine
    assert copied.kwargs["temperature"] == 0.5
    assert asyncio.run(copied.acall("hi"))
    alone = lm.copy(engine=lm.engine)
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="async"):
        asyncio.run(alone.acall("hi"))


def test_either_engine_serves_a_plain_lm(lm: RadixLM) -> None:
    plain = dspy.LM(lm.model, engine=lm.engine, async_engine=AsyncRadixEngine(lm.engine), cache=False, max_tokens=4)
    assert plain("hi")
    assert asyncio.run(plain.acall("hi"))
    loaded = dspy.LM.load_state(json.loads(json.dumps(plain.dump_state())), allow_custom_lm_class=True)
    assert isinstance(loaded.engine, RadixEngine)
    assert loaded.engine.model == lm.model


def test_nothing_deprecated_is_used(lm: RadixLM, recwarn: pytest.WarningsRecorder) -> None:
    with dspy.context(lm=lm):
        lm("hi")
        asyncio.run(lm.acall("hi"))
    assert [str(w.message) for w in recwarn if issubclass(w.category, FutureWarning | DeprecationWarning)] == []
    assert "forward" not in vars(RadixLM)
    assert "aforward" not in vars(RadixLM)


# -- settings that DSPy has no name for ----------------------------------------------------------------------------


def test_own_settings_pass_in_constructor_copy_and_call(lm: RadixLM) -> None:
    assert lm("hi", regex="[ab]{3}")[0].strip("ab") == ""
    patterned = lm.copy(regex="x{2}", min_p=0.1)
    assert patterned("hi") == ["xx"]
    assert patterned("hi", regex="y{4}") == ["yyyy"]
    assert lm("hi", choice=["red", "blue"])[0] in ("red", "blue")
    assert patterned.kwargs["metadata"] == {"radix": {"regex": "x{2}", "min_p": 0.1}}
    assert lm("hi", metadata={"trace": "7"})  # the caller's own is left alone
    assert dspy.Predict("q -> a", regex="z").config == {"regex": "z"}


def test_a_misspelt_own_setting_is_refused_by_name(lm: RadixLM) -> None:
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="'min_q' is none of"):
        lm("hi", metadata={"radix": {"min_q": 1}})
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="one format"):
        lm("hi", regex="a", response_format={"type": "json_object"})


# -- errors --------------------------------------------------------------------------------------------------------


def test_a_prompt_too_long_is_dspys_own_error(lm: RadixLM) -> None:
    with pytest.raises(dspy.ContextWindowExceededError, match="do not fit the model's context"):
        lm("word " * 9000)
    with pytest.raises(dspy.ContextWindowExceededError):
        asyncio.run(lm.acall("word " * 9000))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "objec"}}}},
            "Invalid",
            "objec",
        ),
        ({"regex": "("}, "Invalid", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "Invalid", "tool's name"),
        ({"reasoning": lm15.Reasoning("low", thinking_budget=9)}, "Unsupported", "thinking_budget"),
        ({"extensions": {"verbosity": "low"}}, "Unsupported", "verbosity"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(lm: RadixLM, options: dict[str, Any], error: str, match: str) -> None:
    kind = dspy.LMInvalidRequestError if error == "Invalid" else dspy.LMUnsupportedFeatureError
    explicit = (request(lm, **options),) if options.keys() & {"reasoning", "extensions"} else ()
    with pytest.raises(kind, match=match):
        lm(*explicit) if explicit else lm("hi", **options)
    assert lm.history == []


def test_a_full_queue_is_tried_again(lm: RadixLM, monkeypatch: pytest.MonkeyPatch) -> None:
    complete, refusals, waits = lm.engine.chat.complete, [], []

    def busy(*args: Any, **options: Any) -> Any:
        if len(refusals) < 2:
            refusals.append(1)
            raise QueueFullError("too many are waiting")
        return complete(*args, **options)

    monkeypatch.setattr(lm.engine.chat, "complete", busy)
    monkeypatch.setattr("dspy.clients.execution.time.sleep", waits.append)
    assert lm("hi")
    assert len(waits) == 2
    refusals.clear()
    with pytest.raises(dspy.LMRateLimitError, match="too many are waiting"):
        lm.copy(num_retries=1)("hi")


def test_a_deadline_ends_a_request(checkpoint: Path) -> None:
    with RadixLM(checkpoint, timeout=0.05, num_retries=0, ignore_eos=True, cache=False, kv_cache_tokens=8192) as lm:
        with pytest.raises(dspy.LMTimeoutError):
            lm("hi")
        wait_until(lambda: lm.stats().running == 0)


# -- leaving early -------------------------------------------------------------------------------------------------


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def endless(lm: RadixLM) -> lm15.Request:
    door = {"metadata": {"radix": {"ignore_eos": True}}}
    return request(lm, max_tokens=8000, extensions=door)


def test_a_dropped_stream_aborts_its_request(lm: RadixLM) -> None:
    aborted = lm.stats().aborted
    events = lm.engine.stream(endless(lm))
    assert next(events).type == "start"
    assert next(events).type == "delta"
    events.close()
    wait_until(lambda: lm.stats().aborted == aborted + 1 and lm.stats().running == 0)


def test_a_cancelled_task_aborts_its_request(lm: RadixLM) -> None:
    aborted = lm.stats().aborted

    async def main() -> None:
        waiting = asyncio.create_task(AsyncRadixEngine(lm.engine).complete(endless(lm)))
        while lm.stats().running == 0:
            await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    wait_until(lambda: lm.stats().aborted == aborted + 1 and lm.stats().running == 0)


def test_a_stream_that_began_is_not_tried_again(lm: RadixLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, calls = lm.engine.chat.stream, []

    class Breaks:
        def __init__(self, deltas: Any) -> None:
            self.deltas = deltas

        def __enter__(self) -> Any:
            yield_one = iter([next(self.deltas)])

            def pieces() -> Any:
                yield from yield_one
                raise QueueFullError("it broke")

            return pieces()

        def __exit__(self, *fault: object) -> None:
            self.deltas.close()

    def breaks(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return Breaks(stream(*args, **options))

    class Sink:
        async def send(self, chunk: Any) -> None:
            pass

    async def main() -> None:
        with dspy.context(send_stream=Sink()), pytest.raises(dspy.LMRateLimitError, match="it broke"):
            await anyio.to_thread.run_sync(lambda: lm("hi"))

    monkeypatch.setattr(lm.engine.chat, "stream", breaks)
    asyncio.run(main())
    assert calls == [1]


# -- many at once --------------------------------------------------------------------------------------------------


def test_threads_and_event_loops_at_once(lm: RadixLM) -> None:
    """Sixteen threads, of which every other one has an event loop; each gets the answer that it gets alone."""
    prompts = [f"Number {index}." for index in range(16)]
    greedy = lm.copy(temperature=0.0)
    alone = [greedy(prompt) for prompt in prompts]
    answers: list[Any] = [None] * len(prompts)

    def ask(index: int) -> None:
        if index % 2:
            answers[index] = greedy(prompts[index])
        else:
            answers[index] = asyncio.run(greedy.acall(prompts[index]))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == alone

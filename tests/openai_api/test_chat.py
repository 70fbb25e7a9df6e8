"""Chats through every face: the same cases in process and over HTTP, sync and async."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from radixbackend import Engine, SamplingParams
from tests.openai_api.clients import KINDS, Client, Recorder

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tomorrow's weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
SCHEMA: Any = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"enum": [1, 2, 3]}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}
TAG: Any = {"type": "structural_tag", "format": {"type": "regex", "pattern": "[pq]{3}"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA, "strict": True}}


def plain(engine: Engine, recorder: Recorder, **params: Any) -> Any:
    """What the engine itself says to the request that it got last, with these parameters."""
    sampling = SamplingParams(**{"max_tokens": 12, "temperature": 0, **params})
    return engine.generate(recorder.asked[-1].prompt, sampling)


def test_answer_is_the_engines(client: Client, engine: Engine, recorder: Recorder) -> None:
    answer = client.chat("How are you?")
    expected = plain(engine, recorder)
    choice = answer.choices[0]
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(recorder.asked[-1].prompt), 12)
    assert usage.total_tokens == usage.prompt_tokens + 12


def test_cached_tokens_are_reported(client: Client) -> None:
    text = f"A question of {client.kind} that nobody asked before, long enough to be worth a place in the cache."
    first, second = (client.chat(text).usage.prompt_tokens_details.cached_tokens for _ in "ab")
    assert first < 30
    assert second > 60


def test_stream_is_the_answer_in_pieces(client: Client) -> None:
    whole = client.chat("Tell me")
    chunks = list(client.stream(messages=[{"role": "user", "content": "Tell me"}], max_tokens=12, temperature=0))
    assert len(chunks) > 5
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].delta.role for c in chunks if c.choices[0].delta.role] == ["assistant"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_stream_usage_comes_once(client: Client) -> None:
    chunks = list(client.stream(max_tokens=4, temperature=0, stream_options={"include_usage": True}))
    counted = [c for c in chunks if c.usage]
    assert len(counted) == 1
    assert chunks[-1] is counted[0]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 0


# -- sampling ----------------------------------------------------------------------------------------------------

GREEDY: dict[str, Any] = {"temperature": 0}
SAMPLED: dict[str, Any] = {"temperature": 1.5, "seed": 11}


@pytest.mark.parametrize(
    ("arguments", "extra", "params"),
    [
        ({"max_tokens": 3}, {}, {"max_tokens": 3}),
        ({"max_completion_tokens": 4}, {}, {"max_tokens": 4}),
        ({"max_completion_tokens": 5, "max_tokens": 2}, {}, {"max_tokens": 5}),
        (SAMPLED, {}, SAMPLED),
        ({**SAMPLED, "top_p": 0.4}, {}, {**SAMPLED, "top_p": 0.4}),
        (SAMPLED, {"top_k": 4}, {**SAMPLED, "top_k": 4}),
        (SAMPLED, {"top_k": -1}, SAMPLED),
        (SAMPLED, {"min_p": 0.3}, {**SAMPLED, "min_p": 0.3}),
        ({"frequency_penalty": 2.0, "max_tokens": 40}, {}, {"frequency_penalty": 2.0, "max_tokens": 40}),
        ({"presence_penalty": 2.0, "max_tokens": 40}, {}, {"presence_penalty": 2.0, "max_tokens": 40}),
        ({}, {"repetition_penalty": 3.0}, {"repetition_penalty": 3.0}),
        ({"logit_bias": {"40": 100}}, {}, {"logit_bias": {40: 100}}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_sampling_fields(
    client: Client, engine: Engine, recorder: Recorder, arguments: Any, extra: Any, params: Any
) -> None:
    answer = client.chat("Say something", **arguments, extra_body=extra)
    expected = plain(engine, recorder, **params)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert expected.token_ids != plain(engine, recorder).token_ids, "the field has no effect, so this shows nothing"


def test_seed(client: Client) -> None:
    said = [client.chat(temperature=1.8, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_n(client: Client, engine: Engine, recorder: Recorder) -> None:
    answer = client.chat(n=3, temperature=1.5, seed=5)
    expected = plain(engine, recorder, n=3, temperature=1.5, seed=5)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == [c.text for c in expected.choices]
    assert len({c.message.content for c in answer.choices}) == 3
    assert answer.usage.completion_tokens == 36
    texts = ["", "", ""]
    for chunk in client.stream(n=3, temperature=1.5, seed=5, max_tokens=12):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [c.message.content for c in answer.choices]


def test_stop(client: Client) -> None:
    whole = client.chat("Go on").choices[0].message.content
    middle = next(whole[i : i + 2] for i in range(3, len(whole)) if "\ufffd" not in whole[i : i + 2])
    cut = client.chat("Go on", stop=[middle, "never said"])
    assert cut.choices[0].message.content == whole[: whole.index(middle)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].stop_reason == middle
    for name in ("include_stop_str_in_output", "no_stop_trim"):
        kept = client.chat("Go on", stop=middle, extra_body={name: True})
        assert kept.choices[0].message.content == whole[: whole.index(middle)] + middle
    streamed = client.stream(messages=[{"role": "user", "content": "Go on"}], stop=middle, max_tokens=12, temperature=0)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == cut.choices[0].message.content


def test_ends(client: Client, engine: Engine, recorder: Recorder) -> None:
    """End tokens, stop tokens, and what holds them off."""
    client.chat("End")
    first = plain(engine, recorder).token_ids[0]
    end = engine.tokenizer.inner.eos_token_id  # type: ignore[union-attr]
    stopped = client.chat("End", extra_body={"stop_token_ids": [first]})
    assert (stopped.usage.completion_tokens, stopped.choices[0].stop_reason) == (1, first)
    likely = {"logit_bias": {str(end): 100}}
    assert client.chat("End", **likely).usage.completion_tokens == 1
    assert client.chat("End", **likely, extra_body={"min_tokens": 5}).usage.completion_tokens == 6
    assert client.chat("End", **likely, extra_body={"ignore_eos": True}).choices[0].finish_reason == "length"


def test_special_tokens_in_the_text(client: Client) -> None:
    bias = {"logit_bias": {"1": 100}}  # <|im_start|>
    assert "<|im_start|>" not in client.chat(**bias).choices[0].message.content
    said = client.chat(**bias, extra_body={"skip_special_tokens": False}).choices[0].message.content
    assert said == "<|im_start|>" * 12


def test_logprobs(client: Client, engine: Engine, recorder: Recorder) -> None:
    answer = client.chat("Maybe", logprobs=True, top_logprobs=3)
    expected = plain(engine, recorder, logprobs=3).logprobs
    entries = answer.choices[0].logprobs.content
    assert [e.logprob for e in entries] == pytest.approx([e.logprob for e in expected])
    assert [[t.logprob for t in e.top_logprobs] for e in entries] == [
        pytest.approx([value for _, value in e.top]) for e in expected
    ]
    said = b"".join(bytes(e.bytes) for e in entries).decode("utf-8", "replace")
    assert said == answer.choices[0].message.content
    assert all(e.token == bytes(e.bytes).decode("utf-8", "replace") for e in entries)
    assert client.chat("Maybe", logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert client.chat("Maybe").choices[0].logprobs is None
    chunks = list(
        client.stream(
            messages=[{"role": "user", "content": "Maybe"}], max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
        )
    )
    streamed = [e for c in chunks for e in c.choices[0].logprobs.content]
    assert [(e.token, e.bytes, len(e.top_logprobs)) for e in streamed] == [(e.token, e.bytes, 3) for e in entries]
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in entries])


# -- constraints and tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"regex": "[ab]{3}x"}, "[ab]{3}x"),
        ({"ebnf": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json_schema": SCHEMA}, r'\{"mood": "(good|bad)", "score": [123]\}'),
        ({"json_schema": json.dumps(SCHEMA)}, r'\{"mood": "(good|bad)", "score": [123]\}'),
        ({"structured_outputs": {"json": SCHEMA}}, r'\{"mood": "(good|bad)", "score": [123]\}'),
        ({"structured_outputs": {"regex": "[xy]{2}"}}, "[xy]{2}"),
        ({"structured_outputs": {"choice": ["red", "blue"]}}, "red|blue"),
        ({"structured_outputs": {"grammar": 'root ::= "1" | "2"'}}, "[12]"),
        ({"response_format": FORMAT}, r'\{"mood": "(good|bad)", "score": [123]\}'),
        ({"structured_outputs": {"structural_tag": TAG}}, "[pq]{3}"),
        ({"response_format": TAG}, "[pq]{3}"),
        ({"response_format": {"type": "text"}}, None),
    ],
    ids=json.dumps,
)
def test_constraints(client: Client, extra: Any, pattern: str | None) -> None:
    said = client.chat("Answer", max_tokens=60, extra_body=extra).choices[0]
    if pattern is None:
        assert said.finish_reason == "length"
    else:
        assert re.fullmatch(pattern, said.message.content)
        assert said.finish_reason == "stop"


@pytest.mark.parametrize(
    "extra", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}]
)
def test_json_object(client: Client, extra: Any) -> None:
    said = client.chat("Answer", max_tokens=300, temperature=1.0, seed=3, extra_body=extra)
    if said.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(said.choices[0].message.content), dict)
    assert said.choices[0].message.content.startswith("{")


def test_cut_json_says_length(client: Client) -> None:
    cut = client.chat("Answer", max_tokens=2, response_format=FORMAT).choices[0]
    assert cut.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.message.content)


def check_weather(arguments: str) -> None:
    found = json.loads(arguments)
    assert found["city"] in ("Rome", "Oslo")
    assert found["days"] in (1, 2, 3)


def test_required_tool(client: Client) -> None:
    choice = client.chat(tools=[WEATHER, TIME], tool_choice="required", max_tokens=200, parallel_tool_calls=False)
    message = choice.choices[0].message
    assert choice.choices[0].finish_reason == "tool_calls"
    assert len(message.tool_calls) == 1
    assert message.tool_calls[0].type == "function"
    assert message.tool_calls[0].function.name in ("get_weather", "get_time")


def test_named_tool(client: Client) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat(tools=[TIME, WEATHER], tool_choice=named, max_tokens=100)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    check_weather(call.function.arguments)
    assert call.id


def test_no_tool(client: Client) -> None:
    answer = client.chat(tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "length"


def test_tool_stream(client: Client) -> None:
    chunks = list(client.stream(tools=[WEATHER], tool_choice="required", max_tokens=100, temperature=0,
                                parallel_tool_calls=False))  # fmt: skip
    pieces = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    assert len(pieces) > 2
    assert [p.function.name for p in pieces if p.function.name] == ["get_weather"]
    assert len([p.id for p in pieces if p.id]) == 1
    assert {p.index for p in pieces} == {0}
    check_weather("".join(p.function.arguments or "" for p in pieces))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_and_a_schema_together(client: Client) -> None:
    """The answer is calls of the tools, or JSON of the schema; nothing else can come."""
    for seed in range(4):
        answer = client.chat(
            tools=[WEATHER], response_format=FORMAT, temperature=1.0, seed=seed, max_tokens=200
        ).choices[0]
        if answer.message.tool_calls:
            for call in answer.message.tool_calls:
                check_weather(call.function.arguments)
        else:
            assert json.loads(answer.message.content)["mood"] in ("good", "bad")


def test_tool_results_go_back(client: Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'}}
    answer = client.chat(
        messages=[
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ],
        tools=[TIME],
        tool_choice="none",
    )
    assert answer.usage.completion_tokens == 12


# -- templates, cache, scheduling ------------------------------------------------------------------------------------


def prompt_of(recorder: Recorder, engine: Any) -> str:
    text: str = engine.tokenizer.decode(recorder.asked[-1].prompt, skip_special_tokens=False)
    return text


def test_template_fields(client: Client, engine: Engine, recorder: Recorder) -> None:
    client.chat("Hi")
    assert prompt_of(recorder, engine).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    client.chat("Hi", extra_body={"chat_template_kwargs": {"opening": "Well, "}})
    assert prompt_of(recorder, engine).endswith("assistant\nWell, ")
    client.chat("Hi", extra_body={"add_generation_prompt": False})
    assert prompt_of(recorder, engine).endswith("Hi<|im_end|>\n")
    client.chat(
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good mor"}],
        extra_body={"continue_final_message": True},
    )
    assert prompt_of(recorder, engine).endswith("Good mor")


@pytest.mark.parametrize("kind", KINDS)
def test_reasoning(kind: str, thinkers: tuple[Recorder, dict[str, Client]]) -> None:
    """With an open <think> the answer is reasoning until it is closed."""
    recorder, clients = thinkers
    client = clients[kind]
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    message = client.chat("Think", extra_body=thinking).choices[0].message
    assert message.reasoning_content
    assert not message.content
    chunks = client.stream(extra_body=thinking, max_tokens=5, temperature=0)
    assert "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks)
    mixed = client.chat("Think", extra_body={**thinking, "separate_reasoning": False}).choices[0].message
    assert mixed.content
    assert getattr(mixed, "reasoning_content", None) is None
    for off in ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, {"reasoning_effort": "none"}):
        client.chat("Think", **off)
        assert prompt_of(recorder, recorder).endswith("</think>\n\n")


def test_cache_salt(client: Client) -> None:
    text = f"A long enough question to be cached, asked by {client.kind} under several salts, one after the other."
    cached = [
        client.chat(text, extra_body={"cache_salt": salt}).usage.prompt_tokens_details.cached_tokens
        for salt in ("a", "a", f"b{client.kind}")
    ]
    assert cached[1] > 60
    assert cached[2] == 0


def test_priority(client: Client, recorder: Recorder) -> None:
    client.chat(extra_body={"priority": 7})
    assert recorder.asked[-1].priority == 7
    client.chat()
    assert recorder.asked[-1].priority == 0


def test_what_has_no_meaning_here_is_ignored(client: Client) -> None:
    answer = client.chat(user="me", store=False, service_tier="auto", metadata={"a": "b"}, extra_body={"what": 1})
    assert answer.usage.completion_tokens == 12


# -- the SDK's helpers -----------------------------------------------------------------------------------------------


class Mood(BaseModel):
    mood: str
    score: int


def test_parse(client: Client) -> None:
    answer = client.call(
        "chat.completions.parse",
        messages=[{"role": "user", "content": "How is it?"}],
        response_format=FORMAT,
        max_tokens=60,
    )
    assert json.loads(answer.choices[0].message.content)["score"] in (1, 2, 3)

    class Small(BaseModel):
        flag: bool

    parsed = client.call(
        "chat.completions.parse",
        messages=[{"role": "user", "content": "Yes or no?"}],
        response_format=Small,
        max_tokens=60,
    )
    assert parsed.choices[0].message.parsed.flag in (True, False)


def test_parse_tools(client: Client) -> None:
    class Switch(BaseModel):
        on: bool

    answer = client.call(
        "chat.completions.parse",
        messages=[{"role": "user", "content": "Switch it"}],
        tools=[openai.pydantic_function_tool(Switch)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
    )
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments.on in (True, False)


def test_stream_helper(client: Client) -> None:
    arguments: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "How is it?"}],
        "response_format": FORMAT,
        "max_tokens": 60,
    }

    async def run_async() -> Any:
        async with client.raw.chat.completions.stream(**arguments) as stream:
            kinds = [event.type async for event in stream]
            return kinds, await stream.get_final_completion()

    if client.is_async:
        kinds, final = client.wait(run_async())
    else:
        with client.raw.chat.completions.stream(**arguments) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert json.loads(final.choices[0].message.content)["mood"] in ("good", "bad")


def test_raw_response(client: Client) -> None:
    raw = client.call(
        "chat.completions.with_raw_response.create", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
    )
    assert raw.headers["x-request-id"]
    assert raw.parse().usage.completion_tokens == 2

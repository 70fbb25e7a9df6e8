"""The Responses API through every face."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.openai_api.clients import KINDS, Client, Recorder
from tests.openai_api.test_chat import FORMAT, SCHEMA, WEATHER, check_weather, prompt_of
from tests.openai_api.test_errors import Failing

FLAT = {"type": "function", "strict": True, **WEATHER["function"]}
TEXT_FORMAT: Any = {"format": {"type": "json_schema", "name": "mood", "schema": SCHEMA, "strict": True}}


def ask(client: Client, **arguments: Any) -> Any:
    return client.call("responses.create", **{"input": "Hello", "max_output_tokens": 12, "temperature": 0, **arguments})


def test_text(client: Client) -> None:
    answer = ask(client)
    chat = client.chat("Hello")
    assert answer.output_text == chat.choices[0].message.content
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
    assert answer.usage.input_tokens_details.cached_tokens >= 0
    assert answer.output[0].content[0].type == "output_text"
    done = ask(client, max_output_tokens=60, text=TEXT_FORMAT)
    assert done.status == "completed"
    assert json.loads(done.output_text)["mood"] in ("good", "bad")
    assert done.text.format.name == "mood"


def test_input_items(client: Client, recorder: Recorder) -> None:
    ask(
        client,
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "What is it like?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "fine"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is fine."}]},
            {"role": "user", "content": "And now?"},
        ],
        tools=[FLAT],
        tool_choice="none",
    )
    prompt = prompt_of(recorder, recorder)
    order = ["Be brief.", "What is it like?", "get_weather", "Rome", "fine", "It is fine.", "And now?"]
    found = [prompt.index(text, 0) for text in order]
    assert found[0] < found[1] < prompt.rindex("Rome") < prompt.index("\nfine") < found[5] < found[6]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_tools(client: Client, choice: Any) -> None:
    answer = ask(client, tools=[FLAT], tool_choice=choice, max_output_tokens=100, parallel_tool_calls=False)
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert call.call_id
    check_weather(call.arguments)


def test_stream(client: Client) -> None:
    events = list(client.stream("responses.create", input="Hello", max_output_tokens=12, temperature=0))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == ask(client).output_text


def test_tool_stream(client: Client) -> None:
    arguments: Any = {"tools": [FLAT], "tool_choice": "required", "parallel_tool_calls": False}
    events = list(client.stream("responses.create", input="Hello", max_output_tokens=100, temperature=0, **arguments))
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [(item.type, item.name, item.arguments) for item in added] == [("function_call", "get_weather", "")]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    check_weather("".join(deltas))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].arguments == "".join(deltas)


@pytest.mark.parametrize("kind", KINDS)
def test_reasoning(kind: str, thinkers: tuple[Recorder, dict[str, Client]]) -> None:
    client = thinkers[1][kind]
    thinking: Any = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    answer = ask(client, **thinking)
    assert answer.output[0].type == "reasoning"
    assert answer.output[0].content[0].text
    assert answer.usage.output_tokens_details.reasoning_tokens > 5
    events = list(client.stream("responses.create", input="Hello", max_output_tokens=12, temperature=0, **thinking))
    text = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert text == answer.output[0].content[0].text
    off = ask(client, reasoning={"effort": "none"})
    assert [item.type for item in off.output] == ["message"]


def test_logprobs(client: Client) -> None:
    part = ask(client, include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0]
    assert len(part.logprobs) == 12
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}
    assert not ask(client, top_logprobs=2).output[0].content[0].logprobs


def test_fields_are_said_back(client: Client) -> None:
    answer = ask(client, metadata={"a": "b"}, top_p=0.5, instructions="Be brief.", tools=[FLAT], tool_choice="none")
    assert answer.metadata == {"a": "b"}
    assert (answer.top_p, answer.temperature, answer.max_output_tokens) == (0.5, 0, 12)
    assert answer.instructions == "Be brief."
    assert answer.tools[0].name == "get_weather"
    assert answer.tool_choice == "none"


class Flag(BaseModel):
    flag: bool


def test_helpers(client: Client) -> None:
    parsed = client.call("responses.parse", input="Yes?", text_format=Flag, max_output_tokens=60)
    assert parsed.output_parsed.flag in (True, False)
    arguments: Any = {"model": "tiny", "input": "Yes?", "text_format": Flag, "max_output_tokens": 60}

    async def run_async() -> Any:
        async with client.raw.responses.stream(**arguments) as stream:
            kinds = [event.type async for event in stream]
            return kinds, await stream.get_final_response()

    if client.is_async:
        kinds, final = client.wait(run_async())
    else:
        with client.raw.responses.stream(**arguments) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
    assert "response.output_text.delta" in kinds
    assert final.output_parsed.flag in (True, False)


def test_chat_format_is_taken_too(client: Client) -> None:
    answer = ask(client, max_output_tokens=60, extra_body={"response_format": FORMAT})
    assert json.loads(answer.output_text)["score"] in (1, 2, 3)


def test_a_stream_that_breaks(engine: Any, loop: Any) -> None:
    client = Client.make("local", Failing(engine, RuntimeError("surprise")), "", loop)
    events = list(client.stream("responses.create", input="Hello", max_output_tokens=12, temperature=0))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "surprise"
    client.close()


def test_a_stream_that_cannot_begin(client: Client) -> None:
    with pytest.raises(openai.BadRequestError, match="do not fit"):
        client.stream("responses.create", input="x" * 9000)

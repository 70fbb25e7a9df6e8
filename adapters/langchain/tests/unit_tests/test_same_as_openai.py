"""What `ChatOpenAI` gets from a server of ours, `ChatRadix` gives in process and from that server: field by field."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from langchain_radix import ChatRadix
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from radixbackend.backend import SharedBackend

pytestmark = pytest.mark.enable_socket


class Weather(BaseModel):
    """Get the weather of a city."""

    city: str = Field(description="the city")
    days: int = Field(ge=1, le=9)


class Person(TypedDict):
    """Somebody."""

    name: Annotated[str, ..., "the whole name"]
    age: Annotated[int, ..., "in years"]


def lookup(word: str) -> str:
    """Look a word up."""
    return word


CLOSED = {
    "title": "Place",
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "visits": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["city", "visits"],
    "additionalProperties": False,
}
HISTORY = [
    SystemMessage("Be brief."),
    HumanMessage([{"type": "text", "text": "What is the weather "}, {"type": "text", "text": "in Rome?"}]),
    AIMessage("", tool_calls=[{"name": "lookup", "args": {"word": "Rome"}, "id": "call_1"}]),
    ToolMessage("A city: 41° N", tool_call_id="call_1"),
    AIMessage([{"type": "text", "text": "Let me see."}]),
    HumanMessage("And in Kraków?", name="anna"),
]

Bind = Callable[[BaseChatModel], Any]

LIMIT = 48
"""Tokens of an answer: enough to close each of the grammars."""
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "presence_penalty": 0.5, "frequency_penalty": 0.2}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": CLOSED}}

CASES: dict[str, Bind] = {
    "plain": lambda model: model,
    "sampled": lambda model: model.bind(**SAMPLED),
    "stopped": lambda model: model.bind(stop=["e", "t"]),
    "biased": lambda model: model.bind(logit_bias={70: 50, 71: 50}),
    "logprobs": lambda model: model.bind(logprobs=True, top_logprobs=3, max_tokens=6),
    "short": lambda model: model.bind(max_tokens=3),
    "tools, any": lambda model: model.bind_tools([Weather, lookup], tool_choice="any"),
    "tools, named": lambda model: model.bind_tools([Weather, lookup], tool_choice="Weather"),
    "tools, one": lambda model: model.bind_tools([lookup, Weather], tool_choice="required", parallel_tool_calls=False),
    "tools, auto": lambda model: model.bind_tools([Weather]),
    "tools, none": lambda model: model.bind_tools([Weather], tool_choice="none"),
    "schema": lambda model: model.bind(response_format=FORMAT),
    "json": lambda model: model.bind(response_format={"type": "json_object"}),
    "tools and schema": lambda model: model.bind_tools([Weather], strict=True, response_format=FORMAT),
}

STRUCTURED: dict[str, Bind] = {
    "pydantic": lambda model: model.with_structured_output(Weather, method="json_schema"),
    "typed dict": lambda model: model.with_structured_output(Person, method="json_schema", strict=True),
    "json schema": lambda model: model.with_structured_output(CLOSED, method="json_schema"),
    "function": lambda model: model.with_structured_output(Weather, method="function_calling"),
    "raw": lambda model: model.with_structured_output(Person, method="function_calling", include_raw=True),
}


@pytest.fixture(scope="module")
def openai(base_url: str) -> ChatOpenAI:
    return ChatOpenAI(
        model="tiny", base_url=base_url, api_key="any", temperature=0, max_tokens=LIMIT, stream_usage=True
    )


@pytest.fixture(params=["in process", "remote"])
def radix(request: pytest.FixtureRequest, params: dict[str, Any], base_url: str) -> Iterator[ChatRadix]:
    if request.param == "remote":
        model = ChatRadix(model="tiny", base_url=base_url, temperature=0, max_tokens=LIMIT)
    else:
        model = ChatRadix(**params, max_tokens=LIMIT)
    with model:
        yield model


def pruned(value: Any) -> Any:
    """Without what is None or empty: OpenAI's SDK fills in every field it knows."""
    if isinstance(value, dict):
        items = {name: pruned(item) for name, item in value.items()}
        return {name: item for name, item in items.items() if item is not None and item != {}}
    if isinstance(value, float):
        return round(value, 4)  # the last digits of a log-probability depend on what is computed together
    return [pruned(item) for item in value] if isinstance(value, list) else value


def fields(message: AIMessage) -> dict[str, Any]:
    """All fields of a message but those that name this answer, this client or this moment."""
    made = message.model_dump(exclude={"id"})
    for name in ("id", "model_provider", "system_fingerprint", "service_tier", "created", "stop_reason", "complete"):
        made["response_metadata"].pop(name, None)
    for name in ("parsed", "refusal"):  # what OpenAI's SDK has parsed besides
        made["additional_kwargs"].pop(name, None)
    for calls in ("tool_calls", "invalid_tool_calls", "tool_call_chunks"):
        for call in made.get(calls) or ():
            assert call.pop("id"), "a call without an id"
            call.pop("error", None)
    return pruned({**made, "content_blocks": [{**block, "id": ""} for block in message.content_blocks]})


def added(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


async def collect(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


@pytest.mark.parametrize("case", CASES)
def test_messages_are_equal(case: str, openai: ChatOpenAI, radix: ChatRadix, engine: SharedBackend) -> None:
    theirs, ours = CASES[case](openai), CASES[case](radix)
    engine.flush_cache()
    theirs.invoke(HISTORY)  # from now on both find the same in the cache
    expected = fields(theirs.invoke(HISTORY))
    assert expected["usage_metadata"]["input_token_details"]["cache_read"] > 20
    assert fields(ours.invoke(HISTORY)) == expected
    assert fields(asyncio.run(ours.ainvoke(HISTORY))) == expected


@pytest.mark.parametrize("case", CASES)
def test_streams_are_equal(case: str, openai: ChatOpenAI, radix: ChatRadix, engine: SharedBackend) -> None:
    theirs, ours = CASES[case](openai), CASES[case](radix)
    engine.flush_cache()
    theirs.invoke(HISTORY)
    expected = fields(added(list(theirs.stream(HISTORY))))
    expected["response_metadata"].pop("token_usage", None)  # of schemas alone, where OpenAI's SDK adds the whole answer
    assert fields(added(list(ours.stream(HISTORY)))) == expected
    assert fields(added(asyncio.run(collect(ours.astream(HISTORY))))) == expected
    plain = fields(ours.invoke(HISTORY))
    for name in ("content", "tool_calls", "usage_metadata"):
        assert plain.get(name) == expected.get(name), "a stream adds up to the message"


def test_batches_are_equal(openai: ChatOpenAI, radix: ChatRadix) -> None:
    prompts = [f"Count to {number}." for number in range(6)]
    openai.batch(prompts)
    expected = [fields(message) for message in openai.batch(prompts)]
    assert [fields(message) for message in radix.batch(prompts)] == expected
    assert [fields(message) for message in asyncio.run(radix.abatch(prompts))] == expected


@pytest.mark.parametrize("case", STRUCTURED)
def test_structured_output_is_equal(case: str, openai: ChatOpenAI, radix: ChatRadix) -> None:
    theirs, ours = STRUCTURED[case](openai), STRUCTURED[case](radix)
    expected, found = theirs.invoke(HISTORY), ours.invoke(HISTORY)
    if case == "raw":
        raw = fields(expected.pop("raw"))
        assert fields(found.pop("raw"))["tool_calls"] == raw["tool_calls"]
    assert found == expected
    assert type(found) is type(expected)
    streamed = list(ours.stream(HISTORY))
    assert streamed[-1] == (expected if case != "raw" else streamed[-1])


def test_all_of_n_answers_are_equal(openai: ChatOpenAI, radix: ChatRadix) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 8}
    prompt = [[HumanMessage("Say something.")]]
    openai.generate(prompt, **options)
    expected, found = openai.generate(prompt, **options), radix.generate(prompt, **options)
    assert [g.text for g in found.generations[0]] == [g.text for g in expected.generations[0]]
    assert len({g.text for g in found.generations[0]}) == 3
    assert pruned(found.llm_output)["token_usage"] == pruned(expected.llm_output)["token_usage"]

"""Agents and engines of LlamaIndex over a model that says what it is told to, and over one that says anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.embeddings.radix import RadixEmbedding
from llama_index.llms.radix import Radix
from pydantic import BaseModel, Field

from adapters.llamaindex.tests.conftest import OPTIONS

Scripted = Callable[..., tuple[Radix, Any]]


class Weather(BaseModel):
    city: str = Field(max_length=10)
    degrees: int = Field(ge=-30, le=45)


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"It is sunny in {city}, 21 degrees."


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture(autouse=True)
def no_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex counts tokens with a tokenizer that it would download."""
    monkeypatch.setattr("llama_index.core.global_tokenizer", str.split)


@pytest.mark.parametrize("streaming", [True, False])
def test_function_agent(scripted: Scripted, streaming: bool) -> None:
    llm, backend = scripted(
        call("get_weather", '{"city": "Rome"}') + "\n" + call("get_weather", '{"city": "Oslo"}'),
        "It is sunny in both.",
        '{"city": "Rome", "degrees": 21}',
    )
    agent = FunctionAgent(
        tools=[get_weather], llm=llm, system_prompt="Be brief.", output_cls=Weather, streaming=streaming
    )

    async def run() -> tuple[Any, list[Any]]:
        handler = agent.run("How is the weather in Rome and Oslo?")
        events = [event async for event in handler.stream_events()]
        return await handler, events

    result, events = asyncio.run(run())
    assert str(result) == "It is sunny in both."
    assert result.structured_response == {"city": "Rome", "degrees": 21}
    assert result.get_pydantic_model(Weather) == Weather(city="Rome", degrees=21)
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert sorted(event.tool_output.content for event in results) == [
        "It is sunny in Oslo, 21 degrees.",
        "It is sunny in Rome, 21 degrees.",
    ]
    assert backend.asked[-1].constraint.kind == "json_schema"
    if streaming:
        said = "".join(event.delta for event in events if isinstance(event, AgentStream) and not event.tool_calls)
        assert said.strip() == "It is sunny in both."


def test_the_first_call_can_be_forced(llm: Radix) -> None:
    """On random weights: the grammar makes the call, and the model's next words end it."""
    called: list[str] = []

    def look_up(city: str) -> str:
        """Look a city up."""
        called.append(city)
        return "sunny"

    agent = FunctionAgent(
        tools=[FunctionTool.from_defaults(look_up, return_direct=True)], llm=llm, initial_tool_choice="look_up"
    )

    async def run() -> Any:
        return await agent.run("Hi!")

    result = asyncio.run(run())
    assert called
    assert str(result) == "sunny"


def test_several_agents(scripted: Scripted) -> None:
    llm, _ = scripted(
        call("handoff", '{"to_agent": "clerk", "reason": "she knows"}'),
        call("get_weather", '{"city": "Rome"}'),
        "Sunny.",
    )
    guide = FunctionAgent(name="guide", description="greets", llm=llm, can_handoff_to=["clerk"])
    clerk = FunctionAgent(name="clerk", description="knows the weather", tools=[get_weather], llm=llm)
    workflow = AgentWorkflow(agents=[guide, clerk], root_agent="guide")

    async def run() -> Any:
        return await workflow.run("How is the weather in Rome?")

    result = asyncio.run(run())
    assert (str(result), result.current_agent_name) == ("Sunny.", "clerk")


def test_react_agent(scripted: Scripted) -> None:
    llm, _ = scripted(
        'Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Rome"}',
        "Thought: I can answer.\nAnswer: Sunny.",
    )

    async def run() -> Any:
        return await ReActAgent(tools=[get_weather], llm=llm).run("How is the weather in Rome?")

    assert str(asyncio.run(run())) == "Sunny."


def test_memory_across_runs(scripted: Scripted) -> None:
    llm, backend = scripted(call("get_weather", '{"city": "Rome"}'), "Sunny.", "As I said: sunny.")
    agent = FunctionAgent(tools=[get_weather], llm=llm)
    memory = Memory.from_defaults(session_id="one")

    async def run() -> Any:
        await agent.run("How is the weather in Rome?", memory=memory)
        return await agent.run("Again?", memory=memory)

    assert str(asyncio.run(run())) == "As I said: sunny."
    prompt = backend.inner.decode(backend.asked[-1].prompt)
    assert prompt.index('"city": "Rome"') < prompt.index("21 degrees") < prompt.index("Sunny.") < prompt.index("Again?")


def test_many_agents_at_once(llm: Radix) -> None:
    agents = [FunctionAgent(tools=[get_weather], llm=llm.model_copy(update={"max_tokens": 20})) for _ in range(8)]

    async def run() -> list[Any]:
        return await asyncio.gather(*(agent.run("Hi!", max_iterations=3) for agent in agents), return_exceptions=True)

    results = asyncio.run(run())
    assert len({str(result) for result in results}) == 1


@pytest.fixture(scope="module")
def index(checkpoint: Any) -> Any:
    texts = ("Breakfast is from 7 to 10.", "The sauna is open at night.", "Parking is free.")
    embedding = RadixEmbedding(checkpoint, **OPTIONS)
    return VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=embedding)


@pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.REFINE, ResponseMode.TREE_SUMMARIZE])
def test_query_engine(index: Any, llm: Radix, mode: ResponseMode) -> None:
    with llm.model_copy(update={"max_tokens": 12}) as brief:
        engine = index.as_query_engine(llm=brief, response_mode=mode, similarity_top_k=2)
        answer = engine.query("Parking is free.")
        assert answer.source_nodes[0].text == "Parking is free."
        assert str(asyncio.run(engine.aquery("Parking is free."))) == str(answer) != ""
        streaming = index.as_query_engine(llm=brief, response_mode=mode, similarity_top_k=2, streaming=True)
        assert str(streaming.query("Parking is free.")) == str(answer)


@pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.TREE_SUMMARIZE])
def test_query_engine_with_a_class(index: Any, llm: Radix, mode: ResponseMode) -> None:
    engine = index.as_query_engine(llm=llm.as_structured_llm(Weather), response_mode=mode, similarity_top_k=1)
    assert isinstance(engine.query("How is the weather?").response, Weather)
    filtered = index.as_query_engine(llm=llm, structured_answer_filtering=True, response_mode=ResponseMode.REFINE)
    assert filtered.query("How is the weather?").response is not None


def test_an_engine_is_a_tool(index: Any, llm: Radix, scripted: Scripted) -> None:
    asker, _ = scripted(call("hotel", '{"input": "Parking is free."}'), "Free.")
    with llm.model_copy(update={"max_tokens": 12}) as brief:
        tool = QueryEngineTool.from_defaults(index.as_query_engine(llm=brief), name="hotel", description="knows all")

        async def run() -> Any:
            return await FunctionAgent(tools=[tool], llm=asker).run("Where may I park?")

        assert str(asyncio.run(run())) == "Free."


def test_chat_engine(scripted: Scripted) -> None:
    llm, backend = scripted("Hello.", "I do.")
    engine = SimpleChatEngine.from_defaults(llm=llm, system_prompt="Be brief.")
    assert str(engine.chat("Hi!")) == "Hello."
    assert "".join(engine.stream_chat("Do you know me?").response_gen) == "I do."
    prompt = backend.inner.decode(backend.asked[-1].prompt)
    assert "Be brief." in prompt
    assert "Hello." in prompt
    assert [message.role.value for message in engine.chat_history] == ["user", "assistant"] * 2
    assert isinstance(engine.chat_history[0], ChatMessage)

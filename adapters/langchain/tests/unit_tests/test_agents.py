"""Agents and graphs: tools and a schema in every call, and what streams out of a graph."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_radix import ChatRadix
from langgraph.graph import MessagesState, StateGraph
from pydantic import BaseModel

from radixbackend.chat import Message, ToolCall


class Report(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"{city}: 21 degrees"


CALL = Message("assistant", None, tool_calls=(ToolCall("c1", "get_weather", '{"city": "Rome"}'),))
REPORT = '{"city": "Rome", "degrees": 21}'
QUESTION = {"messages": [HumanMessage("How warm is it in Rome?")]}


def run(agent: Any, mode: str) -> dict[str, Any]:
    if mode == "invoke":
        return dict(agent.invoke(QUESTION))
    if mode == "ainvoke":
        return dict(asyncio.run(agent.ainvoke(QUESTION)))
    state: dict[str, Any] = {}
    for kind, part in agent.stream(QUESTION, stream_mode=["messages", "values"]):
        if kind == "values":
            state = dict(part)
    return state


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream"])
@pytest.mark.parametrize("strategy", [Report, ProviderStrategy(Report)], ids=["chosen by the profile", "given"])
def test_provider_strategy(scripted: Any, strategy: Any, mode: str) -> None:
    """Tools and schema are bound together in every call, and the profile has LangChain choose this strategy."""
    scripted.answers = [CALL, Message("assistant", REPORT)]
    agent = create_agent(ChatRadix(model="m"), [get_weather], response_format=strategy)
    state = run(agent, mode)
    assert state["structured_response"] == Report(city="Rome", degrees=21)
    assert [type(message) for message in state["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert state["messages"][2].content == "Rome: 21 degrees"
    for asked in scripted.asked:
        assert [tool.name for tool in asked.tools] == ["get_weather"]
        assert json.loads(asked.response_format.constraint.source)["properties"].keys() == {"city", "degrees"}
    assert scripted.asked[1].messages[1] == CALL
    assert scripted.asked[1].messages[2] == Message("tool", "Rome: 21 degrees", "get_weather", tool_call_id="c1")


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream"])
def test_tool_strategy(scripted: Any, mode: str) -> None:
    scripted.answers = [CALL, Message("assistant", None, tool_calls=(ToolCall("c2", "Report", REPORT),))]
    agent = create_agent(ChatRadix(model="m"), [get_weather], response_format=ToolStrategy(Report))
    state = run(agent, mode)
    assert state["structured_response"] == Report(city="Rome", degrees=21)
    for asked in scripted.asked:
        assert [tool.name for tool in asked.tools] == ["get_weather", "Report"]
        assert asked.tool_choice.mode == "required"


def test_an_agent_on_a_real_grammar(params: dict[str, Any]) -> None:
    """Whatever weights say, each turn is calls that fit or JSON that fits, so an agent never sees anything else."""
    model = ChatRadix(**{**params, "temperature": 1}, max_tokens=120)
    bound = model.bind_tools(
        [get_weather], response_format=ProviderStrategy(Report).to_model_kwargs()["response_format"]
    )
    answers = bound.batch(["How warm is it in Rome?"] * 12)
    for answer in answers:
        assert isinstance(answer, AIMessage)
        if answer.tool_calls:
            assert answer.content == ""
            assert all(call["args"].keys() == {"city"} for call in answer.tool_calls)
        else:
            Report.model_validate_json(answer.text)


def test_a_graph_streams_tokens(params: dict[str, Any]) -> None:
    """A node that calls `invoke` streams when the graph is asked for messages."""
    model = ChatRadix(**params, max_tokens=12)

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def anode(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    expected = model.invoke(QUESTION["messages"]).text

    def graph(of: Any) -> Any:
        return StateGraph(MessagesState).add_node("model", of).set_entry_point("model").compile()

    chunks = [chunk for chunk, _ in graph(node).stream(QUESTION, stream_mode="messages")]
    assert len(chunks) > 3
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == expected

    async def stream() -> str:
        return "".join([chunk.text async for chunk, _ in graph(anode).astream(QUESTION, stream_mode="messages")])

    assert asyncio.run(stream()) == expected


def test_a_graph_streams_calls_once(scripted: Any) -> None:
    scripted.answers = [CALL, Message("assistant", "21 degrees.")]
    agent = create_agent(ChatRadix(model="m"), [get_weather])
    pieces = []
    for chunk, _ in agent.stream(QUESTION, stream_mode="messages"):
        pieces += getattr(chunk, "tool_call_chunks", [])
    assert [piece["name"] for piece in pieces if piece["name"]] == ["get_weather"]
    assert [piece["id"] for piece in pieces if piece["id"]] == ["c1"]
    assert "".join(piece["args"] for piece in pieces) == '{"city": "Rome"}'

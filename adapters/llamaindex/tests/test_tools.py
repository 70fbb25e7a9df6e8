"""Tools: what may be called is what the grammar lets through; whatever was cut short is not called.

No annotations of the future: LlamaIndex makes the schema of a tool of its annotations as they are.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from llama_index.llms.radix import Radix
from pydantic import BaseModel, Field

from radixbackend.errors import ConstraintError, InvalidRequestError, OutputValidationError

LONG = {"max_tokens": 200}


class Guest(BaseModel):
    name: str = Field(max_length=5)
    by_floor: dict[int, bool] = Field(default={}, max_length=2)


def book(number: Annotated[int, Field(ge=1, le=40)], view: Literal["sea", "garden"], guest: Guest) -> str:
    """Book a room."""
    return f"{number} with a view of the {view}"


def cancel(number: Annotated[int, Field(ge=1, le=40)]) -> str:
    """Cancel a booking."""
    return f"{number} is free"


TOOLS = [FunctionTool.from_defaults(book), FunctionTool.from_defaults(cancel)]


async def every(stream: Any) -> list[Any]:
    return [item async for item in await stream]


def check(call: ToolSelection) -> None:
    schemas = {tool.metadata.name: tool.metadata.fn_schema for tool in TOOLS}
    schema = schemas[call.tool_name]
    assert schema is not None
    schema.model_validate(call.tool_kwargs)


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_fit_in_all_four_ways(llm: Radix, seed: int) -> None:
    given: dict[str, Any] = {"user_msg": "Hi!", "tool_required": True, "seed": seed, **LONG}
    whole = llm.chat_with_tools(TOOLS, **given)
    (call,) = llm.get_tool_calls_from_response(whole)
    check(call)
    assert whole.raw["finish_reason"] == "tool_calls"
    streamed = list(llm.stream_chat_with_tools(TOOLS, **given))
    asked = asyncio.run(llm.achat_with_tools(TOOLS, **given))
    came = asyncio.run(every(llm.astream_chat_with_tools(TOOLS, **given)))
    for last in (streamed[-1], asked, came[-1]):
        (same,) = llm.get_tool_calls_from_response(last)
        assert (same.tool_name, same.tool_kwargs) == (call.tool_name, call.tool_kwargs)


def test_one_or_more_where_they_are_parallel(llm: Radix) -> None:
    counts = []
    for seed in range(6):
        response = llm.chat_with_tools(
            TOOLS, "Hi!", tool_required=True, allow_parallel_tool_calls=True, seed=seed, **LONG
        )
        calls = llm.get_tool_calls_from_response(response)
        for call in calls:
            check(call)
        counts.append(len(calls))
        assert len(response.message.additional_kwargs["tool_calls"]) == len(calls)
    assert min(counts) >= 1
    assert max(counts) > 1


def test_a_named_tool(llm: Radix) -> None:
    for choice in ("cancel", {"type": "function", "function": {"name": "cancel"}}):
        response = llm.chat_with_tools(TOOLS, "Hi!", tool_choice=choice, **LONG)
        assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["cancel"]
    with pytest.raises(InvalidRequestError, match="no_such"):
        llm.chat_with_tools(TOOLS, "Hi!", tool_choice="no_such")


def test_none_is_none(llm: Radix) -> None:
    response = llm.chat_with_tools(TOOLS, "Hi!", tool_choice="none", max_tokens=20)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="called no tool"):
        llm.get_tool_calls_from_response(response)
    assert "tool_calls" not in response.message.additional_kwargs
    assert llm.chat_with_tools([], "Hi!", max_tokens=5).message.content


def test_predict_and_call(llm: Radix) -> None:
    answer = llm.predict_and_call(TOOLS[1:], "Free it.", tool_required=True, **LONG)
    assert str(answer).endswith("is free")
    answer = asyncio.run(llm.apredict_and_call(TOOLS[1:], "Free it.", tool_required=True, **LONG))
    assert str(answer).endswith("is free")


def test_the_history_is_only_read(llm: Radix) -> None:
    history = [ChatMessage(role="system", content="Be brief.")]
    llm.chat_with_tools(TOOLS, "Hi!", chat_history=history, max_tokens=3)
    assert len(history) == 1


CALLS = (
    'Let me see.\n<tool_call>\n{"name": "cancel", "arguments": {"number": 12}}\n</tool_call>\n'
    '<tool_call>\n{"name": "cancel", "arguments": {"number": 7}}\n</tool_call>'
)


def test_calls_as_they_come(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    llm, _ = scripted(CALLS)
    responses = list(llm.stream_chat_with_tools(TOOLS, "Hi!", allow_parallel_tool_calls=True))
    seen = [
        [call.tool_kwargs for call in llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)]
        for response in responses
    ]
    distinct = [calls for k, calls in enumerate(seen) if k == 0 or calls != seen[k - 1]]
    assert distinct == [[], [{}], [{"number": 12}], [{"number": 12}, {}], [{"number": 12}, {"number": 7}]]
    last = responses[-1].message
    assert [type(block).__name__ for block in last.blocks] == ["TextBlock", "ToolCallBlock", "ToolCallBlock"]
    assert (last.content or "").strip() == "Let me see."
    assert [call["function"]["arguments"] for call in last.additional_kwargs["tool_calls"]] == [
        '{"number": 12}',
        '{"number": 7}',
    ]


def test_a_call_that_was_cut_short_is_not_made(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    llm, _ = scripted(CALLS[: CALLS.index("7")], ends=False)
    *partial, last = llm.stream_chat_with_tools(TOOLS, "Hi!", allow_parallel_tool_calls=True)
    assert llm.get_tool_calls_from_response(partial[-1])[0].tool_kwargs == {"number": 12}
    for response in (last, llm.chat_with_tools(TOOLS, "Hi!", allow_parallel_tool_calls=True)):
        with pytest.raises(OutputValidationError, match="raise max_tokens"):
            llm.get_tool_calls_from_response(response)


def test_a_server_that_calls_more_than_asked_for(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    llm, _ = scripted(CALLS)
    response = llm.chat_with_tools(TOOLS, "Hi!")
    assert [call.tool_kwargs for call in llm.get_tool_calls_from_response(response)] == [{"number": 12}]
    assert len(response.message.additional_kwargs["tool_calls"]) == 1


def test_results_go_back_to_the_model(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    llm, backend = scripted(CALLS, "Both are free.")
    history = [ChatMessage(content="Cancel 12 and 7.")]
    first = llm.chat_with_tools(TOOLS, chat_history=history, allow_parallel_tool_calls=True)
    history.append(first.message)
    for call in llm.get_tool_calls_from_response(first):
        result = ChatMessage(role="tool", content="done", additional_kwargs={"tool_call_id": call.tool_id})
        history.append(result)
    assert llm.chat_with_tools(TOOLS, chat_history=history).message.content == "Both are free."
    prompt = backend.inner.decode(backend.asked[-1].prompt)
    assert '{"name": "cancel", "arguments": {"number": 7}}' in prompt
    assert prompt.count("<|im_start|>tool\ndone") == 2


def test_tools_that_cannot_be_described_are_refused(llm: Radix) -> None:
    def odd(value: complex) -> str:
        return str(value)

    with pytest.raises(ConstraintError, match="complex"):
        llm.chat_with_tools([FunctionTool.from_defaults(odd)], "Hi!")

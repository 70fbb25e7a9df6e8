"""Typed content blocks: of whole messages, of chunks, of chunks added up, and of event streams."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_radix import ChatRadix
from langchain_tests.utils.stream_lifecycle import assert_valid_event_stream

from radixbackend.chat import Message, ToolCall

ANSWER = Message(
    "assistant",
    "I shall look.",
    tool_calls=(ToolCall("c1", "look", '{"word": "Rome"}'), ToolCall("c2", "look", '{"word": "Ostia"}')),
    reasoning="The user wants to know.",
)
BLOCKS: list[Any] = [
    {"type": "reasoning", "reasoning": "The user wants to know."},
    {"type": "text", "text": "I shall look."},
    {"type": "tool_call", "name": "look", "args": {"word": "Rome"}, "id": "c1"},
    {"type": "tool_call", "name": "look", "args": {"word": "Ostia"}, "id": "c2"},
]


def unnumbered(blocks: Any) -> list[Any]:
    return [{name: value for name, value in block.items() if name != "index"} for block in blocks]


def added(model: ChatRadix) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    for chunk in model.stream("Where is Rome?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_of_a_message(scripted: Any, version: str) -> None:
    scripted.answers = [ANSWER]
    message = ChatRadix(model="m", output_version=version).invoke("Where is Rome?")
    assert message.content_blocks == BLOCKS
    assert message.content == (BLOCKS if version == "v1" else "I shall look.")


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_of_chunks_added_up(scripted: Any, version: str) -> None:
    scripted.answers = [ANSWER]
    whole = added(ChatRadix(model="m", output_version=version))
    assert unnumbered(whole.content_blocks) == BLOCKS
    assert whole.text == "I shall look."
    assert [call["args"] for call in whole.tool_calls] == [{"word": "Rome"}, {"word": "Ostia"}]


def test_of_single_chunks(scripted: Any) -> None:
    scripted.answers = [ANSWER]
    kinds: list[str] = []
    for chunk in ChatRadix(model="m").stream("Where is Rome?"):
        for block in chunk.content_blocks:
            assert str(block.get("index", "")).startswith("lc_")
            if not kinds or kinds[-1] != block["type"]:
                kinds.append(block["type"])
    assert kinds == ["reasoning", "text", "tool_call_chunk"]


def test_of_events(scripted: Any) -> None:
    scripted.answers = [ANSWER]
    stream = ChatRadix(model="m").stream_events("Where is Rome?", version="v3")
    assert_valid_event_stream(list(stream))
    assert unnumbered(stream.output.content_blocks) == BLOCKS


def test_of_a_history_that_was_read_again(scripted: Any) -> None:
    """A message of version 1 goes back to the model as what it was."""
    scripted.answers = [ANSWER, Message("assistant", "Done.")]
    model = ChatRadix(model="m", output_version="v1")
    first = model.invoke("Where is Rome?")
    model.invoke(["Where is Rome?", first, ("tool", "there"), ("tool", "here")][:2])
    assert scripted.asked[-1].messages[1] == ANSWER


def test_content_that_is_a_list_is_left_to_langchain() -> None:
    message = AIMessage([{"type": "text", "text": "hi"}], response_metadata={"model_provider": "radix"})
    assert message.content_blocks == [{"type": "text", "text": "hi"}]

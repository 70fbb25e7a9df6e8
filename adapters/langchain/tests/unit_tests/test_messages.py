"""Messages in every dialect that a history may have, and answers as LangChain's messages."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_radix.messages import to_chunks, to_messages, to_result

from radixbackend.chat import (
    ChatChoice,
    ChatDelta,
    ChatResult,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    ToolCallDelta,
)
from radixbackend.errors import InvalidRequestError
from radixbackend.types import TokenLogprob, Usage

PIXEL = base64.b64encode(b"not really a picture").decode()
URL = f"data:image/png;base64,{PIXEL}"


def one(message: BaseMessage) -> Message:
    return to_messages([message])[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (HumanMessage("hi", name="anna"), Message("user", "hi", "anna")),
        (SystemMessage("be brief"), Message("system", "be brief")),
        (SystemMessage("hi", additional_kwargs={"__openai_role__": "developer"}), Message("developer", "hi")),
        (ChatMessage("hi", role="human"), Message("user", "hi")),
        (ChatMessage("hi", role="assistant"), Message("assistant", "hi")),
        (AIMessage("hi"), Message("assistant", "hi")),
        (AIMessage(""), Message("assistant", "")),
        (ToolMessage("3", tool_call_id="c1", name="add"), Message("tool", "3", "add", tool_call_id="c1")),
        (ToolMessage("no", tool_call_id="c1", status="error"), Message("tool", "no", tool_call_id="c1")),
        (
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": "ü"}, "id": "c1"}]),
            Message("assistant", None, tool_calls=(ToolCall("c1", "add", '{"a": 1, "b": "ü"}'),)),
        ),
        (
            AIMessage("", invalid_tool_calls=[{"name": "add", "args": '{"a": ', "id": "c1", "error": "cut"}]),
            Message("assistant", None, tool_calls=(ToolCall("c1", "add", '{"a": '),)),
        ),
    ],
)  # fmt: skip
def test_messages_by_role(given: BaseMessage, expected: Message) -> None:
    assert one(given) == expected


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": PIXEL, "mime_type": "image/png"},  # LangChain's of v1
        {"type": "image", "url": URL},
        {"type": "image", "source_type": "base64", "data": PIXEL, "mime_type": "image/png"},  # of v0
        {"type": "image", "source_type": "url", "url": URL},
        {"type": "image_url", "image_url": {"url": URL}},  # OpenAI's
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},  # Anthropic's
        {"type": "image", "source": {"type": "url", "url": URL}},
        {"type": "non_standard", "value": {"type": "image_url", "image_url": {"url": URL}}},
    ],
)
def test_images_of_every_dialect(block: dict[str, Any]) -> None:
    expected = (TextPart("look: "), ImagePart(URL))
    assert one(HumanMessage(["look: ", block])).content == expected
    assert one(ToolMessage(["look: ", block], tool_call_id="1")).content == expected


def test_the_detail_of_an_image_is_kept() -> None:
    block = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
    assert one(HumanMessage([block])).content == (ImagePart(URL, "low"),)


def test_text_blocks_become_one_text() -> None:
    content = [
        "a",
        {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
        {"type": "text-plain", "text": "c"},
    ]
    assert one(HumanMessage(content)).content == "abc"


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("yes", additional_kwargs={"reasoning_content": "hm"}),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "yes"}]),
        AIMessage([{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "yes"}]),
        AIMessage(content_blocks=[{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "yes"}]),
    ],
)
def test_reasoning_is_kept(message: AIMessage) -> None:
    assert one(message) == Message("assistant", "yes", reasoning="hm")


def test_blocks_that_repeat_calls_are_left_out() -> None:
    message = AIMessage(
        [{"type": "text", "text": "hm"}, {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}],
        tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c1"}],
    )
    assert one(message) == Message("assistant", "hm", tool_calls=(ToolCall("c1", "add", '{"a": 1}'),))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (HumanMessage([{"type": "audio", "base64": "", "mime_type": "audio/wav"}]), "type 'audio'"),
        (HumanMessage([{"type": "file", "base64": "", "mime_type": "application/pdf"}]), "type 'file'"),
        (HumanMessage([{"type": "image", "file_id": "file-1"}]), "file_id"),
        (AIMessage([{"type": "image", "url": URL}]), "answer with text"),
        (FunctionMessage("3", name="add"), "FunctionMessage"),
        (ChatMessage("hi", role="judge"), "role 'judge'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(message: BaseMessage, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint) as caught:
        to_messages([HumanMessage("hi"), message])
    assert str(caught.value).startswith("messages[1] ")
    assert caught.value.param == "messages"


ANSWER = Message(
    "assistant", "yes", tool_calls=(ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "add", '{"a": ')), reasoning="hm"
)
USED = Usage(prompt_tokens=9, completion_tokens=4, cached_tokens=7, forced_tokens=1)
LOGPROBS = (TokenLogprob(3, -0.5, ((3, -0.5), (4, float("-inf")))),)


def test_a_result() -> None:
    result = ChatResult((ChatChoice(0, ANSWER, "length", "x", False, LOGPROBS),), USED, "tiny")
    made = to_result(result, lambda token: b"\xc3" if token == 4 else b"A")
    message = made.generations[0].message
    assert isinstance(message, AIMessage)
    assert message.content == "yes"
    assert message.additional_kwargs == {"reasoning_content": "hm"}
    assert [(call["name"], call["args"], call["id"]) for call in message.tool_calls] == [("add", {"a": 1}, "c1")]
    assert [(call["name"], call["args"], call["id"]) for call in message.invalid_tool_calls] == [
        ("add", '{"a": ', "c2")
    ]
    assert message.usage_metadata == {
        "input_tokens": 9,
        "output_tokens": 4,
        "total_tokens": 13,
        "input_token_details": {"cache_read": 7},
        "output_token_details": {},
    }
    assert message.response_metadata == {"model_name": "tiny", "model_provider": "radix"}
    entry = {"token": "A", "logprob": -0.5, "bytes": [65], "id": 3}
    assert made.generations[0].generation_info == {
        "finish_reason": "length",
        "stop_reason": "x",
        "complete": False,
        "logprobs": {
            "content": [
                {**entry, "top_logprobs": [entry, {"token": "�", "logprob": -9999.0, "bytes": [195], "id": 4}]}
            ],
            "refusal": None,
        },
    }
    assert made.llm_output is not None
    assert made.llm_output["token_usage"]["prompt_tokens_details"] == {"cached_tokens": 7}


DELTAS = [
    ChatDelta(reasoning="h"),
    ChatDelta(reasoning="m"),
    ChatDelta(content="y", logprobs=LOGPROBS),
    ChatDelta(content="es", tool_calls=(ToolCallDelta(0, "", "c1", "add"),)),
    ChatDelta(tool_calls=(ToolCallDelta(0, '{"a": 1}'), ToolCallDelta(1, '{"b"', "c2", "mul"))),
    ChatDelta(tool_calls=(ToolCallDelta(1, ": 2}"),), finish_reason="tool_calls", usage=USED),
]


def chunks(*, usage: bool = True) -> list[AIMessageChunk]:
    made = [chunk.message for delta in DELTAS for chunk in to_chunks(delta, "tiny", lambda _: b"A", usage=usage)]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in made)
    return made  # type: ignore[return-value]


def test_chunks_add_up_to_the_message() -> None:
    whole, *rest = chunks()
    for chunk in rest:
        whole += chunk
    assert whole.content == "yes"
    assert whole.additional_kwargs == {"reasoning_content": "hm"}
    assert [(call["name"], call["args"], call["id"]) for call in whole.tool_calls] == [
        ("add", {"a": 1}, "c1"),
        ("mul", {"b": 2}, "c2"),
    ]
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] == 9
    assert whole.response_metadata == {"model_name": "tiny", "model_provider": "radix"}
    assert whole.chunk_position == "last"


def test_what_is_said_once_is_in_one_chunk() -> None:
    made = chunks()
    assert [chunk.usage_metadata is not None for chunk in made].count(True) == 1
    assert ["model_name" in chunk.response_metadata for chunk in made].count(True) == 1
    named = [piece["name"] for chunk in made for piece in chunk.tool_call_chunks if piece["name"]]
    assert named == ["add", "mul"]
    assert [chunk.chunk_position for chunk in made] == [None] * (len(made) - 1) + ["last"]
    assert not made[-1].content
    assert not made[-1].tool_call_chunks


def test_text_and_calls_are_in_chunks_of_their_own() -> None:
    assert not any(chunk.content and chunk.tool_call_chunks for chunk in chunks())


def test_usage_can_be_left_out() -> None:
    assert all(chunk.usage_metadata is None for chunk in chunks(usage=False))

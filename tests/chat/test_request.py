"""What a conversation may be, and what a refusal says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from radixbackend.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from radixbackend.errors import ConstraintError, InvalidRequestError
from radixbackend.types import Constraint

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}


def test_messages_are_read_and_written_in_openais_shape() -> None:
    messages = [
        {"role": "system", "content": "s"},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "found", "tool_call_id": "c1"},
    ]
    request = ChatRequest.of(messages)
    assert [message.as_dict() for message in request.messages] == messages
    assert request.messages[2] == Message(
        "assistant", "", tool_calls=(ToolCall("c1", "look", '{"at": 1}'),), reasoning="hm"
    )


def test_parts() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}]
    message = Message.of({"role": "user", "content": content})
    assert message.content == (TextPart("a"), ImagePart("data:,", "low"))
    assert message.text == "a"
    assert Message.of({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}).as_dict()["content"] == "ab"


def test_arguments_may_be_an_object_or_nothing() -> None:
    def arguments(value: Any) -> str:
        return ToolCall.of({"id": "1", "function": {"name": "f", "arguments": value}}).arguments

    assert [arguments({"a": "é"}), arguments(""), arguments(None)] == ['{"a": "é"}', "{}", "{}"]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is empty"),
        ("hello", "messages is a list"),
        ([USER, 3], r"messages\[1\] a message is an object, not 3"),
        ([{"role": "robot", "content": "hi"}], r"messages\[0\] has the role 'robot'"),
        ([{"content": "hi"}], r"messages\[0\] has the role None"),
        ([USER, {"role": "user"}], r"messages\[1\] is by user and has no content"),
        ([{"role": "user", "content": 3}], r"messages\[0\] has a content of type int"),
        ([{"role": "user", "content": [{"type": "video"}]}], r"messages\[0\] has a content part of type 'video'"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\] a part of type text is a string"),
        ([USER, {"role": "tool", "content": "x"}], r"messages\[1\] is a tool's result without tool_call_id"),
        ([USER, {"role": "tool", "content": "x", "tool_call_id": "c9"}], r"messages\[1\] answers the tool call 'c9'"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], r"messages\[0\] is by user and has tool_calls"),
        ([{"role": "assistant", "tool_calls": ["x"]}], r"messages\[0\] a tool call is an object"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
            r"messages\[0\] the function of a tool call is an object",
        ),
        ([{"role": "assistant", "tool_calls": "x"}], r"messages\[0\] has tool_calls that are str"),
        (
            [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": "{1"}}]}],
            r"messages\[1\] calls look \(id 'c1'\) with arguments that are not JSON",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": "[]"}}]}],
            r"messages\[1\] calls look .* no object",
        ),
    ],
)
def test_a_malformed_history_says_where(messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as fault:
        ChatRequest.of(messages)
    assert fault.value.param == "messages"


def test_a_result_must_come_after_its_call() -> None:
    result = {"role": "tool", "content": "x", "tool_call_id": "c1"}
    assistant = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    ChatRequest.of([USER, assistant, result])
    with pytest.raises(InvalidRequestError, match=r"messages\[1\] answers"):
        ChatRequest.of([USER, result, assistant])


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "web_search"),
        ({"tools": [{"type": "function"}]}, "tools", "a tool's name"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools", "'a b'"),
        ({"tools": [{"function": {"name": "a", "parameters": 3}}]}, "tools", "parameters of a"),
        ({"tools": [LOOK, LOOK]}, "tools", "two tools have the name 'look'"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": [LOOK], "tool_choice": "perhaps"}, "tool_choice", "perhaps"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g'"),
        ({"continue_final_message": True}, "continue_final_message", "assistant message at the end"),
        ({"response_format": {"type": "xml"}}, "response_format", "xml"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "no schema"),
        ({"response_format": {"type": "regex"}}, "response_format", "no regex"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as fault:
        ChatRequest.of([USER], **fields)
    assert fault.value.param == param


def test_a_bad_choice_is_a_constraint_error() -> None:
    with pytest.raises(ConstraintError):
        ResponseFormat.of({"type": "choice", "choice": []})


def test_tool_choice() -> None:
    assert ToolChoice.of("any") == ToolChoice("required")
    assert ToolChoice.of({"type": "function", "name": "f"}) == ToolChoice("named", ("f",))
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LOOK]}}
    assert ToolChoice.of(allowed) == ToolChoice("required", ("look",))


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    found = ResponseFormat.of({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}})
    assert found == ResponseFormat(Constraint.json_schema(schema), "n", "", True)
    assert found.constraint is not None
    assert json.loads(found.constraint.source) == schema
    assert ResponseFormat.of({"type": "text"}).constraint is None
    assert ResponseFormat.of({"type": "regex", "regex": "a+"}).constraint == Constraint.regex("a+")
    assert ResponseFormat.of(Constraint.choice(["a"])).constraint == Constraint.choice(["a"])


def test_arguments_are_closed_unless_the_schema_speaks_of_others() -> None:
    listed = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert Tool("f", parameters=listed).schema == {**listed, "additionalProperties": False}
    assert Tool("f", parameters=listed).as_dict()["function"]["parameters"] == listed
    for others in ({"additionalProperties": True}, {"patternProperties": {"^x": {}}}, {"allOf": [{}]}):
        assert Tool("f", parameters={**listed, **others}).schema == {**listed, **others}
    assert Tool("f", parameters={"type": "object"}).schema == {"type": "object"}
    assert Tool("f").schema == {"type": "object", "properties": {}, "additionalProperties": False}

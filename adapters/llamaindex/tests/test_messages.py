"""LlamaIndex's blocks ↔ messages of the chat layer: nothing is lost, and what has no place is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    CitableBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.llms.radix import Radix
from llama_index.llms.radix.messages import cache_points, from_chat, to_chat

from radixbackend.chat import ImagePart, Message, TextPart, ToolCall
from radixbackend.errors import InvalidRequestError

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_roles_and_texts() -> None:
    said = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text=""), TextBlock(text="b")]),
        ChatMessage(role="chatbot", content="c"),
        ChatMessage(role="model", blocks=[]),
        ChatMessage(role="user", blocks=[], additional_kwargs={"name": "Eva"}),
    ]
    assert to_chat(said) == (
        Message("system", "Be brief."),
        Message("user", "ab"),
        Message("assistant", "c"),
        Message("assistant", ""),
        Message("user", "", name="Eva"),
    )


def test_calls_and_their_results() -> None:
    call = ToolCall("call_1", "add", '{"a": 1, "what": "é"}')
    blocks = [
        ThinkingBlock(content="Easy."),
        ToolCallBlock(tool_call_id="call_1", tool_name="add", tool_kwargs={"a": 1, "what": "é"}),
    ]
    from_blocks = ChatMessage(role="assistant", blocks=blocks)
    as_text = ChatMessage(
        role="assistant",
        blocks=[blocks[0], ToolCallBlock(tool_call_id="call_1", tool_name="add", tool_kwargs=call.arguments)],
    )
    legacy = ChatMessage(
        role="assistant", blocks=blocks[:1], content=None, additional_kwargs={"tool_calls": [call.as_dict()]}
    )
    result = ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "call_1"})
    expected = Message("assistant", None, tool_calls=(call,), reasoning="Easy.")
    for message in (from_blocks, as_text, legacy):
        assert to_chat([message, result]) == (expected, Message("tool", "2", tool_call_id="call_1"))


def test_there_and_back() -> None:
    for message in (
        Message("assistant", "Hi!"),
        Message("assistant", "Hi!", reasoning="Hm."),
        Message("assistant", None, tool_calls=(ToolCall("1", "f", "{}"), ToolCall("2", "g", '{"x": [1.5, null]}'))),
        Message("assistant", "Look:", tool_calls=(ToolCall("1", "f", '{"é": true}'),)),
    ):
        made = from_chat(message)
        assert to_chat([made]) == (message,)
        again = ChatMessage.model_validate(json.loads(made.model_dump_json()))  # as memories keep it
        assert to_chat([again]) == (message,)


def test_images(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    path.write_bytes(PNG)
    data = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    for block in (ImageBlock(image=PNG), ImageBlock(path=path), ImageBlock(url=data)):
        (message,) = to_chat([ChatMessage(role="user", blocks=[TextBlock(text="What is it?"), block])])
        assert message.content == (TextPart("What is it?"), ImagePart(data))
    (message,) = to_chat([ChatMessage(role="user", blocks=[ImageBlock(url="https://a.org/b.png", detail="low")])])
    assert message.content == (ImagePart("https://a.org/b.png", "low"),)  # nothing is fetched here


def test_a_model_that_takes_no_images_says_so(llm: Radix) -> None:
    before = llm.stats().prompt_tokens
    with pytest.raises(InvalidRequestError, match="image"):
        llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="What is it?"), ImageBlock(image=PNG)])])
    assert llm.stats().prompt_tokens == before


def test_what_has_no_place_is_refused() -> None:
    audio = ChatMessage(role="user", blocks=[AudioBlock(audio=b"RIFF0000WAVE")])
    with pytest.raises(InvalidRequestError, match=r"messages\[1\] has a block of type 'audio'"):
        to_chat([ChatMessage(content="Hi!"), audio])
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]"):
        to_chat([ChatMessage(role="tool", content="of no call")])
    cited = CitableBlock(title="A", source="b", content=[TextBlock(text="Said.")])
    assert to_chat([ChatMessage(role="user", blocks=[cited])]) == (Message("user", "Said."),)


def test_cache_points_are_cuts() -> None:
    point = CachePoint(cache_control=CacheControl(type="ephemeral"))
    system = ChatMessage(role="system", blocks=[TextBlock(text="Long."), point])
    user: Any = ChatMessage(role="user", blocks=[TextBlock(text="a"), point, TextBlock(text="b")])
    assert to_chat([system, user]) == (Message("system", "Long."), Message("user", "ab"))
    cuts = [to_chat(prefix) for prefix, _ in cache_points([system, user])]
    assert cuts == [(Message("system", "Long."),), (Message("system", "Long."), Message("user", "a"))]
    first = ChatMessage(role="user", blocks=[point, TextBlock(text="b")])
    assert [to_chat(prefix) for prefix, _ in cache_points([system, first])][1] == (Message("system", "Long."),)
    assert list(cache_points([first])) == []

"""LlamaIndex's messages and their blocks ↔ the chat layer's messages.

Rules. What a block says is kept or refused, never dropped: text, images, calls and thinking have a place in the chat
layer; a `CachePoint` says nothing to the model and becomes a cut (`cache_points`); audio, video and documents are
refused. The caller's messages are only read. Text blocks are joined as they are, without a separator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from radixbackend.chat import ContentPart, ImagePart, Message, TextPart, ToolCall
from radixbackend.errors import InvalidRequestError

ROLES: Mapping[MessageRole, str] = {
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
"""LlamaIndex's roles that have another name here."""


def to_chat(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Messages for the chat layer; `InvalidRequestError` says which message is at fault."""
    made = []
    for index, message in enumerate(messages):
        try:
            made.append(_message(message))
        except (InvalidRequestError, ValueError, OSError) as fault:  # a block's file or base64, too
            raise InvalidRequestError(f"messages[{index}] {fault}", param="messages") from fault
    return tuple(made)


def from_chat(message: Message) -> ChatMessage:
    """A finished answer. The arguments of a call that was cut short are its text, otherwise an object."""
    calls = [(call, _whole(call.arguments)) for call in message.tool_calls]
    return assemble(message.text, message.reasoning or "", calls)


def assemble(content: str, reasoning: str, calls: Iterable[tuple[ToolCall, Mapping[str, Any] | str]]) -> ChatMessage:
    """The assistant's message of these; calls come with what is known of their arguments.

    LlamaIndex looks for calls in two places: its agents in the blocks, its programs in ``additional_kwargs``.
    """
    calls = list(calls)
    blocks: list[ContentBlock] = [ThinkingBlock(content=reasoning)] if reasoning else []
    if content or not calls:
        blocks.append(TextBlock(text=content))
    for call, arguments in calls:
        kwargs = arguments if isinstance(arguments, str) else dict(arguments)
        blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=kwargs))
    more = {"tool_calls": [call.as_dict() for call, _ in calls]} if calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=more)


def cache_points(messages: Sequence[ChatMessage]) -> Iterator[tuple[list[ChatMessage], CachePoint]]:
    """For each `CachePoint`, the messages up to it and itself; the last message is cut at the point."""
    for index, message in enumerate(messages):
        for at, block in enumerate(message.blocks):
            if isinstance(block, CachePoint) and index + at > 0:
                cut = [message.model_copy(update={"blocks": message.blocks[:at]})] if at else []
                yield [*messages[:index], *cut], block


def takes_long(messages: Sequence[ChatMessage]) -> bool:
    """Whether to convert them off the event loop: images are read and encoded, and before a cache point computed."""
    return any(isinstance(block, ImageBlock | CachePoint) for message in messages for block in message.blocks)


def _message(message: ChatMessage) -> Message:
    parts = [part for block in message.blocks for part in _parts(block)]
    text_alone = all(isinstance(part, TextPart) for part in parts)
    content: Any = "".join(part.text for part in parts if isinstance(part, TextPart)) if text_alone else tuple(parts)
    role = ROLES.get(message.role, message.role.value)
    more = message.additional_kwargs
    calls = tuple(_calls(message)) if role == "assistant" else ()
    thoughts = [block.content for block in message.blocks if isinstance(block, ThinkingBlock) and block.content]
    return Message(
        role,  # type: ignore[arg-type]  # Message checks it
        content if content or role != "assistant" or not calls else None,
        name=more.get("name"),
        tool_calls=calls,
        tool_call_id=more.get("tool_call_id") if role == "tool" else None,
        reasoning="\n".join(thoughts) or None if role == "assistant" else None,
    )


def _parts(block: ContentBlock) -> list[ContentPart]:
    if isinstance(block, TextBlock):
        return [TextPart(block.text)] if block.text else []
    if isinstance(block, ImageBlock):
        return [ImagePart(_image_url(block), block.detail)]
    if isinstance(block, CitableBlock | CitationBlock):
        return [part for nested in block.nested_blocks for part in _parts(nested)]  # type: ignore[arg-type]
    if isinstance(block, ThinkingBlock | ToolCallBlock | CachePoint):
        return []
    raise InvalidRequestError(f"has a block of type {block.block_type!r}; models here read text and images")


def _image_url(block: ImageBlock) -> str:
    """A ``data:`` URL of the image; one of the web stays as it is, for whoever answers to fetch or refuse."""
    if block.image is None and block.path is None and block.url is not None:
        return str(block.url)
    data = block.resolve_image(as_base64=True).read().decode()
    return f"data:{block.image_mimetype or 'image/png'};base64,{data}"


def _calls(message: ChatMessage) -> Iterator[ToolCall]:
    """The calls of an assistant, from its blocks, or from where other integrations leave them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    for block in blocks:
        arguments = block.tool_kwargs or {}
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        yield ToolCall(block.tool_call_id or "", block.tool_name, text)
    if not blocks:
        for call in message.additional_kwargs.get("tool_calls") or ():
            yield ToolCall.of(call if isinstance(call, Mapping) else call.model_dump())


def _whole(arguments: str) -> Mapping[str, Any] | str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments

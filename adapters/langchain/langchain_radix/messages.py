"""LangChain's messages and the chat layer's, in both directions.

Rules. On the way in nothing is dropped silently: a block that no model here reads is refused with its place and its
kind. Blocks are read in every dialect that LangChain lets into a history (its own of v0 and v1, OpenAI's, Anthropic's).
Reasoning goes both ways as ``additional_kwargs["reasoning_content"]`` or as blocks. On the way out the chunks of a
stream, added up, are the message of a plain call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import ToolCall as LangChainCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.outputs import ChatResult as LangChainResult

from langchain_radix.blocks import PROVIDER
from radixbackend.chat import (
    ChatChoice,
    ChatDelta,
    ChatResult,
    ContentPart,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
)
from radixbackend.errors import InvalidRequestError
from radixbackend.types import TokenLogprob, Usage

# -- to the chat layer -----------------------------------------------------------------------------------------------

_ROLES = {"human": "user", "ai": "assistant", "function": "tool"}
"""Roles that `ChatMessage` may have, by LangChain's names; the others are OpenAI's."""

_SAID_ELSEWHERE = frozenset(("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call"))
"""Blocks that repeat what a message has in ``tool_calls``."""


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """Raises `InvalidRequestError` that says which message is wrong and how."""
    made = []
    for index, message in enumerate(messages):
        try:
            made.append(_to_message(message))
        except InvalidRequestError as fault:
            raise InvalidRequestError(f"messages[{index}] {fault}", param="messages") from fault
    return tuple(made)


def _to_message(message: BaseMessage) -> Message:
    name = message.name or message.additional_kwargs.get("name")
    if isinstance(message, HumanMessage):
        return Message("user", _content(message.content), name)
    if isinstance(message, SystemMessage):
        developer = message.additional_kwargs.get("__openai_role__") == "developer"
        return Message("developer" if developer else "system", _content(message.content), name)
    if isinstance(message, AIMessage):
        return _to_assistant(message, name)
    if isinstance(message, ToolMessage):
        return Message("tool", _content(message.content), name, tool_call_id=message.tool_call_id)
    if isinstance(message, ChatMessage):
        role: Any = _ROLES.get(message.role, message.role)  # `Message` checks it
        return Message(role, _content(message.content), name)
    raise InvalidRequestError(f"is a {type(message).__name__}, which chat models here do not read")


def _to_assistant(message: AIMessage, name: str | None) -> Message:
    content = _content(message.content, reads_images=False)
    thought = message.additional_kwargs.get("reasoning_content")
    if not isinstance(thought, str):
        thought = "".join(_thoughts(message.content)) or None
    calls = (*(_to_call(call) for call in message.tool_calls), *(_to_call(c) for c in message.invalid_tool_calls))
    return Message("assistant", content or (None if calls else ""), name, calls, reasoning=thought)


def _to_call(call: LangChainCall | InvalidToolCall) -> ToolCall:
    arguments = call["args"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(call.get("id") or "", call["name"] or "", text)


def _content(content: str | list[str | dict[str, Any]], *, reads_images: bool = True) -> str | tuple[ContentPart, ...]:
    """Text joined to one string where there is nothing else."""
    if isinstance(content, str):
        return content
    parts = [part for block in content if (part := _part(block, reads_images)) is not None]
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return tuple(parts)


def _part(block: str | Mapping[str, Any], reads_images: bool) -> ContentPart | None:
    """None for what is said elsewhere, or was thought."""
    if isinstance(block, str):
        return TextPart(block)
    kind = block.get("type")
    if kind in ("text", "input_text", "output_text", "text-plain", "refusal"):
        return TextPart(_string(block.get("refusal" if kind == "refusal" else "text"), f"a block of type {kind!r}"))
    if kind in _SAID_ELSEWHERE or _thought(block) is not None:
        return None
    if kind == "non_standard" and isinstance(value := block.get("value"), Mapping):
        return _part(value, reads_images)
    if kind in ("image", "image_url", "input_image"):
        if not reads_images:
            raise InvalidRequestError("is the assistant's and has an image; models here answer with text")
        return _image(block)
    raise InvalidRequestError(
        f"has a block of type {kind!r}; blocks here are text, image, reasoning and calls of tools"
    )


def _image(block: Mapping[str, Any]) -> ImagePart:
    """From LangChain's ``image`` (v0 or v1), OpenAI's ``image_url`` or Anthropic's ``image`` with a ``source``."""
    found = block.get("image_url", block.get("url"))
    source = block.get("source")
    if isinstance(found, Mapping):
        return ImagePart(_string(found.get("url"), "the url of an image"), found.get("detail"))
    if isinstance(found, str):
        return ImagePart(found, block.get("detail"))
    if isinstance(source, Mapping):
        if isinstance(source.get("url"), str):
            return ImagePart(source["url"])
        block = {"mime_type": source.get("media_type"), "base64": source.get("data")}
    data = block.get("base64", block.get("data"))
    if isinstance(data, bytes):
        data = data.decode("ascii")
    if not isinstance(data, str):
        raise InvalidRequestError("has an image without url and base64 data; an image by file_id is not known here")
    return ImagePart(f"data:{block.get('mime_type') or 'image/png'};base64,{data}")


def _thoughts(content: str | list[str | dict[str, Any]]) -> Iterator[str]:
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and (thought := _thought(block)) is not None:
            yield thought


def _thought(block: Mapping[str, Any]) -> str | None:
    """The text of a block of reasoning; empty where it is encrypted or redacted, None for other blocks."""
    kind = block.get("type")
    if kind in ("reasoning", "reasoning_content"):
        found = block.get("reasoning", block.get("text", block.get("reasoning_content", "")))
        return found if isinstance(found, str) else ""
    if kind in ("thinking", "redacted_thinking"):
        return str(block.get("thinking") or "")
    return None


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"has {what} that is no text: {value!r}")
    return value


# -- to LangChain ----------------------------------------------------------------------------------------------------

TokenBytes = Callable[[int], bytes]
"""What a token adds to a text."""


def to_result(result: ChatResult, token_bytes: TokenBytes) -> LangChainResult:
    """All choices; usage, which is of all of them together, is on each, as OpenAI's is."""
    generations = [_generation(choice, result, token_bytes) for choice in result.choices]
    output = {"token_usage": _token_usage(result.usage), "model_name": result.model, "model_provider": PROVIDER}
    return LangChainResult(generations=generations, llm_output=output)


def _generation(choice: ChatChoice, result: ChatResult, token_bytes: TokenBytes) -> ChatGeneration:
    message = choice.message
    calls, invalid = _calls(message.tool_calls, choice.complete)
    made = AIMessage(
        content=message.text,
        additional_kwargs={} if message.reasoning is None else {"reasoning_content": message.reasoning},
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=_usage(result.usage),
        response_metadata={"model_name": result.model, "model_provider": PROVIDER},
    )
    info = _ending(choice)
    if choice.logprobs is not None:
        info["logprobs"] = _logprobs(choice.logprobs, token_bytes)
    return ChatGeneration(message=made, generation_info=info)


def _ending(last: ChatChoice | ChatDelta) -> dict[str, Any]:
    """How an answer ended; what is usual is left out."""
    info: dict[str, Any] = {"finish_reason": last.finish_reason}
    if last.stop_reason is not None:
        info["stop_reason"] = last.stop_reason
    if not last.complete:
        info["complete"] = False
    return info


def _calls(calls: Sequence[ToolCall], complete: bool) -> tuple[list[LangChainCall], list[InvalidToolCall]]:
    """A call that was cut, so that its arguments are no JSON, is an invalid one."""
    good, bad = [], []
    nothing = "{}" if complete else ""
    for call in calls:
        try:
            good.append(tool_call(name=call.name, args=json.loads(call.arguments or nothing), id=call.id))
        except ValueError as fault:
            bad.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=str(fault)))
    return good, bad


def _usage(usage: Usage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
        output_token_details={},
    )


def _token_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's shape, which LangChain's older callbacks read."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"forced_tokens": usage.forced_tokens},
    }


def _logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes) -> dict[str, Any]:
    """OpenAI's shape, and the tokens' ids."""

    def token(number: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(number)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(raw), "id": number}

    return {
        "content": [
            {**token(entry.token_id, entry.logprob), "top_logprobs": [token(*pair) for pair in entry.top]}
            for entry in entries
        ],
        "refusal": None,
    }


LOWEST = -9999.0
"""In place of minus infinity, which JSON cannot say; OpenAI's own."""


def to_chunks(
    delta: ChatDelta, model: str, token_bytes: TokenBytes, *, usage: bool = True
) -> Iterator[ChatGenerationChunk]:
    """The chunks of one delta: one with what is new, if anything is; and after an answer's last delta one that ends
    the message, so that a piece of a call is never taken for all of it.
    """
    if delta.content or delta.reasoning or delta.logprobs:
        thought = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
        news = AIMessageChunk(content=delta.content, additional_kwargs=thought, response_metadata=_MADE_BY)
        info = {"logprobs": _logprobs(delta.logprobs, token_bytes)} if delta.logprobs else None
        yield ChatGenerationChunk(message=news, generation_info=info)
    if delta.tool_calls:
        pieces = [
            tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=call.index)
            for call in delta.tool_calls
        ]
        calls = AIMessageChunk(content="", tool_call_chunks=pieces, response_metadata=_MADE_BY)
        yield ChatGenerationChunk(message=calls)
    if delta.finish_reason is not None:
        last = AIMessageChunk(
            content="",
            usage_metadata=_usage(delta.usage) if usage and delta.usage is not None else None,
            response_metadata={**_MADE_BY, "model_name": model},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last, generation_info=_ending(delta))


_MADE_BY = {"model_provider": PROVIDER}

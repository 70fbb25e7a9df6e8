"""POST /v1/chat/completions: `ChatResult` and `ChatDelta`s in OpenAI's shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from radixbackend.chat.request import ChatChoice, ChatDelta, ChatRequest, ToolCallDelta
from radixbackend.openai_api.faces import Face
from radixbackend.openai_api.protocol import ChatCompletionRequest
from radixbackend.openai_api.served import Served
from radixbackend.openai_api.wire import DONE, TokenTexts, chat_logprobs, new_id, now, sse, usage

Answer = dict[str, Any] | AsyncGenerator[bytes]


async def create(asked: ChatCompletionRequest, served: Served, face: Face) -> Answer:
    request = await face.call(asked.chat) if len(asked.messages) > MANY_MESSAGES else asked.chat()
    head = {"id": new_id("chatcmpl"), "created": now(), "model": asked.model or served.name}
    if asked.stream:
        return _stream(request, asked, served, face, head)
    result = await face.chat(request)
    return {
        **head,
        "object": "chat.completion",
        "choices": [_choice(choice, served.texts) for choice in result.choices],
        "usage": usage(result.usage),
    }


MANY_MESSAGES = 256
"""From which on a conversation is checked off the event loop."""


def _choice(choice: ChatChoice, texts: TokenTexts) -> dict[str, Any]:
    message = choice.message
    body: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
    if message.reasoning is not None:
        body["reasoning_content"] = message.reasoning
    if message.tool_calls:
        body["tool_calls"] = [call.as_dict() for call in message.tool_calls]
    return {
        "index": choice.index,
        "message": body,
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs, texts),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "complete": choice.complete,
    }


async def _stream(
    request: ChatRequest, asked: ChatCompletionRequest, served: Served, face: Face, head: dict[str, Any]
) -> AsyncGenerator[bytes]:
    head["object"] = "chat.completion.chunk"
    chunks = Chunks(served.texts, logprobs=bool(asked.logprobs))
    used = None
    async with contextlib.aclosing(face.chat_stream(request)) as deltas:
        async for delta in deltas:
            used = delta.usage or used
            if (choice := chunks.of(delta)) is not None:
                yield sse({**head, "choices": [choice]})
    if asked.include_usage and used is not None:
        yield sse({**head, "choices": [], "usage": usage(used)})
    yield DONE


class Chunks:
    """Deltas as the choices of chunks. The first of each choice says who speaks."""

    def __init__(self, texts: TokenTexts, *, logprobs: bool) -> None:
        self._texts = texts
        self._logprobs = logprobs
        self._begun: set[int] = set()

    def of(self, delta: ChatDelta) -> dict[str, Any] | None:
        """None where there is nothing to say yet."""
        body: dict[str, Any] = {}
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            body = {"role": "assistant", "content": ""}
        if delta.content:
            body["content"] = delta.content
        if delta.reasoning:
            body["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            body["tool_calls"] = [_call(call) for call in delta.tool_calls]
        if not body and delta.finish_reason is None and not (self._logprobs and delta.logprobs):
            return None
        choice: dict[str, Any] = {"index": delta.index, "delta": body, "finish_reason": delta.finish_reason}
        if self._logprobs:
            choice["logprobs"] = chat_logprobs(delta.logprobs, self._texts)
        if delta.finish_reason is not None:
            choice |= {"stop_reason": delta.stop_reason, "complete": delta.complete}
        return choice


def _call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"arguments": call.arguments}
    if call.id is None:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, **function}}

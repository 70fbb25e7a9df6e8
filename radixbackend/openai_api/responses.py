"""POST /v1/responses: OpenAI's newer shape of a chat, as items.

Rules. Stateless: the whole conversation comes with each request, and nothing is kept. An answer is at most one
reasoning item, at most one message and any number of function calls, in the order in which the model writes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from radixbackend.chat.request import ChatDelta, ChatRequest, ChatResult, ResponseFormat, Tool, ToolCall, ToolCallDelta
from radixbackend.errors import InvalidRequestError
from radixbackend.openai_api.faces import Face, WaitedTooLong
from radixbackend.openai_api.faults import ApiError, api_error
from radixbackend.openai_api.protocol import MOST_LOGPROBS, Json, Many, SamplingWire, Wire
from radixbackend.openai_api.served import Served
from radixbackend.openai_api.wire import TokenTexts, chat_logprobs, dumps, new_id, now
from radixbackend.types import TokenLogprob, Usage

Answer = dict[str, Any] | AsyncGenerator[bytes]

LOGPROBS = "message.output_text.logprobs"
_STATE = ("previous_response_id", "conversation", "background", "prompt")


class TextWire(Wire):
    format: Json | None = None


class ReasoningWire(Wire):
    effort: str | None = None


class ResponsesRequest(SamplingWire):
    """POST /v1/responses."""

    input: str | Many[Json]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextWire | None = None
    tools: Many[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningWire | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    include: Many[str] | None = None
    metadata: Json | None = None
    chat_template_kwargs: Json | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens to report beside each; None reports nothing."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    def chat(self) -> ChatRequest:
        """Raises `InvalidRequestError` or `ApiError`."""
        for name in _STATE:
            if getattr(self, name):
                raise ApiError(
                    400,
                    f"'{name}' is not served: nothing is kept here, so pass the whole conversation as 'input'.",
                    code="unsupported_parameter",
                    param=name,
                )
        if (self.n or 1) > 1:
            raise ApiError(400, "'n' above 1 is not served here.", code="unsupported_parameter", param="n")
        limit = self.max_tokens if self.max_output_tokens is None else self.max_output_tokens
        return ChatRequest.of(
            conversation(self.input, self.instructions),
            tools=self.tools,
            tool_choice=self.tool_choice,
            response_format=self.text_format() or self.format(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            sampling=self.sampling(limit, self.logprobs, None),
            chat_template_kwargs=self.chat_template_kwargs or {},
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            priority=self.priority or 0,
            cache_salt=self.cache_salt,
        )

    def text_format(self) -> ResponseFormat | None:
        """``text.format``, which is flat where ``response_format`` is nested."""
        if self.text is None or self.text.format is None:
            return None
        fields = self.text.format
        return ResponseFormat.of({"json_schema": fields, **fields})

    @property
    def params(self) -> dict[str, str]:
        shaped = self.text is not None and self.text.format is not None
        return {
            "messages": "input",
            "prompt": "input",
            "images": "input",
            "max_tokens": "max_output_tokens",
            "logprobs": "top_logprobs",
            "constraint": "text.format" if shaped else self.constraint_field,
            "response_format": "text.format" if shaped else "response_format",
        }


# -- what is asked -------------------------------------------------------------------------------------------------


def conversation(items: str | Sequence[Json], instructions: str | None) -> list[Json]:
    """Items as messages; the calls and the reasoning of one turn become one assistant message."""
    messages: list[Json] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    turn: Json | None = None  # the assistant's message that further items may belong to
    for index, item in enumerate(items):
        try:
            turn = _add(item, messages, turn)
        except InvalidRequestError as fault:
            raise InvalidRequestError(f"input[{index}] {fault}", param="input") from fault
    return messages


def _add(item: Json, messages: list[Json], turn: Json | None) -> Json | None:
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") != "assistant":
        messages.append({"role": item.get("role"), "content": item.get("content")})
        return None
    if kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        return None
    if kind not in ("message", "function_call", "reasoning"):
        raise InvalidRequestError(
            f"has the type {kind!r}; items are message, reasoning, function_call and function_call_output"
        )
    if turn is None or (kind == "message" and "content" in turn):
        turn = {"role": "assistant"}
        messages.append(turn)
    if kind == "message":
        turn["content"] = item.get("content")
    elif kind == "reasoning":
        turn["reasoning_content"] = _reasoning_text(item)
    else:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
    return turn


def _reasoning_text(item: Json) -> str:
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise InvalidRequestError("is reasoning whose content is not a list of texts")
    return "".join(part["text"] for part in parts)


# -- what is answered ----------------------------------------------------------------------------------------------


async def create(asked: ResponsesRequest, served: Served, face: Face) -> Answer:
    request = asked.chat()
    body = _empty(asked, request, served)
    if asked.stream:
        return _stream(request, asked, served, face, body)
    result = await face.chat(request)
    body["output"] = _items(result, served.texts)
    reasoning = served.count(result.reasoning)
    return _finished(body, result.finish_reason == "length", result.usage, reasoning)


def _empty(asked: ResponsesRequest, request: ChatRequest, served: Served) -> dict[str, Any]:
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "metadata": asked.metadata or {},
        "model": asked.model or served.name,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_output_tokens": asked.max_output_tokens,
        "tool_choice": asked.tool_choice or "auto",
        "tools": [_tool(tool) for tool in request.tools],
        "text": {"format": (asked.text and asked.text.format) or {"type": "text"}},
        "reasoning": {"effort": request.reasoning_effort, "summary": None},
        "truncation": "disabled",
        "store": False,
        "previous_response_id": None,
        "usage": None,
    }


def _tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.schema,
        "strict": tool.strict is not False,
    }


def _finished(body: dict[str, Any], cut: bool, used: Usage, reasoning: int) -> dict[str, Any]:
    return {
        **body,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "usage": {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning, "forced_tokens": used.forced_tokens},
            "total_tokens": used.total_tokens,
        },
    }


def _items(result: ChatResult, texts: TokenTexts) -> list[dict[str, Any]]:
    """The output as the same items that a stream would make."""
    choice = result.choices[0]
    calls = tuple(_whole(index, call) for index, call in enumerate(choice.message.tool_calls))
    output = Output(texts, choice.logprobs is not None)
    # An answer that is neither reasoning nor calls is a message, be it empty.
    delta = ChatDelta(
        content=choice.message.text,
        reasoning=choice.message.reasoning or "",
        tool_calls=calls,
        logprobs=choice.logprobs or (),
    )
    for _ in (*output.feed(delta), *output.end(choice.finish_reason == "length")):
        pass
    return output.items


def _whole(index: int, call: ToolCall) -> ToolCallDelta:
    return ToolCallDelta(index, call.arguments, call.id, call.name)


class Output:
    """The items of an answer as they grow, and the events that say so. At most one item is open at a time."""

    def __init__(self, texts: TokenTexts, logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self._texts = texts
        self._logprobs = logprobs
        self._open: dict[str, Any] | None = None
        self._call: int | None = None  # the index of the open item's call

    def feed(self, delta: ChatDelta) -> Iterator[dict[str, Any]]:
        """Events without their sequence numbers."""
        if delta.reasoning:
            yield from self._switch("reasoning")
            yield from self._grow("reasoning_text", delta.reasoning)
        if delta.content:
            yield from self._switch("message")
            yield from self._grow("output_text", delta.content, self._entries(delta.logprobs))
        for call in delta.tool_calls:
            yield from self._switch("function_call", call)
            assert self._open is not None
            self._open["arguments"] += call.arguments
            if call.arguments:
                yield self._event("response.function_call_arguments.delta", delta=call.arguments)

    def end(self, cut: bool) -> Iterator[dict[str, Any]]:
        """``cut``: the answer ran into its limit."""
        if not self.items:
            yield from self._switch("message")
        yield from self._close("incomplete" if cut else "completed")

    def _entries(self, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = chat_logprobs(logprobs, self._texts)["content"] if self._logprobs else []
        return entries

    def _switch(self, kind: str, call: ToolCallDelta | None = None) -> Iterator[dict[str, Any]]:
        """Have an item of this kind open, of this call if it is one."""
        index = None if call is None else call.index
        if self._open is not None and (self._open["type"], self._call) == (kind, index):
            return
        yield from self._close("completed")
        self._open, self._call = _new_item(kind, call), index
        self.items.append(self._open)
        yield self._event("response.output_item.added", item=_copy(self._open))
        if kind != "function_call":
            part = _new_part(kind)
            self._open["content"] = [part]
            yield self._event("response.content_part.added", content_index=0, part=dict(part))

    def _grow(self, kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        more = {}
        if logprobs is not None:
            part["logprobs"] += logprobs
            more = {"logprobs": logprobs}
        yield self._event(f"response.{kind}.delta", content_index=0, delta=text, **more)

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        if (item := self._open) is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            yield self._event("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        else:
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            yield self._event(f"response.{part['type']}.done", content_index=0, text=part["text"], **more)
            yield self._event("response.content_part.done", content_index=0, part=dict(part))
        yield self._event("response.output_item.done", item=_copy(item))
        self._open = None

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert self._open is not None
        event = {"type": kind, "output_index": len(self.items) - 1, **fields}
        return event if "item" in fields else {**event, "item_id": self._open["id"]}


def _new_item(kind: str, call: ToolCallDelta | None) -> dict[str, Any]:
    if call is not None:
        return {
            "type": kind,
            "id": new_id("fc"),
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
    if kind == "reasoning":
        return {"type": kind, "id": new_id("rs"), "summary": [], "content": [], "status": "in_progress"}
    return {"type": kind, "id": new_id("msg"), "role": "assistant", "content": [], "status": "in_progress"}


def _new_part(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _copy(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: [dict(part) for part in value] if key == "content" else value for key, value in item.items()}


async def _stream(
    request: ChatRequest, asked: ResponsesRequest, served: Served, face: Face, body: dict[str, Any]
) -> AsyncGenerator[bytes]:
    number = 0

    def say(event: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return (
            f"event: {event['type']}\n".encode() + b"data: " + dumps({**event, "sequence_number": number - 1}) + b"\n\n"
        )

    output = Output(served.texts, asked.logprobs is not None)
    reasoning, cut, used, begun = "", False, Usage(), False
    try:
        async with contextlib.aclosing(face.chat_stream(request)) as deltas:
            async for delta in deltas:
                if not begun:  # not before: what fails at once is answered with a status
                    begun = True
                    yield say({"type": "response.created", "response": body})
                    yield say({"type": "response.in_progress", "response": body})
                for event in output.feed(delta):
                    yield say(event)
                reasoning += delta.reasoning
                used = delta.usage or used
                cut = cut or delta.finish_reason == "length"
        for event in output.end(cut):
            yield say(event)
        body = _finished({**body, "output": output.items}, cut, used, served.count(reasoning))
        yield say({"type": f"response.{body['status']}", "response": body})
    except (WaitedTooLong, GeneratorExit):
        raise
    except Exception as fault:
        if not begun:
            raise
        error = api_error(fault, asked.params, reveal=served.reveal)
        failed = {"code": "server_error", "message": error.message}
        body = {**body, "output": output.items, "status": "failed", "error": failed}
        yield say({"type": "response.failed", "response": body})

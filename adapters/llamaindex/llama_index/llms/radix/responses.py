"""Answers of the chat layer → LlamaIndex's responses, whole or growing.

Rules. A response of a stream holds all of the answer so far, and its last one is what `whole` would give. Usage is
where LlamaIndex looks for it: in ``raw["usage"]`` for its token counter, in ``additional_kwargs`` for everybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.llms.radix.messages import assemble, from_chat
from llama_index.llms.radix.partial import GrowingJson

from radixbackend.chat import Chat, ChatDelta, ChatResult, Message, ToolCall, ToolCallDelta
from radixbackend.errors import OutputValidationError
from radixbackend.types import TokenLogprob, Usage


def whole(result: ChatResult, chat: Chat) -> ChatResponse:
    """The response to a finished request of ``chat``."""
    choice = result.choices[0]
    return ChatResponse(
        message=from_chat(choice.message),
        raw=_raw(result.model, choice.finish_reason, choice.stop_reason, choice.complete, result.usage),
        logprobs=_logprobs(choice.logprobs or (), chat),
        additional_kwargs=_counts(result.usage),
    )


class Gathering:
    """Gathers the deltas of one answer."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._content = ""
        self._reasoning = ""
        self._calls: list[_Call] = []

    def add(self, delta: ChatDelta) -> ChatResponse:
        """The response so far."""
        self._content += delta.content
        self._reasoning += delta.reasoning
        for piece in delta.tool_calls:
            self._add_call(piece)
        more: dict[str, Any] = _counts(delta.usage) if delta.usage is not None else {}
        if delta.reasoning:
            more["thinking_delta"] = delta.reasoning
        return ChatResponse(
            message=self._message(finished=delta.finish_reason is not None),
            delta=delta.content,
            raw=_raw(self._chat.model_name, delta.finish_reason, delta.stop_reason, delta.complete, delta.usage),
            logprobs=_logprobs(delta.logprobs, self._chat),
            additional_kwargs=more,
        )

    def _add_call(self, piece: ToolCallDelta) -> None:
        while len(self._calls) <= piece.index:
            self._calls.append(_Call())
        self._calls[piece.index].add(piece)

    def _message(self, *, finished: bool) -> ChatMessage:
        if finished:
            calls = tuple(call.whole for call in self._calls)
            return from_chat(Message("assistant", self._content, tool_calls=calls, reasoning=self._reasoning or None))
        return assemble(self._content, self._reasoning, [(call.whole, call.known) for call in self._calls])


class _Call:
    """A call as it comes. ``known`` is what is certain of its arguments."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self._text = ""
        self._json = GrowingJson()
        self.known: dict[str, Any] = {}

    def add(self, piece: ToolCallDelta) -> None:
        self.id = piece.id or self.id
        self.name = piece.name or self.name
        self._text += piece.arguments
        for _ in self._json.feed(piece.arguments):
            pass
        value = self._json.value
        self.known = value if isinstance(value, dict) else {}

    @property
    def whole(self) -> ToolCall:
        return ToolCall(self.id, self.name, self._text)


def completion(response: ChatResponse) -> CompletionResponse:
    """The same as the answer to a prompt."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def tool_selections(response: ChatResponse) -> list[ToolSelection]:
    """The calls of a response; `OutputValidationError` for one that was cut short."""
    return [_selection(block) for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def _selection(block: ToolCallBlock) -> ToolSelection:
    arguments = block.tool_kwargs
    if isinstance(arguments, str):  # see `from_chat`
        raise OutputValidationError(
            f"the answer was cut within the arguments of a call of {block.tool_name}; raise max_tokens",
            keyword="json",
            path="",
            text=arguments,
        )
    return ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=arguments)


def keep_first_call(response: ChatResponse) -> None:
    """Drop all calls but the first."""
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if len(calls) > 1:
        message = response.message
        message.blocks = [block for block in message.blocks if block not in calls[1:]]
        message.additional_kwargs["tool_calls"] = message.additional_kwargs["tool_calls"][:1]


def _logprobs(tokens: Sequence[TokenLogprob], chat: Chat) -> list[list[LogProb]] | None:
    """At each place the likeliest tokens, or the chosen one where no others were asked for."""
    if not tokens:
        return None
    places = [token.top or ((token.token_id, token.logprob),) for token in tokens]
    return [[_logprob(chat.token_bytes(token), value) for token, value in place] for place in places]


def _logprob(text: bytes, value: float) -> LogProb:
    return LogProb(token=text.decode(errors="replace"), logprob=value, bytes=list(text))


def _counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _raw(
    model: str, finish_reason: str | None, stop_reason: int | str | None, complete: bool, usage: Usage | None
) -> dict[str, Any]:
    return {
        "model": model,
        "finish_reason": finish_reason,
        "stop_reason": stop_reason,
        "complete": complete,
        "usage": None if usage is None else _counts(usage),
    }

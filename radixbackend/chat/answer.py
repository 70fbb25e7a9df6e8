"""From the text of an answer to its message: deltas as it comes, or the whole at once.

Rules. Both go through the same parser, and what it gives out does not depend on how the text was cut: the deltas of a
stream joined are the message of `complete`. An answer that ended by itself is validated before it is called a
success; a truncated one is handed over as it is and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from radixbackend.chat.constraint import AnswerPlan
from radixbackend.chat.formats.base import (
    AnswerParser,
    CallArguments,
    CallEnd,
    CallStart,
    Piece,
    Reasoning,
    Text,
)
from radixbackend.chat.request import (
    ChatChoice,
    ChatDelta,
    ChatFinishReason,
    ChatResult,
    Message,
    ToolCall,
    ToolCallDelta,
)
from radixbackend.types import Choice, FinishReason, GenerationResult, TokenEvent, Usage


@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """What it takes to read the answers to one request."""

    plan: AnswerPlan
    new_parser: Callable[[], AnswerParser]
    new_id: Callable[[], str]


class ChoiceReader:
    """Reads one choice. ``content``, ``reasoning`` and ``calls`` are what has come so far."""

    def __init__(self, spec: AnswerSpec, index: int) -> None:
        self._spec = spec
        self._index = index
        self._parser = spec.new_parser()
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._ends_in_call = False  # the last piece ended a call

    def read(self, event: TokenEvent) -> ChatDelta:
        """The event's delta, perhaps an empty one; raises `OutputValidationError` where the answer breaks a schema."""
        pieces = self._parser.feed(event.text)
        finish: ChatFinishReason | None = None
        if event.finish_reason is not None:
            pieces += self._parser.finish(truncated=event.finish_reason == "length" or not event.complete)
            finish = self._finish(pieces, event.finish_reason, event.complete)
        else:
            self._take(pieces)
        return ChatDelta(
            self._index,
            content=_joined(pieces, Text),
            reasoning=_joined(pieces, Reasoning),
            tool_calls=self._call_deltas(pieces),
            finish_reason=finish,
            stop_reason=event.stop_reason,
            complete=event.complete,
            logprobs=event.logprobs,
            token_ids=event.token_ids,
        )

    def _finish(self, pieces: list[Piece], reason: FinishReason, complete: bool) -> ChatFinishReason:
        """Calls that are whole when the budget ends are as good as calls that ended by themselves."""
        self._take(pieces)
        whole = complete and (reason == "stop" or self._ends_in_call)
        if whole:
            self._validate()
        return "tool_calls" if whole and self._calls else reason

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._ends_in_call = isinstance(piece, CallEnd)
            if isinstance(piece, Text):
                self._content.append(piece.text)
            elif isinstance(piece, Reasoning):
                self._reasoning.append(piece.text)
            elif isinstance(piece, CallStart):
                self._calls.append(_Call(piece.id or self._spec.new_id(), piece.name, []))
            elif isinstance(piece, CallArguments):
                self._calls[-1].arguments.append(piece.text)

    def _call_deltas(self, pieces: list[Piece]) -> tuple[ToolCallDelta, ...]:
        """The calls' pieces, those of one call joined."""
        index = len(self._calls) - sum(isinstance(piece, CallStart) for piece in pieces) - 1
        deltas: list[ToolCallDelta] = []
        for piece in pieces:
            if isinstance(piece, CallStart):
                index += 1
                deltas.append(ToolCallDelta(index, "", self._calls[index].id, piece.name))
            elif isinstance(piece, CallArguments):
                if deltas and deltas[-1].index == index:
                    last = deltas.pop()
                    deltas.append(ToolCallDelta(index, last.arguments + piece.text, last.id, last.name))
                else:
                    deltas.append(ToolCallDelta(index, piece.text))
        return tuple(deltas)

    def _validate(self) -> None:
        plan = self._spec.plan
        for call in self._calls:
            plan.check_arguments(call.name, "".join(call.arguments))
        if not self._calls and plan.check_content is not None:
            plan.check_content("".join(self._content))

    def message(self) -> Message:
        content = "".join(self._content)
        return Message(
            "assistant",
            content if content or not self._calls else None,
            tool_calls=tuple(ToolCall(call.id, call.name, "".join(call.arguments)) for call in self._calls),
            reasoning="".join(self._reasoning) or None,
        )


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str]


class StreamReader:
    """Reads the events of all choices of one request."""

    def __init__(self, spec: AnswerSpec, n: int) -> None:
        self._choices = [ChoiceReader(spec, index) for index in range(n)]
        self._usages: list[Usage] = []
        self._silent: list[tuple[int, ...]] = [() for _ in range(n)]  # tokens that no delta stands for yet

    def read(self, event: TokenEvent) -> ChatDelta | None:
        """The event's delta; None if there is nothing to say yet."""
        delta = self._choices[event.index].read(event)
        delta = replace(delta, token_ids=self._silent[event.index] + delta.token_ids)
        if delta.finish_reason is None:
            news = delta.content or delta.reasoning or delta.tool_calls or delta.logprobs
            self._silent[event.index] = () if news else delta.token_ids
            return delta if news else None
        self._usages.append(event.usage or Usage())
        if len(self._usages) < len(self._choices):
            return delta
        return replace(delta, usage=_total(self._usages))


def whole(result: GenerationResult, spec: AnswerSpec, model: str) -> ChatResult:
    """A finished request's answers; raises `OutputValidationError` where one breaks a schema."""
    choices = tuple(_choice(choice, spec) for choice in result.choices)
    return ChatResult(choices, result.usage, model, result.prompt_token_ids)


def _choice(choice: Choice, spec: AnswerSpec) -> ChatChoice:
    reader = ChoiceReader(spec, choice.index)
    event = TokenEvent(
        choice.index,
        choice.token_ids,
        choice.text,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        complete=choice.complete,
    )
    last = reader.read(event)
    assert last.finish_reason is not None
    return ChatChoice(
        choice.index,
        reader.message(),
        last.finish_reason,
        choice.stop_reason,
        choice.complete,
        choice.logprobs,
        choice.token_ids,
    )


def _joined(pieces: list[Piece], kind: type[Text] | type[Reasoning]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, kind))


def _total(usages: list[Usage]) -> Usage:
    return Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=usages[0].cached_tokens,
        forced_tokens=sum(usage.forced_tokens for usage in usages),
    )

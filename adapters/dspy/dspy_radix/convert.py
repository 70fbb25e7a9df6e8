"""DSPy's canonical values (`dspy.lm15`) ↔ the chat layer's.

Rules. Pure functions. What a request asks for is carried over or refused by name; only what no answer could show
(who the end user is, which service tier) is left out, and then `Response.adaptations` says so. Nothing here waits,
and nothing knows of an engine.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dspy import lm15
from dspy.clients.engines.base import validate_request

from radixbackend import Constraint, SamplingParams, Usage
from radixbackend.chat import (
    ChatDelta,
    ChatRequest,
    ChatResult,
    ContentPart,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from radixbackend.types import TokenLogprob

DOOR = "radix"
"""Where in a request's ``metadata`` the settings are that OpenAI's vocabulary, and so DSPy's, has no names for."""

SAMPLING = frozenset(
    ("min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "include_stop", "skip_special_tokens")
)
FORMATS = frozenset(("regex", "grammar", "choice"))
CHAT = frozenset(("chat_template_kwargs", "continue_final_message", "priority", "cache_salt"))
OWN_SETTINGS = SAMPLING | FORMATS | CHAT
"""Settings of ours that go through the door."""

THINKING, TEXT, CALLS = 0, 1, 2
"""Indices of a message's parts: what it thought, what it says, and its calls from here on."""

Texts = Callable[[int], bytes]
"""The bytes of a token."""


# -- what is asked -------------------------------------------------------------------------------------------------


def to_chat(request: lm15.Request) -> ChatRequest:
    """The request in the chat layer's terms.

    Raises:
        lm15.UnsupportedFeatureError: it asks for something that no model here does; ``feature`` says what.
        InvalidRequestError: a value is out of its range or the history makes no sense.
    """
    validate_request(request)
    config = request.config
    _refuse(config)
    door = _door(config.extensions or {})
    choice = config.tool_choice
    return ChatRequest(
        messages=tuple(_messages(request)),
        tools=tuple(_tool(index, tool) for index, tool in enumerate(request.tools)),
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=choice is None or choice.parallel is not False,
        response_format=_response_format(config.response_format, door),
        sampling=_sampling(config, door),
        reasoning_effort=None if config.reasoning is None else _effort(config.reasoning),
        **{name: door[name] for name in CHAT & door.keys()},
    )


def marked_prefix(request: lm15.Request, asked: ChatRequest) -> ChatRequest | None:
    """What the request's cache hint marks, as the beginning of the conversation; None if it marks nothing."""
    cache = request.config.cache
    if cache is None or (cache.prefix is None and cache.prefix_until_index is None):
        return None
    until = -1 if cache.prefix == "stable" else len(request.messages) - 1
    if cache.prefix_until_index is not None:
        until = cache.prefix_until_index
    marked = request.messages[: until + 1]
    count = (request.system is not None) + sum(len(m.parts) if m.role == "tool" else 1 for m in marked)
    if not count:
        return None
    return ChatRequest(
        asked.messages[:count],
        asked.tools,
        chat_template_kwargs=asked.chat_template_kwargs,
        reasoning_effort=asked.reasoning_effort,
        cache_salt=asked.cache_salt,
    )


def adaptations(config: lm15.Config) -> tuple[lm15.Adaptation, ...]:
    """What of the request has nothing to act on here."""
    idle = {
        "config.user_id": (config.user_id, "an engine in your process has no end users to tell apart"),
        "config.service_tier": (config.service_tier, "there are no tiers; metadata={'radix': {'priority': …}} ranks"),
        "config.store": (config.store or None, "answers are not stored"),
    }
    return tuple(
        lm15.Adaptation(field, "dropped", reason, asked=asked)
        for field, (asked, reason) in idle.items()
        if asked is not None
    )


def _refuse(config: lm15.Config) -> None:
    if config.probabilities == "required":
        raise _unsupported("config.probabilities", "log-probabilities are per token (logprobs=), not per judgment")
    if config.cache is not None and config.cache.resource is not None:
        raise _unsupported("config.cache.resource", "the cache has no named objects; use prefix= and key=")


def _unsupported(feature: str, why: str) -> lm15.UnsupportedFeatureError:
    return lm15.UnsupportedFeatureError(f"{feature}: {why}", provider="radix", feature=feature)


def _messages(request: lm15.Request) -> Iterator[Message]:
    if request.system is not None:
        system = request.system
        yield Message("system", system if isinstance(system, str) else _content(system, "system"))
    for index, message in enumerate(request.messages):
        place = f"messages[{index}]"
        if message.role == "tool":
            for result in message.parts:
                yield Message("tool", _content(result.content, place), result.name, tool_call_id=result.id)
        elif message.role == "assistant":
            yield _assistant(message, place)
        else:
            yield Message(message.role, _content(message.parts, place))


def _assistant(message: lm15.Message, place: str) -> Message:
    said = [part for part in message.parts if part.type not in ("thinking", "tool_call", "citation")]
    thought = [part.text for part in message.parts_of(lm15.ThinkingPart)]
    calls = message.parts_of(lm15.ToolCallPart)
    return Message(
        "assistant",
        _content(said, place) if said or not calls else None,
        tool_calls=tuple(ToolCall(c.id, c.name, json.dumps(c.input, ensure_ascii=False)) for c in calls),
        reasoning="".join(thought) or None,
    )


def _content(parts: Iterable[Any], place: str) -> str | tuple[ContentPart, ...]:
    made = tuple(_part(part, f"{place}.parts[{index}]") for index, part in enumerate(parts))
    if all(isinstance(part, TextPart) for part in made):
        return "".join(part.text for part in made if isinstance(part, TextPart))
    return made


def _part(part: Any, place: str) -> ContentPart:
    if part.type in ("text", "refusal"):
        return TextPart(part.text)
    if part.type == "data":
        return TextPart(json.dumps(part.value, ensure_ascii=False))
    if part.type == "image" and part.file_id is None:
        return ImagePart(part.url or f"data:{part.media_type};base64,{part.data}", part.detail)
    raise _unsupported(place, f"a part of type {part.type} cannot be put to a model here; send text")


def _tool(index: int, tool: Any) -> Tool:
    if not isinstance(tool, lm15.FunctionTool):
        raise _unsupported(f"tools[{index}]", f"{tool.name} would run on a provider's side; pass a function")
    return Tool(tool.name, tool.description or "", tool.parameters)


def _tool_choice(choice: lm15.ToolChoice) -> ToolChoice:
    if choice.mode == "required" and len(choice.allowed) == 1:
        return ToolChoice("named", choice.allowed)
    return ToolChoice(choice.mode, choice.allowed)


def _effort(reasoning: lm15.Reasoning) -> str:
    if reasoning.thinking_budget is not None:
        raise _unsupported("config.reasoning.thinking_budget", "reasoning is bounded by max_tokens alone")
    if reasoning.summary not in (None, "auto"):
        raise _unsupported("config.reasoning.summary", "what a model thinks is shown as it is")
    return "none" if reasoning.is_off else str(reasoning.effort)


def _door(extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Our own settings out of the metadata; the rest of the metadata is the caller's."""
    if unknown := sorted(extensions.keys() - {"logit_bias", "metadata"}):
        raise _unsupported(f"config.extensions.{unknown[0]}", "nothing here acts on it")
    door = (extensions.get("metadata") or {}).get(DOOR, {})
    settings = {"logit_bias": extensions["logit_bias"]} if "logit_bias" in extensions else {}
    if not isinstance(door, Mapping) or (wrong := sorted(door.keys() - OWN_SETTINGS)):
        named = f"{wrong[0]!r}" if isinstance(door, Mapping) else f"{door!r}"
        raise _unsupported(
            f"config.extensions.metadata.{DOOR}", f"{named} is none of {', '.join(sorted(OWN_SETTINGS))}"
        )
    return {**door, **settings}


def _sampling(config: lm15.Config, door: Mapping[str, Any]) -> SamplingParams:
    named = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
    given = {name: value for name in named if (value := getattr(config, name)) is not None}
    return SamplingParams(
        max_tokens=config.max_tokens,
        seed=config.seed,
        stop=config.stop,
        logprobs=config.logprobs,
        **given,
        **{name: door[name] for name in (SAMPLING | {"logit_bias"}) & door.keys()},
    )


def _response_format(asked: Mapping[str, Any] | None, door: Mapping[str, Any]) -> ResponseFormat | None:
    kinds = sorted(FORMATS & door.keys())
    if len(kinds) + (asked is not None) > 1:
        both = " and ".join([*kinds, *(["response_format"] if asked else [])])
        raise _unsupported("config.response_format", f"an answer has one format, not {both}")
    if kinds:
        return ResponseFormat(getattr(Constraint, kinds[0])(door[kinds[0]]))
    if asked is None:
        return None
    if asked["type"] == "json_object":
        return ResponseFormat(Constraint.json_object())
    return ResponseFormat(Constraint.json_schema(asked["schema"]), asked.get("name", ""), strict=asked.get("strict"))


# -- what is answered ----------------------------------------------------------------------------------------------


def to_response(
    result: ChatResult, request: lm15.Request, texts: Texts, adapted: tuple[lm15.Adaptation, ...] = ()
) -> lm15.Response:
    """The finished answer, put together by what puts streams together."""
    choice, said = result.choices[0], result.message
    whole = ChatDelta(
        content=said.text if request.config.response_format is None else _with_finite_numbers(said.text),
        reasoning=said.reasoning or "",
        tool_calls=tuple(
            ToolCallDelta(index, arguments, call.id, call.name)
            for index, call in enumerate(said.tool_calls)
            if (arguments := _arguments(call)) is not None
        ),
        finish_reason=choice.finish_reason,
        complete=choice.complete,
        usage=result.usage,
        logprobs=choice.logprobs or (),
    )
    events = itertools.chain([start(request, adapted)], to_events(whole, texts))
    response: lm15.Response = lm15.materialize_response(events, request)
    return response


def to_usage(usage: Usage) -> lm15.Usage:
    return lm15.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=None,
    )


def start(request: lm15.Request, adapted: tuple[lm15.Adaptation, ...] = ()) -> lm15.StreamStartEvent:
    return lm15.StreamStartEvent(model=request.model, adaptations=adapted)


def to_events(delta: ChatDelta, texts: Texts) -> Iterator[Any]:
    """What is new, part by part; the end after the last of it."""
    if delta.reasoning:
        yield lm15.StreamDeltaEvent(lm15.ThinkingDelta(delta.reasoning, THINKING))
    if delta.content or delta.logprobs:
        yield lm15.StreamDeltaEvent(lm15.TextDelta(delta.content, TEXT, _logprobs(delta.logprobs, texts)))
    for call in delta.tool_calls:
        yield lm15.StreamDeltaEvent(lm15.ToolCallDelta(call.arguments, CALLS + call.index, call.id, call.name))
    if delta.finish_reason is not None:
        usage = delta.usage or Usage()
        yield lm15.StreamEndEvent(_finish(delta.finish_reason), to_usage(usage), _details(usage, delta.complete))


def _arguments(call: ToolCall) -> str | None:
    """The arguments; None for a call that the end of the budget cut off, which nobody could run."""
    arguments = _with_finite_numbers(call.arguments)
    try:
        return arguments if isinstance(json.loads(arguments), dict) else None
    except ValueError:
        return None


def _with_finite_numbers(text: str) -> str:
    """JSON whose numbers floats can hold: a model may write 1e999, and DSPy refuses an answer with an infinity."""
    cut: list[str] = []

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            cut.append(number)
        return max(-sys.float_info.max, min(value, sys.float_info.max))

    try:
        value = json.loads(text, parse_float=finite)
    except ValueError:
        return text  # no JSON, or not all of it
    return json.dumps(value, ensure_ascii=False) if cut else text


def _finish(reason: str) -> str:
    return "tool_call" if reason == "tool_calls" else reason


def _details(usage: Usage, complete: bool) -> dict[str, Any]:
    return {DOOR: {"forced_tokens": usage.forced_tokens, "complete": complete}}


def _logprobs(entries: Iterable[TokenLogprob], texts: Texts) -> tuple[lm15.TokenLogprob, ...]:
    return tuple(
        lm15.TokenLogprob(
            token=(raw := texts(entry.token_id)).decode("utf-8", "replace"),
            logprob=float(entry.logprob),
            bytes=tuple(raw),
            token_id=entry.token_id,
            top=tuple(
                lm15.TopLogprob((raw := texts(token)).decode("utf-8", "replace"), float(value), tuple(raw), token)
                for token, value in entry.top
            ),
        )
        for entry in entries
    )

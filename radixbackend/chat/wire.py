"""A `ChatRequest` as the JSON that OpenAI-compatible servers take, and their answers read back.

Rules. No I/O. What has its default is not sent, so that servers take it that know less than ours. Reading is lenient
where servers differ (fields that are missing, null or more than expected) and strict where nothing could be made of
an answer: then it raises `RemoteError`. What comes back is what `ChatService` would have said, as far as the server
says it: OpenAI's API has no token ids, so results have none. Log-probabilities have them from servers that send ``id``,
as ours and llama.cpp's do; elsewhere `TokenTable` stands in.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from radixbackend.chat.message import Message, ToolCall
from radixbackend.chat.request import (
    ChatChoice,
    ChatDelta,
    ChatFinishReason,
    ChatRequest,
    ChatResult,
    ResponseFormat,
    Tool,
    ToolCallDelta,
    ToolChoice,
)
from radixbackend.errors import ConstraintError, InvalidRequestError, RemoteError, RequestAbortedError
from radixbackend.types import Constraint, SamplingParams, TokenLogprob, Usage

Json = dict[str, Any]

_UNBOUNDED = SamplingParams(max_tokens=None)
_SAMPLING = (
    *("max_tokens", "temperature", "top_p", "n", "seed", "frequency_penalty", "presence_penalty"),
    *("top_k", "min_p", "min_tokens", "repetition_penalty", "ignore_eos", "skip_special_tokens"),
)
"""Fields with one name on both sides."""

PARAMS = {
    "top_logprobs": "logprobs",
    "max_completion_tokens": "max_tokens",
    "include_stop_str_in_output": "include_stop",
    "no_stop_trim": "include_stop",
}
"""What a server calls the parameters that we call otherwise."""


# -- what is asked ---------------------------------------------------------------------------------------------------


def chat_body(request: ChatRequest, model: str) -> Json:
    """POST /v1/chat/completions; `ConstraintError` where a constraint is no JSON although it should be."""
    body = prompt_body(request, model) | _sampling(request.sampling)
    if request.tools:
        if request.tool_choice not in (None, ToolChoice()):
            assert request.tool_choice is not None
            body["tool_choice"] = _tool_choice(request.tool_choice)
        if not request.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if request.response_format is not None and request.response_format.constraint is not None:
        body |= _constraint(request.response_format, request.response_format.constraint)
    if not request.separate_reasoning:
        body["separate_reasoning"] = False
    if request.priority:
        body["priority"] = request.priority
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    return body


def prompt_body(request: ChatRequest, model: str) -> Json:
    """What of a request makes its prompt, which is all that ``/tokenize`` takes."""
    body: Json = {"model": model, "messages": [message.as_dict() for message in request.messages]}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if request.chat_template_kwargs:
        body["chat_template_kwargs"] = dict(request.chat_template_kwargs)
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    if request.continue_final_message:
        body["continue_final_message"] = True
    if request.continue_final_message or not request.add_generation_prompt:
        body["add_generation_prompt"] = False  # vLLM refuses one with the other
    return body


def _sampling(sampling: SamplingParams) -> Json:
    values = {name: getattr(sampling, name) for name in _SAMPLING}
    body: Json = {name: value for name, value in values.items() if value != getattr(_UNBOUNDED, name)}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        body["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): amount for token, amount in sampling.logit_bias.items()}
    if sampling.include_stop:
        body["include_stop_str_in_output"] = body["no_stop_trim"] = True  # vLLM's name, SGLang's name
    if sampling.logprobs is not None:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    return body


def _tool(tool: Tool) -> Json:
    described = tool.as_dict()
    if tool.strict is not None:
        described["function"]["strict"] = tool.strict
    return described


def _tool_choice(choice: ToolChoice) -> str | Json:
    functions: list[Json] = [{"type": "function", "function": {"name": name}} for name in choice.names]
    if not functions:
        return choice.mode
    if choice.mode == "named":
        return functions[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": functions}}


def _constraint(asked: ResponseFormat, constraint: Constraint) -> Json:
    kind, source = constraint.kind, constraint.source
    if kind in ("regex", "grammar"):
        return {"structured_outputs": {kind: source}}
    if kind == "choice":
        return {"structured_outputs": {kind: _parsed(source, "choice list")}}
    if kind == "structural_tag":
        return {"response_format": {**_parsed(source, "structural tag"), "type": kind}}
    body: Json = {"type": kind}
    if kind == "json_schema":
        body[kind] = {"name": asked.name or "response", "schema": _parsed(source, "schema")}
        if asked.description:
            body[kind]["description"] = asked.description
        if asked.strict is not None:
            body[kind]["strict"] = asked.strict
    if constraint.on_unsupported != "fallback":
        body["on_unsupported"] = constraint.on_unsupported
    if constraint.whitespace:
        body["whitespace"] = True
    return {"response_format": body}


def _parsed(source: str, what: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as fault:
        raise ConstraintError(f"the {what} is not JSON: {fault}") from fault


# -- what is answered ------------------------------------------------------------------------------------------------


class TokenTable:
    """The tokens that a server has shown: id → bytes. Those it shows without an id get negative ones, one for each.

    At most as large as a vocabulary; safe to use from many threads.
    """

    def __init__(self) -> None:
        self._bytes: dict[int, bytes] = {}
        self._stand_ins: dict[bytes, int] = {}
        self._next = itertools.count(-1, -1).__next__

    def bytes(self, token_id: int) -> bytes:
        return self._bytes.get(token_id, b"")

    def read(self, entry: Json) -> tuple[int, float]:
        """Id and log-probability of an entry in OpenAI's shape."""
        shown, token, logprob = entry.get("bytes"), entry.get("id"), entry.get("logprob")
        try:
            text = bytes(shown) if isinstance(shown, list) else _text(entry.get("token")).encode()
        except (TypeError, ValueError) as fault:
            raise RemoteError(f"the server's log-probabilities have a token with the bytes {_shown(shown)}") from fault
        if not isinstance(token, int):
            token = self._stand_ins.setdefault(text, self._next())
        self._bytes[token] = text
        return token, float(logprob) if isinstance(logprob, int | float) else 0.0


def chat_result(answer: Any, request: ChatRequest, model: str, tokens: TokenTable) -> ChatResult:
    """An answer that came as a whole."""
    fields = _object(answer)
    choices = tuple(_choice(_object(choice), request, tokens) for choice in _list(fields.get("choices")))
    if not choices:
        raise RemoteError(f"the server's answer has no choices: {_shown(answer)}")
    return ChatResult(choices, usage_of(fields.get("usage")) or Usage(), fields.get("model") or model)


def _choice(choice: Json, request: ChatRequest, tokens: TokenTable) -> ChatChoice:
    body = _object(choice.get("message"))
    calls = tuple(_call(_object(call)) for call in _list(body.get("tool_calls")))
    content = _text(body.get("content"))
    finish, stop = _finish(choice.get("finish_reason") or "stop", choice.get("stop_reason"), bool(calls))
    return ChatChoice(
        _integer(choice.get("index")),
        Message(
            "assistant", content if content or not calls else None, tool_calls=calls, reasoning=_reasoning(body) or None
        ),
        finish,
        stop,
        _complete(choice, finish, request, bool(calls)),
        None if request.sampling.logprobs is None else _logprobs(choice, tokens),
    )


def _call(call: Json) -> ToolCall:
    function = _object(call.get("function"))
    return ToolCall(call.get("id") or _new_id(), _text(function.get("name")), _arguments(function) or "{}")


class DeltaReader:
    """Reads the chunks of one stream into the deltas of `ChatService.stream`.

    A choice's last delta is held back until it is known whether the usage belongs to it, which servers say later.
    """

    def __init__(self, request: ChatRequest, tokens: TokenTable) -> None:
        self._request = request
        self._tokens = tokens
        self._calls: dict[int, list[int]] = {}  # choice → the server's indices of its calls, in order
        self._finished: set[int] = set()
        self._held: ChatDelta | None = None
        self._usage: Usage | None = None

    def read(self, chunk: Any) -> list[ChatDelta]:
        """The deltas that are certain after this chunk."""
        fields = _object(chunk)
        self._usage = usage_of(fields.get("usage")) or self._usage
        deltas: list[ChatDelta] = []
        for choice in _list(fields.get("choices")):
            delta = self._delta(_object(choice))
            if delta is None:
                continue
            if self._held is not None:
                deltas.append(self._held)
                self._held = None
            if delta.finish_reason is None:
                deltas.append(delta)
            else:
                self._held = delta
        return deltas

    def end(self) -> ChatDelta:
        """The very last delta; `RemoteError` where an answer was not finished."""
        if self._held is None or self._calls.keys() - self._finished:
            raise RemoteError("the server ended its stream before the answer was finished")
        return replace(self._held, usage=self._usage)

    def _delta(self, choice: Json) -> ChatDelta | None:
        """None where there is nothing new."""
        index = _integer(choice.get("index"))
        called = self._calls.setdefault(index, [])
        if index in self._finished:
            return None
        body = _object(choice.get("delta"))
        calls = tuple(self._fragment(called, _object(call)) for call in _list(body.get("tool_calls")))
        content, reasoning = _text(body.get("content")), _reasoning(body)
        logprobs = () if self._request.sampling.logprobs is None else _logprobs(choice, self._tokens) or ()
        if (reason := choice.get("finish_reason")) is None:
            news = content or reasoning or calls or logprobs
            return ChatDelta(index, content, reasoning, calls, logprobs=logprobs) if news else None
        self._finished.add(index)
        finish, stop = _finish(reason, choice.get("stop_reason"), bool(called))
        complete = _complete(choice, finish, self._request, bool(called))
        return ChatDelta(index, content, reasoning, calls, finish, stop, complete, logprobs=logprobs)

    def _fragment(self, called: list[int], call: Json) -> ToolCallDelta:
        """Id and name with the first piece alone, whatever the server repeats; calls are counted from 0."""
        function = _object(call.get("function"))
        place = call.get("index")
        if place is None:  # some send each call whole, and number none
            place = len(called) if call.get("id") or not called else called[-1]
        if place in called:
            return ToolCallDelta(called.index(place), _arguments(function))
        called.append(place)
        name = _text(function.get("name"))
        return ToolCallDelta(len(called) - 1, _arguments(function), call.get("id") or _new_id(), name)


def usage_of(value: Any) -> Usage | None:
    """None where a server does not say."""
    if not isinstance(value, Mapping):
        return None
    prompt, completion = (_object(value.get(f"{side}_tokens_details")) for side in ("prompt", "completion"))
    return Usage(
        _integer(value.get("prompt_tokens")),
        _integer(value.get("completion_tokens")),
        _integer(prompt.get("cached_tokens")),
        _integer(completion.get("forced_tokens")),
    )


def _finish(reason: Any, stop: Any, called: bool) -> tuple[ChatFinishReason, int | str | None]:
    """Our reason, and what stopped it. Reasons that only others know are a stop, and are said to be what stopped it."""
    if reason == "abort":
        raise RequestAbortedError("the server aborted the request")
    stop = stop if isinstance(stop, int | str) else None
    if reason == "length":
        return "length", stop
    if reason not in ("stop", "tool_calls", "function_call"):
        return "stop", stop if stop is not None else str(reason)
    return ("tool_calls" if called else "stop"), stop  # with a named tool OpenAI says stop


def _complete(choice: Json, finish: str, request: ChatRequest, called: bool) -> bool:
    """As the server says it. One that does not has cut whatever it was made to write before it could close."""
    if isinstance(said := choice.get("complete"), bool):
        return said
    made = request.response_format is not None and request.response_format.constraint is not None
    forced = request.tool_choice is not None and request.tool_choice.mode in ("required", "named")
    return finish != "length" or not (made or forced or called)


def _logprobs(choice: Json, tokens: TokenTable) -> tuple[TokenLogprob, ...] | None:
    entries = _object(choice.get("logprobs")).get("content")
    if not isinstance(entries, list):
        return None
    found = []
    for entry in map(_object, entries):
        top = tuple(tokens.read(_object(other)) for other in _list(entry.get("top_logprobs")))
        found.append(TokenLogprob(*tokens.read(entry), top))
    return tuple(found)


def _arguments(function: Json) -> str:
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False) if arguments else ""


def _reasoning(body: Json) -> str:
    return _text(body.get("reasoning_content") or body.get("reasoning"))


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return Message.of({"role": "assistant", "content": value}).text
    except InvalidRequestError as fault:
        raise RemoteError(f"the server's message {fault}") from fault


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _object(value: Any) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RemoteError(f"the server answered {_shown(value)} where there should be an object")
    return value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text[:200])

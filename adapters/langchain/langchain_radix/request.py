"""From LangChain's parameters, by OpenAI's names, to one `ChatRequest`.

Rules. What a call says goes before what the instance says; None is the same as not saying it. Names are OpenAI's,
and those that SGLang and vLLM have beyond them. An unknown name is refused with the one that is spelt most alike;
what has a meaning for OpenAI's service alone is ignored and logged. ``extra_body`` is merged in last, and unknown
names in it are ignored as a server would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from langchain_radix.compat import did_you_mean, log
from langchain_radix.messages import to_messages
from langchain_radix.schema import response_format
from radixbackend import Constraint, SamplingParams
from radixbackend.chat import ChatRequest
from radixbackend.errors import InvalidRequestError

_SAME = {
    *("temperature", "top_p", "n", "seed", "stop", "frequency_penalty", "presence_penalty", "logit_bias"),
    *("min_p", "min_tokens", "repetition_penalty", "stop_token_ids", "ignore_eos", "skip_special_tokens"),
}
"""Fields of `SamplingParams` that have the same name here."""

_CHAT = {
    *("reasoning_effort", "chat_template_kwargs", "continue_final_message", "separate_reasoning", "priority"),
    *("cache_salt", "parallel_tool_calls", "tools", "tool_choice"),
}
"""Fields of `ChatRequest` that have the same name here."""

_CONSTRAINTS: dict[str, Callable[[Any], Any]] = {
    "response_format": response_format,
    "regex": Constraint.regex,
    "grammar": Constraint.grammar,
    "ebnf": Constraint.grammar,
    "choice": Constraint.choice,
    "json_schema": Constraint.json_schema,
    "structural_tag": Constraint.structural_tag,
}
"""Ways to say what the answer must be; at most one is given."""

_OTHERS = {
    *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "top_k", "reasoning", "structured_outputs"),
    *("include_stop_str_in_output", "no_stop_trim", "timeout", "extra_body"),
}

KNOWN = frozenset(_SAME | _CHAT | _CONSTRAINTS.keys() | _OTHERS)

IGNORED = frozenset(
    (
        *("model", "stream", "stream_options", "stream_usage", "extra_headers", "extra_query"),
        *("user", "metadata", "store", "service_tier", "verbosity", "prediction", "modalities", "audio"),
        *("prompt_cache_key", "prompt_cache_options", "safety_identifier", "strict", "truncation", "include"),
        *("previous_response_id", "max_tool_calls", "web_search_options"),
    )
)
"""Said elsewhere, or of OpenAI's service alone."""


@dataclass(frozen=True)
class Call:
    """One request, and how long it may take."""

    request: ChatRequest
    timeout: float | None


def to_call(messages: Sequence[BaseMessage], parameters: Mapping[str, Any]) -> Call:
    """Raises `InvalidRequestError`; ``param`` is the name of what is wrong."""
    given = {name: value for name, value in parameters.items() if value is not None}
    extra = given.pop("extra_body", {})
    _check_names(given)
    given |= {name: value for name, value in extra.items() if value is not None and name in KNOWN}
    chat = {name: given[name] for name in _CHAT & given.keys()}
    if isinstance(effort := (given.get("reasoning") or {}).get("effort"), str):
        chat.setdefault("reasoning_effort", effort)
    request = ChatRequest.of(
        to_messages(messages), response_format=_constraint(given), sampling=_sampling(given), **chat
    )
    return Call(request, _seconds(given.get("timeout")))


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if name in IGNORED:
            log.debug("the parameter %s has no meaning here and is ignored", name)
        elif name not in KNOWN:
            raise InvalidRequestError(f"unknown parameter {name}{did_you_mean(name, KNOWN)}", param=name)


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    fields = {name: given[name] for name in _SAME & given.keys()}
    if "top_k" in given:
        fields["top_k"] = max(given["top_k"], 0)  # vLLM's -1 keeps all, as 0 does here
    if given.get("include_stop_str_in_output") or given.get("no_stop_trim"):
        fields["include_stop"] = True
    if given.get("top_logprobs") is not None and not given.get("logprobs"):
        raise InvalidRequestError("top_logprobs needs logprobs=True", param="top_logprobs")
    if given.get("logprobs"):
        fields["logprobs"] = given.get("top_logprobs", 0)
    return SamplingParams(max_tokens=limit, **fields)


def _constraint(given: Mapping[str, Any]) -> Any:
    asked = {name: given[name] for name in _CONSTRAINTS.keys() & given.keys()}
    for name, value in _structured_outputs(given.get("structured_outputs")).items():
        asked.setdefault(name, value)
    if len(asked) > 1:
        names = sorted(asked)
        raise InvalidRequestError(f"give one of {' and '.join(names)}, not several", param=names[0])
    return next((_CONSTRAINTS[name](value) for name, value in asked.items()), None)


def _structured_outputs(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """vLLM's way to say it, by the names here."""
    asked = {}
    for name, value in (given or {}).items():
        if name == "json_object":
            asked["response_format"] = {"type": "json_object"}
        elif (ours := "json_schema" if name == "json" else name) in _CONSTRAINTS:
            asked[ours] = value
        else:
            raise InvalidRequestError(f"structured_outputs has no {name}", param="structured_outputs")
    return asked


def _seconds(timeout: Any) -> float | None:
    """Seconds for the whole answer, from what OpenAI's client takes: a number, a pair or an ``httpx.Timeout``."""
    if timeout is None or isinstance(timeout, int | float):
        return timeout
    read = timeout[-1] if isinstance(timeout, tuple) else getattr(timeout, "read", None)
    if read is not None and not isinstance(read, int | float):
        raise InvalidRequestError(f"timeout takes seconds, not {timeout!r}", param="timeout")
    return read

"""What clients send: the wire models, and what they mean to the chat layer and the engine.

Rules. Types are strict, as OpenAI's are: a number in quotes is not a number. null is the same as leaving out. What
is not known is ignored and logged at debug level, so that a client made for a newer API works. Besides OpenAI's
fields there are those that SGLang and vLLM both take; their fields for one purpose have both names. Nothing here
waits, and nothing here knows HTTP but for the errors it raises.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radixbackend.chat.request import ChatRequest, ResponseFormat
from radixbackend.errors import InvalidRequestError
from radixbackend.openai_api.faults import ApiError
from radixbackend.types import Constraint, GenerationRequest, SamplingParams

log = logging.getLogger(__name__)

MOST_STOPS = 32
LONGEST_STOP = 1024  # characters: every token's text is searched for every stop string
MOST_CHOICES = 128
MOST_LOGPROBS = 20
COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for completions."""

# Beyond these a few tokens would make logits infinite; most are OpenAI's bounds.
MOST_BIAS = 100
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]

Json = dict[str, Any]
T = TypeVar("T")
W = TypeVar("W", bound="Wire")

# One wrong entry is enough to say: a list of a million wrong ones would otherwise give a million errors.
Many = Annotated[list[T], Field(fail_fast=True, max_length=1 << 16)]
Tokens = Annotated[list[int], Field(fail_fast=True, max_length=1 << 21)]


class Wire(BaseModel):
    """A request body."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


def parse(kind: type[W], body: bytes) -> W:
    """The request in ``body``; raises `ApiError` with the name of the field that is wrong."""
    try:
        wire = kind.model_validate_json(body or b"{}")
    except ValidationError as fault:
        raise _refusal(fault) from None
    if wire.model_extra:
        log.debug("ignored of a %s: %s", kind.__name__, ", ".join(sorted(wire.model_extra)))
    return wire


def _refusal(fault: ValidationError) -> ApiError:
    errors = fault.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body of the request is not JSON: {first['msg']}", code="invalid_json")
    if not first["loc"]:
        return ApiError(400, "The body of the request is not a JSON object.", code="invalid_type")
    param = str(first["loc"][0])
    for step in first["loc"][1:]:
        if not isinstance(step, int):
            break  # a key, or which of several types was tried
        param += f"[{step}]"
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    reasons = dict.fromkeys(error["msg"] for error in errors if error["loc"][0] == first["loc"][0])
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return ApiError(400, f"Invalid value for '{param}': {'; or '.join(list(reasons)[:4])}.", code=code, param=param)


class StreamOptions(Wire):
    include_usage: bool | None = None


class StructuredOutputs(Wire):
    """vLLM's way to constrain an answer."""

    json_: Json | str | bool | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None
    structural_tag: Json | str | None = None

    def constraint(self) -> Constraint | None:
        return one_constraint(
            {
                "json": None if self.json_ is None else Constraint.json_schema(self.json_),
                "json_object": Constraint.json_object() if self.json_object else None,
                "regex": None if self.regex is None else Constraint.regex(self.regex),
                "choice": None if self.choice is None else Constraint.choice(self.choice),
                "grammar": None if self.grammar is None else Constraint.grammar(self.grammar),
                "structural_tag": None if self.structural_tag is None else _tag(self.structural_tag),
            }
        )


def one_constraint(given: Mapping[str, Constraint | None]) -> Constraint | None:
    """The one that is not None; raises `ApiError` for several."""
    names = [name for name, constraint in given.items() if constraint is not None]
    if len(names) > 1:
        raise ApiError(400, f"Give one of {' and '.join(names)}, not several.", code="invalid_value", param=names[1])
    return given[names[0]] if names else None


def _tag(tag: Json | str) -> Constraint:
    return Constraint.structural_tag(tag)


class SamplingWire(Wire):
    """How to choose tokens: what chat and text completions share."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Many[str] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Json | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # what SGLang and vLLM take beyond OpenAI
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    stop_token_ids: Many[int] | None = None
    stop_regex: str | Many[str] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: Json | str | bool | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: Json | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
        """Raises `InvalidRequestError` or `ApiError`."""
        refuse_stop_regex(self.stop_regex)
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "n": self.n,
            "seed": self.seed,
            "stop": checked_stops(self.stop),
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": checked_bias(self.logit_bias),
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "min_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
            "stop_token_ids": None if self.stop_token_ids is None else tuple(self.stop_token_ids),
            "ignore_eos": self.ignore_eos,
            "skip_special_tokens": self.skip_special_tokens,
            "include_stop": self.include_stop_str_in_output or self.no_stop_trim,
        }
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            **{name: value for name, value in given.items() if value is not None},
        )

    def format(self) -> ResponseFormat | None:
        """The one constraint of the answer, whichever way it is given."""
        asked = None if self.response_format is None else ResponseFormat.of(self.response_format)
        constraint = one_constraint(
            {
                "response_format": None if asked is None else asked.constraint,
                "regex": None if self.regex is None else Constraint.regex(self.regex),
                "ebnf": None if self.ebnf is None else Constraint.grammar(self.ebnf),
                "json_schema": None if self.json_schema is None else Constraint.json_schema(self.json_schema),
                "structured_outputs": None if self.structured_outputs is None else self.structured_outputs.constraint(),
            }
        )
        if constraint is None or (asked is not None and asked.constraint is not None):
            return asked
        return ResponseFormat.of(constraint)

    @property
    def constraint_field(self) -> str:
        """Which field a refused constraint was in."""
        names = ("regex", "ebnf", "json_schema", "structured_outputs", "response_format")
        return next((name for name in names if getattr(self, name) is not None), "tools")


def checked_stops(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Stop strings within bounds."""
    if stop is None:
        return None
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stops):
        raise ApiError(
            400,
            f"'stop' takes up to {MOST_STOPS} strings of up to {LONGEST_STOP} characters.",
            code="invalid_value",
            param="stop",
        )
    return stops


def refuse_stop_regex(patterns: str | list[str] | None) -> None:
    """A pattern of a client's is not matched after every token of every request, nor ignored."""
    if patterns:
        message = "'stop_regex' is not served; use 'stop' with strings, or 'regex' for the form of the whole answer."
        raise ApiError(400, message, code="unsupported_parameter", param="stop_regex")


def checked_bias(bias: Json | None) -> dict[str, float] | None:
    """Biases within bounds. Not the model's to check, since it would tell all that is wrong of a million of them."""
    if bias is None:
        return None
    for token, amount in bias.items():
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not token.isdecimal() or not number or abs(amount) > MOST_BIAS:
            message = f"'logit_bias' maps token ids to numbers from -{MOST_BIAS} to {MOST_BIAS}, not {token!r}."
            raise ApiError(400, message, code="invalid_value", param="logit_bias")
    return bias


class ChatCompletionRequest(SamplingWire):
    """POST /v1/chat/completions."""

    messages: Many[Json]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Many[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Json | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    separate_reasoning: bool | None = None

    def chat(self) -> ChatRequest:
        """Raises `InvalidRequestError` or `ApiError`."""
        if self.functions is not None or self.function_call is not None:
            raise ApiError(
                400,
                "'functions' and 'function_call' are not served; use 'tools' and 'tool_choice'.",
                code="unsupported_parameter",
                param="functions" if self.functions is not None else "function_call",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400, "'top_logprobs' needs 'logprobs' to be true.", code="invalid_value", param="top_logprobs"
            )
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return ChatRequest.of(
            self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            response_format=self.format(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            sampling=self.sampling(limit, (self.top_logprobs or 0) if self.logprobs else None, None),
            chat_template_kwargs=self.chat_template_kwargs or {},
            reasoning_effort=self.reasoning_effort,
            continue_final_message=bool(self.continue_final_message),
            add_generation_prompt=self.add_generation_prompt is not False and not self.continue_final_message,
            separate_reasoning=self.separate_reasoning is not False,
            priority=self.priority or 0,
            cache_salt=self.cache_salt,
        )

    @property
    def params(self) -> dict[str, str]:
        """What this endpoint calls the engine's parameters."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {
            "prompt": "messages",
            "images": "messages",
            "max_tokens": limit,
            "logprobs": "top_logprobs",
            "constraint": self.constraint_field,
            "include_stop": "no_stop_trim",
        }


Prompts = str | Many[str] | Tokens | Many[Tokens]


class CompletionRequest(SamplingWire):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    def requests(self, prompts: list[str | tuple[int, ...]]) -> list[GenerationRequest]:
        """Raises `InvalidRequestError` or `ApiError`."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            message = "'best_of' is not served; ask for as many with 'n' and choose by their 'logprobs'."
            raise ApiError(400, message, code="unsupported_parameter", param="best_of")
        if self.suffix and self.echo:
            message = "'echo' does not go with 'suffix'; the prompt and the suffix are around the answer."
            raise ApiError(400, message, code="unsupported_parameter", param="echo")
        limit = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        sampling = self.sampling(limit, self.logprobs, self.logprobs if self.echo else None)
        asked = self.format()
        constraint = None if asked is None else asked.constraint
        return [GenerationRequest(p, sampling, constraint, self.priority or 0, self.cache_salt) for p in prompts]

    @property
    def params(self) -> dict[str, str]:
        return {"constraint": self.constraint_field, "prompt_logprobs": "logprobs", "include_stop": "no_stop_trim"}


def prompt_list(prompts: Prompts) -> list[str | list[int]]:
    """A prompt, or a list of prompts, as a list; an empty list is an empty prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and not isinstance(prompts[0], int):
        return list(prompts)
    return [prompts]  # type: ignore[list-item]


class EmbeddingRequest(Wire):
    """POST /v1/embeddings."""

    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @property
    def params(self) -> dict[str, str]:
        return {"prompt": "input"}


class TokenizeRequest(Wire):
    """POST /tokenize: a text, or a conversation as the chat template writes it."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: Many[Json] | None = None
    tools: Many[Json] | None = None
    chat_template_kwargs: Json | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    def chat(self) -> ChatRequest:
        """Raises `InvalidRequestError`."""
        return ChatRequest.of(
            self.messages or (),
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs or {},
            reasoning_effort=self.reasoning_effort,
            add_generation_prompt=self.add_generation_prompt is not False and not self.continue_final_message,
            continue_final_message=bool(self.continue_final_message),
        )

    @property
    def text(self) -> str:
        if self.prompt is None:
            raise InvalidRequestError("pass prompt or messages", param="prompt")
        return self.prompt


class DetokenizeRequest(Wire):
    """POST /detokenize."""

    tokens: Tokens
    model: str | None = None
    skip_special_tokens: bool | None = None

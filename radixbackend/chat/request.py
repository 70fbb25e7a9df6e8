"""The values of a conversation: what is asked, what is answered, and the pieces of an answer as it comes.

Rules. OpenAI-shaped and framework-neutral: every adapter builds a `ChatRequest` and reads a `ChatResult` or
`ChatDelta`s. All of it is frozen and checked when it is made, so that a malformed history is refused before anything
is computed, with the message at fault named. No templates, no grammars, no engine here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from radixbackend.chat.message import (
    ContentPart,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolCall,
    check_history,
    mapping,
    messages_of,
)
from radixbackend.errors import InvalidRequestError
from radixbackend.types import Constraint, FinishReason, OnUnsupported, SamplingParams, TokenLogprob, Usage

__all__ = [
    "ChatChoice",
    "ChatDelta",
    "ChatFinishReason",
    "ChatRequest",
    "ChatResult",
    "ContentPart",
    "ImagePart",
    "Message",
    "ResponseFormat",
    "Role",
    "TextPart",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolChoiceMode",
]

ChatFinishReason = FinishReason | Literal["tool_calls"]
"""``tool_calls``: the answer ended by itself and has at least one call."""

ToolChoiceMode = Literal["none", "auto", "required", "named"]

_UNBOUNDED = SamplingParams(max_tokens=None)
_OPENING = frozenset(
    (
        *("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"),
        *("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas", "dependencies"),
    )
)
"""Keywords of an object's schema that may speak of properties that it does not list."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: JSON schema of its arguments, an object; None takes none.
        strict: as given; the arguments fit the schema either way, and what of it no grammar can hold is validated.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not _is_name(self.name):
            raise InvalidRequestError(
                f"a tool's name has letters, digits, '_', '-', '.' and ':' only, not {self.name!r}", param="tools"
            )
        if self.parameters is not None and not isinstance(self.parameters, Mapping):
            raise InvalidRequestError(f"the parameters of {self.name} are not a JSON schema object", param="tools")

    @classmethod
    def of(cls, value: Tool | Mapping[str, Any]) -> Tool:
        """From OpenAI's ``{"type": "function", "function": {"name", "description", "parameters", "strict"}}``.

        The flat shape of the Responses API (``name`` beside ``type``) is read, too.
        """
        if isinstance(value, Tool):
            return value
        fields = mapping(value, "a tool", param="tools")
        if (kind := fields.get("type", "function")) != "function":
            raise InvalidRequestError(f"tools are functions; the type {kind!r} is not served", param="tools")
        function = mapping(fields.get("function", fields), "the function of a tool", param="tools")
        return cls(
            function.get("name"),  # type: ignore[arg-type]  # __post_init__ checks it
            function.get("description") or "",
            function.get("parameters"),
            function.get("strict"),
        )

    @property
    def schema(self) -> dict[str, Any]:
        """What generated arguments fit: an object, of the listed names alone unless the schema speaks of others."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        schema = {"type": "object", **self.parameters}
        if "properties" in schema and not _OPENING & schema.keys():
            schema["additionalProperties"] = False
        return schema

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's shape, as templates read it."""
        parameters = dict(self.parameters or {"type": "object", "properties": {}})
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may or must call tools.

    Attributes:
        mode: ``named`` is exactly one call of the one tool in ``names``; ``required`` at least one call.
        names: for ``auto`` and ``required``: only these tools (all of them if empty).
    """

    mode: ToolChoiceMode = "auto"
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: ToolChoice | str | Mapping[str, Any]) -> ToolChoice:
        """From ``"none" | "auto" | "required"`` (``"any"`` is the same), or an object naming a function or several."""
        if isinstance(value, ToolChoice):
            return value
        if isinstance(value, str):
            mode = "required" if value == "any" else value
            if mode in ("none", "auto", "required"):
                return cls(mode)  # type: ignore[arg-type]
        elif isinstance(value, Mapping):
            if value.get("type") == "function":
                function = value.get("function", value)
                if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
                    return cls("named", (name,))
            if value.get("type") == "allowed_tools":
                allowed = value.get("allowed_tools", value)
                if isinstance(allowed, Mapping) and allowed.get("mode", "auto") in ("auto", "required"):
                    return cls(allowed.get("mode", "auto"), tuple(Tool.of(t).name for t in allowed.get("tools", ())))
        raise InvalidRequestError(
            'tool_choice is "none", "auto", "required" or {"type": "function", "function": {"name": …}}, '
            f"not {value!r}",
            param="tool_choice",
        )


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answer's content must be. ``constraint`` None is plain text.

    ``name``, ``description`` and ``strict`` are those of OpenAI's ``json_schema``; a schema is enforced either way.
    """

    constraint: Constraint | None = None
    name: str = ""
    description: str = ""
    strict: bool | None = None

    @classmethod
    def of(cls, value: ResponseFormat | Constraint | Mapping[str, Any]) -> ResponseFormat:
        """From OpenAI's ``response_format``, or ``{"type": kind, kind: …}`` for regex, grammar and choice.

        JSON kinds may have `Constraint`'s ``on_unsupported`` and ``whitespace`` beside the type.
        """
        if isinstance(value, ResponseFormat):
            return value
        if isinstance(value, Constraint):
            return cls(value)
        fields = mapping(value, "response_format", param="response_format")
        kind = fields.get("type")
        if kind == "text":
            return cls()
        if kind == "json_object":
            return cls(Constraint.json_object(whitespace=_whitespace(fields)))
        if kind == "json_schema":
            return cls._of_schema(fields)
        if kind == "structural_tag":
            return cls(Constraint.structural_tag(dict(fields)))
        if kind in ("regex", "grammar", "choice"):
            if (body := fields.get(kind, fields.get("pattern"))) is None:
                raise InvalidRequestError(f"response_format of type {kind} has no {kind}", param="response_format")
            return cls(getattr(Constraint, kind)(body))
        raise InvalidRequestError(
            "response_format's type is text, json_object, json_schema, regex, grammar, choice or structural_tag, "
            f"not {kind!r}",
            param="response_format",
        )

    @classmethod
    def _of_schema(cls, fields: Mapping[str, Any]) -> Self:
        body = mapping(fields.get("json_schema"), "response_format's json_schema", param="response_format")
        schema = body.get("schema", body.get("schema_"))
        if not isinstance(schema, Mapping | bool):
            raise InvalidRequestError("response_format's json_schema has no schema", param="response_format")
        unsupported: Any = fields.get("on_unsupported") or "fallback"
        if unsupported not in get_args(OnUnsupported):
            raise InvalidRequestError(
                f"on_unsupported is {', '.join(get_args(OnUnsupported))}, not {unsupported!r}", param="response_format"
            )
        constraint = Constraint.json_schema(schema, on_unsupported=unsupported, whitespace=_whitespace(fields))
        return cls(constraint, body.get("name") or "", body.get("description") or "", body.get("strict"))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation and how to go on with it. `of` builds one from OpenAI-shaped parts.

    Attributes:
        tool_choice: None is ``auto`` where there are tools.
        parallel_tool_calls: False allows at most one call in an answer.
        sampling: ``stop``, ``logprobs``, ``n`` and the like are here. ``skip_special_tokens`` concerns content only.
        chat_template_kwargs: further variables of the chat template, such as ``enable_thinking``.
        reasoning_effort: given to the template (``low``, ``medium``, ``high``, …); ``none`` also sets
            ``enable_thinking`` to false.
        add_generation_prompt: end the prompt with what begins the assistant's turn.
        continue_final_message: the last message is the assistant's and unfinished: the answer continues it. A
            response format is that of the continuation alone.
        separate_reasoning: False leaves reasoning in the content, markers and all.
        priority, cache_salt: those of `GenerationRequest`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    sampling: SamplingParams = _UNBOUNDED
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    separate_reasoning: bool = True
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        check_history(self.messages)
        names = [tool.name for tool in self.tools]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InvalidRequestError(f"two tools have the name {twice.pop()!r}", param="tools")
        choice = self.tool_choice or ToolChoice()
        if choice.mode in ("required", "named") and not self.tools:
            raise InvalidRequestError(f"tool_choice is {choice.mode} but there are no tools", param="tool_choice")
        if unknown := [name for name in choice.names if name not in names]:
            raise InvalidRequestError(f"tool_choice names {unknown[0]!r}, which is no tool", param="tool_choice")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise InvalidRequestError(
                "continue_final_message needs an assistant message at the end", param="continue_final_message"
            )
        if not isinstance(self.chat_template_kwargs, Mapping):
            raise InvalidRequestError("chat_template_kwargs is an object", param="chat_template_kwargs")

    @classmethod
    def of(
        cls,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Iterable[Tool | Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice | str | Mapping[str, Any] | None = None,
        response_format: ResponseFormat | Constraint | Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> ChatRequest:
        """From OpenAI-shaped parts; ``rest`` are further fields of this class.

        Raises:
            InvalidRequestError: ``param`` is the field, and the text says which message or tool.
        """
        return cls(
            messages_of(messages),
            tuple(Tool.of(tool) for tool in tools or ()),
            None if tool_choice is None else ToolChoice.of(tool_choice),
            response_format=None if response_format is None else ResponseFormat.of(response_format),
            **rest,
        )


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call. The first piece of each has ``id`` and ``name``, the others neither."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What is new in one choice. Joined field by field, the deltas are the message of `ChatResult`.

    Attributes:
        index: which of the n choices.
        finish_reason: on a choice's last delta.
        complete: False on the last delta of an answer that was cut before its constraint could close.
        usage: on the stream's very last delta: all choices together.
        logprobs: of the tokens that this delta stands for, where asked for.
    """

    index: int = 0
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: ChatFinishReason | None = None
    stop_reason: int | str | None = None
    complete: bool = True
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One finished answer. ``message`` is the assistant's; its content is None if it only calls tools."""

    index: int
    message: Message
    finish_reason: ChatFinishReason
    stop_reason: int | str | None = None
    complete: bool = True
    logprobs: tuple[TokenLogprob, ...] | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A finished request. ``message``, ``content`` and the like are those of the first choice."""

    choices: tuple[ChatChoice, ...]
    usage: Usage
    model: str = ""
    prompt_token_ids: tuple[int, ...] = ()

    @property
    def message(self) -> Message:
        return self.choices[0].message

    @property
    def content(self) -> str:
        return self.message.text

    @property
    def reasoning(self) -> str | None:
        return self.message.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.message.tool_calls

    @property
    def finish_reason(self) -> ChatFinishReason:
        return self.choices[0].finish_reason


def _whitespace(fields: Mapping[str, Any]) -> bool:
    if not isinstance(given := fields.get("whitespace") or False, bool):
        raise InvalidRequestError(f"whitespace is true or false, not {given!r}", param="response_format")
    return given


def _is_name(name: str) -> bool:
    return all(char.isascii() and (char.isalnum() or char in "_-.:") for char in name)

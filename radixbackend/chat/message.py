"""Messages, OpenAI-shaped: who said what, called what, was answered what.

Rules. Frozen and checked when made. What is wrong is said without its place (``has the role …``); who has the whole
history, `messages_of` and `check_history`, says which message it is.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from radixbackend.errors import InvalidRequestError

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a message: its URL, or the bytes of its file.

    Attributes:
        url: ``data:``, or ``https:`` and ``http:`` on a host that the backend allows. Never a path, since messages
            may come from far away: what lies on this machine is read by `of_file`.
        detail: OpenAI's; models here say themselves how closely they look at an image.
        data: PNG, JPEG, WebP, GIF or BMP; goes before the URL.
    """

    url: str = ""
    detail: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> ImagePart:
        """The image in a file of this machine. Raises `InvalidRequestError` where there is none."""
        try:
            return cls(data=Path(path).read_bytes())
        except OSError as fault:
            raise InvalidRequestError(f"the image {os.fspath(path)!r} cannot be read: {fault.strerror}") from fault

    @property
    def as_url(self) -> str:
        """The URL, or a ``data:`` one of the bytes."""
        if self.data is None:
            return self.url
        kind = next((kind for start, kind in _BEGINNINGS.items() if self.data.startswith(start)), "png")
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


_BEGINNINGS = {b"\xff\xd8": "jpeg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
"""Of image files."""


ContentPart = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. ``arguments`` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, value: ToolCall | Mapping[str, Any]) -> ToolCall:
        """From OpenAI's ``{"id", "type": "function", "function": {"name", "arguments"}}``."""
        if isinstance(value, ToolCall):
            return value
        function = mapping(mapping(value, "a tool call").get("function"), "the function of a tool call")
        arguments = function.get("arguments") or "{}"
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return cls(
            _string(value.get("id"), "the id of a tool call"),
            _string(function.get("name"), "the name of a called function"),
            _string(arguments, "the arguments of a tool call"),
        )

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's shape."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        content: text, parts, or None for an assistant that only calls tools.
        name: of the participant; for a tool's result, of the tool.
        tool_calls: of an assistant.
        tool_call_id: of a tool's result: the call that it answers.
        reasoning: of an assistant: what it thought before it answered; templates decide whether models see it again.
    """

    role: Role
    content: str | tuple[ContentPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidRequestError(f"has the role {self.role!r}; roles are {', '.join(get_args(Role))}")
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequestError(f"is by {self.role} and has tool_calls; only an assistant calls tools")
        if self.role == "tool" and not self.tool_call_id:
            raise InvalidRequestError("is a tool's result without tool_call_id; say which call it answers")
        if self.content is None and self.role != "assistant":
            raise InvalidRequestError(f"is by {self.role} and has no content")

    @classmethod
    def of(cls, value: Message | Mapping[str, Any]) -> Message:
        """From OpenAI's shape; reasoning is read from ``reasoning_content`` or ``reasoning``."""
        if isinstance(value, Message):
            return value
        fields = mapping(value, "a message")
        reasoning = fields.get("reasoning_content", fields.get("reasoning"))
        calls = fields.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidRequestError(f"has tool_calls that are {type(calls).__name__}, not a list")
        return cls(
            fields.get("role"),  # type: ignore[arg-type]  # __post_init__ checks it
            _content(fields.get("content")),
            _optional(fields.get("name"), "name"),
            tuple(ToolCall.of(call) for call in calls),
            _optional(fields.get("tool_call_id"), "tool_call_id"),
            _optional(reasoning, "reasoning_content"),
        )

    @property
    def text(self) -> str:
        """The text of the content, parts joined."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images of the content, in order."""
        parts = self.content if isinstance(self.content, tuple) else ()
        return tuple(part for part in parts if isinstance(part, ImagePart))

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's shape, as templates read it: what is absent is left out, text parts are joined."""
        fields: dict[str, Any] = {"role": self.role, "content": _parts(self.content) if self.images else self.text}
        if self.name is not None:
            fields["name"] = self.name
        if self.tool_calls:
            fields["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        if self.reasoning is not None:
            fields["reasoning_content"] = self.reasoning
        return fields


def messages_of(messages: Iterable[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """OpenAI-shaped messages; `InvalidRequestError` says which one is wrong and how."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise InvalidRequestError(f"messages is a list of messages, not {type(messages).__name__}", param="messages")
    made = []
    for index, message in enumerate(messages):
        try:
            made.append(Message.of(message))
        except InvalidRequestError as fault:
            raise InvalidRequestError(f"messages[{index}] {fault}", param="messages") from fault
    return tuple(made)


def check_history(messages: Sequence[Message]) -> None:
    """Refuse an empty conversation, results of calls that nobody made, and calls whose arguments are no object."""
    if not messages:
        raise InvalidRequestError("messages is empty; pass at least one message", param="messages")
    called: set[str] = set()
    for index, message in enumerate(messages):
        for call in message.tool_calls:
            _check_arguments(index, call)
            called.add(call.id)
        if message.role == "tool" and message.tool_call_id not in called:
            raise InvalidRequestError(
                f"messages[{index}] answers the tool call {message.tool_call_id!r}, which no assistant message "
                "before it made",
                param="messages",
            )


def _check_arguments(index: int, call: ToolCall) -> None:
    place = f"messages[{index}] calls {call.name} (id {call.id!r}) with arguments that are"
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as fault:
        raise InvalidRequestError(f"{place} not JSON: {fault}", param="messages") from fault
    if not isinstance(arguments, dict):
        raise InvalidRequestError(f"{place} JSON, but no object", param="messages")


def _content(value: Any) -> str | tuple[ContentPart, ...] | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise InvalidRequestError(f"has a content of type {type(value).__name__}; it is text or a list of parts")
    return tuple(_part(part) for part in value)


def _part(part: Any) -> ContentPart:
    if isinstance(part, TextPart | ImagePart):
        return part
    if isinstance(part, str):
        return TextPart(part)
    fields = mapping(part, "a content part")
    kind = fields.get("type")
    if kind in ("text", "input_text", "output_text", "refusal"):
        return TextPart(_string(fields.get("refusal" if kind == "refusal" else "text"), f"a part of type {kind}"))
    if kind in ("image_url", "input_image", "image"):
        if isinstance(data := fields.get("data", fields.get("image")), bytes):
            return ImagePart(data=data)
        image = fields.get("image_url", fields.get("url"))
        if image is None and fields.get("file_id"):
            raise InvalidRequestError("has an image by file_id, and no files are kept here; send it as a data: URL")
        if isinstance(image, Mapping):
            return ImagePart(_string(image.get("url"), "the url of an image"), image.get("detail"))
        return ImagePart(_string(image, "the url of an image"), fields.get("detail"))
    raise InvalidRequestError(f"has a content part of type {kind!r}; parts are text or image_url")


def _parts(content: str | tuple[ContentPart, ...] | None) -> Any:
    if content is None or isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": part.as_url} | ({"detail": part.detail} if part.detail else {})}
        for part in content
    ]


def mapping(value: Any, what: str, *, param: str | None = None) -> Mapping[str, Any]:
    """``value``, which must be an object."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{what} is an object, not {value!r}", param=param)
    return value


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what} is a string, not {value!r}")
    return value


def _optional(value: Any, what: str) -> str | None:
    return None if value is None else _string(value, what)

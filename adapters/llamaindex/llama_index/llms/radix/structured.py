"""Objects of a pydantic class: what a model is asked for them, and what becomes of its answer.

Rules. The grammar makes the object; what is left to do here is to hand it over: grown field by field while it comes
(`Partials`), validated by the class itself when it is there (`parse`). An answer that was cut short is an error that
says so, never half an object.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.types import Model
from llama_index.llms.radix.partial import GrowingJson, repaired
from llama_index.llms.radix.schema import schema_of, told
from pydantic import AliasChoices, BaseModel, RootModel
from pydantic.fields import FieldInfo

from radixbackend.errors import OutputValidationError

INSTRUCTION = "Answer with one JSON value that fits this JSON schema, and nothing else:\n{schema}"


@dataclass(frozen=True, slots=True)
class Target:
    """What one class comes to: the schema that a grammar enforces, and what the model is told."""

    name: str
    schema: Mapping[str, Any]
    instruction: str

    @classmethod
    def of(cls, output_cls: type[BaseModel]) -> Self:
        """Raises `ConstraintError` for a class that has no JSON schema."""
        schema = schema_of(output_cls)
        return cls(output_cls.__name__, schema, INSTRUCTION.format(schema=told(output_cls)))

    def response_format(self, *, strict: bool) -> dict[str, Any]:
        """What the answer must be; with ``strict`` a schema is refused of which a grammar holds only a part."""
        described = {"name": self.name, "schema": self.schema, "strict": strict}
        kept = "error" if strict else "fallback"
        return {"type": "json_schema", "json_schema": described, "on_unsupported": kept}


class Targets:
    """The targets of classes, found out once for each. Safe to use from many threads."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[type[BaseModel], Target] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, output_cls: type[BaseModel]) -> Target:
        """Raises `ConstraintError` for a class that has no JSON schema."""
        with self._lock:  # whoever else asks waits, rather than do the same
            if output_cls not in self._known:
                self._known[output_cls] = Target.of(output_cls)
            return self._known[output_cls]

    async def aof(self, output_cls: type[BaseModel]) -> Target:
        """`of` without blocking the event loop, for large classes take a while."""
        known = self._known.get(output_cls)
        return known if known is not None else await asyncio.to_thread(self.of, output_cls)

    def __reduce__(self) -> tuple[Any, ...]:
        return Targets, ()


def with_instruction(messages: Sequence[ChatMessage], text: str) -> list[ChatMessage]:
    """The messages, the first of which also says ``text``.

    It comes first, not last, so that calls which differ in their question share it in the prefix cache; and it goes
    into a message that is there, for some models know no system role.
    """
    if not messages or messages[0].role not in (MessageRole.SYSTEM, MessageRole.DEVELOPER, MessageRole.USER):
        return [ChatMessage(role=MessageRole.SYSTEM, content=text), *messages]
    first, *rest = messages
    if first.role == MessageRole.USER:
        blocks = [TextBlock(text=f"{text}\n\n"), *first.blocks]
    else:
        blocks = [*first.blocks, TextBlock(text=f"\n\n{text}")]
    return [first.model_copy(update={"blocks": blocks}), *rest]


def parse(output_cls: type[Model], response: ChatResponse) -> Model:
    """The object.

    Raises:
        OutputValidationError: the answer was cut short, or is no JSON (a server that does not enforce schemas).
        pydantic.ValidationError: a validator of the class does not like it.
    """
    text = response.message.content or ""
    about = response.raw or {}
    if about.get("finish_reason") == "length" and not about.get("complete"):
        tokens = response.additional_kwargs.get("completion_tokens")
        message = f"the answer was cut after {tokens} tokens, before its JSON was complete; raise max_tokens"
        raise OutputValidationError(message, keyword="json", path="", text=text)
    try:
        text = repaired(text)
    except ValueError as fault:
        raise OutputValidationError(f"the answer is no JSON: {fault}", keyword="json", path="", text=text) from fault
    return output_cls.model_validate_json(text)


class Partials:
    """Objects of a class as far as they have come: each has what the one before had, and more."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._json = GrowingJson()
        self._class = create_flexible_model(output_cls)
        self._root = issubclass(output_cls, RootModel)
        fields = output_cls.model_fields.items()
        self._names = {alias: name for name, field in fields for alias in _aliases(field)}
        self._last: Any = None

    def feed(self, text: str) -> Iterator[FlexibleModel]:
        """The objects that this much more of the answer makes, at least one for each field that it completes."""
        for value in self._json.feed(text):
            if value and value != self._last:
                self._last = value
                yield self._class.model_validate(self._fields(value))

    def _fields(self, value: Any) -> dict[str, Any]:
        if self._root or not isinstance(value, dict):
            return {"root": value}
        return {self._names.get(key) or key: item for key, item in value.items()}


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias or field.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [choice for choice in choices if isinstance(choice, str)]

"""`with_structured_output`: what is bound to the model, and how an answer becomes an object.

Rules. The grammar makes the JSON; here it is only read. While an answer streams, the object grows; an answer that was
cut before its JSON was complete is an error, never a repaired object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import is_dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import BaseTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import TypeAdapter
from pydantic import v1 as pydantic_v1

from langchain_radix.errors import RadixInvalidRequestError
from langchain_radix.schema import json_schema, response_format
from langchain_radix.tools import to_tools

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput

    from langchain_radix.chat_models import ChatRadix

Method = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    model: ChatRadix,
    schema: Any,
    *,
    method: Method,
    include_raw: bool,
    strict: bool | None,
    tools: Sequence[Any] | None,
    **kwargs: Any,
) -> Runnable[LanguageModelInput, Any]:
    """The model with the schema bound, and its parser; see `ChatRadix.with_structured_output`."""
    if schema is None and method != "json_mode":
        raise RadixInvalidRequestError(f"method={method!r} needs a schema", param="schema")
    if strict is not None and method == "json_mode":
        raise RadixInvalidRequestError("strict has no meaning with method='json_mode'", param="strict")
    described = {"method": method} if method == "json_mode" else {"method": method, "strict": strict}
    bound: dict[str, Any] = {"ls_structured_output_format": {"kwargs": described, "schema": _traced(schema)}}
    tool = None
    if method == "function_calling":
        offered = to_tools([schema, *(tools or ())], strict=strict)
        tool = offered[0]["function"]["name"]
        bound["tools"] = offered
        bound["tool_choice"] = "required" if tools else {"type": "function", "function": {"name": tool}}
        bound["parallel_tool_calls"] = False
    elif method in ("json_schema", "json_mode"):
        bound["response_format"] = response_format({"type": "json_object"} if schema is None else schema, strict=strict)
        if tools:
            bound["tools"] = to_tools(tools, strict=strict)
    else:
        raise RadixInvalidRequestError(
            f"method is json_schema, function_calling or json_mode, not {method!r}", param="method"
        )
    asked = model.bind(**bound, **kwargs)
    made_into = schema if isinstance(schema, type) and (is_basemodel_subclass(schema) or is_dataclass(schema)) else None
    parser = ObjectParser(object_type=made_into, tool=tool)
    if not include_raw:
        return asked | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=asked) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _traced(schema: Any) -> Any:
    """What LangChain can describe in a trace."""
    return json_schema(schema) if is_dataclass(schema) else schema


class ObjectParser(BaseTransformOutputParser[Any]):
    """JSON of an answer's text, or of the arguments of its call of ``tool``, as an object.

    An answer that calls something else has no object: it is None.

    Attributes:
        object_type: what to make of the JSON; None leaves it as it is.
        tool: whose arguments are the object; None reads the text.
    """

    object_type: Any = None
    tool: str | None = None

    @property
    def OutputType(self) -> Any:
        return self.object_type or Any

    def parse(self, text: str) -> Any:
        return self.parse_result([Generation(text=text)])

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Raises `OutputParserException` for an answer that was cut, or that the class refuses."""
        generation = result[0]
        answer = Growing(self)
        answer.add(generation.message if isinstance(generation, ChatGeneration) else AIMessage(generation.text))
        return answer.now() if partial else answer.whole()

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        answer = Growing(self)
        for chunk in input:
            answer.add(AIMessage(chunk) if isinstance(chunk, str) else chunk)
            yield from answer.news()
        yield from answer.last_news()

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        answer = Growing(self)
        async for chunk in input:
            answer.add(AIMessage(chunk) if isinstance(chunk, str) else chunk)
            for object_ in answer.news():
                yield object_
        for object_ in answer.last_news():
            yield object_


class Growing:
    """The object of one answer, as it comes."""

    def __init__(self, parser: ObjectParser) -> None:
        self._parser = parser
        self._text = ""
        self._called: set[int] = set()  # the calls so far
        self._ours: int | None = None  # which of them has the object
        self._said: Any = None

    def add(self, message: BaseMessage) -> None:
        """A chunk, or a whole message."""
        if isinstance(message, AIMessageChunk):
            pieces = [(piece["index"] or 0, piece["name"], piece["args"] or "") for piece in message.tool_call_chunks]
        elif isinstance(message, AIMessage):
            calls = [(call["name"], json.dumps(call["args"])) for call in message.tool_calls]
            calls += [(call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
            pieces = [(index, name, text) for index, (name, text) in enumerate(calls)]
        else:
            pieces = []
        for index, name, text in pieces:
            self._called.add(index)
            if self._ours is None and name is not None and name == self._parser.tool:
                self._ours = index
            if index == self._ours:
                self._text += text
        if self._parser.tool is None:
            self._text += message.text

    @property
    def _elsewhere(self) -> bool:
        """The answer calls something that is not the object."""
        return bool(self._called) and self._ours is None

    def now(self) -> Any:
        """As far as it has come; None if that is no object of the class yet."""
        if self._elsewhere or not self._text.strip():
            return None
        try:
            return self._made(parse_partial_json(self._text))
        except (ValueError, pydantic_v1.ValidationError):  # pydantic's own error is a ValueError
            return None

    def whole(self) -> Any:
        """All of it; raises `OutputParserException` if that is no object."""
        if self._elsewhere:
            return None
        try:
            found = json.loads(self._text)
        except ValueError as fault:
            raise OutputParserException(
                f"the answer was cut before its JSON was complete ({fault}); raise max_tokens: {self._text!r}",
                llm_output=self._text,
            ) from fault
        try:
            return self._made(found)
        except (ValueError, pydantic_v1.ValidationError) as fault:
            raise OutputParserException(
                f"the answer is no {self._parser.object_type.__name__}: {fault}", llm_output=self._text
            ) from fault

    def news(self) -> Iterator[Any]:
        """The object, if it has grown."""
        found = self.now()
        if found is not None and found != self._said:
            self._said = found
            yield found

    def last_news(self) -> Iterator[Any]:
        """The same when there is no more to come; raises as `whole`."""
        found = self.whole()
        if found is not None and found != self._said:
            yield found

    def _made(self, found: Any) -> Any:
        kind = self._parser.object_type
        if kind is None:
            return found
        if issubclass(kind, pydantic_v1.BaseModel):
            return kind.parse_obj(found)
        return TypeAdapter(kind).validate_json(json.dumps(found))  # as JSON, so that strict classes take it, too

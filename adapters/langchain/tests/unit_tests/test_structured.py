"""Schemas in every form, and answers as objects: whole, growing, cut."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessageChunk
from langchain_radix import ChatRadix
from langchain_radix.errors import RadixInvalidRequestError
from langchain_radix.schema import closed, json_schema, response_format
from pydantic import BaseModel, ConfigDict
from pydantic import v1 as pydantic_v1
from typing_extensions import TypedDict

from radixbackend.chat import Message, ToolCall
from radixbackend.types import Constraint


class Place(BaseModel):
    """A place."""

    model_config = ConfigDict(strict=True)

    city: str
    founded: date
    visits: list[int] = []


class OldPlace(pydantic_v1.BaseModel):
    city: str
    visits: list[int] = []


class PlaceDict(TypedDict):
    """A place."""

    city: str


@dataclass
class PlaceData:
    city: str
    visits: int = 0


ROME = {"city": "Rome", "founded": "0753-04-21", "visits": [1, 2]}


def said(answer: Any, method: str, name: str = "Place") -> Message:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    if method == "function_calling":
        return Message("assistant", None, tool_calls=(ToolCall("c1", name, text),))
    return Message("assistant", text)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_an_object_of_a_class(scripted: Any, method: Any) -> None:
    scripted.answers = [said(ROME, method) for _ in range(4)]
    structured = ChatRadix(model="m").with_structured_output(Place, method=method)
    expected = Place(city="Rome", founded=date(753, 4, 21), visits=[1, 2])
    assert structured.invoke("Rome?") == expected
    assert asyncio.run(structured.ainvoke("Rome?")) == expected
    assert list(structured.stream("Rome?"))[-1] == expected

    async def last() -> Any:
        return [item async for item in structured.astream("Rome?")][-1]

    assert asyncio.run(last()) == expected


@pytest.mark.parametrize(
    ("schema", "name", "expected"),
    [
        (OldPlace, "OldPlace", OldPlace(city="Rome")),
        (PlaceDict, "PlaceDict", {"city": "Rome"}),
        ({"title": "place", "type": "object", "properties": {"city": {"type": "string"}}}, "place", {"city": "Rome"}),
    ],
)
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_other_kinds_of_schema(scripted: Any, schema: Any, name: str, expected: Any, method: Any) -> None:
    scripted.answers = [said({"city": "Rome"}, method, name)]
    assert ChatRadix(model="m").with_structured_output(schema, method=method).invoke("Rome?") == expected


def test_a_dataclass(scripted: Any) -> None:
    scripted.answers = [said({"city": "Rome"}, "json_schema")]
    assert ChatRadix(model="m").with_structured_output(PlaceData).invoke("Rome?") == PlaceData("Rome")


def test_a_schema_in_openais_shape(scripted: Any) -> None:
    function = {"name": "place", "description": "A place", "parameters": json_schema(PlaceDict)}
    scripted.answers = [said({"city": "Rome"}, "json_schema"), said({"city": "Rome"}, "function_calling", "place")]
    model = ChatRadix(model="m")
    assert model.with_structured_output(function).invoke("?") == {"city": "Rome"}
    assert model.with_structured_output(function, method="function_calling").invoke("?") == {"city": "Rome"}
    assert scripted.asked[0].response_format.name == "place"


def test_json_mode_without_a_schema_is_any_object(scripted: Any) -> None:
    scripted.answers = [said({"a": 1}, "json_mode")]
    assert ChatRadix(model="m").with_structured_output(method="json_mode").invoke("?") == {"a": 1}
    assert scripted.asked[0].response_format.constraint == Constraint.json_object()


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_objects_grow_while_they_are_written(scripted: Any, method: Any) -> None:
    scripted.answers = [said({"city": "Constantinople", "visits": 12}, method, "PlaceDict")]
    seen = list(ChatRadix(model="m").with_structured_output(PlaceDict, method=method).stream("?"))
    assert seen[0] == {}
    cities = [found["city"] for found in seen if "city" in found]
    assert len(set(cities)) > 3
    assert all("Constantinople".startswith(city) for city in cities)
    assert seen[-1] == {"city": "Constantinople", "visits": 12}
    assert all(one != two for one, two in itertools.pairwise(seen)), "nothing is said twice"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("cut", ['{"city": "Ro', "", '{"city": "Rome", "founded": "0753-04-21"'])
def test_an_answer_that_was_cut_is_an_error(scripted: Any, method: Any, cut: str) -> None:
    scripted.finish = "length"
    scripted.answers = [said(cut, method) for _ in range(3)]
    model = ChatRadix(model="m")
    structured = model.with_structured_output(Place, method=method)
    with pytest.raises(OutputParserException, match="was cut before its JSON was complete"):
        structured.invoke("?")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        list(structured.stream("?"))
    raw = model.with_structured_output(Place, method=method, include_raw=True).invoke("?")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], OutputParserException)


def test_what_a_class_refuses_is_an_error(scripted: Any) -> None:
    scripted.answers = [said({"city": "Rome", "founded": "yesterday"}, "json_schema")]
    with pytest.raises(OutputParserException, match="the answer is no Place"):
        ChatRadix(model="m").with_structured_output(Place).invoke("?")


def test_include_raw(scripted: Any) -> None:
    scripted.answers = [said(ROME, "json_schema")]
    found = ChatRadix(model="m").with_structured_output(Place, include_raw=True).invoke("?")
    assert found["raw"].content == json.dumps(ROME)
    assert found["parsed"].city == "Rome"
    assert found["parsing_error"] is None


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_other_tools_may_be_called_instead(scripted: Any, method: Any) -> None:
    def look(word: str) -> str:
        """Look a word up."""
        return word

    scripted.answers = [said({"word": "Rome"}, "function_calling", "look")] * 2 + [said(ROME, method)]
    structured = ChatRadix(model="m").with_structured_output(Place, method=method, tools=[look], include_raw=True)
    found = structured.invoke("?")
    assert found["parsed"] is None
    assert found["parsing_error"] is None
    assert found["raw"].tool_calls[0]["name"] == "look"
    plain = ChatRadix(model="m").with_structured_output(Place, method=method, tools=[look])
    assert list(plain.stream("?")) == []
    assert plain.invoke("?").city == "Rome"
    assert "look" in [tool.name for tool in scripted.asked[0].tools]


def test_what_is_bound(scripted: Any) -> None:
    model = ChatRadix(model="m")
    bound: Any = model.with_structured_output(Place, strict=True, seed=3)
    kwargs = bound.first.kwargs
    assert kwargs["seed"] == 3
    assert kwargs["ls_structured_output_format"] == {
        "kwargs": {"method": "json_schema", "strict": True},
        "schema": Place,
    }
    body = kwargs["response_format"]["json_schema"]
    assert body["strict"] is True
    assert body["schema"]["additionalProperties"] is False
    assert bound.OutputType is Place


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"schema": None}, "needs a schema"),
        ({"schema": Place, "method": "json_mode", "strict": True}, "strict has no meaning"),
        ({"schema": Place, "method": "yaml"}, "not 'yaml'"),
    ],
)
def test_what_is_refused(scripted: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RadixInvalidRequestError, match=complaint):
        ChatRadix(model="m").with_structured_output(**options)


OPEN = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}, "c": {"$ref": "#/$defs/C"}}}
DEFS = {"$defs": {"C": {"type": "object", "properties": {"properties": {"type": "string"}}}}}


def test_objects_are_closed_all_the_way_down() -> None:
    made = closed(OPEN | DEFS)
    assert made["additionalProperties"] is False
    assert made["properties"]["a"]["additionalProperties"] is False
    assert made["$defs"]["C"]["additionalProperties"] is False
    assert made["$defs"]["C"]["properties"] == {"properties": {"type": "string"}}, "a property by a keyword's name"
    assert "additionalProperties" not in OPEN, "the caller's own is left as it is"


@pytest.mark.parametrize(
    "schema",
    [
        {**OPEN, "additionalProperties": True, "properties": {}},
        {"type": "object"},
        {"allOf": [OPEN, {"properties": {"d": {}}}]},
        {**OPEN, "if": {"properties": {"a": {}}}},
        {**OPEN, "unevaluatedProperties": False},
        True,
    ],
)
def test_what_says_more_is_left_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


def test_strict_false_leaves_objects_open() -> None:
    made: Any = response_format(PlaceDict, strict=False)
    assert "additionalProperties" not in made["json_schema"]["schema"]
    made = response_format({"type": "json_schema", "json_schema": {"name": "p", "schema": OPEN, "strict": False}})
    assert made["json_schema"]["schema"] == OPEN


def test_chunks_without_numbers_are_read(scripted: Any) -> None:
    """As of a message that was made to a chunk, where LangChain numbers no calls."""
    from langchain_radix.structured import ObjectParser

    chunk = AIMessageChunk("", tool_calls=[{"name": "Place", "args": {"city": "Rome"}, "id": "c1"}])
    assert list(ObjectParser(tool="Place").transform(iter([chunk]))) == [{"city": "Rome"}]

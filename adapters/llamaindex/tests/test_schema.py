"""What pydantic takes beyond what its published schema says: closed by ours, and refused where it cannot be said.

No annotations of the future: the classes are local.
"""

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Union

import pytest
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.radix import Radix
from llama_index.llms.radix.schema import schema_of, told
from pydantic import UUID4, BaseModel, ConfigDict, Field, Json, create_model
from typing_extensions import TypedDict

from radixbackend import explain_schema
from radixbackend.errors import ConstraintError


class Floor(enum.IntEnum):
    GROUND = 0
    FIRST = 1


class View(enum.StrEnum):
    SEA = "sea"
    GARDEN = "garden"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(max_length=5)


class Tree(BaseModel):
    value: bool
    children: list["Tree"] = Field(max_length=2)


@dataclasses.dataclass
class Point:
    x: bool
    y: bool | None = None


class Flags(TypedDict):
    a: bool


class Pair(NamedTuple):
    a: bool
    b: Literal["x"]


SHORT = Field(max_length=3)
TYPES: dict[str, Any] = {
    "datetime": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "decimal": decimal.Decimal,
    "decimal-sized": Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2)],
    "decimal-bounded": Annotated[decimal.Decimal, Field(ge=0, lt=10)],
    "uuid": uuid.UUID,
    "uuid4": UUID4,
    "finite": Annotated[float, Field(allow_inf_nan=False)],
    "bytes": Annotated[bytes, Field(max_length=4)],
    "set": Annotated[frozenset[int], SHORT],
    "keys-int": Annotated[dict[int, bool], SHORT],
    "keys-float": Annotated[dict[float, bool], SHORT],
    "keys-bool": Annotated[dict[bool, bool], SHORT],
    "keys-enum": Annotated[dict[Floor, bool], SHORT],
    "keys-str-enum": Annotated[dict[View, bool], SHORT],
    "keys-date": Annotated[dict[datetime.date, bool], SHORT],
    "keys-uuid": Annotated[dict[uuid.UUID, bool], SHORT],
    "keys-pattern": Annotated[dict[Annotated[str, Field(pattern="^a+$")], bool], SHORT],
    "tagged": Annotated[Union[Cat, Dog], Field(discriminator="kind")],  # noqa: UP007
    "recursive": Tree,
    "dataclass": Point,
    "typed-dict": Flags,
    "named-tuple": Pair,
    "tuple": tuple[bool, ...],
    "any": Any,
}
REFUSED: dict[str, Any] = {
    "keys-tuple": dict[tuple[int, int], bool],
    "keys-literal": dict[Literal[1, 2], bool],
    "keys-bounded": dict[Annotated[int, Field(ge=1)], bool],
    "json": Json[int],
    "complex": complex,
    "callable": Callable[[int], int],
    "decimal-both": Annotated[decimal.Decimal, Field(max_digits=5, ge=0)],
}


@pytest.mark.parametrize("kind", TYPES)
def test_whatever_is_generated_is_taken(llm: Radix, kind: str) -> None:
    made = create_model("Made", value=(TYPES[kind], ...))
    assert explain_schema(schema_of(made)).enforced
    for seed in range(4):
        asked = {"seed": seed, "max_tokens": 200}
        assert isinstance(llm.structured_predict(made, PromptTemplate("Make one."), llm_kwargs=asked), made)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_said_is_refused(kind: str) -> None:
    with pytest.raises(ConstraintError, match="Made cannot be written as a JSON schema"):
        schema_of(create_model("Made", value=(REFUSED[kind], ...)))


def test_objects_are_closed_unless_their_class_says_otherwise() -> None:
    class Inner(BaseModel):
        a: int

    class Open(Inner):
        model_config = ConfigDict(extra="allow")

    class Outer(BaseModel):
        inner: Inner
        open: Open
        map: dict[str, int]
        flags: Flags

    schema = schema_of(Outer)
    closed = {name: part["additionalProperties"] for name, part in schema["$defs"].items()}
    assert closed == {"Inner": False, "Open": True, "Flags": False}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["map"]["additionalProperties"] == {"type": "integer"}


def test_models_are_told_what_a_person_would_need() -> None:
    class Room(BaseModel):
        """A room."""

        number: int = Field(description="on the door", ge=1)
        price: Annotated[float, Field(allow_inf_nan=False)]

    text = told(Room)
    assert json.loads(text)["properties"]["number"] == {"description": "on the door", "minimum": 1, "type": "integer"}
    assert "A room." in text
    assert "1e" not in text
    assert json.loads(text)["properties"]["price"] == {"type": "number"}

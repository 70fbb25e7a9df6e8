"""RadixAdapter: what it asks for is the signature's own types, and what comes back parses the first time."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import json
import os
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import dspy
import pydantic
import pytest
from dspy.utils.dummies import DummyLM
from dspy.utils.exceptions import AdapterParseError
from dspy_radix import RadixAdapter, RadixLM
from dspy_radix.outputs import Outputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

EXAMPLES = int(os.environ.get("RADIX_SIGNATURES", "40"))


class Color(enum.Enum):
    RED = "red"
    DARK = "dark grey"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(pydantic.BaseModel):
    x: int
    y: float = 0.0


class Tree(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=6)
    children: list[Tree] = pydantic.Field(default_factory=list, max_length=2)


class Booking(pydantic.BaseModel):
    guest: str
    nights: Annotated[int, pydantic.Field(ge=1, le=14)]
    extras: dict[str, int]
    room: Literal["sea", "garden"] | None = None


class Loose(pydantic.BaseModel, extra="allow"):
    known: bool


class Pair(TypedDict):
    left: int
    right: str


@dataclasses.dataclass
class Size:
    width: int
    height: int = 1


class Span(NamedTuple):
    start: int
    end: int


def signature(**outputs: Any) -> type[dspy.Signature]:
    fields: dict[str, Any] = {"text": (str, dspy.InputField())}
    fields |= {name: made if isinstance(made, tuple) else (made, dspy.OutputField()) for name, made in outputs.items()}
    made: type[dspy.Signature] = dspy.Signature(fields, "Read the text.")
    return made


def schema_of(**outputs: Any) -> dict[str, Any]:
    return Outputs(signature(**outputs).output_fields).schema()


# -- the schema ----------------------------------------------------------------------------------------------------


def test_fields_keep_the_order_of_the_signature() -> None:
    schema = schema_of(zebra=int, apple=str, mango=bool)
    assert list(schema["properties"]) == schema["required"] == ["zebra", "apple", "mango"]
    assert schema["additionalProperties"] is False


def test_maps_stay_open_at_every_depth() -> None:
    schema = schema_of(booking=Booking, scores=dict[str, list[float]])
    assert schema["properties"]["scores"]["additionalProperties"] == {"type": "array", "items": {"type": "number"}}
    assert schema["$defs"]["Booking"]["properties"]["extras"]["additionalProperties"] == {"type": "integer"}
    assert schema["$defs"]["Booking"]["additionalProperties"] is False


def test_objects_take_extras_only_where_their_class_keeps_them() -> None:
    schema = schema_of(loose=Loose, size=Size, pair=Pair)
    assert schema["$defs"]["Loose"]["additionalProperties"] is True
    assert schema["$defs"]["Size"]["additionalProperties"] is False
    assert schema["$defs"]["Pair"]["additionalProperties"] is False


def test_a_fields_own_bounds_and_default_are_in_the_schema() -> None:
    schema = schema_of(count=(int, dspy.OutputField(ge=1, le=5)), note=(str, dspy.OutputField(default="none")))
    count = schema["properties"]["count"]
    assert (count["type"], count["minimum"], count["maximum"]) == ("integer", 1, 5)
    assert schema["required"] == ["count"]


@pytest.mark.parametrize("name", ["json", "schema", "copy", "items", "class_"])
def test_any_name_can_be_a_field(name: str) -> None:
    assert list(schema_of(**{name: int})["properties"]) == [name]


def test_text_like_types_are_text() -> None:
    schema = schema_of(why=dspy.Reasoning, code=dspy.Code["python"], many=list[dspy.Code])
    assert {name: made["type"] for name, made in schema["$defs"].items()} == dict.fromkeys(schema["$defs"], "string")
    assert len(schema["$defs"]) == 3


# -- reading -------------------------------------------------------------------------------------------------------


def parse(text: str, **outputs: Any) -> dict[str, Any]:
    made: dict[str, Any] = RadixAdapter().parse(signature(**outputs), text)
    return made


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, '"12"', "12"),
        (int | str, '"12"', "12"),
        (datetime.date, '"2024-02-29"', datetime.date(2024, 2, 29)),
        (decimal.Decimal, '"0.1"', decimal.Decimal("0.1")),
        (decimal.Decimal, "0.1", decimal.Decimal("0.1")),
        (datetime.timedelta, '"P1DT2H"', datetime.timedelta(days=1, hours=2)),
        (dict[int, bool], '{"7": true}', {7: True}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (set[int], "[1, 1, 2]", {1, 2}),
        (Color, '"dark grey"', Color.DARK),
        (Tree, '{"name": "a", "children": [{"name": "b"}]}', Tree(name="a", children=[Tree(name="b")])),
        (str, r'"a\ud83d\ude00b\udeddc"', "a😀b\ufffdc"),
    ],
)
def test_values_are_read_as_their_types(kind: Any, text: str, value: Any) -> None:
    assert parse(f'{{"out": {text}}}', out=kind) == {"out": value}


def test_defaults_fill_what_is_left_out() -> None:
    assert parse('{"a": 1}', a=int, b=(str, dspy.OutputField(default="none")), c=int | None) == {
        "a": 1,
        "b": "none",
        "c": None,
    }


@pytest.mark.parametrize("text", ['{"a": 12', '{"a": "x', '{"a": 12, "b', '{"a": tr', "{"])
def test_an_answer_that_was_cut_is_no_answer(text: str) -> None:
    with pytest.raises(AdapterParseError, match="max_tokens"):
        parse(text, a=int)


def test_answers_of_other_lms_are_read_as_jsonadapter_reads_them() -> None:
    assert parse('```json\n{"a": "3", "more": 1}\n```', a=int) == {"a": 3}
    with pytest.raises(AdapterParseError):
        parse("no idea", a=int)


def test_with_another_lm_it_is_a_json_adapter() -> None:
    with dspy.context(lm=DummyLM([{"a": 5}], adapter=dspy.JSONAdapter()), adapter=RadixAdapter()):
        assert dspy.Predict(signature(a=int))(text="hi").a == 5


# -- on a model whose words mean nothing ---------------------------------------------------------------------------

SCALARS = st.sampled_from(
    [
        *(str, int, float, bool, decimal.Decimal, datetime.date, datetime.datetime, datetime.time, uuid.UUID, Color),
        *(Level, Literal["a", "b c", 3], Literal["ä'\""], Point, Booking, Tree, Loose, Pair, Size, Span),
        *(dspy.Reasoning, dspy.Code, str | None, Any, list, dict),
        *(Annotated[int, pydantic.Field(gt=-3, lt=12)], Annotated[str, pydantic.Field(pattern=r"^[a-c]{1,4}$")]),
        *(Annotated[float, pydantic.Field(ge=0, le=1)], datetime.timedelta, bytes, Path),
    ]
)
HASHABLE = st.sampled_from([str, int, bool, Color, Literal["k", "l"], uuid.UUID])


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda t: list[t]),
        inner.map(lambda t: Annotated[list[t], pydantic.Field(min_length=1, max_length=2)]),
        inner.map(lambda t: t | None if not isinstance(t, str) else t),
        st.tuples(inner, inner).map(lambda ts: ts[0] | ts[1]),
        st.tuples(inner, inner).map(lambda ts: tuple[ts[0], ts[1]]),
        st.tuples(HASHABLE, inner).map(lambda ts: dict[ts[0], ts[1]]),
        HASHABLE.map(lambda t: set[t]),
    )


TYPES = st.recursive(SCALARS, _compound, max_leaves=4)


@given(kinds=st.lists(TYPES, min_size=1, max_size=4), seed=st.integers(0, 2**31))
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_signature_parses_the_first_time(radix: RadixLM, kinds: list[Any], seed: int) -> None:
    made = signature(**{f"field_{index}": kind for index, kind in enumerate(kinds)})
    calls = len(radix.history)
    answer = dspy.Predict(made)(text="A text.", config={"max_tokens": 500, "seed": seed})
    assert set(answer.keys()) == set(made.output_fields)
    assert len(radix.history) == calls + 1


def test_one_signature_with_everything(radix: RadixLM) -> None:
    made = signature(
        color=Color,
        booking=Booking,
        tree=Tree,
        pair=Pair,
        choice=Literal["x", "y"],
        scores=dict[str, float],
        n=int | str,
    )
    for seed in range(2):
        answer = dspy.Predict(made)(text="hi", config={"max_tokens": 400, "seed": seed})
        assert isinstance(answer.booking, Booking)
        assert 1 <= answer.booking.nights <= 14
        assert isinstance(answer.color, Color)
    asked = radix.history[-1]["kwargs"]["response_format"]["json_schema"]
    assert asked["schema"] == Outputs(made.output_fields).schema()


def test_async_calls_are_the_same(radix: RadixLM) -> None:
    answer = asyncio.run(dspy.Predict(signature(n=int, ok=bool)).acall(text="hi"))
    assert isinstance(answer.n, int)
    assert isinstance(answer.ok, bool)


# -- tools ---------------------------------------------------------------------------------------------------------


def search(query: Literal["fish", "bread"], limit: Annotated[int, pydantic.Field(ge=1, le=3)] = 1) -> str:
    """Look it up."""
    return f"{limit} of {query}"


def move(to: Point) -> str:
    """Go there."""
    return f"at {to.x}, {to.y}"


def test_react_gives_each_tool_its_own_arguments(radix: RadixLM) -> None:
    """Every call fits its tool, so none fails when it is run."""
    seen = set()
    agent = dspy.ReAct("question -> answer", tools=[search, move], max_iters=3)
    for seed in range(6):
        agent.set_lm(radix.copy(seed=seed))
        trajectory = agent(question="Where is the fish?").trajectory
        for key, value in trajectory.items():
            if key.startswith("observation"):
                assert "Execution error" not in value
            elif key.startswith("tool_name"):
                seen.add(value)
    assert seen == {"search", "move", "finish"}


def test_react_asks_by_the_chosen_tools_schema(radix: RadixLM) -> None:
    agent = dspy.ReAct("question -> answer", tools=[search, move], max_iters=1)
    agent(question="Where?", max_iters=1)
    cases = radix.history[0]["kwargs"]["response_format"]["json_schema"]["schema"]["anyOf"]
    by_tool = {case["properties"]["next_tool_name"]["const"]: case["properties"]["next_tool_args"] for case in cases}
    assert list(by_tool) == ["search", "move", "finish"]
    assert list(cases[0]["properties"]) == ["next_thought", "next_tool_name", "next_tool_args"]
    assert by_tool["search"]["required"] == ["query"]
    assert by_tool["search"]["properties"]["query"]["enum"] == ["fish", "bread"]
    assert by_tool["finish"]["properties"] == {}
    assert all(arguments["additionalProperties"] is False for arguments in by_tool.values())


class WithTools(dspy.Signature):
    """Use a tool."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def test_a_signature_of_calls_alone_gets_calls(radix: RadixLM) -> None:
    tools = {"search": dspy.Tool(search), "move": dspy.Tool(move)}
    answer = dspy.Predict(WithTools)(question="Where?", tools=list(tools.values()))
    assert answer.calls.tool_calls
    for call in answer.calls.tool_calls:
        assert tools[call.name](**call.args)
    assert radix.history[-1]["kwargs"]["tool_choice"] == "required"


def test_calls_or_fields_whichever_the_model_likes(radix: RadixLM) -> None:
    made = WithTools.append("note", dspy.OutputField(), type_=Literal["a", "b"])
    kinds = set()
    for seed in range(8):
        answer = dspy.Predict(made)(question="?", tools=[dspy.Tool(search)], config={"seed": seed})
        kinds.add(answer.note if answer.calls is None else "calls")
    assert kinds & {"a", "b"}


def test_the_adapters_name_is_what_listeners_look_up() -> None:
    assert RadixAdapter.__name__ == "JSONAdapter"
    assert "RadixAdapter" in repr(RadixAdapter)
    assert json.dumps(schema_of(a=int))

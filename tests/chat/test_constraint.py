"""One grammar for the whole answer: what it allows and what it does not, for every call format."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from radixbackend.chat.constraint import AnswerPlan, Planner
from radixbackend.chat.formats import gemma, harmony, hermes, llama, pythonic
from radixbackend.chat.reasoning import HarmonyReasoning, Phase, ReasoningFormat, TaggedReasoning
from radixbackend.chat.request import ChatRequest
from radixbackend.engine.grammar.base import Vocabulary
from radixbackend.engine.grammar.xgrammar import XGrammarBackend
from radixbackend.errors import ConstraintError, OutputValidationError
from radixbackend.structured import FrontDoor
from radixbackend.types import Constraint
from tests.chat.fake import make_tokenizer
from tests.chat.families import FAMILIES, OSLO, ROME, TOOLS, Family, before, content

BY_NAME = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.format.name)
THINK = TaggedReasoning("think", "<think>", "</think>")
USER = [{"role": "user", "content": "hi"}]
OFFERED = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in TOOLS.items()]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
RESPONSE = {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}}
YES = '{"answer": "yes"}'


@functools.cache
def backend() -> tuple[Any, XGrammarBackend]:
    """A tokenizer that has every family's special tokens, and xgrammar over it."""
    specials = dict.fromkeys(text for family in FAMILIES for text in family.specials)
    tokenizer = make_tokenizer(specials=tuple(specials))
    vocabulary = Vocabulary(tokenizer, len(tokenizer), (tokenizer.eos_token_id,), "test")
    return tokenizer, XGrammarBackend(vocabulary)


@functools.cache
def compiled(constraint: Constraint) -> Any:
    return backend()[1].compile(FrontDoor().check(constraint).constraint)


def allows(plan: AnswerPlan, text: str) -> bool:
    """Whether the grammar takes this text, token by token, as a whole answer."""
    assert plan.constraint is not None
    matcher = compiled(plan.constraint).matcher()
    tokens = backend()[0].encode(text, add_special_tokens=False)
    return all(matcher.accept(token) for token in tokens) and bool(matcher.is_complete())


def plan(
    family: Family, *, reasoning: ReasoningFormat | None = None, phase: Phase = "after", **fields: Any
) -> AnswerPlan:
    return Planner(family.format, reasoning).plan(ChatRequest.of(USER, **{"tools": OFFERED, **fields}), phase)


@BY_NAME
def test_auto_is_free_text_until_a_call_begins(family: Family) -> None:
    auto = plan(family)
    one, two = family.format.write([ROME]), family.format.write([ROME, OSLO])
    assert allows(auto, content(family, "Hello [1] {there}."))
    assert allows(auto, one)
    assert allows(auto, before(family, "Let me see.") + one)
    assert allows(auto, two)
    assert not allows(auto, one.replace("city", "town"))
    if family.format is not pythonic.LLAMA:  # where a name that is no tool's begins no call
        assert not allows(auto, one.replace("get_weather", "get_news"))
    assert not allows(auto, one[: len(one) // 2])


@BY_NAME
def test_required_is_calls_and_nothing_else(family: Family) -> None:
    required = plan(family, tool_choice="required")
    one, two = family.format.write([ROME]), family.format.write([OSLO, ("get", {})])
    assert allows(required, one)
    assert allows(required, two)
    assert not allows(required, content(family, "Hello"))
    assert not allows(required, f"Hello {one}")
    assert not allows(required, "")


@BY_NAME
def test_without_parallel_calls_there_is_one_at_most(family: Family) -> None:
    one, two = family.format.write([ROME]), family.format.write([ROME, OSLO])
    for choice in ("auto", "required"):
        single = plan(family, tool_choice=choice, parallel_tool_calls=False)
        assert allows(single, one)
        assert one == two or not allows(single, two)


@BY_NAME
def test_a_named_tool_is_called_once(family: Family) -> None:
    named = plan(family, tool_choice={"type": "function", "function": {"name": "get"}})
    assert allows(named, family.format.write([("get", {})]))
    assert not allows(named, family.format.write([ROME]))
    two = family.format.write([("get", {}), ("get", {})])
    assert two == family.format.write([("get", {})]) or not allows(named, two)


@BY_NAME
def test_none_calls_nothing(family: Family) -> None:
    none = plan(family, tool_choice="none")
    assert allows(none, content(family, "Hello [1] {there}."))
    assert not allows(none, family.format.write([ROME]))
    assert none.tools == {}


@BY_NAME
def test_tools_and_a_schema_together(family: Family) -> None:
    """Calls alone, or JSON of the schema alone."""
    both = plan(family, response_format=RESPONSE)
    one, two = family.format.write([ROME]), family.format.write([ROME, OSLO])
    assert allows(both, content(family, YES))
    assert allows(both, one)
    assert allows(both, two)
    for wrong in (
        content(family, "Hello"),
        content(family, '{"answer": "perhaps"}'),
        YES + one,
        one + YES,
        "Hi " + one,
    ):
        assert not allows(both, wrong)
    calls_only = plan(family, response_format=RESPONSE, tool_choice="required")
    assert allows(calls_only, one)
    assert not allows(calls_only, content(family, YES))
    schema_only = plan(family, response_format=RESPONSE, tool_choice="none")
    if schema_only.constraint is not None and schema_only.constraint.kind == "structural_tag":
        assert allows(schema_only, content(family, YES))
        assert not allows(schema_only, one)
    else:
        assert schema_only.constraint == Constraint.json_schema(SCHEMA)


@BY_NAME
def test_optional_parameters_may_be_left_out_in_every_combination(family: Family) -> None:
    required = plan(family, tool_choice="required")
    for optional in ({}, {"days": 3}, {"hourly": True, "note": None}, {"days": 3, "units": "kelvin", "also": ["x"]}):
        assert allows(required, family.format.write([("get_weather", {"city": "Rome", **optional})]))
    for wrong in ({"days": 3}, {"city": "Rome", "hourly": 1}, {"city": "Rome", "units": "miles"}):
        assert not allows(required, family.format.write([("get_weather", wrong)]))


def test_allowed_tools_are_a_subset() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": OFFERED[1:]}}
    allowed = plan(FAMILIES[0], tool_choice=choice)
    assert allows(allowed, hermes.HERMES.write([("get", {})]))
    assert not allows(allowed, hermes.HERMES.write([ROME]))


@pytest.mark.parametrize(
    ("response", "good", "bad"),
    [
        (RESPONSE, YES, "yes"),
        ({"type": "json_object"}, '{"a": [1, {"b": null}]}', "[1]"),
        ({"type": "regex", "regex": "[0-9]{3}"}, "123", "12"),
        ({"type": "choice", "choice": ["red", "green"]}, "green", "blue"),
        ({"type": "grammar", "grammar": 'root ::= "a" | "b" root'}, "bba", "bb"),
        ({"type": "structural_tag", "format": {"type": "const_string", "value": "hi"}}, "hi", "ho"),
    ],
)
def test_responses_of_every_kind_after_reasoning_and_beside_tools(response: Any, good: str, bad: str) -> None:
    inside = plan(FAMILIES[0], tools=(), reasoning=THINK, phase="inside", response_format=response)
    assert allows(inside, f"hm </think>\n\n{good}")
    assert allows(inside, f"{good}</think>{good}")
    assert not allows(inside, good)
    assert not allows(inside, f"hm</think>{bad}")
    before = plan(FAMILIES[0], tools=(), reasoning=THINK, phase="before", response_format=response)
    assert allows(before, f"<think>hm</think>\n{good}")
    assert allows(before, good)
    assert not allows(before, f"<think>hm{good}")
    both = plan(FAMILIES[0], response_format=response)
    assert allows(both, good)
    assert not allows(both, bad)
    assert allows(both, hermes.HERMES.write([ROME]))


@BY_NAME
def test_reasoning_comes_before_calls(family: Family) -> None:
    thinks: ReasoningFormat = HarmonyReasoning() if family.format is harmony.HARMONY else THINK
    thought = f"{harmony.ANALYSIS}hm{harmony.NEXT}" if family.format is harmony.HARMONY else "<think>hm</think>\n\n"
    one = family.format.write([ROME])
    for choice in ("auto", "required"):
        made = plan(family, reasoning=thinks, phase="before", tool_choice=choice)
        assert allows(made, thought + one)
        assert allows(made, one)
        assert not allows(made, one + thought)
    auto = plan(family, reasoning=thinks, phase="before")
    assert allows(auto, thought + content(family, "Hello"))
    assert not allows(auto, thought + thought)


def test_nothing_to_enforce_is_no_constraint() -> None:
    assert plan(FAMILIES[0], tools=()).constraint is None
    assert plan(FAMILIES[0], tools=(), reasoning=THINK, phase="inside").constraint is None
    assert plan(FAMILIES[0], tools=(), response_format={"type": "text"}).constraint is None


def test_a_response_alone_keeps_its_own_kind() -> None:
    """So that the engine can choose the best grammar backend for it."""
    alone = plan(FAMILIES[0], tools=(), reasoning=THINK, phase="after", response_format=RESPONSE)
    assert alone.constraint == Constraint.json_schema(SCHEMA)
    assert alone.check_content is None
    in_channels = plan(next(f for f in FAMILIES if f.format is harmony.HARMONY), tools=(), response_format=RESPONSE)
    assert allows(in_channels, harmony.FINAL + YES)


def test_white_space_is_the_response_formats_choice() -> None:
    response = Constraint.json_schema(SCHEMA, whitespace=True)
    loose = plan(FAMILIES[0], response_format=response)
    assert allows(loose, '{\n "answer" : "yes"}')
    assert not allows(plan(FAMILIES[0], response_format=RESPONSE), '{\n "answer" : "yes"}')


def test_what_no_grammar_holds_is_checked_afterwards() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 7}}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    made = plan(FAMILIES[0], tools=[tool], response_format=RESPONSE)
    made.check_arguments("f", '{"a": 8}')
    with pytest.raises(OutputValidationError, match="call of f") as fault:
        made.check_arguments("f", '{"a": 7}')
    assert fault.value.path == "/a"
    assert made.check_content is not None
    made.check_content(YES)
    with pytest.raises(OutputValidationError):
        made.check_content('{"answer": 1}')


def test_a_refused_schema_names_its_tool() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": False}}}}
    tool["function"]["parameters"]["required"] = ["a"]  # type: ignore[index]
    with pytest.raises(ConstraintError, match="the parameters of f"):
        plan(FAMILIES[0], tools=[tool])


def test_definitions_are_found_from_inside_keyword_formats() -> None:
    city = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    parameters = {"type": "object", "properties": {"at": {"$ref": "#/$defs/city"}}, "$defs": {"city": city}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {**parameters, "required": ["at"]}}}
    for family in FAMILIES:
        made = plan(family, tools=[tool], tool_choice="required")
        assert allows(made, family.format.write([("f", {"at": {"name": "Rome"}})])), family.format.name
        assert not allows(made, family.format.write([("f", {"at": {"town": "Rome"}})])), family.format.name


DEEP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tree": {"$ref": "#/$defs/tree"},
        "pair": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 3},
        "any": {},
        "either": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"x": {"const": 1}}}]},
    },
    "$defs": {"tree": {"type": "object", "properties": {"sub": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}},
}


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ({"tree": {"sub": [{"sub": [{}]}, {}]}}, True),
        ({"tree": {"sub": [{"sub": [{"other": 1}]}]}}, False),
        ({"pair": [1, 2]}, True),
        ({"pair": [1, 2, 3]}, True),
        ({"pair": [1]}, False),
        ({"pair": [1, 2, 3, 4]}, False),
        ({"pair": [1, 2.5]}, False),
        ({"any": {"a": ["x", {"b": None}, -1.5e3, True]}}, True),
        ({"any": "é < |"}, True),
        ({"either": {"x": 1}}, True),
        ({"either": {"x": 2}}, False),
        ({"either": "x"}, True),
    ],
)
def test_gemma_spells_nested_values(written: Any, allowed: bool) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": DEEP}}
    made = plan(next(f for f in FAMILIES if f.format is gemma.GEMMA), tools=[tool], tool_choice="required")
    assert allows(made, gemma.GEMMA.write([("f", written)])) == allowed


def test_gemmas_grammar_of_an_endless_schema_ends() -> None:
    """Ten of itself in each, any number of levels deep."""
    own = {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(10)}}
    tool = {"type": "function", "function": {"name": "f", "parameters": own}}
    made = plan(next(f for f in FAMILIES if f.format is gemma.GEMMA), tools=[tool], tool_choice="required")
    assert allows(made, gemma.GEMMA.write([("f", {"p0": {"p0": {"p1": {}}}})]))
    assert not allows(made, gemma.GEMMA.write([("f", {"p0": {"p0": {"p1": 1}}})]))


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if getattr(f.format, "kinds", None)], ids=lambda f: f.format.name
)
def test_a_tag_says_the_type_of_its_value(family: Family) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": ["string", "integer"]}, "y": {"enum": ["a", 1]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    made = plan(family, tools=[tool], tool_choice="required")
    for value in ("12", 12, "x"):
        assert allows(made, family.format.write([("f", {"x": value})]))
    assert not allows(made, family.format.write([("f", {"x": 12})]).replace("12", "x"))
    assert allows(made, family.format.write([("f", {"y": "a"})]))
    assert not allows(made, family.format.write([("f", {"y": "a"})]).replace(">a<", ">1<"))


def test_a_parameter_may_refer_to_all_of_them() -> None:
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "sub": {"$ref": "#"}, "m": {"$ref": "#/properties/n"}},
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for family in FAMILIES:
        made = plan(family, tools=[tool], tool_choice="required")
        assert allows(made, family.format.write([("f", {"sub": {"n": 1, "sub": {"n": 2}}})])), family.format.name
        assert allows(made, family.format.write([("f", {"m": 3})])), family.format.name
        assert not allows(made, family.format.write([("f", {"sub": {"n": 1, "sub": {"o": 2}}})])), family.format.name


def test_parameters_may_be_a_reference() -> None:
    city = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/$defs/c", "$defs": {"c": city}}}}
    for family in FAMILIES:
        made = plan(family, tools=[tool], tool_choice="required")
        assert allows(made, family.format.write([("f", {"name": "Rome"})])), family.format.name
        assert not allows(made, family.format.write([("f", {})])), family.format.name


def test_a_response_that_looks_like_a_call_is_a_call() -> None:
    """The one ambiguity there is: bare JSON calls, and a schema of the same form."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    family = next(f for f in FAMILIES if f.format is llama.LLAMA)
    both = plan(family, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert allows(both, '{"name": "somebody"}')
    parser = family.format.parser(TOOLS)
    read = [*parser.feed('{"name": "somebody"}'), *parser.finish(truncated=False)]
    assert "".join(getattr(piece, "text", "?") for piece in read) == '{"name": "somebody"}'
    assert json.loads(YES) == {"answer": "yes"}

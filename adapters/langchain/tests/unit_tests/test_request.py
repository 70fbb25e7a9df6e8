"""Parameters, by OpenAI's names and those of servers, as one request."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage
from langchain_radix import ChatRadix
from langchain_radix.request import KNOWN, Call, to_call

from radixbackend import Constraint, SamplingParams
from radixbackend.chat import ChatRequest
from radixbackend.errors import InvalidRequestError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


def call(**parameters: Any) -> Call:
    return to_call([HumanMessage("hi")], parameters)


def request(**parameters: Any) -> ChatRequest:
    return call(**parameters).request


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"temperature": 0, "top_p": 0.5, "seed": 3, "n": 2}, {"temperature": 0, "top_p": 0.5, "seed": 3, "n": 2}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "y"]}, {"stop": ("x", "y")}),
        ({"stop": []}, {}),
        ({"logit_bias": {"3": 5}}, {"logit_bias": {3: 5.0}}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {}),
        ({"top_k": -1}, {}),
        ({"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}, {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}),
        ({"include_stop_str_in_output": True}, {"include_stop": True}),
        ({"stop_token_ids": [4]}, {"stop_token_ids": (4,)}),
        ({"ignore_eos": True, "min_tokens": 2}, {"ignore_eos": True, "min_tokens": 2}),
        ({"extra_body": {"top_k": 3, "somebody_elses": 1}}, {"top_k": 3}),
        ({"temperature": None, "presence_penalty": 0.5}, {"presence_penalty": 0.5}),
    ],
)  # fmt: skip
def test_sampling(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert request(**given).sampling == SamplingParams(**{"max_tokens": None, **expected})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"regex": "a+"}, Constraint.regex("a+")),
        ({"grammar": 'root ::= "a"'}, Constraint.grammar('root ::= "a"')),
        ({"ebnf": 'root ::= "a"'}, Constraint.grammar('root ::= "a"')),
        ({"choice": ["a", "b"]}, Constraint.choice(["a", "b"])),
        ({"json_schema": SCHEMA}, Constraint.json_schema(SCHEMA)),
        ({"response_format": {"type": "json_object"}}, Constraint.json_object()),
        ({"response_format": SCHEMA}, Constraint.json_schema(SCHEMA)),
        ({"response_format": Constraint.regex("a")}, Constraint.regex("a")),
        ({"structured_outputs": {"choice": ["a"]}}, Constraint.choice(["a"])),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint.json_schema(SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, Constraint.json_object()),
        ({"extra_body": {"regex": "a+"}}, Constraint.regex("a+")),
    ],
)
def test_what_the_answer_must_be(given: dict[str, Any], expected: Constraint) -> None:
    asked = request(**given).response_format
    assert asked is not None
    assert asked.constraint == expected


def test_what_is_of_the_chat() -> None:
    made = request(
        priority=3,
        cache_salt="mine",
        chat_template_kwargs={"enable_thinking": False},
        reasoning={"effort": "low", "summary": "auto"},
        parallel_tool_calls=False,
        tools=[{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}],
        tool_choice="required",
    )
    assert (made.priority, made.cache_salt, made.reasoning_effort) == (3, "mine", "low")
    assert made.chat_template_kwargs == {"enable_thinking": False}
    assert made.tools[0].parameters == SCHEMA
    assert made.tool_choice is not None
    assert made.tool_choice.mode == "required"
    assert made.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("given", "complaint", "param"),
    [
        ({"temprature": 0}, "unknown parameter temprature (did you mean temperature?)", "temprature"),
        ({"flux": 0}, "unknown parameter flux", "flux"),
        ({"regex": "a", "choice": ["a"]}, "give one of choice and regex, not several", "choice"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs=True", "top_logprobs"),
        ({"structured_outputs": {"xml": 1}}, "structured_outputs has no xml", "structured_outputs"),
        ({"temperature": -1}, "temperature takes a number", "temperature"),
        ({"timeout": (1, "soon")}, "timeout takes seconds", "timeout"),
        ({"response_format": 3}, "a schema is a pydantic class", "response_format"),
        ({"tool_choice": "required"}, "there are no tools", "tool_choice"),
    ],
)
def test_what_is_refused(given: dict[str, Any], complaint: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**given)
    assert complaint in str(caught.value)
    assert caught.value.param == param


def test_what_is_openais_alone_is_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "langchain_radix"):
        assert request(user="anna", store=True, service_tier="flex") == request()
    assert {record.args[0] for record in caplog.records if isinstance(record.args, tuple)} == {
        "user",
        "store",
        "service_tier",
    }


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(None, None), (3, 3), (2.5, 2.5), ((5.0, 9.0), 9.0), (httpx.Timeout(7.0, connect=1.0), 7.0)],
)
def test_timeouts(timeout: Any, seconds: float | None) -> None:
    assert call(timeout=timeout).timeout == seconds


def test_a_call_goes_before_the_instance(scripted: Any) -> None:
    scripted.answers = [_message()] * 4
    model = ChatRadix(
        model="m", temperature=0.3, stop=["a"], seed=1, model_kwargs={"top_k": 5}, extra_body={"min_p": 0.2}
    )
    model.invoke("hi")
    model.invoke("hi", stop=["b"], temperature=0.9, top_k=None)
    model.bind(seed=2).invoke("hi")
    samplings = [asked.sampling for asked in scripted.asked]
    assert samplings[0] == SamplingParams(max_tokens=None, temperature=0.3, stop=("a",), seed=1, top_k=5, min_p=0.2)
    assert samplings[1] == samplings[0].replace(stop=("b",), temperature=0.9)
    assert samplings[2] == samplings[0].replace(seed=2)


def test_disabled_parameters_are_not_sent(scripted: Any) -> None:
    scripted.answers = [_message()] * 2
    model = ChatRadix(model="m", seed=1, disabled_params={"seed": None, "parallel_tool_calls": [False]})
    tools = model.bind_tools([{"name": "look", "input_schema": SCHEMA}], parallel_tool_calls=False)
    tools.invoke("hi")
    assert scripted.asked[0].sampling.seed is None
    assert scripted.asked[0].parallel_tool_calls is True


def test_every_known_name_is_taken() -> None:
    """A name that is listed but not read would be dropped without a word."""
    values: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "json_schema": SCHEMA,
        "structural_tag": {"type": "structural_tag", "format": {"type": "any_text"}},
        "structured_outputs": {"regex": "a"},
        "choice": ["a"],
        "stop": "x",
        "stop_token_ids": [1],
        "logit_bias": {1: 1},
        "chat_template_kwargs": {"a": 1},
        "reasoning": {"effort": "low"},
        "reasoning_effort": "low",
        "cache_salt": "s",
        "regex": "a",
        "grammar": 'root ::= "a"',
        "ebnf": 'root ::= "a"',
        "extra_body": {"seed": 9},
        "temperature": 0.5,
        "top_p": 0.5,
        "min_p": 0.5,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.5,
        "skip_special_tokens": False,
        "separate_reasoning": False,
        "timeout": 3,
    }
    plain = call()
    for name in KNOWN - {"top_logprobs", "continue_final_message"}:
        given = {name: values.get(name, 2)}
        if name in ("tool_choice", "parallel_tool_calls"):
            given["tools"] = values["tools"]
        assert call(**given) != plain, name


def _message() -> Any:
    from radixbackend.chat import Message

    return Message("assistant", "hi")

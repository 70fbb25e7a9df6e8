"""Every name that LangChain's classes for OpenAI take."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
from langchain_core.utils.utils import get_pydantic_field_names
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_radix import ChatRadix, RadixEmbeddings
from langchain_radix.compat import ENGINE_OPTIONS

VALUES: dict[str, Any] = {
    "callbacks": [],
    "tags": ["a"],
    "metadata": {"a": 1},
    "custom_get_token_ids": len,
    "rate_limiter": None,
    "profile": {},
    "model_kwargs": {},
    "logit_bias": {1: 1},
    "reasoning": {"effort": "low"},
    "default_headers": {"a": "b"},
    "http_client": object(),
    "http_async_client": object(),
    "extra_body": {"a": 1},
    "disabled_params": {},
    "stop": ["a"],
    "stop_sequences": ["a"],
    "output_version": "v0",
    "cache": False,
    "n": 1,
    "max_retries": 1,
    "dimensions": 4,
    "disable_streaming": False,
    "streaming": False,
    "logprobs": True,
    "stream_usage": False,
    "verbose": False,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 1,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "top_logprobs": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "timeout": 3.0,
    "request_timeout": 3.0,
}


def names(kind: type) -> list[str]:
    return sorted(get_pydantic_field_names(kind) - {"model", "model_name"})


@pytest.mark.parametrize("name", names(ChatOpenAI))
def test_whatever_chat_openai_takes_is_taken(name: str, scripted: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ChatRadix(model="m", **{name: VALUES.get(name, "some")})
    assert name not in model.model_kwargs


@pytest.mark.parametrize("name", names(OpenAIEmbeddings))
def test_whatever_openai_embeddings_take_is_taken(name: str, scripted: Any) -> None:
    RadixEmbeddings(model="m", **{name: VALUES.get(name, "some")})


def test_what_is_ignored_is_logged(scripted: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "langchain_radix"):
        ChatRadix(model="m", service_tier="flex", organization="us", store=None)
    assert sorted(record.args[0] for record in caplog.records if isinstance(record.args, tuple)) == [
        "organization",
        "service_tier",
    ]


def test_unknown_names_warn_and_go_to_model_kwargs(scripted: Any) -> None:
    with pytest.warns(UserWarning, match=r"temprature is no parameter of ChatRadix \(did you mean temperature\?\)"):
        model = ChatRadix(model="m", temprature=0)
    assert model.model_kwargs == {"temprature": 0}
    with pytest.raises(ValueError, match="unknown parameter temprature"):
        model.invoke("hi")


def test_engine_options_may_be_given_as_they_are(scripted: Any) -> None:
    model = ChatRadix(model="m", dtype="float32", kv_cache_tokens=99, engine_options={"grammar": "llguidance"})
    assert model.engine_options == {"dtype": "float32", "kv_cache_tokens": 99, "grammar": "llguidance"}
    assert model.grammar is None
    with pytest.raises(ValueError, match="dtype is given twice"):
        ChatRadix(model="m", dtype="float32", engine_options={"dtype": "auto"})


def test_no_engine_option_hides_a_parameter() -> None:
    """But ``grammar``, which is given in ``engine_options``."""
    assert not ENGINE_OPTIONS & get_pydantic_field_names(ChatRadix)
    assert not ENGINE_OPTIONS & get_pydantic_field_names(ChatOpenAI)


def test_streams_have_one_answer(scripted: Any) -> None:
    with pytest.raises(ValueError, match="n is 1 when streaming"):
        ChatRadix(model="m", n=2, streaming=True)
    with pytest.raises(ValueError, match="n is 1 when streaming"):
        next(ChatRadix(model="m", n=2).stream("hi"))


def test_embeddings_refuse_what_nobody_knows(scripted: Any) -> None:
    with pytest.raises(ValueError, match="dimension"):
        RadixEmbeddings(model="m", dimension=3)

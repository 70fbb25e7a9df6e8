"""The engine's errors as LangChain's."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from langchain_core import exceptions as langchain
from langchain_core.messages import HumanMessage
from langchain_radix import ChatRadix
from langchain_radix import errors as ours
from langchain_radix.errors import langchain_error, translated

from radixbackend import errors as radix


def kinds(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


def make(kind: type[radix.RadixError]) -> radix.RadixError:
    fault = kind.__new__(kind, "why")
    fault.args = ("why",)
    return fault


OF_RADIX = [kind for kind in kinds(radix.RadixError) if kind.__module__ == radix.__name__]
AS_THEY_ARE = {
    radix.RadixError,
    radix.ConfigError,
    radix.MissingDependencyError,
    radix.PluginError,
    radix.ModelError,
    radix.ModelLoadError,
    radix.UnsafeCheckpointError,
    radix.UnsupportedModelError,
    radix.RequestError,
}


@pytest.mark.parametrize("kind", OF_RADIX, ids=lambda kind: kind.__name__)
def test_every_error_of_a_request_is_one_of_langchains(kind: Any) -> None:
    fault = make(kind)
    twin = langchain_error(fault)
    if kind in AS_THEY_ARE:
        assert twin is fault
    else:
        assert isinstance(twin, kind)
        assert isinstance(twin, langchain.ModelError)
        assert str(twin) == "why"
        again = pickle.loads(pickle.dumps(twin))
        assert (type(again), again.args) == (type(twin), ("why",))


@pytest.mark.parametrize(
    ("kind", "theirs", "retryable"),
    [
        (radix.ContextLengthError, langchain.ContextOverflowError, False),
        (radix.ConstraintError, langchain.ModelInvalidRequestError, False),
        (radix.QueueFullError, langchain.ModelRateLimitError, True),
        (radix.RequestTimeoutError, langchain.ModelTimeoutError, True),
        (radix.StepError, langchain.ModelAPIError, True),
        (radix.OutputValidationError, langchain.ModelAPIError, False),
        (radix.EngineClosedError, langchain.ModelAPIError, False),
        (radix.AuthenticationError, langchain.ModelAuthenticationError, False),
        (radix.ServerUnreachableError, langchain.ModelConnectionError, True),
        (radix.ModelNotFoundError, langchain.ModelNotFoundError, False),
    ],
)
def test_which_is_which(kind: Any, theirs: Any, retryable: bool) -> None:
    twin: Any = langchain_error(make(kind))
    assert isinstance(twin, theirs)
    assert twin.is_retryable is retryable


def test_fields_and_causes_are_kept() -> None:
    cause = KeyError("a")
    with pytest.raises(ours.RadixConstraintError) as caught, translated:
        raise radix.ConstraintError("no such keyword", pointer="/a") from cause
    assert caught.value.pointer == "/a"
    assert caught.value.__cause__ is cause


def test_what_is_none_of_ours_passes() -> None:
    with pytest.raises(KeyError), translated:
        raise KeyError("a")


def test_a_prompt_that_is_too_long(params: dict[str, Any]) -> None:
    model = ChatRadix(**params)
    long = [HumanMessage("word " * 9000)]
    for ask in (lambda: model.invoke(long), lambda: list(model.stream(long)), lambda: asyncio.run(model.ainvoke(long))):
        with pytest.raises(langchain.ContextOverflowError) as caught:
            ask()
        assert isinstance(caught.value, radix.ContextLengthError)
        assert caught.value.prompt_tokens > 4096


def test_a_schema_that_nothing_fits(params: dict[str, Any]) -> None:
    schema = {"title": "none", "type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}
    with pytest.raises(ours.RadixConstraintError) as caught:
        ChatRadix(**params).with_structured_output(schema).invoke("hi")
    assert caught.value.pointer


def test_a_timeout(params: dict[str, Any]) -> None:
    with pytest.raises(langchain.ModelTimeoutError):
        ChatRadix(**params, timeout=0.0001, max_tokens=500).invoke("hi")


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(langchain.ModelNotFoundError, match="nowhere"):
        ChatRadix(model="./nowhere")


def test_an_option_that_is_wrong() -> None:
    with pytest.raises(radix.ConfigError, match="dtype takes one of"):
        ChatRadix(model="tiny", dtype="float3")


def test_a_retry_takes_what_may_be_retried(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``with_retry`` and fallbacks look at LangChain's classes."""
    calls = []

    def full(request: Any, *, timeout: float | None = None) -> Any:
        calls.append(request)
        raise radix.QueueFullError("full")

    monkeypatch.setattr(scripted, "complete", full)
    model = ChatRadix(model="m").with_retry(
        retry_if_exception_type=(langchain.ModelRateLimitError,), wait_exponential_jitter=False, stop_after_attempt=3
    )
    with pytest.raises(langchain.ModelRateLimitError):
        model.invoke("hi")
    assert len(calls) == 3

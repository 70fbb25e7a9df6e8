"""What is wrong is said with the right status, type, code and field, through every face."""

from __future__ import annotations

import contextlib
from typing import Any

import openai
import pytest

from radixbackend import errors
from radixbackend.openai_api.faults import _RULES, ApiError, api_error
from tests.openai_api.clients import Client, Recorder, Served, serve

USER = [{"role": "user", "content": "Hi"}]
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{not json"}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": 3}}}},
}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}]}]

CHAT: list[tuple[dict[str, Any], str | None, str, str]] = [
    # arguments, field, code, part of the message
    ({"model": "gpt-9"}, "model", "model_not_found", "'gpt-9' does not exist here; 'tiny' does"),
    ({"messages": []}, "messages", "invalid_value", "at least one message"),
    ({"messages": [{"role": "boss", "content": "Hi"}]}, "messages", "invalid_value", "role 'boss'"),
    ({"messages": [{"role": "user"}]}, "messages", "invalid_value", "no content"),
    ({"messages": [*USER, {"role": "assistant", "tool_calls": [CALL]}]}, "messages", "invalid_value", "not JSON"),
    ({"messages": [*USER, {"role": "tool", "tool_call_id": "z", "content": ""}]}, "messages", "invalid_value", "'z'"),
    ({"messages": IMAGE}, "messages", "invalid_value", "image"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages", "context_length_exceeded", "do not fit"),
    ({"messages": "Hi"}, "messages", "invalid_type", "array"),
    ({"messages": ["Hi"]}, "messages[0]", "invalid_type", ""),
    ({"max_tokens": -1}, "max_tokens", "invalid_value", "at least 0"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value", "at least 0"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_type", "integer"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type", "integer"),
    ({"temperature": 3}, "temperature", "invalid_value", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "invalid_type", "number"),
    ({"temperature": True}, "temperature", "invalid_type", "number"),
    ({"top_p": 0}, "top_p", "invalid_value", "greater than 0"),
    ({"frequency_penalty": 3}, "frequency_penalty", "invalid_value", "2"),
    ({"presence_penalty": -3}, "presence_penalty", "invalid_value", "-2"),
    ({"n": 0}, "n", "invalid_value", "1"),
    ({"n": 1000}, "n", "invalid_value", "128"),
    ({"seed": 2**70}, "seed", "invalid_value", ""),
    ({"stop": [""]}, "stop", "invalid_value", "non-empty"),
    ({"stop": ["x"] * 50}, "stop", "invalid_value", "32"),
    ({"stop": 3}, "stop", "invalid_type", ""),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value", "999999"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value", "100"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value", "a"),
    ({"logit_bias": {"5": "1"}}, "logit_bias", "invalid_value", "5"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "20"),
    ({"stream": "yes"}, "stream", "invalid_type", "boolean"),
    ({"tools": [{"type": "retrieval"}]}, "tools", "invalid_value", "retrieval"),
    ({"tools": [TOOL]}, "tools", "invalid_constraint", ""),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value", "no tools"),
    ({"tool_choice": "maybe"}, "tool_choice", "invalid_value", "maybe"),
    ({"functions": []}, "functions", "unsupported_parameter", "tools"),
    ({"function_call": "auto"}, "function_call", "unsupported_parameter", "tools"),
    ({"response_format": {"type": "yaml"}}, "response_format", "invalid_value", "yaml"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value", "json_schema"),
    ({"response_format": BAD_SCHEMA}, "response_format", "invalid_constraint", "nonsense"),
    ({"regex": "(["}, "regex", "invalid_constraint", ""),
    ({"ebnf": "root ::= ("}, "ebnf", "invalid_constraint", ""),
    ({"json_schema": "{"}, "json_schema", "invalid_constraint", ""),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "invalid_constraint", "choice"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "choice", "invalid_value", "one of"),
    ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf", "invalid_value", "one of"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "invalid_value", "exceeds"),
    ({"min_p": 2}, "min_p", "invalid_value", "1"),
    ({"top_k": -2}, "top_k", "invalid_value", "-1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value", "0"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value", "0"),
    ({"priority": "high"}, "priority", "invalid_type", "integer"),
    ({"chat_template_kwargs": 3}, "chat_template_kwargs", "invalid_type", ""),
    ({"continue_final_message": True}, "continue_final_message", "invalid_value", "assistant"),
]


@pytest.mark.parametrize(("arguments", "field", "code", "message"), CHAT, ids=lambda v: str(v)[:50])
def test_bad_chats(client: Client, arguments: dict[str, Any], field: str, code: str, message: str) -> None:
    body = {"model": "tiny", "messages": USER, **arguments}
    with pytest.raises(openai.APIStatusError) as caught:
        # What the SDK's own types would not let through goes in as extra.
        client.call("chat.completions.create", model="tiny", messages=USER, extra_body=body)
    error = caught.value
    assert error.status_code == (404 if code == "model_not_found" else 400)
    assert (error.param, error.code) == (field, code)
    assert error.type == "invalid_request_error"
    assert message in error.message
    assert isinstance(error, openai.NotFoundError if error.status_code == 404 else openai.BadRequestError)


def test_context_overflow_can_be_told_by_its_message(client: Client) -> None:
    with pytest.raises(openai.BadRequestError, match="context_length_exceeded"):
        client.chat("x" * 9000)


def test_stream_fails_before_it_begins(client: Client) -> None:
    """With a status, not within the stream."""
    with pytest.raises(openai.BadRequestError, match="do not fit"):
        client.stream(messages=[{"role": "user", "content": "x" * 9000}])


@pytest.mark.parametrize(
    ("name", "arguments", "field", "code"),
    [
        ("completions.create", {"prompt": "a", "suffix": "b"}, "suffix", "unsupported_by_model"),
        ("completions.create", {"prompt": "a", "best_of": 3}, "best_of", "unsupported_parameter"),
        ("completions.create", {"prompt": [5, 10**9]}, "prompt", "invalid_value"),
        ("completions.create", {"prompt": [3] * 5000}, "prompt", "context_length_exceeded"),
        ("completions.create", {"prompt": []}, "prompt", "invalid_value"),
        ("completions.create", {"prompt": [1, "a"]}, "prompt", "invalid_type"),
        ("completions.create", {"prompt": "a", "logprobs": 50}, "logprobs", "invalid_value"),
        ("completions.create", {"prompt": "a", "extra_body": {"stop_regex": "x"}}, "stop_regex",
         "unsupported_parameter"),
        ("embeddings.create", {"input": []}, "input", "invalid_value"),
        ("embeddings.create", {"input": "a", "dimensions": 4096}, "dimensions", "invalid_value"),
        ("embeddings.create", {"input": [3] * 5000}, "input", "context_length_exceeded"),
        ("responses.create", {"input": "a", "previous_response_id": "x"}, "previous_response_id",
         "unsupported_parameter"),
        ("responses.create", {"input": "a", "conversation": "x"}, "conversation", "unsupported_parameter"),
        ("responses.create", {"input": "a", "background": True}, "background", "unsupported_parameter"),
        ("responses.create", {"input": "a", "prompt": {"id": "x"}}, "prompt", "unsupported_parameter"),
        ("responses.create", {"input": "a", "extra_body": {"n": 2}}, "n", "unsupported_parameter"),
        ("responses.create", {"input": [{"type": "web_search_call"}]}, "input", "invalid_value"),
        ("responses.create", {"input": []}, "input", "invalid_value"),
        ("responses.create", {"input": "a", "max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ("responses.create", {"input": "a", "tools": [{"type": "web_search"}]}, "tools", "invalid_value"),
        ("responses.create", {"input": "a", "text": {"format": {"type": "json_schema", "name": "x", "schema":
         {"type": "nonsense"}}}}, "text.format", "invalid_constraint"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_other_endpoints(client: Client, name: str, arguments: Any, field: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.call(name, **arguments)
    assert (caught.value.param, caught.value.code) == (field, code)


def test_every_error_has_a_rule() -> None:
    """The table gives each of our exceptions a status; who adds one should think of it here."""
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RadixError)]
    for kind in ours:
        assert any(base in _RULES for base in kind.__mro__)
    statuses = {kind.__name__: _RULES[next(b for b in kind.__mro__ if b in _RULES)].status for kind in ours}
    assert {name for name, status in statuses.items() if status < 500} == {
        "ConstraintError",
        "ContextLengthError",
        "GrammarCompileError",
        "InvalidRequestError",
        "QueueFullError",
        "RequestTimeoutError",
        "UnsupportedModelError",
    }


def test_clients_learn_nothing_of_the_machine() -> None:
    secret = errors.StepError("CUDA error in /home/me/model.safetensors")
    assert "home" not in api_error(secret).message
    assert "home" in api_error(secret, reveal=True).message
    assert "home" not in api_error(RuntimeError("/home/me")).message
    assert api_error(secret).headers["x-should-retry"] == "false"


class Failing(Recorder):
    """A backend whose requests end with an error, at once or after some events."""

    def __init__(self, backend: Any, fault: Exception) -> None:
        super().__init__(backend)
        self.fault = fault

    def generate(self, *_: Any, **__: Any) -> Any:
        raise self.fault

    async def agenerate(self, *_: Any, **__: Any) -> Any:
        raise self.fault

    def stream(self, prompt: Any, **rest: Any) -> Any:
        return Breaking(super().stream(prompt, **rest), self.fault)

    def astream(self, prompt: Any, **rest: Any) -> Any:
        return Breaking(super().astream(prompt, **rest), self.fault)


class Breaking:
    """A stream that breaks after two events."""

    def __init__(self, stream: Any, fault: Exception) -> None:
        self.stream = stream
        self.fault = fault
        self.count = 0

    def __iter__(self) -> Any:
        return self

    def __aiter__(self) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()

    def close(self) -> None:
        self.stream.close()

    async def aclose(self) -> None:
        await self.stream.aclose()

    def _break(self) -> None:
        self.count += 1
        if self.count > 2:
            raise self.fault

    def __next__(self) -> Any:
        self._break()
        return next(self.stream)

    async def __anext__(self) -> Any:
        self._break()
        return await anext(self.stream)


FAULTS = [
    (errors.QueueFullError("full"), 429, "rate_limit_exceeded"),
    (errors.StepError("broken"), 500, "model_failed"),
    (errors.CacheExhaustedError("pinned"), 503, "cache_exhausted"),
    (errors.EngineClosedError("closed"), 503, "engine_closed"),
    (errors.GrammarCompileError("slow"), 400, "grammar_compile_failed"),
    (errors.OutputValidationError("bad", keyword="type", path="", text="x"), 500, "output_validation_failed"),
    (RuntimeError("surprise"), 500, "internal_error"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS, ids=lambda v: getattr(v, "args", [v])[0])
@pytest.mark.parametrize("kind", ["local", "local-async", "http", "http-async"])
def test_engine_faults(kind: str, fault: Exception, status: int, code: str, engine: Any, loop: Any) -> None:
    failing = Failing(engine, fault)
    with serve(failing) if kind.startswith("http") else contextlib.nullcontext(Served("", 0)) as served:
        client = Client.make(kind, failing, served.url, loop)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat()
        assert (caught.value.status_code, caught.value.code) == (status, code)
        retry = caught.value.response.headers.get("x-should-retry")
        assert retry == ("false" if status not in (400, 429) else None)
        if status == 429:
            assert caught.value.response.headers["retry-after"] == "1"
        stream = client.stream(max_tokens=10, temperature=0)
        seen = []
        with pytest.raises(openai.APIError) as broken:
            seen.extend(stream)
        assert broken.value.code == code
        client.close()
    engine.stats()  # it lives


def test_full_queue_is_asked_again(engine: Any) -> None:
    """By the SDK itself, after the time that the answer says."""
    from radixbackend.openai import OpenAI

    class Full(Recorder):
        def generate(self, prompt: Any, **rest: Any) -> Any:
            self.asked.append(prompt)
            if len(self.asked) < 2:
                raise errors.QueueFullError("full")
            return engine.generate(prompt, **rest)

    backend = Full(engine)
    with OpenAI(backend=backend) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
        )
    assert len(backend.asked) == 2
    assert answer.usage is not None


def test_api_error_without_details() -> None:
    assert ApiError(400, "no").body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    }


def test_unknown_urls(served: Served) -> None:
    status, _, body = served.send("GET", "/v2/nothing")
    assert (status, body["error"]["code"]) == (404, "unknown_url")
    status, _, body = served.send("GET", "/v1/models/a%0Ab")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, headers, body = served.send("GET", "/v1/chat/completions")
    assert (status, body["error"]["code"], headers["allow"]) == (405, "method_not_allowed", "POST")

"""Random weights under the grammar: whatever such a model says fits, for every tool choice and response format."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from radixbackend import Engine
from radixbackend.chat.request import ChatRequest, ChatResult
from radixbackend.chat.service import ChatService
from radixbackend.types import SamplingParams
from tests import zoo
from tests.chat.fake import END, make_tokenizer
from tests.chat.test_service import joined, parts, without_ids

USER = [{"role": "user", "content": "How is the weather?"}]
TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city"],
    },
    "get": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["on"],
    },
}
OFFERED = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in TOOLS.items()]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 6}},
    "required": ["answer"],
    "additionalProperties": False,
}
RESPONSE = {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}}
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    disable_progress_bar()
    folder: Path = tmp_path_factory.mktemp("chat")
    tokenizer = make_tokenizer(added=MARKERS)
    tokenizer.save_pretrained(folder)
    config = zoo.config("llama")
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    config.max_position_embeddings = 1024
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    zoo._spread(model)
    model.save_pretrained(folder)
    with Engine(folder, kv_cache_tokens=8192) as engine:
        yield engine


@pytest.fixture(scope="module")
def chat(engine: Engine) -> ChatService:
    return ChatService(engine)


def bias(chat: ChatService, **amounts: float) -> dict[int, float]:
    """What makes this model say a marker: ``call=`` and ``close=`` (of its reasoning)."""
    names = {"call": "<tool_call>", "close": "</think>", "think": "<think>"}
    inner = chat._tokenizer.inner
    return {inner.convert_tokens_to_ids(names[name]): amount for name, amount in amounts.items()}


def ask(seed: int, max_tokens: int = 160, logit_bias: Any = None, **fields: Any) -> ChatRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed, logit_bias=logit_bias or {})
    fields.setdefault("chat_template_kwargs", {"enable_thinking": False})
    return ChatRequest.of(USER, **{"tools": OFFERED, "sampling": sampling, **fields})


def check_calls(result: ChatResult) -> int:
    """All calls fit their tools; how many there are."""
    for call in result.tool_calls:
        jsonschema.validate(json.loads(call.arguments), {**TOOLS[call.name], "additionalProperties": False})
    return len(result.tool_calls)


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_always_parse_and_fit(chat: ChatService, seed: int) -> None:
    result = chat.complete(ask(seed, tool_choice="required"))
    assert check_calls(result) >= 1
    assert (result.message.content, result.finish_reason) == (None, "tool_calls")
    single = chat.complete(ask(seed, tool_choice="required", parallel_tool_calls=False))
    assert check_calls(single) == 1
    assert single.finish_reason == "tool_calls"
    assert single.usage.forced_tokens > 10


def test_several_calls_come(chat: ChatService) -> None:
    counts = [check_calls(chat.complete(ask(seed, tool_choice="required"))) for seed in range(8)]
    assert max(counts) > 1


@pytest.mark.parametrize("name", TOOLS)
def test_a_named_tool_is_called_once(chat: ChatService, name: str) -> None:
    result = chat.complete(ask(0, tool_choice={"type": "function", "function": {"name": name}}))
    assert [call.name for call in result.tool_calls] == [name]
    assert check_calls(result) == 1


@pytest.mark.parametrize("seed", range(3))
def test_auto_may_talk_and_call(chat: ChatService, seed: int) -> None:
    talk = chat.complete(ask(seed, max_tokens=24))
    assert check_calls(talk) == 0
    assert talk.content
    call = chat.complete(ask(seed, logit_bias=bias(chat, call=9), parallel_tool_calls=False))
    assert check_calls(call) == 1
    assert call.finish_reason == "tool_calls"
    mute = chat.complete(ask(seed, max_tokens=24, logit_bias=bias(chat, call=9), tool_choice="none"))
    assert not mute.tool_calls
    assert "<tool_call>" not in mute.content


@pytest.mark.parametrize("seed", range(3))
def test_tools_and_a_schema_together(chat: ChatService, seed: int) -> None:
    """Pure JSON or calls, and both happen."""
    called = chat.complete(ask(seed, logit_bias=bias(chat, call=50), response_format=RESPONSE))
    assert check_calls(called) >= 1
    assert called.message.content is None
    answered = chat.complete(ask(seed, logit_bias=bias(chat, call=-50), response_format=RESPONSE))
    assert not answered.tool_calls
    assert answered.finish_reason == "stop"
    jsonschema.validate(json.loads(answered.content), SCHEMA)


@pytest.mark.parametrize("fields", [{"tools": None, "response_format": RESPONSE}, {"tool_choice": "required"}])
def test_the_constraint_starts_after_the_reasoning(chat: ChatService, fields: dict[str, Any]) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "logit_bias": bias(chat, close=7)}
    thought = 0
    for seed in range(4):
        result = chat.complete(ask(seed, **thinking, **fields))
        thought += bool(result.reasoning)
        assert check_calls(result) or json.loads(result.content)
        assert "think>" not in (result.reasoning or "")
    assert thought


@pytest.mark.parametrize("fields", [{"tools": None, "response_format": RESPONSE}, {"tool_choice": "required"}])
def test_reasoning_leaves_time_for_the_answer(chat: ChatService, fields: dict[str, Any]) -> None:
    """A model that never ends its thoughts is made to, as late as the shortest answer allows."""
    endless = {"chat_template_kwargs": {"enable_thinking": True}, "logit_bias": bias(chat, close=-100)}
    for seed in range(2):
        result = chat.complete(ask(seed, 80, **endless, **fields))
        assert check_calls(result) or json.loads(result.content)
        assert result.finish_reason in ("stop", "tool_calls")
        assert result.choices[0].complete
        assert len(result.reasoning or "") > 20


@pytest.mark.parametrize("max_tokens", [1, 3, 9])
def test_what_does_not_fit_the_budget_is_reported(chat: ChatService, max_tokens: int) -> None:
    result = chat.complete(ask(0, max_tokens, tool_choice="required"))
    assert (result.finish_reason, result.choices[0].complete) == ("length", False)
    assert result.message.content in ("", None)


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "required"}, {"response_format": RESPONSE}])
def test_streams_say_the_same(chat: ChatService, fields: dict[str, Any]) -> None:
    for seed in range(3):
        asked = ask(seed, 100, bias(chat, call=4, close=2), chat_template_kwargs={}, **fields)
        whole = chat.complete(asked)
        deltas = list(chat.stream(asked))
        assert without_ids(joined(deltas)) == without_ids(parts(whole))
        last = deltas[-1].usage
        assert last is not None
        assert last.completion_tokens == whole.usage.completion_tokens
        assert last.cached_tokens > 0


def test_async_from_many_tasks(chat: ChatService) -> None:
    async def read(seed: int) -> tuple[Any, ...]:
        async with chat.astream(ask(seed, tool_choice="required")) as stream:
            return joined([delta async for delta in stream])

    async def read_all() -> list[tuple[Any, ...]]:
        return await asyncio.gather(*(read(seed) for seed in range(4)))

    for seed, found in enumerate(asyncio.run(read_all())):
        assert without_ids(found) == without_ids(parts(chat.complete(ask(seed, tool_choice="required"))))


def test_a_conversation_reuses_the_cache(chat: ChatService) -> None:
    first = chat.complete(ask(0, tool_choice="required"))
    results = [{"role": "tool", "content": "fine", "tool_call_id": call.id} for call in first.tool_calls]
    again = ChatRequest.of(
        [*USER, first.message, *results],
        tools=OFFERED,
        sampling=SamplingParams(max_tokens=8),
        chat_template_kwargs={"enable_thinking": False},
    )
    assert chat.complete(again).usage.cached_tokens > 100


def test_end_tokens_are_never_text(chat: ChatService) -> None:
    inner = chat._tokenizer.inner
    ends = {inner.convert_tokens_to_ids(END): 100.0}
    result = chat.complete(
        ChatRequest.of(USER, sampling=SamplingParams(max_tokens=5, logit_bias=ends, skip_special_tokens=False))
    )
    assert (result.content, result.finish_reason) == ("", "stop")

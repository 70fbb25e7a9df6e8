"""The chat layer over a backend that says what it is told to: whole answers, streams, and that they are the same."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.chat.formats import harmony, hermes, kimi_k3
from radixbackend.chat.reasoning import HarmonyReasoning, ReasoningFormat, TaggedReasoning
from radixbackend.chat.request import ChatDelta, ChatRequest, ChatResult, Message, ToolCall
from radixbackend.chat.service import ChatService
from radixbackend.errors import ConfigError, InvalidRequestError, OutputValidationError
from radixbackend.types import SamplingParams, TokenLogprob, Usage
from tests.chat.fake import FakeBackend, make_tokenizer
from tests.chat.families import FAMILIES, TOOLS, Family, before

THINK = TaggedReasoning("think", "<think>", "</think>")
USER = [{"role": "user", "content": "hi"}]
OFFERED = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in TOOLS.items()]
INNER = make_tokenizer()
ROME = '{"city": "Rome", "days": 3}'


def service(
    *texts: str, family: Family | None = None, reasoning: ReasoningFormat | None = None, **fields: Any
) -> ChatService:
    fields.setdefault("inner", INNER)
    format = family.format if family is not None else None
    return ChatService(FakeBackend(texts, tool_format=format, reasoning_format=reasoning, **fields))


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.of(USER, **{"tools": OFFERED, **fields})


def joined(deltas: list[ChatDelta], index: int = 0) -> tuple[Any, ...]:
    """Content, reasoning, calls, finish reason of one choice, put together as any client does."""
    content = reasoning = ""
    calls: list[dict[str, str]] = []
    finish = None
    for delta in deltas:
        if delta.index != index:
            continue
        assert finish is None, "nothing follows the last delta"
        content += delta.content
        reasoning += delta.reasoning
        finish = delta.finish_reason
        for call in delta.tool_calls:
            if call.index == len(calls):
                assert call.id
                assert call.name
                calls.append({"id": call.id, "name": call.name, "arguments": ""})
            else:
                assert (call.id, call.name) == (None, None), "said once"
            calls[call.index]["arguments"] += call.arguments
    return content, reasoning, calls, finish


def parts(result: ChatResult, index: int = 0) -> tuple[Any, ...]:
    choice = result.choices[index]
    calls = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in choice.message.tool_calls]
    return choice.message.text, choice.message.reasoning or "", calls, choice.finish_reason


def without_ids(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    content, reasoning, calls, finish = parts
    return content, reasoning, [{**call, "id": ""} for call in calls], finish


def thinking(family: Family, thought: str, rest: str) -> tuple[ReasoningFormat, str]:
    if family.format is harmony.HARMONY:
        return HarmonyReasoning(), f"{harmony.ANALYSIS}{thought}{harmony.NEXT}{rest}"
    return THINK, f"<think>\n{thought}\n</think>\n\n{rest}"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.format.name)
@settings(max_examples=6)
@given(chunks=st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_a_stream_joined_is_the_whole(family: Family, chunks: list[int]) -> None:
    reasoning, text = thinking(family, "Rome, then Oslo", before(family, "Let me look.") + family.text)
    chat = service(text, family=family, reasoning=reasoning, chunks=lambda step: chunks[step % len(chunks)])
    whole = parts(chat.complete(request()))
    assert whole[:2] == ("Let me look.", "Rome, then Oslo")
    assert [(c["name"], json.loads(c["arguments"])) for c in whole[2]] == family.calls
    assert whole[3] == "tool_calls"
    assert without_ids(joined(list(chat.stream(request())))) == without_ids(whole)


def test_plain_text() -> None:
    chat = service("Hello there")
    result = chat.complete(request(tools=()))
    assert result.message == Message("assistant", "Hello there")
    assert (result.content, result.finish_reason, result.tool_calls, result.reasoning) == (
        "Hello there",
        "stop",
        (),
        None,
    )
    deltas = list(chat.stream(request(tools=())))
    assert len(deltas) > 4
    assert joined(deltas) == parts(result)
    assert [delta.usage for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].usage == result.usage
    assert result.usage.cached_tokens == 2
    assert result.model == "fake"


def test_only_calls_have_no_content() -> None:
    result = service(FAMILIES[0].text).complete(request())
    assert result.message.content is None
    assert len({call.id for call in result.tool_calls}) == 2


def test_the_pieces_of_a_call() -> None:
    chat = service(FAMILIES[0].text, chunks=lambda step: 10_000)
    (delta,) = list(chat.stream(request()))
    first, second = delta.tool_calls
    assert (first.index, first.name, first.arguments) == (0, "get_weather", ROME)
    assert (second.index, second.name, second.arguments) == (1, "get_weather", '{"city": "Oslo"}')


def test_kimis_own_ids_are_kept() -> None:
    family = next(family for family in FAMILIES if family.format.name == "kimi")
    result = service(family.text, family=family).complete(request())
    assert [call.id for call in result.tool_calls] == ["functions.get_weather:0", "functions.get_weather:1"]


@pytest.mark.parametrize("length", range(0, 120, 7))
def test_what_was_cut_is_reported_as_length(length: int) -> None:
    text = ("<think>hm</think>Look:\n" + FAMILIES[0].text)[:length] or "<"
    chat = service(text, reasoning=THINK, ends=False)
    result = chat.complete(request())
    assert result.finish_reason == "length"
    assert not result.choices[0].complete
    assert "<tool_call>" not in result.content, "the beginning of a call is no content"
    assert without_ids(joined(list(chat.stream(request())))) == without_ids(parts(result))
    for call in result.tool_calls:
        assert ROME.startswith(call.arguments)


def test_calls_that_are_whole_when_the_budget_ends_are_calls() -> None:
    chat = service(FAMILIES[0].text + "\n", ends=False)
    backend: Any = chat.backend
    generate = backend.generate
    backend.generate = lambda asked, timeout: _complete(generate(asked))
    assert chat.complete(request()).finish_reason == "tool_calls"
    chat = service(FAMILIES[0].text + "\nAnd now", ends=False)
    backend = chat.backend
    backend.generate = lambda asked, timeout: _complete(type(backend).generate(backend, asked))
    assert chat.complete(request()).finish_reason == "length"


def _complete(result: Any) -> Any:
    return replace(result, choices=tuple(replace(choice, complete=True) for choice in result.choices))


def test_arguments_that_break_their_schema_are_no_success() -> None:
    text = hermes.HERMES.write([("get_weather", {"city": 3})])
    with pytest.raises(OutputValidationError, match="call of get_weather") as fault:
        service(text).complete(request())
    assert (fault.value.keyword, fault.value.path, fault.value.text) == ("type", "/city", '{"city": 3}')
    stream = service(text).stream(request())
    with pytest.raises(OutputValidationError):
        list(stream)
    assert service(text[:-20], ends=False).complete(request()).finish_reason == "length"


def test_content_beside_tools_must_fit_the_response_format() -> None:
    response = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["a"]}}}
    fields = {"response_format": response}
    assert service('{"a": 1}').complete(request(**fields)).content == '{"a": 1}'
    assert service(FAMILIES[0].text).complete(request(**fields)).finish_reason == "tool_calls"
    with pytest.raises(OutputValidationError):
        service('{"b": 1}').complete(request(**fields))


def test_several_choices() -> None:
    chat = service("One", FAMILIES[0].text, "Three")
    asked = request(sampling=SamplingParams(n=3, max_tokens=None))
    result = chat.complete(asked)
    deltas = list(chat.stream(asked))
    assert [choice.finish_reason for choice in result.choices] == ["stop", "tool_calls", "stop"]
    for index in range(3):
        assert without_ids(joined(deltas, index)) == without_ids(parts(result, index))
    assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].usage == replace(result.usage)
    assert deltas[-1].usage.completion_tokens > 3 * 2


def test_reasoning_can_stay_in_the_content() -> None:
    result = service("<think>hm</think>Yes", reasoning=THINK).complete(request(separate_reasoning=False))
    assert (result.reasoning, result.content) == (None, "<think>hm</think>Yes")


def test_the_prompt_may_have_opened_the_reasoning() -> None:
    chat = service("hm\n</think>\n\nYes", reasoning=THINK)
    result = chat.complete(request(tools=(), chat_template_kwargs={"enable_thinking": True}))
    assert (result.reasoning, result.content) == ("hm", "Yes")
    result = service("Yes </think>", reasoning=THINK).complete(request(tools=(), reasoning_effort="none"))
    assert (result.reasoning, result.content) == (None, "Yes </think>")


def test_what_continues_an_answer_does_not_begin_to_think() -> None:
    messages = [*USER, {"role": "assistant", "content": "Write"}]
    result = service("<think> first", reasoning=THINK).complete(ChatRequest.of(messages, continue_final_message=True))
    assert (result.reasoning, result.content) == (None, "<think> first")


def test_what_the_backend_is_asked() -> None:
    chat = service("x")
    sampling = SamplingParams(max_tokens=5, stop=("!",), seed=3)
    chat.complete(request(sampling=sampling, priority=2, cache_salt="s", tool_choice="required"))
    backend: Any = chat.backend
    asked = backend.asked[0]
    assert (asked.sampling, asked.priority, asked.cache_salt) == (sampling, 2, "s")
    assert asked.prompt == chat.tokenize(request())
    assert asked.constraint.kind == "structural_tag"


def test_special_tokens_are_shown_only_where_a_parser_looks_for_them() -> None:
    """A marker that is a special token is part of the text, and gone from the answer."""
    family = next(family for family in FAMILIES if family.format.name == "mistral")
    inner = make_tokenizer(specials=family.specials)
    chat = service(family.text, family=family, inner=inner)
    assert [call.arguments for call in chat.complete(request()).tool_calls] == [ROME, '{"city": "Oslo"}']
    backend: Any = chat.backend
    assert not backend.asked[0].sampling.skip_special_tokens
    chat.complete(request(tools=()))
    assert backend.asked[1].sampling.skip_special_tokens
    plain = service(FAMILIES[0].text)
    plain.complete(request())
    assert plain.backend.asked[0].sampling.skip_special_tokens  # type: ignore[attr-defined]


def test_harmony_has_channels_without_tools_too() -> None:
    family = next(family for family in FAMILIES if family.format is harmony.HARMONY)
    inner = make_tokenizer(specials=(*family.specials, "<|return|>", "<|call|>"))
    text = f"{harmony.ANALYSIS}hm{harmony.NEXT}{harmony.FINAL}Hello"
    chat = service(text, family=family, reasoning=HarmonyReasoning(), inner=inner)
    result = chat.complete(request(tools=()))
    assert (result.reasoning, result.content, result.finish_reason) == ("hm", "Hello", "stop")
    assert joined(list(chat.stream(request(tools=())))) == parts(result)


def test_logprobs_and_token_ids_are_all_there() -> None:
    chat = service(f"<think>hm</think>{FAMILIES[0].text}", reasoning=THINK)
    backend: Any = chat.backend
    events = backend._events
    backend._events = lambda asked: (
        replace(event, logprobs=tuple(TokenLogprob(token, -1.0) for token in event.token_ids))
        for event in events(asked)
    )
    for with_logprobs in (True, False):
        if not with_logprobs:
            backend._events = events
        deltas = list(chat.stream(request()))
        ids = [token for delta in deltas for token in delta.token_ids]
        assert ids == list(chat.complete(request()).choices[0].token_ids)
        assert [entry.token_id for delta in deltas for entry in delta.logprobs] == (ids if with_logprobs else [])


def test_closing_a_stream_closes_the_backends() -> None:
    chat = service("Hello there")
    backend: Any = chat.backend
    with chat.stream(request()) as stream:
        next(stream)
        assert not backend.streams[0].closed
    assert backend.streams[0].closed
    stream.close()
    broken = service(hermes.HERMES.write([("get_weather", {"city": 3})]))
    with pytest.raises(OutputValidationError):
        list(broken.stream(request()))
    assert broken.backend.streams[0].closed  # type: ignore[attr-defined]


def test_a_refused_request_asks_nothing() -> None:
    chat = service("x")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    for ask in (chat.complete, chat.stream, chat.tokenize):
        with pytest.raises(InvalidRequestError):
            ask(ChatRequest.of(image))
    assert chat.backend.asked == []  # type: ignore[attr-defined]


def test_async_answers_are_the_same() -> None:
    chat = service(f"<think>hm</think>Look: {FAMILIES[0].text}", reasoning=THINK)

    async def ask() -> tuple[ChatResult, list[ChatDelta]]:
        result = await chat.acomplete(request())
        async with chat.astream(request()) as stream:
            deltas = [delta async for delta in stream]
        return result, deltas

    result, deltas = asyncio.run(ask())
    assert without_ids(parts(result)) == without_ids(parts(chat.complete(request())))
    assert without_ids(joined(deltas)) == without_ids(parts(result))


def test_leaving_an_async_stream() -> None:
    chat = service("Hello there")
    backend: Any = chat.backend

    async def leave() -> None:
        unused = chat.astream(request())
        await unused.aclose()
        assert backend.streams == []
        with pytest.raises(StopAsyncIteration):
            await anext(unused)
        stream = chat.astream(request())
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        assert backend.streams[0].closed
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        refused = chat.astream(ChatRequest.of(USER, chat_template_kwargs={"tokenize": True}))
        with pytest.raises(InvalidRequestError):
            await anext(refused)

    asyncio.run(leave())


def test_a_backend_without_a_tokenizer_cannot_chat() -> None:
    backend = FakeBackend(["x"], inner=INNER)
    backend.tokenizer = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="no tokenizer"):
        ChatService(backend)


def test_a_conversation_goes_on() -> None:
    """An answer with calls goes back in as history."""
    chat = service(FAMILIES[0].text, "It is fine.")
    first = chat.complete(request())
    results = [{"role": "tool", "content": "fine", "tool_call_id": call.id} for call in first.tool_calls]
    second = chat.complete(ChatRequest.of([*USER, first.message, *results], tools=OFFERED))
    assert second.content == "It is fine."
    prompt = chat.backend.tokenizer.decode(second.prompt_token_ids, skip_special_tokens=False)  # type: ignore[union-attr]
    assert FAMILIES[0].text in prompt
    assert first.tool_calls[0] == ToolCall(first.tool_calls[0].id, "get_weather", ROME)
    assert second.usage == Usage(len(second.prompt_token_ids), second.usage.completion_tokens, 2, 1)


K3_TEMPLATE = """{# tools tool_calls #}{% for m in messages %}<|open|>message role="{{ m.role }}"<|sep|>{{ m.content -}}
<|close|>message<|sep|>{% endfor %}<|open|>message role="assistant"<|sep|>
{%- if thinking is defined and not thinking %}<|open|>response<|sep|>{% else %}<|open|>think<|sep|>{% endif %}"""


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("calls", [True, False])
@pytest.mark.parametrize("said", ["Let me see.", ""])
def test_an_answer_in_sections(thinking: bool, calls: bool, said: str) -> None:
    """Kimi K3: everything stands between marks, the first of which the prompt wrote; none of them is text."""
    family = next(family for family in FAMILIES if family.format is kimi_k3.KIMI_K3)
    thought = f"Hm.{kimi_k3.CLOSE}think{kimi_k3.SEP}{kimi_k3.RESPONSE}" if thinking else ""
    text = thought + said + kimi_k3.RESPONSE_END + (family.text if calls else "") + kimi_k3.MESSAGE_END
    chat = service(text, family=family, inner=make_tokenizer(K3_TEMPLATE, specials=family.specials))
    asked = request(chat_template_kwargs={"thinking": thinking})
    result = chat.complete(asked)
    assert (result.reasoning, result.content) == ("Hm." if thinking else None, said)
    assert [(call.name, json.loads(call.arguments)) for call in result.tool_calls] == (family.calls if calls else [])
    assert without_ids(joined(list(chat.stream(asked)))) == without_ids(parts(result))

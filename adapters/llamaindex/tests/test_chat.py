"""Chats and completions, the four ways to ask: one answer, however it is asked for, and nothing of it lost."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.radix import Radix
from pydantic import Field

from radixbackend.errors import ContextLengthError, InvalidRequestError, RequestTimeoutError
from tests.chat.fake import TEMPLATE, make_tokenizer

HI = [ChatMessage(role="system", content="Be brief."), ChatMessage(content="Hi!")]


async def every(stream: Any) -> list[Any]:
    return [item async for item in await stream]


def test_it_is_one_of_llamaindexs_own() -> None:
    assert BaseLLM.__name__ in [base.__name__ for base in Radix.__mro__]
    assert Radix.class_name() == "radix_llm"


def test_four_ways_to_ask_one_chat(llm: Radix) -> None:
    whole = llm.chat(HI, max_tokens=12)
    streamed = list(llm.stream_chat(HI, max_tokens=12))
    asked = asyncio.run(llm.achat(HI, max_tokens=12))
    came = asyncio.run(every(llm.astream_chat(HI, max_tokens=12)))
    assert whole.message.role == MessageRole.ASSISTANT
    assert whole.message.content
    for last in (streamed[-1], asked, came[-1]):
        assert last.message == whole.message
    assert "".join(r.delta or "" for r in streamed) == "".join(r.delta or "" for r in came) == whole.message.content
    assert len(streamed) > 3
    for before, after in itertools.pairwise(streamed):
        assert (after.message.content or "").startswith(before.message.content or "")


def test_four_ways_to_ask_one_completion(llm: Radix) -> None:
    whole = llm.complete("Hi!", max_tokens=12)
    streamed = list(llm.stream_complete("Hi!", max_tokens=12))
    asked = asyncio.run(llm.acomplete("Hi!", max_tokens=12))
    came = asyncio.run(every(llm.astream_complete("Hi!", max_tokens=12)))
    assert whole.text == streamed[-1].text == asked.text == came[-1].text
    assert "".join(r.delta or "" for r in streamed) == "".join(r.delta or "" for r in came) == whole.text
    assert whole.text == llm.chat([ChatMessage(content="Hi!")], max_tokens=12).message.content


def test_prompts(llm: Radix) -> None:
    said = llm.complete("HI?", max_tokens=5).text
    shouting = llm.model_copy(update={"completion_to_prompt": str.upper})
    with shouting:
        assert shouting.complete("hi?", max_tokens=5).text == said
        assert shouting.complete("HI?", formatted=True, max_tokens=5).text == said
    with llm.model_copy(update={"system_prompt": "Be brief.", "max_tokens": 5}) as brief:
        assert brief.predict(PromptTemplate("Hi{mark}"), mark="!") == llm.chat(HI, max_tokens=5).message.content


def test_usage_is_where_it_is_looked_for(llm: Radix) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: [0] * 1_000_000)
    with llm.model_copy(update={"callback_manager": CallbackManager([counter])}) as counted:
        counted.chat(HI, max_tokens=4)
        answer = counted.chat(HI, max_tokens=4)
        *_, last = counted.stream_chat(HI, max_tokens=4)
        *_, text = counted.stream_complete("Hi!", max_tokens=4)
    prompt = llm.count_tokens(HI)
    counts = answer.additional_kwargs
    assert counts == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
        "cached_tokens": prompt - 1,
    }
    assert answer.raw["usage"] == last.raw["usage"] == counts
    assert last.additional_kwargs == counts
    assert [e.prompt_token_count for e in counter.llm_token_counts[:3]] == [prompt] * 3
    assert counter.total_llm_token_count == 3 * (prompt + 4) + text.additional_kwargs["total_tokens"]


def test_tokens_of_texts(llm: Radix) -> None:
    for text in ("", "Hi!", "A sentence, and another one.", "Ünïcödé 🙂"):
        tokens = llm.encode(text)
        assert len(tokens) == llm.count_tokens([ChatMessage(content=text)]) - llm.count_tokens(
            [ChatMessage(content="")]
        )
        assert b"".join(llm.chat_layer.token_bytes(token) for token in tokens).decode() == text


def test_events_are_told(llm: Radix) -> None:
    class Handler(BaseEventHandler):
        seen: list[str] = Field(default_factory=list)

        def handle(self, event: Any, **kwargs: Any) -> None:
            self.seen.append(event.class_name())

    handler, dispatcher = Handler(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        llm.chat(HI, max_tokens=2)
        list(llm.stream_complete("Hi!", max_tokens=2))
    finally:
        dispatcher.event_handlers.remove(handler)
    assert handler.seen[:2] == ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert handler.seen[2] == "LLMCompletionStartEvent"
    assert handler.seen[-1] == "LLMCompletionEndEvent"
    assert "LLMCompletionInProgressEvent" in handler.seen


def test_parameters_by_openais_names(llm: Radix) -> None:
    def said(**parameters: Any) -> str:
        return str(llm.chat(HI, **parameters).message.content)

    assert said(max_completion_tokens=3, max_tokens=9) == said(max_tokens=3)
    assert said(max_tokens=6, seed=5) == said(max_tokens=6, extra_body={"seed": 5}) != said(max_tokens=6, seed=6)
    assert said(max_tokens=6, temperature=0, user="me", stream_options=None) == said(
        max_tokens=6, temperature=0, seed=9
    )
    assert said(max_tokens=9, response_format={"type": "choice", "choice": ["yes", "no"]}) in ("yes", "no")
    stopped = llm.chat(HI, max_tokens=40, stop=[said(max_tokens=5)[-1]])
    assert stopped.raw["finish_reason"] == "stop"
    with pytest.raises(InvalidRequestError, match="unknown parameter temprature"):
        said(temprature=0)
    with pytest.raises(InvalidRequestError, match="n is 1"):
        said(n=2)


def test_log_probabilities(llm: Radix) -> None:
    answer = llm.chat(HI, max_tokens=3, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [len(place) for place in answer.logprobs] == [2, 2, 2]
    assert all(a.logprob >= b.logprob for a, b in answer.logprobs)
    likeliest = llm.chat(HI, max_tokens=3, temperature=0, logprobs=True)
    assert likeliest.logprobs is not None
    assert "".join(place[0].token for place in likeliest.logprobs) == likeliest.message.content
    streamed = [
        place for r in llm.stream_chat(HI, max_tokens=3, temperature=0, logprobs=True) for place in r.logprobs or []
    ]
    assert streamed == likeliest.logprobs
    assert llm.chat(HI, max_tokens=1).logprobs is None


def test_what_is_wrong_is_said_before_anything_is_computed(llm: Radix) -> None:
    before = llm.stats().prompt_tokens
    with pytest.raises(ContextLengthError):
        llm.complete("word " * 5000)
    with pytest.raises(InvalidRequestError, match=r"messages\[1\]"):
        llm.chat([*HI[:1], ChatMessage(role="tool", content="5")])
    with pytest.raises(InvalidRequestError, match="messages is empty"):
        llm.stream_chat([])  # when called, not when read
    with pytest.raises(InvalidRequestError, match="temperature"):
        asyncio.run(llm.achat(HI, temperature=-1))
    assert llm.stats().prompt_tokens == before
    with pytest.raises(RequestTimeoutError):
        llm.chat(HI, timeout=0.0001, max_tokens=500)


def test_thinking_has_a_block_of_its_own(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    options = {"inner": make_tokenizer(TEMPLATE, added=("<think>", "</think>"))}
    llm, _ = scripted("<think>\nEasy.\n</think>\n\nFine.", **options)
    whole = llm.chat(HI)
    assert [type(block).__name__ for block in whole.message.blocks] == ["ThinkingBlock", "TextBlock"]
    assert whole.message.content == "Fine."
    *rest, last = llm.stream_chat(HI)
    assert last.message == whole.message
    thoughts = "".join(r.additional_kwargs.get("thinking_delta", "") for r in [*rest, last])
    first = whole.message.blocks[0]
    assert isinstance(first, ThinkingBlock)
    assert thoughts == first.content == "Easy."


def test_streams_end_when_nobody_reads_on(llm: Radix) -> None:
    def idle() -> bool:
        deadline = time.monotonic() + 20
        while llm.stats().running + llm.stats().waiting and time.monotonic() < deadline:
            time.sleep(0.005)
        return llm.stats().running + llm.stats().waiting == 0

    stream = llm.stream_chat(HI, max_tokens=3000, ignore_eos=True)
    next(stream)
    stream.close()
    assert idle()
    llm.stream_chat(HI, max_tokens=3000, ignore_eos=True)  # dropped before it was read
    assert idle()
    for _ in llm.stream_complete("Hi!", max_tokens=3000, ignore_eos=True):
        break
    assert idle()

    async def leave() -> None:
        stream = await llm.astream_chat(HI, max_tokens=3000, ignore_eos=True)
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(llm.achat(HI, max_tokens=3000, ignore_eos=True))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert idle()


def test_sync_needs_no_loop_and_disturbs_none(llm: Radix, monkeypatch: pytest.MonkeyPatch) -> None:
    async def within() -> str:
        return str(llm.chat(HI, max_tokens=3).message.content)

    expected = asyncio.run(within())
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: pytest.fail("a loop was made"))
    monkeypatch.setattr(asyncio, "run", lambda *_: pytest.fail("a loop was started"))
    assert llm.chat(HI, max_tokens=3).message.content == expected
    assert [*llm.stream_complete("Hi!", max_tokens=3)][-1].text


def test_many_threads_and_loops_at_once(llm: Radix) -> None:
    expected = [llm.complete(f"Number {n}", max_tokens=6, seed=n).text for n in range(6)]
    heard: dict[tuple[str, int], str] = {}

    def ask(n: int) -> None:
        heard["sync", n] = llm.complete(f"Number {n}", max_tokens=6, seed=n).text

    def ask_in_a_loop(n: int) -> None:
        async def both() -> None:
            one, many = await asyncio.gather(
                llm.acomplete(f"Number {n}", max_tokens=6, seed=n),
                every(llm.astream_complete(f"Number {n}", max_tokens=6, seed=n)),
            )
            heard["async", n], heard["stream", n] = one.text, many[-1].text

        asyncio.run(both())

    threads = [threading.Thread(target=target, args=(n,)) for n in range(6) for target in (ask, ask_in_a_loop)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {(how, n): expected[n] for n in range(6) for how in ("sync", "async", "stream")}

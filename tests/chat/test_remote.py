"""The same requests here and behind a server: what comes back is the same, what goes wrong is the same error."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")

from radixbackend import errors
from radixbackend.chat import Chat, ChatDelta, ChatRequest, ChatResult, Message, ResponseFormat, ToolChoice, open_chat
from radixbackend.chat.connection import AsyncClient, Client
from radixbackend.chat.face import LocalChat
from radixbackend.chat.faults import of_answer
from radixbackend.chat.message import ToolCall
from radixbackend.chat.remote import RemoteChat
from radixbackend.chat.request import Tool
from radixbackend.chat.sdk import httpx, openai
from radixbackend.chat.wire import chat_body
from radixbackend.openai_api.api import Api
from radixbackend.openai_api.faults import _RULES, api_error
from radixbackend.openai_api.protocol import ChatCompletionRequest
from radixbackend.openai_api.transport import AsyncTransport, Share, Transport
from radixbackend.types import Constraint, SamplingParams, TokenLogprob, Usage
from tests.chat.test_face import OPTIONS, make_checkpoint
from tests.openai_api.clients import Served, serve, until

USER: list[Any] = [{"role": "user", "content": "How is the weather?"}]
TOOLS = [
    Tool("get_weather", "Look.", {"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}}}),
    Tool("now", strict=True),
]
SCHEMA = {"type": "object", "properties": {"b": {"type": "string", "maxLength": 5}, "a": {"type": "integer"}}}
SCHEMA |= {"required": ["b", "a"], "additionalProperties": False}
QUIET = {"enable_thinking": False}
PATIENCE = 10.0


def ask(**rest: Any) -> ChatRequest:
    """Greedy, 12 tokens; ``sampling`` are changes of that."""
    sampling = SamplingParams(max_tokens=12, temperature=0.0).replace(**rest.pop("sampling", {}))
    return ChatRequest.of(rest.pop("messages", USER), sampling=sampling, **rest)


# -- the same here and there -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChat]:
    with open_chat(make_checkpoint(tmp_path_factory.mktemp("remote") / "tiny"), **OPTIONS) as chat:
        assert isinstance(chat, LocalChat)
        yield chat


@pytest.fixture(scope="module")
def served(local: LocalChat) -> Iterator[Served]:
    with serve(local._share) as served:
        yield served


@pytest.fixture(scope="module")
def over_http(served: Served) -> Iterator[Chat]:
    with open_chat("tiny", base_url=f"{served.url}/v1/", timeout=PATIENCE) as chat:
        yield chat


@pytest.fixture(scope="module")
def without_socket(local: LocalChat) -> Iterator[Chat]:
    share = Share(Api(local._share, names=("tiny",)), lambda: None)
    clients = {
        "http_client": openai.DefaultHttpxClient(transport=Transport(share)),
        "http_async_client": openai.DefaultAsyncHttpxClient(transport=AsyncTransport(share)),
    }
    with open_chat("tiny", base_url="http://nowhere.invalid/v1", **clients) as chat:
        yield chat


@pytest.fixture(params=["over_http", "without_socket"])
def remote(request: pytest.FixtureRequest) -> Chat:
    chat: Chat = request.getfixturevalue(request.param)
    return chat


def fresh(call: Any, chat: Chat) -> Any:
    """Each call finds an empty cache, so that even the counts of cached tokens are the same."""
    chat.flush_cache()
    return call()


def told(result: ChatResult) -> ChatResult:
    """Without what the wire does not carry: token ids, random ids of calls and the path of the model."""

    def message(message: Message) -> Message:
        calls = tuple(ToolCall(f"call {i}", call.name, call.arguments) for i, call in enumerate(message.tool_calls))
        return replace(message, tool_calls=calls)

    choices = tuple(replace(choice, message=message(choice.message), token_ids=()) for choice in result.choices)
    return replace(result, choices=choices, model="", prompt_token_ids=())


def told_deltas(deltas: list[ChatDelta]) -> list[ChatDelta]:
    def calls(delta: ChatDelta) -> Any:
        return tuple(replace(call, id=call.id and f"call {call.index}") for call in delta.tool_calls)

    return [replace(delta, tool_calls=calls(delta), token_ids=()) for delta in deltas]


CALLED = [
    *USER,
    Message("assistant", "So:", tool_calls=(ToolCall("c1", "now", "{}"),), reasoning="I need a clock."),
    Message("tool", "noon", tool_call_id="c1", name="now"),
]
REQUESTS: dict[str, Callable[[], ChatRequest]] = {
    "plain": lambda: ask(),
    "sampled": lambda: ask(
        sampling={
            "temperature": 1.3,
            "seed": -5,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.01,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "repetition_penalty": 1.2,
            "logit_bias": {50: -3.5, 60: 2.0},
            "ignore_eos": True,
            "min_tokens": 8,
        }
    ),
    "unbounded": lambda: ask(sampling={"max_tokens": None, "stop": ("e",)}),
    "kept stop": lambda: ask(sampling={"max_tokens": 200, "stop": ("e", "a"), "include_stop": True}),
    "stop token": lambda: ask(sampling={"max_tokens": 200, "stop_token_ids": tuple(range(40, 120))}),
    "n": lambda: ask(sampling={"n": 3, "temperature": 1.0, "seed": 3, "logprobs": 0}),
    "logprobs": lambda: ask(sampling={"logprobs": 3}),
    "history": lambda: ask(messages=CALLED, tools=TOOLS),
    "salt": lambda: ask(cache_salt="s", priority=3),
    "continued": lambda: ask(messages=[*USER, Message("assistant", "It is")], continue_final_message=True),
    "no turn": lambda: ask(add_generation_prompt=False),
    "reasoning": lambda: ask(chat_template_kwargs={"enable_thinking": True}),
    "no reasoning": lambda: ask(reasoning_effort="none"),
    "left in": lambda: ask(chat_template_kwargs={"enable_thinking": True}, separate_reasoning=False),
    "special": lambda: ask(sampling={"skip_special_tokens": False, "logit_bias": {1: 30.0}}),
    "auto": lambda: ask(tools=TOOLS),
    "none": lambda: ask(tools=TOOLS, tool_choice="none"),
    "required": lambda: ask(tools=TOOLS, tool_choice="required", sampling={"max_tokens": 120}),
    "one call": lambda: ask(
        tools=TOOLS, tool_choice="required", parallel_tool_calls=False, sampling={"max_tokens": 120}
    ),
    "named": lambda: ask(tools=TOOLS, tool_choice=ToolChoice("named", ("now",)), sampling={"max_tokens": 60}),
    "allowed": lambda: ask(tools=TOOLS, tool_choice=ToolChoice("required", ("now",)), sampling={"max_tokens": 60}),
    "cut call": lambda: ask(tools=TOOLS, tool_choice="required", sampling={"max_tokens": 5}),
    "schema": lambda: ask(
        response_format=ResponseFormat(Constraint.json_schema(SCHEMA), "r", "An answer.", True),
        chat_template_kwargs=QUIET,
        sampling={"max_tokens": 60},
    ),
    "spaced": lambda: ask(
        response_format=Constraint.json_schema(SCHEMA, whitespace=True, on_unsupported="warn"),
        chat_template_kwargs=QUIET,
        sampling={"max_tokens": 60, "temperature": 1.0, "seed": 2},
    ),
    "cut JSON": lambda: ask(
        response_format=Constraint.json_schema(SCHEMA), chat_template_kwargs=QUIET, sampling={"max_tokens": 3}
    ),
    "object": lambda: ask(
        response_format=Constraint.json_object(), chat_template_kwargs=QUIET, sampling={"max_tokens": 40}
    ),
    "regex": lambda: ask(response_format=Constraint.regex("[a-f]{4,9}"), chat_template_kwargs=QUIET),
    "choice": lambda: ask(response_format=Constraint.choice(["rain", "sun"]), chat_template_kwargs=QUIET),
    "grammar": lambda: ask(response_format=Constraint.grammar('root ::= "x" [0-9]+ "y"'), chat_template_kwargs=QUIET),
    "tag": lambda: ask(
        response_format=Constraint.structural_tag({"format": {"type": "const_string", "value": "so"}}),
        chat_template_kwargs=QUIET,
    ),
    "tools and schema": lambda: ask(
        tools=TOOLS, response_format=Constraint.json_schema(SCHEMA), sampling={"max_tokens": 120}
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_the_same(local: LocalChat, without_socket: Chat, name: str) -> None:
    asked = REQUESTS[name]()
    assert told(fresh(lambda: without_socket.complete(asked), local)) == told(
        fresh(lambda: local.complete(asked), local)
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_streams_are_the_same(local: LocalChat, without_socket: Chat, name: str) -> None:
    asked = REQUESTS[name]()
    here = told_deltas(fresh(lambda: list(local.stream(asked)), local))
    assert told_deltas(fresh(lambda: list(without_socket.stream(asked)), local)) == here


async def collected(chat: Chat, asked: ChatRequest) -> tuple[ChatResult, list[ChatDelta]]:
    chat_result = await chat.acomplete(asked)
    chat.flush_cache()
    async with chat.astream(asked) as deltas:
        return chat_result, [delta async for delta in deltas]


@pytest.mark.parametrize("name", ["sampled", "n", "logprobs", "reasoning", "required", "tools and schema", "schema"])
def test_every_way_over_either_connection(local: LocalChat, remote: Chat, name: str) -> None:
    asked = REQUESTS[name]()
    whole, deltas = fresh(lambda: asyncio.run(collected(local, asked)), local)
    told_whole, told_pieces = fresh(lambda: asyncio.run(collected(remote, asked)), local)
    assert told(told_whole) == told(whole)
    assert told_deltas(told_pieces) == told_deltas(deltas)
    assert told(fresh(lambda: remote.complete(asked), local)) == told(whole)
    with fresh(lambda: remote.stream(asked), local) as stream:
        assert told_deltas(list(stream)) == told_deltas(deltas)
    assert list(stream) == []


def test_the_requests_are_worth_it(local: LocalChat) -> None:
    """Sensitivity: among them there are answers of every kind."""
    found = {name: local.complete(request()) for name, request in REQUESTS.items()}
    assert {result.finish_reason for result in found.values()} == {"stop", "length", "tool_calls"}
    assert {result.choices[0].complete for result in found.values()} == {True, False}
    assert {type(result.choices[0].stop_reason) for result in found.values()} == {type(None), str, int}
    assert any(result.reasoning for result in found.values())
    assert any(result.usage.forced_tokens for result in found.values())
    assert len({choice.message.text for choice in found["n"].choices}) == 3


def test_other_faces_are_the_same(local: LocalChat, remote: Chat) -> None:
    assert (remote.model_name, remote.max_context, remote.weights_hash) == ("tiny", local.max_context, None)
    assert remote.reasons is local.reasons is True
    for name in ("plain", "history", "no turn", "continued", "no reasoning", "auto"):
        asked = REQUESTS[name]()
        assert remote.tokenize(asked) == local.tokenize(asked), name
    assert remote.tokenize("Rome <|im_end|>") == local.tokenize("Rome <|im_end|>")
    assert remote.count_tokens(CALLED, TOOLS) == local.count_tokens(CALLED, TOOLS)
    for texts in ("Rome", ["Rome", "Oslo"], [5, 6, 7], [[5, 6], "Rome"]):
        here, there = local.embed(texts), remote.embed(texts)  # type: ignore[arg-type]
        assert there.prompt_tokens == here.prompt_tokens
        np.testing.assert_array_equal(np.stack(there.vectors), np.stack(here.vectors))
    np.testing.assert_array_equal(
        asyncio.run(remote.aembed("Rome", dimensions=5)).vectors[0], local.embed("Rome", dimensions=5).vectors[0]
    )
    asked = REQUESTS["logprobs"]()
    logprobs = remote.complete(asked).choices[0].logprobs
    assert logprobs
    ids = [token for entry in logprobs for token in (entry.token_id, *dict(entry.top))]
    assert [remote.token_bytes(token) for token in ids] == [local.token_bytes(token) for token in ids]
    assert remote.token_bytes(10**6) == b""


def test_the_cache_is_the_servers(local: LocalChat, remote: Chat) -> None:
    asked = ask(tools=TOOLS, tool_choice="required", response_format=Constraint.json_schema(SCHEMA))
    warmed = fresh(lambda: remote.warm(asked), local)
    assert warmed == fresh(lambda: local.warm(asked), local)
    assert warmed.completion_tokens == 0
    with_pin = remote.pin(asked)
    assert with_pin.usage == replace(warmed, cached_tokens=warmed.prompt_tokens)
    with_pin.release()
    assert remote.complete(asked).usage.cached_tokens == warmed.prompt_tokens
    assert remote.stats() == local.stats()
    assert remote.flush_cache() > warmed.prompt_tokens
    assert remote.flush_cache() == 0


# -- what goes wrong -------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[], ChatRequest]] = {
    "long": lambda: ask(messages=[{"role": "user", "content": "x" * 3000}]),
    "schema": lambda: ask(response_format=Constraint.json_schema({"properties": {"a": {"type": "nonsense"}}})),
    "no JSON": lambda: ask(response_format=Constraint.json_schema("{")),
    "regex": lambda: ask(response_format=Constraint.regex("a(")),
    "tool": lambda: ask(tools=[Tool("f", parameters={"type": "object", "properties": {"a": {"type": 3}}})]),
    "role": lambda: ask(messages=[{"role": "user", "content": "Hi"}], chat_template_kwargs={"messages": 1}),
    "bias": lambda: ask(sampling={"logit_bias": {10**6: 1.0}}),
    "stop token": lambda: ask(sampling={"stop_token_ids": (10**6,)}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_the_same(local: LocalChat, remote: Chat, name: str) -> None:
    asked = REFUSED[name]()
    with pytest.raises(errors.InvalidRequestError) as here:
        local.complete(asked)
    for call in (remote.complete, remote.stream, lambda asked: asyncio.run(collected(remote, asked))):
        with pytest.raises(errors.InvalidRequestError) as there:
            call(asked)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
        assert vars(there.value) == vars(here.value)


def test_what_only_the_wire_refuses(remote: Chat) -> None:
    with pytest.raises(errors.InvalidRequestError, match="20") as refused:
        remote.complete(ask(sampling={"logprobs": 21}))
    assert refused.value.param == "logprobs"
    with pytest.raises(errors.InvalidRequestError, match="JSON"):
        remote.complete(ask(chat_template_kwargs={"a": object()}))
    with pytest.raises(errors.InvalidRequestError, match="JSON"):
        remote.stream(ask(messages=[{"role": "user", "content": "\ud800"}]))


KINDS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and kind in _RULES]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_there_and_back(kind: type[Exception]) -> None:
    """What `openai_api.faults` makes of an error, becomes that error again."""
    details: dict[type, dict[str, Any]] = {
        errors.ContextLengthError: {"prompt_tokens": 9, "max_tokens": 8},
        errors.ConstraintError: {"pointer": "/a/b"},
        errors.InvalidRequestError: {"param": "top_p"},
        errors.OutputValidationError: {"keyword": "type", "path": "/a", "text": "[]"},
    }
    fault = kind("it is so", **details.get(kind, {}))
    sent = api_error(fault, reveal=True)
    body = json.loads(sent.content())["error"]
    for status in (sent.status, None):  # as an answer, and in the middle of a stream
        back = of_answer(body, status, "http://server", "")
        if kind is errors.RadixError:
            assert type(back) is errors.RemoteError
        else:
            assert (type(back), str(back), vars(back)) == (kind, "it is so", vars(fault))


def test_another_model_and_key(local: LocalChat, served: Served) -> None:
    with (
        RemoteChat("gpt-9", f"{served.url}/v1") as other,
        pytest.raises(errors.ModelNotFoundError, match="'gpt-9' does not exist here; 'tiny' does"),
    ):
        other.complete(ask())
    with serve(local._share, api_key="s3cret") as locked:
        url = f"{locked.url}/v1"
        with RemoteChat("tiny", url) as chat, pytest.raises(errors.AuthenticationError, match=url):
            chat.complete(ask())
        with RemoteChat("", url, api_key="s3cret") as chat:
            assert chat.complete(ask()).content == local.complete(ask()).content
            assert (chat.model_name, chat.max_context) == ("tiny", 1024)


def test_nobody_is_there() -> None:
    with RemoteChat("tiny", "http://127.0.0.1:9/v1", max_retries=0) as chat:
        for call in (
            lambda: chat.complete(ask()),
            lambda: chat.stream(ask()),
            lambda: chat.max_context,
            lambda: asyncio.run(chat.acomplete(ask())),
            lambda: asyncio.run(collected(chat, ask())),
        ):
            with pytest.raises(errors.ServerUnreachableError, match=r"http://127.0.0.1:9/v1/"):
                call()
        with pytest.raises(ConnectionError):
            chat.complete(ask())


LONG = {"max_tokens": 900, "ignore_eos": True}


@pytest.fixture
def idle(local: LocalChat) -> Iterator[Callable[[], None]]:
    """Waits until one more request is aborted; afterwards nothing runs and nothing is held."""
    before = local.stats()

    def aborted() -> None:
        until(lambda: local.stats().aborted == before.aborted + 1)

    yield aborted
    until(lambda: local.stats().running == local.stats().waiting == 0)
    assert (local.stats().slots_held, local.stats().finished) == (0, before.finished)


@pytest.mark.parametrize("way", ["close", "with", "drop"])
def test_leaving_a_stream_aborts(remote: Chat, idle: Callable[[], None], way: str) -> None:
    gc.disable()
    try:
        stream: Any = remote.stream(ask(sampling=LONG))
        next(stream)
        if way == "close":
            stream.close()
            stream.close()
            assert list(stream) == []
        elif way == "with":
            with pytest.raises(ZeroDivisionError), stream:
                raise ZeroDivisionError
        else:
            del stream
        idle()
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["aclose", "with", "cancel", "drop", "loop"])
def test_leaving_an_async_stream_aborts(remote: Chat, idle: Callable[[], None], way: str) -> None:
    async def leave() -> None:
        stream: Any = remote.astream(ask(sampling=LONG))
        await anext(stream)
        if way == "aclose":
            await stream.aclose()
            await stream.aclose()
            assert [delta async for delta in stream] == []
        elif way == "with":
            with pytest.raises(ZeroDivisionError):
                async with stream:
                    raise ZeroDivisionError
        elif way == "cancel":
            task = asyncio.create_task(drain(stream))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif way == "drop":
            del stream
        else:
            return
        await asyncio.to_thread(idle)

    gc.disable()
    try:
        asyncio.run(leave())
        idle()
    finally:
        gc.enable()


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


def test_a_cancelled_answer_is_aborted(remote: Chat, idle: Callable[[], None], local: LocalChat) -> None:
    async def leave() -> None:
        task = asyncio.create_task(remote.acomplete(ask(sampling=LONG)))
        await asyncio.to_thread(until, lambda: local.stats().running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(idle)

    asyncio.run(leave())


def test_timeouts(remote: Chat, local: LocalChat) -> None:
    """Of an answer, of a stream as a whole, sync and async: what is late is aborted, and not tried again."""
    asked = ask(sampling=LONG)
    before = local.stats()
    for call in (
        lambda: remote.complete(asked, timeout=0.1),
        lambda: list(remote.stream(asked, timeout=0.1)),
        lambda: asyncio.run(remote.acomplete(asked, timeout=0.1)),
        lambda: asyncio.run(drain(remote.astream(asked, timeout=0.1))),
    ):
        began = time.monotonic()
        with pytest.raises(errors.RequestTimeoutError, match=r"within 0\.1 s"):
            call()
        assert time.monotonic() - began < PATIENCE / 2
    until(lambda: local.stats().running == local.stats().waiting == 0)
    assert local.stats().finished == before.finished


def test_many_threads_and_loops(local: LocalChat, over_http: Chat) -> None:
    """One chat, from threads that block and from event loops that come and go."""
    expected = local.complete(ask()).content
    found: list[str] = []

    def block() -> None:
        found.extend(over_http.complete(ask()).content for _ in range(3))

    async def many() -> None:
        results = await asyncio.gather(*(over_http.acomplete(ask()) for _ in range(3)))
        found.extend(result.content for result in results)

    threads = [threading.Thread(target=run) for run in (block, block, lambda: asyncio.run(many()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    asyncio.run(many())
    assert found == [expected] * 12


def test_closed(served: Served) -> None:
    chat = RemoteChat("tiny", f"{served.url}/v1")

    async def use_and_close() -> None:
        await chat.acomplete(ask())
        chat.close()

    asyncio.run(use_and_close())
    chat.close()
    for call in (lambda: chat.complete(ask()), lambda: chat.stream(ask()), lambda: asyncio.run(chat.acomplete(ask()))):
        with pytest.raises(errors.EngineClosedError):
            call()


# -- other servers ---------------------------------------------------------------------------------------------------


@dataclass
class Other:
    """A server that answers with what it is told to, and remembers what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    asked: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, request: Any) -> Any:
        self.headers.append(dict(request.headers))
        self.asked.append(json.loads(request.content) if request.content else None)
        answer = self.answers.get(request.url.path)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(self.asked[-1])
        if answer is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        if isinstance(answer, str):
            return httpx.Response(self.status, text=answer, headers={"content-type": "text/html"})
        if isinstance(answer, list):
            lines = "".join(f"data: {line if isinstance(line, str) else json.dumps(line)}\n\n" for line in answer)
            return httpx.Response(200, text=lines, headers={"content-type": "text/event-stream"})
        return httpx.Response(self.status, json=answer)


CHATS = "/v1/chat/completions"


def chat_with(other: Other, **options: Any) -> RemoteChat:
    client = openai.DefaultHttpxClient(transport=httpx.MockTransport(other))
    return RemoteChat("big", "http://other.example/v1", max_retries=0, http_client=client, **options)


def answered(message: dict[str, Any], **rest: Any) -> ChatResult:
    """What becomes of an answer with this message."""
    return chat_with(Other({CHATS: {"choices": [{"message": message, **rest}]}})).complete(ask())


def streamed(*chunks: Any, **rest: Any) -> list[ChatDelta]:
    """What becomes of a stream with these chunks."""
    return list(chat_with(Other({CHATS: list(chunks)})).stream(ask(**rest)))


def piece(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_no_more_is_sent_than_is_asked() -> None:
    other = Other({CHATS: {"choices": [{"message": {"content": "Hi"}}]}})
    chat_with(other).complete(ChatRequest.of(USER))
    assert other.asked == [{"model": "big", "messages": USER}]
    list_of = Other({CHATS: [piece("stop", content="Hi"), "[DONE]"]})
    list(chat_with(list_of).stream(ChatRequest.of(USER, tools=TOOLS[:1], tool_choice="auto")))
    assert list_of.asked[0].keys() == {"model", "messages", "tools", "stream", "stream_options"}


def test_images_are_sent_as_they_are() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "http://a.example/b.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}},
    ]
    assert chat_body(ask(messages=[{"role": "user", "content": parts}]), "m")["messages"][0]["content"] == parts


def test_every_field_arrives() -> None:
    """What our server makes of the wire is the request, each of its fields; the engine's alone has no place in it."""
    values: dict[str, Any] = {
        **{"max_tokens": 7, "min_tokens": 2, "temperature": 0.3, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "seed": -3},
        **{"frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.5, "logit_bias": {3: -1.5}},
        **{"stop": ("a", "b"), "stop_token_ids": (5,), "ignore_eos": True, "n": 2, "logprobs": 4},
        **{"skip_special_tokens": False, "include_stop": True},
    }
    assert values.keys() | {"prompt_logprobs"} == {entry.name for entry in fields(SamplingParams)}
    constraint = Constraint.json_schema(SCHEMA, on_unsupported="error", whitespace=True)
    asked = ChatRequest.of(
        CALLED,
        tools=TOOLS[:1],
        tool_choice=ToolChoice("required", ("get_weather",)),
        response_format=ResponseFormat(constraint, "r", "An answer.", True),
        sampling=SamplingParams(**values),
        parallel_tool_calls=False,
        chat_template_kwargs={"a": [1]},
        reasoning_effort="low",
        add_generation_prompt=False,
        separate_reasoning=False,
        priority=-2,
        cache_salt="s",
    )
    continued = ask(messages=[*USER, Message("assistant", "So")], continue_final_message=True)
    plain = ChatRequest.of(USER)
    told_of = {entry.name for entry in fields(ChatRequest) if getattr(asked, entry.name) != getattr(plain, entry.name)}
    assert told_of | {"continue_final_message"} == {entry.name for entry in fields(ChatRequest)}
    for request in (asked, replace(continued, add_generation_prompt=False), plain):
        wire = ChatCompletionRequest.model_validate_json(json.dumps(chat_body(request, "m")))
        assert not wire.model_extra
        assert wire.chat() == request


def test_constraints_have_the_names_that_others_know() -> None:
    def body(constraint: Constraint) -> dict[str, Any]:
        return chat_body(ChatRequest.of(USER, response_format=constraint), "m")

    assert body(Constraint.regex("a"))["structured_outputs"] == {"regex": "a"}
    assert body(Constraint.choice(["a", "b"]))["structured_outputs"] == {"choice": ["a", "b"]}
    assert body(Constraint.grammar('root ::= "a"'))["structured_outputs"] == {"grammar": 'root ::= "a"'}
    assert body(Constraint.json_object())["response_format"] == {"type": "json_object"}
    assert body(Constraint.json_schema(SCHEMA))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "response", "schema": SCHEMA},
    }
    assert list(body(Constraint.json_schema(SCHEMA))["response_format"]["json_schema"]["schema"]["properties"]) == [
        "b",
        "a",
    ]


def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET")
    for name in names:
        monkeypatch.setenv(name, "leak")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://leak.example/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-leak: leak")
    other = Other({CHATS: {"choices": [{"message": {"content": "Hi"}}]}})
    chat_with(other, headers={"x-mine": "mine"}).complete(ask())
    chat_with(other, api_key="mine").complete(ask())
    assert "leak" not in json.dumps(other.headers)
    assert {headers["host"] for headers in other.headers} == {"other.example"}
    assert other.headers[0]["x-mine"] == "mine"
    assert [headers["authorization"] for headers in other.headers] == ["Bearer no-key", "Bearer mine"]

    async def ask_async() -> None:
        client = openai.DefaultAsyncHttpxClient(transport=httpx.MockTransport(other))
        chat = RemoteChat("big", "http://other.example/v1", headers={"x-mine": "mine"}, http_async_client=client)
        await chat.acomplete(ask())

    asyncio.run(ask_async())
    assert "leak" not in json.dumps(other.headers)
    assert other.headers[2]["x-mine"] == "mine"


def test_sparse_answers() -> None:
    result = answered({"role": "assistant", "content": None, "audio": {}}, extra=1)
    assert (result.content, result.finish_reason, result.usage) == ("", "stop", Usage())
    assert (result.choices[0].stop_reason, result.model, result.choices[0].logprobs) == (None, "big", None)
    parts = answered({"content": [{"type": "text", "text": "Hi"}], "reasoning": "Hm"}, finish_reason="content_filter")
    assert (parts.content, parts.reasoning, parts.finish_reason) == ("Hi", "Hm", "stop")
    assert parts.choices[0].stop_reason == "content_filter"
    called = answered(
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}, {"id": "x"}]},
        finish_reason="stop",
    )
    assert called.finish_reason == "tool_calls"
    assert called.message.content is None
    first, second = called.tool_calls
    assert (first.name, first.arguments, second.arguments) == ("f", '{"a": 1}', "{}")
    assert first.id != second.id == "x"


def test_usage_with_gaps() -> None:
    used = {"prompt_tokens": 7, "completion_tokens": None, "prompt_tokens_details": None, "cost": 1.5}
    other = Other({CHATS: {"choices": [{"message": {"content": "Hi"}}], "usage": used}})
    assert chat_with(other).complete(ask()).usage == Usage(7)
    assert streamed(piece("stop", content="Hi"), "[DONE]")[-1].usage is None
    early = piece("stop", content="Hi") | {"usage": {"prompt_tokens": 3}}
    assert streamed(early, "[DONE]")[-1].usage == Usage(3)
    assert streamed(early, {"choices": [], "usage": {"prompt_tokens": 4}})[-1].usage == Usage(4)


def test_cut_answers_are_called_cut() -> None:
    """A server that does not say whether a constraint closed cannot have closed it when it ran out of tokens."""
    other = Other({CHATS: {"choices": [{"message": {"content": '{"b": '}, "finish_reason": "length"}]}})
    assert not chat_with(other).complete(ask(response_format=Constraint.json_schema(SCHEMA))).choices[0].complete
    assert chat_with(other).complete(ask()).choices[0].complete
    cut = streamed(piece("length", content="{"), response_format=Constraint.json_object())
    assert [delta.complete for delta in cut] == [False]


def test_fragments_of_calls() -> None:
    def call(**rest: Any) -> dict[str, Any]:
        return piece(tool_calls=[rest])

    repeated = streamed(
        piece(role="assistant", content=""),
        call(index=1, id="a", function={"name": "f", "arguments": ""}),
        call(index=1, id="a", function={"name": "f", "arguments": '{"x"'}),
        call(index=1, function={"name": None, "arguments": ": 1}"}),
        call(index=2, function={"name": "g", "arguments": None}),
        piece("tool_calls"),
    )
    pieces = [delta.tool_calls[0] for delta in repeated[:-1]]
    assert [(p.index, p.id, p.name, p.arguments) for p in pieces[:3]] == [
        (0, "a", "f", ""),
        (0, None, None, '{"x"'),
        (0, None, None, ": 1}"),
    ]
    assert (pieces[3].index, pieces[3].name) == (1, "g")
    assert pieces[3].id
    assert repeated[-1].finish_reason == "tool_calls"
    whole = streamed(
        call(id="a", function={"name": "f", "arguments": "{}"}), call(id="b", function={"name": "g"}), piece("stop")
    )
    assert [(p.index, p.id) for delta in whole for p in delta.tool_calls] == [(0, "a"), (1, "b")]
    assert whole[-1].finish_reason == "tool_calls"


def test_tokens_without_ids() -> None:
    entries = [
        {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "é", "logprob": -0.5}]},
        {"token": "?", "logprob": -1, "bytes": [0xC3], "top_logprobs": []},
    ]
    other = Other({CHATS: {"choices": [{"message": {"content": "é"}, "logprobs": {"content": entries}}]}})
    chat = chat_with(other)
    logprobs = chat.complete(ask(sampling={"logprobs": 1})).choices[0].logprobs
    assert logprobs is not None
    first, second = logprobs
    assert first == TokenLogprob(first.token_id, -0.5, ((first.token_id, -0.5),))
    assert first.token_id < 0
    assert second.token_id < 0
    assert [chat.token_bytes(entry.token_id) for entry in logprobs] == ["é".encode(), b"\xc3"]
    assert chat.complete(ask()).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], "before the answer was finished"),
        ([piece(content="Hi")], "before the answer was finished"),
        ([piece(index=1, content="Ho"), piece("stop", content="Hi"), "[DONE]"], "before the answer was finished"),
        (["{nonsense"], "not JSON"),
        (["[1]"], "should be an object"),
        ({"choices": []}, "no choices"),
        ("<html>Welcome!</html>", "Welcome!"),
        ({"choices": [{"message": {"content": 5}}]}, "content"),
        ({"choices": "many"}, "no choices"),
    ],
)
def test_nonsense(answer: Any, expected: str) -> None:
    chat = chat_with(Other({CHATS: answer}))
    with pytest.raises(errors.RemoteError, match=expected):
        list(chat.stream(ask())) if isinstance(answer, list) else chat.complete(ask())


FAILURES: list[tuple[int, Any, type[Exception], dict[str, Any]]] = [
    (400, {"error": {"message": "no", "param": "stop", "code": 400}}, errors.InvalidRequestError, {"param": "stop"}),
    (422, {"detail": [{"loc": ["body", "n"], "msg": "no"}]}, errors.InvalidRequestError, {}),
    (400, {"object": "error", "message": "no", "code": 40001}, errors.InvalidRequestError, {}),
    (
        400,
        {"error": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5,000."}},
        errors.ContextLengthError,
        {"max_tokens": 4096, "prompt_tokens": 5000},
    ),
    (
        400,
        {"error": {"message": "The input (900 tokens) is longer than the model's context length (512 tokens)."}},
        errors.ContextLengthError,
        {"max_tokens": 512, "prompt_tokens": 900},
    ),
    (
        400,
        {"error": {"type": "exceed_context_size_error", "message": "too long", "n_prompt_tokens": 9, "n_ctx": 8}},
        errors.ContextLengthError,
        {"max_tokens": 8, "prompt_tokens": 9},
    ),
    (401, {"error": {"message": "Incorrect API key"}}, errors.AuthenticationError, {}),
    (403, "Forbidden", errors.AuthenticationError, {}),
    (404, {"error": {"message": "The model `big` does not exist."}}, errors.ModelNotFoundError, {}),
    (404, {"detail": "Not Found"}, errors.UnsupportedByServerError, {}),
    (408, {}, errors.RequestTimeoutError, {}),
    (429, {"error": {"message": "slow down"}}, errors.QueueFullError, {}),
    (500, "Internal Server Error" * 1000, errors.RemoteError, {}),
    (502, {"error": "bad gateway"}, errors.RemoteError, {}),
    (504, "", errors.RequestTimeoutError, {}),
]


@pytest.mark.parametrize(("status", "body", "kind", "details"), FAILURES)
def test_failures_of_others(status: int, body: Any, kind: type[Exception], details: dict[str, Any]) -> None:
    chat = chat_with(Other({CHATS: body}, status))
    for call in (chat.complete, chat.stream):
        with pytest.raises(kind) as raised:
            call(ask())
        assert type(raised.value) is kind
        assert details.items() <= vars(raised.value).items()
        assert 0 < len(str(raised.value)) < 3000


def test_failures_in_a_stream() -> None:
    begun = piece(content="Hi")
    for said, kind in (
        ({"message": "gone", "code": "request_aborted"}, errors.RequestAbortedError),
        ({"message": "slow down", "code": 429}, errors.QueueFullError),
        ({"message": "no", "type": "invalid_request_error"}, errors.InvalidRequestError),
        ("broken", errors.RemoteError),
    ):
        stream = chat_with(Other({CHATS: [begun, {"error": said}]})).stream(ask())
        assert next(stream).content == "Hi"
        with pytest.raises(errors.RequestError) as raised:
            next(stream)
        assert type(raised.value) is kind
        assert list(stream) == []
    with pytest.raises(errors.RequestAbortedError):
        streamed(begun, piece("abort"))


def test_a_connection_that_breaks() -> None:
    @dataclass
    class Broken(httpx.SyncByteStream):  # type: ignore[misc]
        fault: Exception

        def __iter__(self) -> Iterator[bytes]:
            yield b"data: " + json.dumps(piece(content="Hi")).encode() + b"\n\n"
            raise self.fault

    for fault, kind in (
        (httpx.RemoteProtocolError("it hung up"), errors.ServerUnreachableError),
        (httpx.ReadTimeout("too slow"), errors.RequestTimeoutError),
    ):
        response = httpx.Response(200, stream=Broken(fault), headers={"content-type": "text/event-stream"})
        client = openai.DefaultHttpxClient(transport=httpx.MockTransport(lambda _, response=response: response))
        stream = RemoteChat("big", "http://other.example/v1", http_client=client).stream(ask())
        next(stream)
        with pytest.raises(kind, match=r"http://other\.example/v1/chat/completions"):
            next(stream)


def test_what_may_go_better_is_tried_again() -> None:
    answers = [httpx.Response(429, json={}, headers={"retry-after-ms": "1"}) for _ in range(2)]
    answers.append(httpx.Response(200, json={"choices": [{"message": {"content": "Hi"}}]}))
    client = openai.DefaultHttpxClient(transport=httpx.MockTransport(lambda _: answers.pop(0)))
    chat = RemoteChat("big", "http://other.example/v1", http_client=client)
    assert chat.complete(ask()).content == "Hi"
    assert not answers


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(httpx.ReadTimeout, errors.RequestTimeoutError), (httpx.ConnectTimeout, errors.ServerUnreachableError)],
)
def test_a_timeout_is_not_tried_again(fault: type[Exception], kind: type[Exception]) -> None:
    other = Other({CHATS: fault("late")})
    transport = httpx.MockTransport(other)
    clients = {"http_client": Client(transport=transport), "http_async_client": AsyncClient(transport=transport)}
    chat = RemoteChat("big", "http://other.example/v1", timeout=3, **clients)
    for call in (chat.complete, chat.stream, lambda asked: asyncio.run(chat.acomplete(asked))):
        other.asked.clear()
        with pytest.raises(kind, match=r"http://other\.example/v1"):
            call(ask())
        assert len(other.asked) == 1


def test_what_others_lack() -> None:
    chat = chat_with(Other({"/server_info": {"internal_states": [{"x": 1}]}, "/flush_cache": "Cache flushed."}))
    for call in (lambda: chat.tokenize(ask()), lambda: chat.count_tokens(USER), chat.stats, lambda: chat.embed("a")):
        with pytest.raises(errors.UnsupportedByServerError, match=r"http://other\.example"):
            call()
    assert (chat.flush_cache(), chat.max_context, chat.weights_hash, chat.reasons) == (0, None, None, False)
    prompts_only = chat_with(Other({"/tokenize": {"count": 3}}))
    with pytest.raises(errors.UnsupportedByServerError, match="does not give tokens"):
        prompts_only.tokenize(ask())
    floats = chat_with(
        Other({"/v1/embeddings": {"data": [{"index": 1, "embedding": [1, 0]}, {"index": 0, "embedding": [0, 1]}]}})
    )
    assert [vector.tolist() for vector in floats.embed(["a", "b"]).vectors] == [[0, 1], [1, 0]]
    with pytest.raises(errors.RemoteError, match="embeddings"):
        chat_with(Other({"/v1/embeddings": {"data": [{}]}})).embed("a")


def test_many_texts_go_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixbackend.chat.remote.MOST_INPUTS", 2)

    def vectors(asked: Any) -> Any:
        data = [{"index": i, "embedding": [float(text)]} for i, text in enumerate(asked["input"])]
        return {"data": data, "usage": {"prompt_tokens": len(data)}}

    other = Other({"/v1/embeddings": vectors})
    found = chat_with(other).embed([str(i) for i in range(5)])
    assert ([vector.tolist() for vector in found.vectors], found.prompt_tokens) == ([[0], [1], [2], [3], [4]], 5)
    assert [len(asked["input"]) for asked in other.asked] == [2, 2, 1]


def test_models_are_asked_once() -> None:
    cards = [{"id": "small", "max_model_len": 7}, {"id": "big", "context_length": 9, "owned_by": "them"}]
    other = Other({"/v1/models": {"data": cards}, CHATS: {"choices": [{"message": {"content": "Hi"}}], "usage": {}}})
    chat = chat_with(other)
    assert (chat.model_name, other.asked) == ("big", [])
    assert (chat.max_context, chat.max_context, chat.reasons, len(other.asked)) == (9, 9, False, 1)
    chat.warm(ask(tools=TOOLS, tool_choice="required"))
    assert other.asked[1].keys() == {"model", "messages", "tools", "max_tokens"}
    assert other.asked[1]["max_tokens"] == 1
    assert chat.pin(ask()).usage == Usage()


def test_without_the_sdk() -> None:
    script = (
        "import sys; sys.modules['openai'] = None\n"
        "from radixbackend.chat import open_chat\n"
        "from radixbackend.errors import MissingDependencyError\n"
        "try: open_chat('m', base_url='http://a.example/v1')\n"
        "except MissingDependencyError as fault: print(fault)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "radixbackend[openai]" in run.stdout

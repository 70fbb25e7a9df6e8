"""`ChatRadix` as an object: shared, copied, written down, traced, counted with, closed; from many threads and loops."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelConnectionError, ModelInvalidRequestError
from langchain_core.exceptions import ModelNotFoundError as LangChainModelNotFoundError
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField
from langchain_radix import ChatRadix, RadixEmbeddings
from langchain_radix.errors import RadixClosedError

from radixbackend.backend import SharedBackend, _shared
from radixbackend.chat import Message, open_chat

SECRET = "very-secret"


def users() -> int:
    """Shares of all engines of this process that are really held."""
    gc.collect()  # what earlier tests dropped must not go in the middle of this one
    return sum(slot.users for slot in _shared._slots.values())


# -- engines ---------------------------------------------------------------------------------------------------------


def test_instances_share_one_engine(params: dict[str, Any], engine: SharedBackend) -> None:
    before, engines = users(), len(_shared._slots)
    one, two = ChatRadix(**params), ChatRadix(**{**params, "temperature": 1}, max_tokens=4)
    embeddings = RadixEmbeddings(model=params["model"], kv_cache_tokens=params["kv_cache_tokens"], self_check=False)
    assert users() == before + 3
    assert len(_shared._slots) == engines
    one.close()
    one.close()
    embeddings.close()
    assert users() == before + 1
    with pytest.raises(RadixClosedError, match="was closed"):
        one.invoke("hi")
    assert two.invoke("hi").content
    del two
    assert users() == before


def test_what_is_dropped_gives_its_share_back(params: dict[str, Any]) -> None:
    before = users()
    chain = ChatRadix(**params, max_tokens=4).bind_tools([]) | (lambda message: message.content)
    chain.invoke("hi")
    del chain
    assert users() == before


def test_a_failed_construction_keeps_nothing(params: dict[str, Any]) -> None:
    before = users()
    with pytest.raises(ValueError, match="n is 1 when streaming"):
        ChatRadix(**params, n=2, streaming=True)
    assert users() == before


def test_another_model_for_one_call(params: dict[str, Any], models_folder: Any) -> None:
    before = users()
    model = ChatRadix(**params, max_tokens=4)
    answer = model.invoke("hi", model="thinker")
    assert answer.response_metadata["model_name"] == "thinker"
    assert answer.additional_kwargs["reasoning_content"]
    assert model.invoke("hi").response_metadata["model_name"] == "tiny"
    assert users() == before + 2
    del model
    assert users() == before


def test_configurable_fields_share_the_engine(params: dict[str, Any]) -> None:
    model = ChatRadix(**params, max_tokens=4, seed=1)  # without, one draw in hundreds ends at once
    chain = model.configurable_fields(temperature=ConfigurableField(id="temperature"))
    before = len(_shared._slots), users()
    assert chain.with_config(configurable={"temperature": 0.5}).invoke("hi").content
    assert (len(_shared._slots), users()) == before


# -- copies and what is written down ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: m.model_copy(), lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_work_and_live_by_themselves(copied: Any, params: dict[str, Any]) -> None:
    model = ChatRadix(**params, max_tokens=4, seed=1, api_key=SECRET)
    expected = model.invoke("hi").content
    twin = copied(model)
    assert twin.invoke("hi").content == expected
    assert twin == model
    del model
    gc.collect()
    assert twin.invoke("hi").content == expected


def test_it_is_written_down_and_read_again(params: dict[str, Any]) -> None:
    model = ChatRadix(**params, max_tokens=4, api_key=SECRET, regex="[ab]+", callbacks=[BaseCallbackHandler()])
    text = dumps(model)
    assert SECRET not in text
    assert "not_implemented" not in text
    again = loads(
        text, allowed_objects=[ChatRadix], valid_namespaces=["langchain_radix"], secrets_map={"RADIX_API_KEY": SECRET}
    )
    assert again._identifying_params == model._identifying_params
    assert again.openai_api_key.get_secret_value() == SECRET
    assert again.invoke("hi").content == model.invoke("hi").content


def test_nothing_shows_secrets_or_engines(params: dict[str, Any]) -> None:
    headers = {"x-key": SECRET}
    model = ChatRadix(**params, api_key=SECRET, base_url="http://127.0.0.1:1/v1", default_headers=headers)
    for shown in (repr(model), str(model), json.dumps(model.model_dump(), default=str), dumps(model)):
        assert SECRET not in shown
        assert "Shares" not in shown
        assert "object at 0x" not in shown


def test_llm_cache(params: dict[str, Any]) -> None:
    model = ChatRadix(**{**params, "temperature": 1}, cache=InMemoryCache())
    first = model.invoke("hi", max_tokens=6)
    assert model.invoke("hi", max_tokens=6).content == first.content
    assert model.invoke("hi", max_tokens=7).content != first.content


# -- tracing ---------------------------------------------------------------------------------------------------------


class Traces(BaseCallbackHandler):
    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.tokens: list[str] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **rest: Any) -> None:
        self.started.append({"serialized": serialized, **rest})

    def on_llm_new_token(self, token: Any, **rest: Any) -> None:
        self.tokens.append(token)


def test_what_is_traced(params: dict[str, Any]) -> None:
    traces = Traces()
    model = ChatRadix(**params, api_key=SECRET, max_tokens=4, stop="zz", top_k=3)
    model.bind_tools([]).invoke("hi", config={"callbacks": [traces]}, seed=5)
    (start,) = traces.started
    asked = start["invocation_params"]
    assert {name: asked[name] for name in ("model", "temperature", "max_tokens", "top_k", "seed")} == {
        "model": "tiny",
        "temperature": 0.0,
        "max_tokens": 4,
        "top_k": 3,
        "seed": 5,
    }
    assert asked["_type"] == "radix-chat"
    metadata = start["metadata"]
    assert metadata["ls_provider"] == "radix"
    assert metadata["ls_model_name"] == "tiny"
    assert metadata["ls_temperature"] == 0.0
    assert metadata["ls_max_tokens"] == 4
    assert metadata["ls_stop"] == ["zz"]
    assert metadata["lc_versions"]["langchain-radix"]
    assert SECRET not in repr(start)


def test_tokens_reach_callbacks_once(params: dict[str, Any]) -> None:
    traces = Traces()
    model = ChatRadix(**params, max_tokens=8)
    text = "".join(chunk.text for chunk in model.stream("hi", config={"callbacks": [traces]}))
    assert "".join(traces.tokens) == text
    streaming = ChatRadix(**params, max_tokens=8, streaming=True, callbacks=[again := Traces()])
    assert streaming.invoke("hi").text == text
    assert "".join(again.tokens) == text


def test_usage_is_added_up(params: dict[str, Any]) -> None:
    usage = UsageMetadataCallbackHandler()
    model = ChatRadix(**params, max_tokens=4)
    answers = model.batch(["hi", "ho"], config={"callbacks": [usage]})
    assert usage.usage_metadata["tiny"]["output_tokens"] == sum(a.usage_metadata["output_tokens"] for a in answers) == 8
    together = model.generate([[HumanMessage("hi")], [HumanMessage("ho")]]).llm_output
    assert together is not None
    assert together["token_usage"]["completion_tokens"] == 8
    assert together["token_usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_stream_usage_can_be_off(params: dict[str, Any]) -> None:
    off, on = ChatRadix(**params, max_tokens=4, stream_usage=False), ChatRadix(**params, max_tokens=4)
    assert all(chunk.usage_metadata is None for chunk in off.stream("hi"))
    assert all(chunk.usage_metadata is None for chunk in on.stream("hi", stream_options={"include_usage": False}))
    assert any(chunk.usage_metadata for chunk in off.stream("hi", stream_usage=True))


# -- what a model knows of itself ------------------------------------------------------------------------------------


def test_profile(params: dict[str, Any]) -> None:
    profile = ChatRadix(**params).profile
    assert profile is not None
    assert profile["max_input_tokens"] == 4096
    assert profile["structured_output"] is profile["tool_calling"] is profile["tool_call_streaming"] is True
    assert profile["reasoning_output"] is profile["image_inputs"] is False
    assert ChatRadix(**params, profile={"max_input_tokens": 9}).profile["max_input_tokens"] == 9  # type: ignore[index]


def test_tokens_are_counted_by_the_models_tokenizer(params: dict[str, Any], engine: SharedBackend) -> None:
    model = ChatRadix(**params, max_tokens=1)
    text = "The answer is 42."
    assert engine.tokenizer is not None
    assert model.get_token_ids(text) == engine.tokenizer.encode(text, add_special_tokens=False)
    assert model.get_num_tokens(text) == len(model.get_token_ids(text))
    messages = [SystemMessage("Be brief."), HumanMessage("Where is Rome?")]

    def look(word: str) -> str:
        """Look a word up."""
        return word

    for tools in ([], [look]):
        usage = model.bind_tools(tools).invoke(messages).usage_metadata
        assert usage is not None
        assert model.get_num_tokens_from_messages(messages, tools) == usage["input_tokens"]
    assert ChatRadix(**params, custom_get_token_ids=lambda text: [1, 2]).get_num_tokens("x") == 2


def test_warm(params: dict[str, Any], engine: SharedBackend) -> None:
    model = ChatRadix(**params, max_tokens=2)
    system = SystemMessage("You are the librarian of a small town and know every book by its colour.")
    engine.flush_cache()
    used = model.warm([system])
    assert used.cached_tokens == 0
    answer = model.invoke([system, HumanMessage("Where is the red one?")])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_token_details"]["cache_read"] >= used.prompt_tokens - 1


# -- constraints and reasoning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"regex": "[0-9]{3}"}, lambda text: len(text) == 3 and text.isdigit()),
        ({"grammar": 'root ::= "yes" | "no"'}, lambda text: text in ("yes", "no")),
        ({"choice": ["red", "green"]}, lambda text: text in ("red", "green")),
    ],
)
def test_constraints(given: dict[str, Any], fits: Any, params: dict[str, Any]) -> None:
    assert fits(ChatRadix(**params, **given).invoke("hi").text)
    assert fits(ChatRadix(**params).bind(**given).invoke("hi").text)


def test_reasoning(params: dict[str, Any]) -> None:
    model = ChatRadix(**{**params, "model": "thinker"}, max_tokens=12)
    answer = model.invoke("hi")
    thought = answer.additional_kwargs["reasoning_content"]
    assert answer.content_blocks[0] == {"type": "reasoning", "reasoning": thought}
    whole = None
    for chunk in model.stream("hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.additional_kwargs["reasoning_content"] == thought
    assert model.profile is not None
    assert model.profile["reasoning_output"] is True


# -- threads, loops, cancelling --------------------------------------------------------------------------------------


def test_threads_and_event_loops(params: dict[str, Any]) -> None:
    model = ChatRadix(**params, max_tokens=6)
    prompts = [f"Count to {number}." for number in range(8)]
    expected = [model.invoke(prompt).content for prompt in prompts]

    def in_a_loop(prompt: str) -> str:
        async def ask() -> str:
            plain, streamed = await asyncio.gather(model.ainvoke(prompt), _collect(model, prompt))
            assert plain.content == streamed
            return str(plain.content)

        return asyncio.run(ask())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(in_a_loop, prompts)) == expected
        assert [m.content for m in pool.map(model.invoke, prompts)] == expected


async def _collect(model: ChatRadix, prompt: str) -> str:
    return "".join([chunk.text async for chunk in model.astream(prompt)])


def test_a_batch_is_one_batch(params: dict[str, Any], engine: SharedBackend) -> None:
    """All of it runs together, however few threads LangChain would take: far fewer steps than tokens."""
    model = ChatRadix(**params, max_tokens=24)
    prompts: list[Any] = [f"Count to {number}." for number in range(32)]
    before = engine.stats()
    answers = model.batch(prompts)
    after = engine.stats()
    assert after.steps - before.steps < (after.generated_tokens - before.generated_tokens) / 8
    completed = dict(model.batch_as_completed(prompts[:4]))
    assert [completed[number].content for number in range(4)] == [answer.content for answer in answers[:4]]
    few = model.batch(prompts[:4], config={"max_concurrency": 1})
    assert [answer.content for answer in few] == [answer.content for answer in answers[:4]]


def idle(engine: SharedBackend) -> bool:
    end = time.monotonic() + 20
    while engine.stats().running or engine.stats().waiting:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_stream_that_is_left_ends(params: dict[str, Any], engine: SharedBackend) -> None:
    model = ChatRadix(**params, max_tokens=3000)
    before = engine.stats()
    for _ in model.stream("hi"):
        break
    stream = model.stream("hi")
    next(stream)
    stream.close()

    async def leave() -> None:
        async for _ in model.astream("hi"):
            break
        task = asyncio.ensure_future(model.ainvoke("hi"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert idle(engine)
    after = engine.stats()
    assert after.aborted - before.aborted == 4
    assert after.generated_tokens - before.generated_tokens < 2000


def test_what_a_callback_raises_ends_that_call_alone(params: dict[str, Any], engine: SharedBackend) -> None:
    class Faulty(BaseCallbackHandler):
        raise_error = True

        def on_llm_new_token(self, token: str, **rest: Any) -> None:
            raise KeyError("of a callback")

    model = ChatRadix(**params, max_tokens=500)
    with pytest.raises(KeyError):
        list(model.stream("hi", config={"callbacks": [Faulty()]}))
    assert idle(engine)
    assert model.invoke("hi", max_tokens=2).content


def test_opening_does_not_block_the_event_loop(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatRadix(model="m")
    opening, go_on = threading.Event(), threading.Event()

    def slowly(model: str, **_: Any) -> Any:
        opening.set()
        assert go_on.wait(20)
        return scripted

    monkeypatch.setattr("langchain_radix.share.open_chat", slowly)
    scripted.answers = [Message("assistant", "hi")]

    async def ask() -> str:
        task = asyncio.ensure_future(model.ainvoke("hi", model="other"))
        while not opening.is_set():
            await asyncio.sleep(0.001)
        go_on.set()  # only a loop that runs gets here
        return str((await task).content)

    assert asyncio.run(ask()) == "hi"


def test_the_chat_is_there_for_more(params: dict[str, Any]) -> None:
    model = ChatRadix(**params)
    assert model.chat.stats().slots_total == params["kv_cache_tokens"]
    with open_chat(params["model"], kv_cache_tokens=params["kv_cache_tokens"], self_check=False) as chat:
        assert chat.weights_hash == model.chat.weights_hash


# -- images ----------------------------------------------------------------------------------------------------------

PIXEL = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}


def test_a_model_that_sees_nothing_says_so(params: dict[str, Any]) -> None:
    model = ChatRadix(**params)
    with pytest.raises(ModelInvalidRequestError, match=r"messages\[0\] has an image"):
        model.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, PIXEL])])


# -- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.enable_socket
def test_a_server(base_url: str, params: dict[str, Any]) -> None:
    here, there = ChatRadix(**params), ChatRadix(model="tiny", base_url=base_url, temperature=0)
    messages = [HumanMessage("Where is Rome?")]
    assert there.get_num_tokens_from_messages(messages) == here.get_num_tokens_from_messages(messages)
    assert there.get_token_ids("Rome") == here.get_token_ids("Rome")
    assert there.warm(messages).prompt_tokens == here.warm(messages).prompt_tokens
    with pytest.raises(ContextOverflowError):
        there.invoke("word " * 9000)
    with pytest.raises(LangChainModelNotFoundError):
        there.invoke("hi", model="another")


@pytest.mark.enable_socket
def test_a_server_that_is_not_there() -> None:
    model = ChatRadix(model="m", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(ModelConnectionError, match=r"127\.0\.0\.1:9"):
        model.invoke("hi")

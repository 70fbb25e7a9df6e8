"""The same over HTTP: `api_base` is a server, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.radix import RadixEmbedding
from llama_index.llms.radix import Radix
from pydantic import BaseModel, Field

from adapters.llamaindex.tests.conftest import OPTIONS
from radixbackend import get_backend
from radixbackend.errors import ConfigError, RadixError

KEY = "s3cret"
HI = [ChatMessage(content="Hi!")]
PROMPT = PromptTemplate("A room for {guest}.")


class Room(BaseModel):
    number: int = Field(ge=1, le=40)
    view: Literal["sea", "garden"]


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    from tests.openai_api.clients import serve

    with get_backend(checkpoint, **OPTIONS) as engine, serve(engine, api_key=KEY) as served:
        yield f"http://127.0.0.1:{served.port}/v1"


@pytest.fixture(scope="module")
def remote(url: str) -> Iterator[Radix]:
    seed = {"seed": 1}
    with Radix("tiny", api_base=url, api_key=KEY, temperature=1.0, timeout=60, additional_kwargs=seed) as llm:
        yield llm


def test_answers_are_those_of_this_process(remote: Radix, llm: Radix) -> None:
    assert remote.metadata.context_window == 4096
    here = llm.chat(HI, max_tokens=8)
    there = remote.chat(HI, max_tokens=8)
    assert there.message.content == here.message.content
    assert there.additional_kwargs.keys() == here.additional_kwargs.keys()
    *_, streamed = remote.stream_chat(HI, max_tokens=8)
    assert streamed.message == there.message
    assert asyncio.run(remote.acomplete("Hi!", max_tokens=8)).text == llm.complete("Hi!", max_tokens=8).text


def test_objects_and_tools(remote: Radix, llm: Radix) -> None:
    room = remote.structured_predict(Room, PROMPT, guest="Eva")
    assert room == llm.structured_predict(Room, PROMPT, guest="Eva")
    *partials, last = remote.stream_structured_predict(Room, PROMPT, guest="Eva")
    assert last == room
    assert partials
    assert asyncio.run(remote.astructured_predict(Room, PROMPT, guest="Eva")) == room

    def cancel(number: int) -> str:
        """Cancel a booking."""
        return "done"

    tool = FunctionTool.from_defaults(cancel)
    response = remote.chat_with_tools([tool], "Hi!", tool_required=True, max_tokens=100)
    assert [call.tool_name for call in remote.get_tool_calls_from_response(response)] == ["cancel"]


def test_vectors(url: str, checkpoint: Path) -> None:
    with (
        RadixEmbedding("tiny", api_base=url, api_key=KEY) as there,
        RadixEmbedding(checkpoint, **OPTIONS) as here,
    ):
        assert there.get_text_embedding("Hi!") == pytest.approx(here.get_text_embedding("Hi!"), abs=1e-5)


def test_the_key_may_be_in_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Radix("tiny", api_base=url, max_retries=0) as llm, pytest.raises(RadixError):
        llm.complete("Hi!", max_tokens=2)
    monkeypatch.setenv("RADIX_API_KEY", KEY)
    with Radix("tiny", api_base=url) as llm:
        assert llm.complete("Hi!", max_tokens=2).text is not None


def test_options_of_an_engine_are_not_a_servers(url: str) -> None:
    with pytest.raises(ConfigError, match="kv_cache_tokens"):
        Radix("tiny", api_base=url, kv_cache_tokens=100)

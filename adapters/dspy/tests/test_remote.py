"""The same LM over a server: requests through the package's own HTTP dispatch, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.lm15 import CacheConfig
from dspy_radix import RadixAdapter, RadixLM, warm

openai = pytest.importorskip("openai")


@pytest.fixture
def remote(engine_lm: RadixLM, short_strings: dict[str, float]) -> Iterator[RadixLM]:
    from radixbackend.openai_api.api import Api
    from radixbackend.openai_api.transport import AsyncTransport, Share, Transport

    share = Share(Api(engine_lm.engine.chat._share, names=("served",)), lambda: None)
    clients = {
        "http_client": openai.DefaultHttpxClient(transport=Transport(share)),
        "http_async_client": openai.DefaultAsyncHttpxClient(transport=AsyncTransport(share)),
    }
    options: dict[str, Any] = {"max_tokens": 80, "cache": False, "logit_bias": short_strings}
    with RadixLM("served", base_url="http://user:secret@server.example:8000/v1", **options, **clients) as lm:
        yield lm


def test_a_remote_lm_answers_like_a_local_one(remote: RadixLM, engine_lm: RadixLM) -> None:
    local = engine_lm.copy(cache=False, temperature=0, max_tokens=12)
    copied = remote.copy(temperature=0, max_tokens=12, logit_bias=None)
    assert copied("Who are you?") == local("Who are you?") == asyncio.run(copied.acall("Who are you?"))
    assert copied.history[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert copied("Pick:", choice=["red", "blue"])[0] in ("red", "blue")
    scored, same = (
        lm("Who are you?", logprobs=True, top_logprobs=1)[0]["logprobs"]["content"] for lm in (copied, local)
    )
    assert [entry["token"] for entry in scored] == [entry["token"] for entry in same]


def test_programs_run_over_a_server(remote: RadixLM) -> None:
    with dspy.context(lm=remote, adapter=RadixAdapter()):
        predict = dspy.Predict("question -> answer: int, sure: bool")
        assert warm(predict).prompt_tokens > 100
        answer = predict(question="How many?")
    assert isinstance(answer.answer, int)
    assert isinstance(answer.sure, bool)


def test_hints_reach_a_server_as_warming(remote: RadixLM) -> None:
    assert remote("hi", prompt_cache=CacheConfig(prefix="history"))
    assert "adaptations" not in remote.history[-1]


def test_errors_of_a_server_are_dspys(remote: RadixLM) -> None:
    with pytest.raises(dspy.ContextWindowExceededError):
        remote("word " * 9000)
    with pytest.raises(dspy.LMInvalidRequestError):
        remote("hi", regex="(")
    nobody = RadixLM("m", base_url="http://127.0.0.1:1/v1", cache=False, num_retries=0)
    with pytest.raises(dspy.LMTransportError):
        nobody("hi")


def test_no_secret_is_in_names_or_files(remote: RadixLM) -> None:
    assert remote.model == "radix/served@server.example:8000/v1"
    url, headers = "http://guest:sesame@server.example/v1", {"x-token": "sesame"}
    with RadixLM("m", base_url=url, api_key="sesame", headers=headers, timeout=3) as lm:
        state = json.dumps(lm.dump_state())
        assert "sesame" not in state
        assert "server.example" in state
        loaded = RadixLM.load_state(json.loads(state), allow_custom_lm_class=True)
        assert loaded.model == lm.model
        assert loaded.engine.timeout == 3
        loaded.close()

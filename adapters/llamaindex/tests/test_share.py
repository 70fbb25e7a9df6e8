"""Shares of an engine: copies, pickles, threads; given back when an instance is closed or dropped."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.radix import RadixEmbedding
from llama_index.llms.radix import Radix

from adapters.llamaindex.tests.conftest import OPTIONS
from radixbackend import get_backend
from radixbackend.errors import ConfigError, EngineClosedError, ModelNotFoundError

HI = [ChatMessage(content="Hi!")]
OWN = {**OPTIONS, "max_running": 7}
"""Of an engine that no other test has."""


def engine(checkpoint: Path, **options: Any) -> Any:
    """The engine of these options; whoever looks at it has no share of it."""
    with get_backend(checkpoint, **(options or OWN)) as share:
        return share.backend


def is_open(backend: Any) -> bool:
    try:
        return bool(backend.stats()) or True
    except EngineClosedError:
        return False


def test_all_share_one_engine_until_the_last_is_gone(checkpoint: Path) -> None:
    first = Radix(checkpoint, **OWN)
    used = engine(checkpoint)
    second = Radix(checkpoint, temperature=0.7, engine_options=OWN)
    embedding = RadixEmbedding(checkpoint, **OWN)
    assert engine(checkpoint) is used
    first.close()
    first.close()
    with pytest.raises(EngineClosedError):
        first.chat(HI)
    assert second.chat(HI, max_tokens=2).message.content is not None
    del second
    gc.collect()
    assert is_open(used)
    assert len(embedding.get_text_embedding("Hi!")) == 64
    with embedding:
        pass
    assert not is_open(used)


def test_dropping_gives_back_at_once_and_not_before_the_stream_is_over(checkpoint: Path) -> None:
    stream = Radix(checkpoint, **OWN).stream_chat(HI, max_tokens=8, ignore_eos=True)
    used = engine(checkpoint)
    next(stream)
    gc.collect()
    assert is_open(used)
    assert list(stream)[-1].raw["usage"]["completion_tokens"] == 8
    assert not is_open(used)


@pytest.mark.parametrize(
    "made",
    [
        copy.copy,
        copy.deepcopy,
        lambda llm: llm.model_copy(),
        lambda llm: llm.model_copy(deep=True),
        lambda llm: pickle.loads(pickle.dumps(llm)),
        lambda llm: type(llm).from_dict(json.loads(json.dumps(llm.to_dict()))),
    ],
    ids=("copy", "deepcopy", "model_copy", "model_copy-deep", "pickle", "to_dict"),
)
def test_copies_have_shares_of_their_own(checkpoint: Path, made: Any, caplog: pytest.LogCaptureFixture) -> None:
    llm = Radix(checkpoint, temperature=0.0, max_tokens=3, system_prompt="Be brief.", **OWN)
    twin = made(llm)
    assert (twin.temperature, twin.max_tokens, twin.system_prompt) == (0.0, 3, "Be brief.")
    assert twin.chat_layer is not llm.chat_layer
    used = engine(checkpoint)
    expected = llm.complete("Hi!").text
    llm.close()
    assert is_open(used)
    assert twin.complete("Hi!").text == expected
    twin.close()
    assert not is_open(used)
    assert not caplog.records  # LlamaIndex logs attributes that cannot be pickled


def test_embeddings_are_copied_as_well(checkpoint: Path) -> None:
    with RadixEmbedding(checkpoint, query_instruction="query: ", **OWN) as embedding:
        twin = pickle.loads(pickle.dumps(embedding))
        assert twin.get_query_embedding("Hi!") == embedding.get_query_embedding("Hi!")
        twin.close()


def test_copies_with_another_model_have_that_model(checkpoint: Path) -> None:
    with Radix(checkpoint, **OWN) as llm, pytest.raises(ModelNotFoundError):
        llm.model_copy(update={"model": str(checkpoint / "none")})


def test_nothing_of_the_engine_or_the_key_is_shown(checkpoint: Path) -> None:
    with Radix(checkpoint, api_key="s3cret", **OWN) as llm:
        for shown in (repr(llm), str(llm.to_dict()), llm.to_json(), str(llm.to_payload())):
            assert "s3cret" not in shown
            assert "Share" not in shown
        assert llm.to_dict()["engine_options"] == OWN


def test_what_is_unknown_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="max_runing"):
        Radix(checkpoint, max_runing=3)
    with pytest.raises(ModelNotFoundError):
        Radix(str(checkpoint / "none"))
    with pytest.raises(TypeError, match="needs a model"):
        RadixEmbedding()
    names = {"reuse_client": True, "api_version": "1", "strict": True, "default_headers": {}, "max_retries": 1}
    with Radix(checkpoint, 0.5, 10, {"seed": 1}, **names, **OWN) as llm:  # type: ignore[arg-type]  # OpenAI's
        assert (llm.temperature, llm.max_tokens, llm.additional_kwargs) == (0.5, 10, {"seed": 1})


def test_metadata(checkpoint: Path) -> None:
    with Radix(checkpoint, **OWN) as llm:
        about = llm.metadata
        assert (about.context_window, about.num_output) == (4096, 256)
        assert about.is_chat_model
        assert about.is_function_calling_model
        assert about.model_name == llm.chat_layer.model_name
    with Radix(checkpoint, max_tokens=9, context_window=100, **OWN) as llm:
        assert (llm.metadata.context_window, llm.metadata.num_output) == (100, 9)

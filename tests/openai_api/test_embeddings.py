"""Embeddings through every face, and that they are what a plain forward of the model gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from radixbackend import Engine
from radixbackend.errors import UnsupportedModelError
from tests.openai_api.clients import Client

TEXTS = ["The weather in Rome is fine.", "Let me look it up"]


@pytest.fixture(scope="module")
def states(checkpoint: Path) -> list[torch.Tensor]:
    """Final hidden states of a plain forward, ``[T, d]`` for each text."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        return [model.model(torch.tensor([tokenizer.encode(t)])).last_hidden_state[0] for t in TEXTS]


def unit(vector: torch.Tensor) -> Any:
    return (vector / vector.norm()).numpy()


def test_vectors(lenient: Client, states: list[torch.Tensor]) -> None:
    answer = lenient.call("embeddings.create", input=TEXTS)
    assert answer.object == "list"
    assert [entry.index for entry in answer.data] == [0, 1]
    for entry, own in zip(answer.data, states, strict=True):
        np.testing.assert_allclose(np.array(entry.embedding), unit(own[-1]), atol=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(s) for s in states)


def test_forms(lenient: Client, engine: Engine) -> None:
    """The SDK asks for base64 by itself and decodes it; floats are the same numbers."""
    sent = lenient.call("embeddings.create", input=TEXTS[0]).data[0].embedding
    floats = lenient.call("embeddings.create", input=TEXTS[0], encoding_format="float").data[0].embedding
    np.testing.assert_array_equal(np.array(sent, np.float32), np.array(floats, np.float32))
    coded = lenient.call("embeddings.create", input=TEXTS[0], encoding_format="base64").data[0].embedding
    assert isinstance(coded, str)
    ids = engine.tokenizer.encode(TEXTS[0])  # type: ignore[union-attr]
    for tokens in (ids, [ids, ids]):
        assert lenient.call("embeddings.create", input=tokens).data[0].embedding == sent


def test_dimensions(lenient: Client, states: list[torch.Tensor]) -> None:
    answer = lenient.call("embeddings.create", input=TEXTS[0], dimensions=10)
    np.testing.assert_allclose(np.array(answer.data[0].embedding), unit(states[0][-1][:10]), atol=1e-6)


def test_embedding_while_generating(engine: Engine, lenient: Client) -> None:
    """The model goes on as before: its attention is put back."""
    before = lenient.chat("Between").choices[0].message.content
    engine.flush_cache()
    with engine.stream("Go") as stream:
        next(stream)
        lenient.call("embeddings.create", input=TEXTS)
        next(stream)
    assert lenient.chat("Between").choices[0].message.content == before


def pooled(checkpoint: Path, folder: Path, modules: list[str], pooling: dict[str, Any]) -> Path:
    """A copy of the checkpoint with files of sentence-transformers."""
    target = folder / "pooled"
    shutil.copytree(checkpoint, target)
    listed = [
        {"idx": i, "name": str(i), "path": "1_Pooling" if kind == "Pooling" else "", "type": f"st.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (target / "modules.json").write_text(json.dumps(listed))
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return target


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 48}


@pytest.mark.parametrize(
    ("pooling", "normalized", "expected"),
    [
        (MEAN, True, lambda s: unit(s.mean(0))),
        (MEAN, False, lambda s: s.mean(0).numpy()),
        ({"pooling_mode_lasttoken": True}, False, lambda s: s[-1].numpy()),
        ({"pooling_mode_cls_token": True}, False, lambda s: s[0].numpy()),
        ({"pooling_mode": "mean"}, False, lambda s: s.mean(0).numpy()),
        (
            {"pooling_mode_weightedmean_tokens": True},
            False,
            lambda s: (torch.arange(1, len(s) + 1.0)[:, None] * s).sum(0).numpy() / (len(s) * (len(s) + 1) / 2),
        ),
    ],
)
def test_pooling_as_the_files_say(
    checkpoint: Path, tmp_path: Path, states: list[torch.Tensor], pooling: Any, normalized: bool, expected: Any
) -> None:
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalized else [])]
    with Engine(pooled(checkpoint, tmp_path, modules, pooling), kv_cache_tokens=512, self_check=False) as engine:
        found = engine.embed(TEXTS)
    for vector, own in zip(found.vectors, states, strict=True):
        np.testing.assert_allclose(vector, expected(own), atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], MEAN, "module Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (["Transformer", "Pooling"], {**MEAN, "pooling_mode_cls_token": True}, "pooling_mode_cls_token, "),
    ],
)
def test_pooling_that_is_not_served(
    checkpoint: Path, tmp_path: Path, modules: list[str], pooling: Any, message: str
) -> None:
    folder = pooled(checkpoint, tmp_path, modules, pooling)
    with (
        Engine(folder, kv_cache_tokens=512, self_check=False) as engine,
        pytest.raises(UnsupportedModelError, match=message),
    ):
        engine.embed("a")

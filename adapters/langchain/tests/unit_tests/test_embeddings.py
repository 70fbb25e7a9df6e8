"""`RadixEmbeddings`: in process and remote, shortened, prefixed, copied."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import numpy as np
import pytest
from langchain_core.exceptions import ModelError
from langchain_radix import RadixEmbeddings

from radixbackend.chat import open_chat

TEXTS = ["Breakfast is at eight.", "The bar opens at six.", "Ünïcode 你好"]


@pytest.fixture
def options(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "temperature"}


def test_vectors_are_the_chat_layers(options: dict[str, Any]) -> None:
    embeddings = RadixEmbeddings(**options)
    found = embeddings.embed_documents(TEXTS)
    with open_chat(**options) as chat:
        expected = chat.embed(TEXTS).vectors
    assert np.allclose(found, np.stack(expected), atol=1e-5)
    assert np.allclose(embeddings.embed_query(TEXTS[0]), found[0], atol=1e-5)
    assert np.allclose(asyncio.run(embeddings.aembed_documents(TEXTS)), found, atol=1e-5)
    assert np.allclose(asyncio.run(embeddings.aembed_query(TEXTS[1])), found[1], atol=1e-5)
    assert all(type(number) is float for number in found[0])


def test_no_texts(options: dict[str, Any]) -> None:
    embeddings = RadixEmbeddings(**options)
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents([])) == []


def test_dimensions(options: dict[str, Any]) -> None:
    short = RadixEmbeddings(**options, dimensions=8).embed_query(TEXTS[0])
    assert len(short) == 8
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-4)


def test_prefixes(options: dict[str, Any]) -> None:
    plain = RadixEmbeddings(**options)
    prefixed = RadixEmbeddings(**options, query_prefix="query: ", document_prefix="passage: ")
    assert np.allclose(prefixed.embed_query("hi"), plain.embed_query("query: hi"), atol=1e-5)
    assert np.allclose(prefixed.embed_documents(["hi"])[0], plain.embed_query("passage: hi"), atol=1e-5)
    assert np.allclose(asyncio.run(prefixed.aembed_query("hi")), plain.embed_query("query: hi"), atol=1e-5)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Any, options: dict[str, Any]) -> None:
    embeddings = RadixEmbeddings(**options, api_key="very-secret")
    assert "very-secret" not in repr(embeddings)
    twin = copied(embeddings)
    assert twin == embeddings
    assert np.allclose(twin.embed_query("hi"), embeddings.embed_query("hi"), atol=1e-5)


def test_closed(options: dict[str, Any]) -> None:
    with RadixEmbeddings(**options) as embeddings:
        pass
    with pytest.raises(ModelError, match="was closed"):
        embeddings.embed_query("hi")


@pytest.mark.enable_socket
def test_a_server(options: dict[str, Any], base_url: str) -> None:
    here, there = RadixEmbeddings(**options), RadixEmbeddings(model="tiny", base_url=base_url, timeout=30)
    assert np.allclose(there.embed_documents(TEXTS), here.embed_documents(TEXTS), atol=1e-5)
    assert np.allclose(asyncio.run(there.aembed_query("hi")), here.embed_query("hi"), atol=1e-5)

"""Vectors: one for each text, the same in every way to ask, from the engine that chats."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.embeddings.radix import RadixEmbedding
from llama_index.llms.radix import Radix

from adapters.llamaindex.tests.conftest import OPTIONS

TEXTS = [f"This is text number {n}." for n in range(7)]


@pytest.fixture(scope="module")
def embedding(checkpoint: Path) -> Iterator[RadixEmbedding]:
    with RadixEmbedding(checkpoint, embed_batch_size=3, query_instruction="query: ", **OPTIONS) as embedding:
        yield embedding


def test_all_ways_to_ask(embedding: RadixEmbedding) -> None:
    assert isinstance(embedding, BaseEmbedding)
    vectors = embedding.get_text_embedding_batch(TEXTS)
    assert len(vectors) == 7
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-3) for vector in vectors)
    assert vectors[2] == embedding.get_text_embedding(TEXTS[2]) != vectors[3]
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == vectors
    assert asyncio.run(embedding.aget_text_embedding(TEXTS[2])) == vectors[2]
    query = embedding.get_query_embedding("Hi!")
    assert query == asyncio.run(embedding.aget_query_embedding("Hi!"))
    assert query == embedding.get_text_embedding("query: Hi!") != embedding.get_text_embedding("Hi!")
    assert type(query[0]) is float


def test_dimensions(checkpoint: Path, embedding: RadixEmbedding) -> None:
    with RadixEmbedding(model=checkpoint, dimensions=8, **OPTIONS) as short:
        vector = short.get_text_embedding("Hi!")
    whole = embedding.get_text_embedding("Hi!")[:8]
    length = math.sqrt(sum(x * x for x in whole))
    assert vector == pytest.approx([x / length for x in whole], rel=1e-4)


def test_one_engine_answers_and_embeds(llm: Radix, embedding: RadixEmbedding) -> None:
    before = llm.stats().steps
    embedding.get_text_embedding("Hi!")
    llm.complete("Hi!", max_tokens=2)
    assert llm.stats() == embedding.stats()
    assert embedding.stats().steps > before

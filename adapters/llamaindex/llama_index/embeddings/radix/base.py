"""`RadixEmbedding`: vectors of texts from an engine in this process, or from a server.

Rules. How hidden states are pooled is what the checkpoint's own files say. A model that answers and embeds is loaded
once: with the same options a `Radix` and a `RadixEmbedding` share one engine. Copies have a share of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.llms.radix.share import Shared
from pydantic import Field

from radixbackend.types import Embeddings

UNUSED = frozenset(("reuse_client", "api_version", "mode", "num_workers"))
"""What OpenAI's class takes and has no meaning here."""


class RadixEmbedding(Shared, BaseEmbedding):
    """Embeddings by a model in this process, or behind a server.

        embedding = RadixEmbedding("path-or-hub-id", query_instruction="query: ")
        embedding.get_query_embedding("When is breakfast?")

    It takes what ``llama_index.embeddings.openai.OpenAIEmbedding`` takes, by the same names, and further keywords are
    options of the engine (the fields of `radixbackend.EngineConfig`).

    Raises:
        ConfigError, ModelError, PluginError: the model cannot be had; nothing is kept.
    """

    dimensions: int | None = Field(default=None, gt=0, description="The first so many numbers, normalized again.")
    query_instruction: str = Field(default="", description="Put before each query, as the model was trained.")
    text_instruction: str = Field(default="", description="Put before each text.")

    def __init__(self, model_name: str | os.PathLike[str] | None = None, **options: Any) -> None:
        name = options.pop("model", None) if model_name is None else model_name
        if name is None:
            raise TypeError("RadixEmbedding needs a model: a folder, a hub id or the name of a model that ships")
        super().__init__(model_name=os.fspath(name), **self._sorted(options, UNUSED))
        self._open(self.model_name)

    @classmethod
    def class_name(cls) -> str:
        return "RadixEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([self.query_instruction + query])[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([self.query_instruction + query]))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed([self.text_instruction + text for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed([self.text_instruction + text for text in texts])

    def _embed(self, texts: Sequence[str]) -> list[Embedding]:
        return _lists(self.chat_layer.embed(texts, dimensions=self.dimensions, timeout=self.timeout))

    async def _aembed(self, texts: Sequence[str]) -> list[Embedding]:
        return _lists(await self.chat_layer.aembed(texts, dimensions=self.dimensions, timeout=self.timeout))


def _lists(embeddings: Embeddings) -> list[Embedding]:
    return [vector.tolist() for vector in embeddings.vectors]

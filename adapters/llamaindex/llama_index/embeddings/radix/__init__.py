"""LlamaIndex embeddings from an engine in this process: `RadixEmbedding`."""

from __future__ import annotations

from llama_index.embeddings.radix.base import RadixEmbedding

__all__ = ["RadixEmbedding"]

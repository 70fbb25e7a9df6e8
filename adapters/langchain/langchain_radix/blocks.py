"""Messages as LangChain's typed content blocks: reasoning, then text, then calls.

Rules. Pieces of one block have one ``index`` throughout a stream, whatever is between them, so that adding chunks of
``output_version="v1"`` never joins the text to a call. Registered under `PROVIDER`, which every message of ours has as
``response_metadata["model_provider"]``. Content that already is a list is left to LangChain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.block_translators import register_translator
from langchain_core.messages.content import ContentBlock

PROVIDER = "radix"


def content_blocks(message: AIMessage) -> list[ContentBlock]:
    """Of a whole message."""
    return list(_blocks(message, whole=True))


def chunk_blocks(chunk: AIMessageChunk) -> list[ContentBlock]:
    """Of a piece of one, or of all its pieces added up."""
    return list(_blocks(chunk, whole=chunk.chunk_position == "last"))


def _blocks(message: AIMessage, *, whole: bool) -> Iterator[Any]:
    if not isinstance(message.content, str):
        raise NotImplementedError  # LangChain then reads the list by itself
    if thought := message.additional_kwargs.get("reasoning_content"):
        yield {"type": "reasoning", "reasoning": thought, **_index("rs", 0, whole)}
    if message.content:
        yield {"type": "text", "text": message.content, **_index("txt", 0, whole)}
    if whole or not isinstance(message, AIMessageChunk):
        for call in message.tool_calls:
            yield {"type": "tool_call", "name": call["name"], "args": call["args"], "id": call["id"]}
        return
    for piece in message.tool_call_chunks:
        block = {"type": "tool_call_chunk", "id": piece["id"], "name": piece["name"], "args": piece["args"]}
        yield block | _index("tc", piece["index"] or 0, whole)


def _index(kind: str, number: int, whole: bool) -> dict[str, str]:
    return {} if whole else {"index": f"lc_{kind}_{number}"}


register_translator(PROVIDER, content_blocks, chunk_blocks)

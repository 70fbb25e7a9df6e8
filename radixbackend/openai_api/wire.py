"""What answers are made of, whichever endpoint gives them: JSON, server-sent events, usage, log-probabilities."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from radixbackend.token_bytes import token_bytes
from radixbackend.types import TokenLogprob, Usage

if TYPE_CHECKING:
    from radixbackend.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
LOWEST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON cannot say."""


def dumps(value: Any) -> bytes:
    """Compact JSON; half a surrogate pair, which UTF-8 cannot say, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def sse(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


def usage(used: Usage) -> dict[str, Any]:
    """OpenAI's shape; ``forced_tokens`` is ours."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        "completion_tokens_details": {"forced_tokens": used.forced_tokens},
    }


class TokenTexts:
    """The text of single tokens, special ones too; exact bytes, also of those that are part of a character."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """Read when the first log-probability is asked for (0.2 s for 128k tokens)."""
        return {} if self._tokenizer is None else token_bytes(self._tokenizer.inner)

    def bytes(self, token: int) -> bytes:
        return self._bytes.get(token, b"")

    def text(self, token: int) -> str:
        return self.bytes(token).decode("utf-8", "replace")


def chat_logprobs(entries: Sequence[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    """OpenAI's shape for chats: the token, its bytes, its log-probability and the likeliest at its place. ``id`` is
    llama.cpp's."""
    return {"content": [_chat_entry(entry, texts) for entry in entries], "refusal": None}


def _chat_entry(entry: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    top = [_token(token, logprob, texts) for token, logprob in entry.top]
    return {**_token(entry.token_id, entry.logprob, texts), "top_logprobs": top}


def _token(token: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    return {"id": token, "token": texts.text(token), "logprob": finite(logprob), "bytes": list(texts.bytes(token))}


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


class CompletionLogprobs:
    """OpenAI's shape for text completions, piece by piece: ``text_offset`` counts on from piece to piece."""

    def __init__(self, texts: TokenTexts, offset: int = 0) -> None:
        self._texts = texts
        self._offset = offset

    def of(self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """Lists with one entry per token; None is the first token of a prompt, which has no probability."""
        texts = [self._texts.text(token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if e is None else finite(e.logprob) for e in entries],
            "top_logprobs": [
                None if e is None else {self._texts.text(token): finite(value) for token, value in e.top}
                for e in entries
            ],
            "text_offset": offsets,
        }

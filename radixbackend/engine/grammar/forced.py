"""Forced text as the tokens a model would write: the tokenizer's own spelling, in its context.

Rules. The result is a proposal: its tokens have the text's bytes, but plain decoding might cut them elsewhere, so it
is verified like any draft. Spellings are kept in a bounded table per instance, shared by the matchers of a grammar.
Nothing here knows about grammars' states.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from radixbackend.engine.grammar.tokens import TokenTable

SPELLINGS_KEPT = 1024


class Speller:
    """Spells bytes with a transformers tokenizer, or greedily by the table where there is none to use."""

    def __init__(self, tokenizer: Any, tokens: TokenTable) -> None:
        self._encode = encoder(tokenizer)
        self._tokens = tokens
        self.spell = lru_cache(SPELLINGS_KEPT)(self._spell)

    def _spell(self, before: bytes, text: bytes) -> tuple[int, ...]:
        """Tokens of ``text`` as they follow a token of the bytes ``before``; empty if there are none."""
        for context in (before, b"") if before else (b"",):
            spelled = self._in_context(context, text)
            if spelled is not None:
                return spelled
        return self._tokens.spell(text) or ()

    def _in_context(self, context: bytes, text: bytes) -> tuple[int, ...] | None:
        """The tokenizer's spelling of both, cut at their border; None if a token crosses it."""
        if self._encode is None:
            return None
        try:
            content = (context + text).decode()
        except UnicodeDecodeError as fault:
            if fault.start <= len(context):
                return None
            content = fault.object[: fault.start].decode()  # half a character at the end waits for its rest
        ids = self._encode(content)
        texts = [self._bytes(token) for token in ids]
        joined, start = b"".join(texts), len(context)
        if joined == b" " + content.encode():
            start += 1  # a tokenizer that puts a space before every text
        elif joined != content.encode():
            return None
        for index in range(len(ids) + 1):
            if start == 0:
                return tuple(ids[index:])
            start -= len(texts[index]) if index < len(ids) else 0
        return None

    def _bytes(self, token: int) -> bytes:
        text = self._tokens.texts[token] if token < self._tokens.size else b""
        return text or self._tokens.specials.get(token, b"")


def encoder(tokenizer: Any) -> Any:
    """From text to ids without special tokens around them; None if this tokenizer offers no way."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda text: backend.encode(text, add_special_tokens=False).ids
    encode = getattr(tokenizer, "encode", None)
    return None if encode is None else lambda text: encode(text, add_special_tokens=False)

"""The text of every token, and what follows from it for grammars.

Rules. A grammar sees bytes: a token is allowed where its bytes are. Special tokens, end tokens and the ids beyond
the tokenizer's entries have no bytes here, so no grammar can allow them inside text. A `TokenTable` is immutable
and shared between threads. Nothing here knows about constraints, matchers or requests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from radixbackend.engine.grammar.base import Vocabulary
from radixbackend.token_bytes import token_contents

Row = NDArray[np.int32]
"""One row of a mask: bit ``token % 32`` of word ``token // 32``."""

LONGEST_SPELLED = 24  # bytes of a token that `TokenTable.spell` looks up at most
SPELLINGS_KEPT = 4096


def _row(size: int, tokens: Iterable[int]) -> Row:
    bits = np.zeros(-(-size // 32) * 32, dtype=np.uint8)
    bits[[token for token in tokens if token < size]] = 1
    row: Row = np.packbits(bits, bitorder="little").view(np.int32)
    row.setflags(write=False)
    return row


def set_bit(row: Row, token: int, allowed: bool) -> None:
    """Allow or forbid one token."""
    words = row.view(np.uint32)
    bit = np.uint32(1 << token % 32)
    words[token // 32] = words[token // 32] | bit if allowed else words[token // 32] & ~bit


def tokens_in(row: Row) -> NDArray[np.intp]:
    """Ids of the tokens whose bits are set, ascending; cheap where few words are nonzero."""
    words = np.flatnonzero(row)
    bits = np.unpackbits(row[words].view(np.uint8), bitorder="little").reshape(-1, 32)
    word, bit = np.nonzero(bits)
    return words[word] * 32 + bit


def _kind(text: bytes) -> int:
    """Tokens of one kind mostly do the same to a grammar that allows many of them."""
    try:
        content = text.decode()
    except UnicodeDecodeError:
        return 0
    if "\\" in content:
        return 7
    if '"' in content:
        return 1
    if any(char < " " or char == "\x7f" for char in content):
        return 2
    if content.isdecimal():
        return 3
    if any(char in "<>|" for char in content):
        return 4
    return 5 if any(char in "{}[],:" for char in content) else 6


class TokenTable:
    """Every token's bytes, the masks built from them, and the way back from bytes to tokens.

    Attributes:
        size: number of logits; every mask row has ``ceil(size / 32)`` words.
        texts: bytes of each token below ``size``; empty where a grammar must never allow it inside text.
        end_tokens: tokens that end the output, as given.
        text_mask: the tokens with bytes.
        end_mask: the end tokens.
        kinds: a partition of ``text_mask`` by what the tokens consist of (quotes, digits, brackets, …).
    """

    def __init__(self, size: int, texts: Sequence[bytes], specials: dict[int, bytes], end_tokens: Collection[int]):
        self.size = size
        self.texts = tuple(texts)
        self.specials = specials
        self.end_tokens = frozenset(end_tokens)
        self.end_mask = _row(size, self.end_tokens)
        sorts: list[list[int]] = [[] for _ in range(8)]
        for token, text in enumerate(self.texts):
            if text:
                sorts[_kind(text)].append(token)
        self.kinds = tuple(_row(size, tokens) for tokens in sorts)
        self.text_mask: Row = np.bitwise_or.reduce(self.kinds)
        self._index()

    def _index(self) -> None:
        carriers = ((token, text) for token, text in enumerate(self.texts) if 0 < len(text) <= LONGEST_SPELLED)
        # Where several tokens share their bytes (a byte piece and a letter) the last one is the ordinary one.
        self._ids = {text: token for token, text in carriers}
        self._longest = max(map(len, self._ids), default=0)
        self.spell = lru_cache(SPELLINGS_KEPT)(self._spell)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> TokenTable:
        """Read the tokenizer (0.2 s for 128k tokens)."""
        ordinary, special = token_contents(vocabulary.tokenizer)
        texts = [ordinary.get(token, b"") for token in range(vocabulary.size)]
        for token in vocabulary.end_tokens:
            if token < vocabulary.size:
                special.setdefault(token, texts[token])
                texts[token] = b""
        return cls(vocabulary.size, texts, special, vocabulary.end_tokens)

    def with_specials(self, tokens: Collection[int]) -> TokenTable:
        """A table in which these special tokens do have their bytes (end tokens never get them)."""
        wanted = [t for t in tokens if t in self.specials and t < self.size and t not in self.end_tokens]
        texts = list(self.texts)
        for token in wanted:
            texts[token] = self.specials[token]
        return TokenTable(self.size, texts, self.specials, self.end_tokens)

    def without(self, banned: Callable[[bytes], bool]) -> TokenTable:
        """A table in which the tokens of these texts have none."""
        table = copy.copy(self)
        dropped = [token for token, text in enumerate(self.texts) if text and banned(text)]
        texts = list(self.texts)
        for token in dropped:
            texts[token] = b""
        table.texts = tuple(texts)
        kept = ~_row(self.size, dropped)
        table.kinds = tuple(kind & kept for kind in self.kinds)
        table.text_mask = self.text_mask & kept
        table._index()
        return table

    def token(self, text: bytes) -> int | None:
        """The token with exactly these bytes."""
        return self._ids.get(text)

    def _spell(self, text: bytes) -> tuple[int, ...] | None:
        """Tokens with these bytes, longest match first (near the fewest possible); None where bytes have no token."""
        tokens: list[int] = []
        start = 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                token = self._ids.get(text[start:end])
                if token is not None:
                    tokens.append(token)
                    start = end
                    break
            else:
                return None
        return tuple(tokens)

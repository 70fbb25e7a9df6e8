"""The bytes of every token of a tokenizer.

Rules. A token's bytes are what it adds to the text, also where they are part of a character only; how a vocabulary
writes them is told by the vocabulary itself. No state, no text beyond single tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def _byte_level_alphabet() -> dict[str, int]:
    """Characters that byte-level BPE vocabularies write for bytes: printable Latin-1 as it is, the rest from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _is_byte_piece(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _decoder(pieces: Collection[str]) -> Any:
    """How this vocabulary writes bytes, told by the vocabulary itself: a function from a piece to its bytes."""
    alphabet = _byte_level_alphabet()
    if sum(char in pieces for char in alphabet) >= 200:

        def byte_level(piece: str) -> bytes:
            codes = [alphabet.get(char) for char in piece]
            return piece.encode() if None in codes else bytes(code for code in codes if code is not None)

        return byte_level

    def pieces_of_text(piece: str) -> bytes:
        if _is_byte_piece(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode("utf-8", "replace")

    return pieces_of_text


def token_contents(tokenizer: Any) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Bytes of the ordinary and of the special tokens, by id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(tokenizer.all_special_ids) | {token for token, entry in added.items() if entry.special}
    decode = _decoder(vocabulary)
    texts: dict[int, bytes] = {}
    for piece, token in vocabulary.items():
        texts[token] = piece.encode() if token in added or token in special else decode(piece)
    return (
        {token: text for token, text in texts.items() if token not in special},
        {token: text for token, text in texts.items() if token in special},
    )


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Bytes of every token by id, special ones included (0.2 s for 128k tokens)."""
    ordinary, special = token_contents(tokenizer)
    return ordinary | special

"""Text to tokens and back: a thin face of transformers' tokenizers, incremental decoding, stop strings.

Rules. No scheduling, no torch, no I/O. A `Tokenizer` may be used by many threads at once: nothing here changes its
state (no truncation, no padding). A decoder or a text stream belongs to one choice and to one thread at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

REPLACEMENT = "\ufffd"

LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, so tokens that can make up one at most."""


class Tokenizer:
    """What the engine needs of a transformers tokenizer. Clean-up of spaces is off: text is what the tokens say."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        # The library's own object decodes in a tenth of the time that its face takes.
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._decode = backend.decode if backend is not None else self._decode_slowly
        self.special_tokens = frozenset(tokenizer.all_special_ids) | {
            token for token, entry in getattr(tokenizer, "added_tokens_decoder", {}).items() if entry.special
        }

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with ``add_special_tokens`` those that the model expects around a text (such as BOS)."""
        tokens: list[int] = self.inner.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return tokens

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text; ids that the tokenizer does not know are left out, half characters become U+FFFD."""
        ids = [t for t in tokens if t not in self.special_tokens] if skip_special_tokens else list(tokens)
        text: str = self._decode(ids, skip_special_tokens=False)
        return text

    def _decode_slowly(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self.inner.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every entry and its id; two tokenizers of equal fingerprint make equal grammars."""
        entries = json.dumps(self.inner.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{entries}{sorted(self.special_tokens)}".encode()).hexdigest()[:16]


class IncrementalDecoder:
    """Text of a growing token sequence, piece by piece, never half a character.

    A token's text depends on its neighbours (a space that a first piece drops, a character spread over tokens), so
    a window of recent tokens is decoded and what is new at its end is given out; U+FFFD at the end may be half a
    character and is held back until it cannot change any more. (The technique of Hugging Face's
    text-generation-inference and vLLM.) The pieces and `finish` joined are what the tokens decode to after
    ``context``, the last tokens of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_tokens if skip_special_tokens else frozenset[int]()
        self._window = [t for t in context if t not in self._hidden]
        self._sent = len(self._decode(self._window))  # characters of the window's text that were given out
        self._fresh = 0  # tokens at the window's end of which something may be held back

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        new = [t for t in tokens if t not in self._hidden]
        if not new:
            return ""
        self._window += new
        self._fresh += len(new)
        text = self._decode(self._window)
        certain = self._certain(text)
        piece = text[self._sent : certain]
        if certain == len(text):
            self._trim()
        else:
            self._sent = max(self._sent, certain)
        return piece

    def finish(self) -> str:
        """What was held back, as it stands."""
        text = self._decode(self._window)
        piece, self._sent, self._fresh = text[self._sent :], len(text), 0
        return piece

    def _trim(self) -> None:
        """Keep only the tokens just given out, as context for the next."""
        recent = self._window[-self._fresh :]
        if text := self._decode(recent):
            self._window, self._sent = recent, len(text)
        else:
            self._sent = len(self._decode(self._window))
        self._fresh = 0

    def _certain(self, text: str) -> int:
        """How many characters of the window's text no further token can change."""
        if not text.endswith(REPLACEMENT):
            return len(text)
        if self._fresh > 2 * LONGEST_CHARACTER:
            # Whatever was incomplete before the last tokens has been completed or spoilt by them since.
            earlier = self._decode(self._window[:-LONGEST_CHARACTER])
            return max(self._sent, _common_length(earlier, text))
        return max(self._sent, len(text.rstrip(REPLACEMENT)))

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""


def _common_length(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class Piece:
    """What some tokens added to a text.

    Attributes:
        text: may be empty while something is held back.
        stop: the stop string that ended it, if one did.
        consumed: how many of the tokens belong to the output: all, or up to the one that completed ``stop``.
    """

    text: str
    stop: str | None
    consumed: int


class TextStream:
    """The text of one choice: decoded incrementally, ended by stop strings.

    The stop string that is completed first ends the text, wherever tokens begin and end; if several are at once,
    the longest. Text that may be the beginning of one is held back.

    Args:
        prompt_tail: the last tokens of the prompt, on which the first piece's spelling depends.
        min_tokens: no stop string is seen in what these first tokens say.
        hidden_tokens: tokens without text, beside the special ones (stop tokens).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_tail: Sequence[int] = (),
        stops: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        hidden_tokens: Sequence[int] = (),
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer, prompt_tail, skip_special_tokens=skip_special_tokens)
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._hidden = frozenset(hidden_tokens)
        self._unwatched = min_tokens if stops else 0
        self._held = ""

    def feed(self, tokens: Sequence[int]) -> Piece:
        """Not to be called again once a piece had a ``stop``."""
        shown = [t for t in tokens if t not in self._hidden] if self._hidden else tokens
        if not self._stops:
            return Piece(self._decoder.feed(shown), None, len(tokens))
        out = ""
        for count, token in enumerate(tokens, 1):
            text = "" if token in self._hidden else self._decoder.feed((token,))
            if self._unwatched:
                self._unwatched -= 1
                out += text
                continue
            piece, stop = self._watch(text)
            out += piece
            if stop is not None:
                return Piece(out, stop, count)
        return Piece(out, None, len(tokens))

    def finish(self) -> str:
        """What was held back, when the output ended otherwise than by a stop string."""
        held, self._held = self._held, ""
        piece, stop = self._watch(held + self._decoder.finish())
        # Half a character that stays one cannot complete a stop string unless the string has U+FFFD in it.
        rest, self._held = self._held, ""
        return piece if stop is not None else piece + rest

    def _watch(self, text: str) -> tuple[str, str | None]:
        """What of the text so far can be given out, and the stop string found in it."""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if found:
            end, negative, stop = min(found)
            self._held = ""
            return text[: end if self._include_stop else end + negative], stop
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

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

from radixbackend.errors import InvalidRequestError

REPLACEMENT = "\ufffd"

MOST_HELD = 32
"""Tokens held back before broken characters are taken for what they are. A character has four at most, but may
follow others that read U+FFFD without being broken."""


class Tokenizer:
    """What the engine needs of a transformers tokenizer. Clean-up of spaces is off: text is what the tokens say.

    Truncation and padding, which a checkpoint may have switched on, are switched off for good: the first call
    to encode would do so, and would fail other threads' calls that run just then.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        self._backend = backend
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_tokens = frozenset(token for token in tokenizer.all_special_ids if token is not None) | {
            token for token, entry in added.items() if entry.special
        }
        self._size = 1 + max(tokenizer.get_vocab().values(), default=-1)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with ``add_special_tokens`` those that the model expects around a text (such as BOS).

        Raises `InvalidRequestError` for a text that is no Unicode: one with half of a surrogate pair in it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            raise InvalidRequestError(
                f"the text has {text[fault.start]!r} at position {fault.start}, half of a surrogate pair; "
                "decode it again with errors='replace'",
                param="prompt",
            ) from fault
        tokens: list[int] = self.inner.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return tokens

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text; ids that the tokenizer does not know are left out, half characters become U+FFFD."""
        return self.join(self.visible(tokens, skip_special_tokens))

    def visible(self, tokens: Sequence[int], skip_special_tokens: bool) -> list[int]:
        """The tokens that may have a text: not special ones, where these are skipped, nor ids beyond the vocabulary."""
        hidden = self.special_tokens if skip_special_tokens else ()
        return [token for token in tokens if token < self._size and token not in hidden]

    def join(self, visible: list[int]) -> str:
        """Text of visible tokens."""
        text: str = (
            self.inner.decode(visible, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if self._backend is None
            else self._backend.decode(visible, skip_special_tokens=False)  # a tenth of the time that its face takes
        )
        return text

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every entry and its id; two tokenizers of equal fingerprint make equal grammars."""
        entries = json.dumps(self.inner.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{entries}{sorted(self.special_tokens)}".encode()).hexdigest()[:16]


class IncrementalDecoder:
    """Text of a growing token sequence, token by token, never half a character.

    A token's text depends on its neighbours (a space that a first piece drops, a character spread over tokens), so
    a window of recent tokens is decoded and what is new at its end is given out; U+FFFD at the end may be half a
    character and is held back until it cannot change any more. (The technique of Hugging Face's
    text-generation-inference and vLLM.) The pieces and `finish` joined are what the tokens decode to after
    ``context``, the last tokens of the prompt, however the tokens are split into feeds.

    One exception: tokenizers with byte fallback decode a run of byte tokens that is not UTF-8 to U+FFFD alone, though
    some of its characters were complete and given out. Those stay, and the run is decoded from there on.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._join = tokenizer.join
        self._skip_special_tokens = skip_special_tokens
        self._window = self._clean_end(tokenizer.visible(context, skip_special_tokens))
        self._given = self._join(self._window)  # the beginning of the window's text that was given out
        self._fresh = 0  # tokens at the window's end of which something may be held back

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        return "".join([self._push(token) for token in self._tokenizer.visible(tokens, self._skip_special_tokens)])

    def finish(self) -> str:
        """What was held back, as it stands."""
        text = self._window_text()
        piece, self._given, self._fresh = text[len(self._given) :], text, 0
        return piece

    def _push(self, token: int) -> str:
        self._window.append(token)
        self._fresh += 1
        text = self._window_text()
        if text.endswith(REPLACEMENT):
            return self._hold(text)
        piece = text[len(self._given) :]
        self._trim(text)
        return piece

    def _window_text(self) -> str:
        """The window's text, which begins with ``_given`` or else corrects it."""
        text = self._join(self._window)
        if text.startswith(self._given):
            return text
        if self._given.endswith(REPLACEMENT):  # a character that began in the context is complete
            self._given = text[: _common_length(self._given, text)]
            self._fresh = len(self._window)
            return text
        self._window, self._given = self._window[-self._fresh :], ""  # a run of byte tokens is broken
        return self._join(self._window)

    def _hold(self, text: str) -> str:
        """Give out what comes before a possible half character at the end."""
        broken = ""
        if self._fresh > MOST_HELD:
            broken, text = self._cut(text)
        certain = text.rstrip(REPLACEMENT)
        if len(certain) <= len(self._given):
            return broken
        piece, self._given = certain[len(self._given) :], certain
        return broken + piece

    def _cut(self, text: str) -> tuple[str, str]:
        """Split the window before its last token if no character spans the two: what is new before, the text after.

        Then they say by themselves what they say together, and what is broken before stays broken.
        """
        before, after = self._join(self._window[:-1]), self._join(self._window[-1:])
        if not after or before + after != text:
            return "", text
        piece = before[len(self._given) :]
        self._window, self._given, self._fresh = self._window[-1:], "", 1
        return piece, after

    def _trim(self, text: str) -> None:
        """All is given out: keep only the last tokens as context for the next, enough to have a text themselves."""
        count = self._fresh
        while count < len(self._window):
            if alone := self._join(self._window[-count:]):
                self._window, text = self._window[-count:], alone
                break
            count *= 2
        self._given, self._fresh = text, 0

    def _clean_end(self, tokens: list[int]) -> list[int]:
        """The shortest end of the context that says something and cuts no character, or the half one at its end."""
        for stop in range(len(tokens), 0, -1):
            for start in range(stop - 1, -1, -1):
                text = self._join(tokens[start:stop])
                if text and REPLACEMENT not in text:
                    return tokens[start if stop == len(tokens) else stop :]
        return tokens


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
        return held + self._decoder.finish()

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

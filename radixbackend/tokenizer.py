"""Text to tokens and back: a thin face of transformers' tokenizers, incremental decoding, stop strings.

Rules. No scheduling, no torch, no I/O. A `Tokenizer` may be used by many threads at once: nothing here changes what it
says (no truncation, no padding); what it keeps of spellings may be filled in by any of them. A decoder or a text stream
belongs to one choice and to one thread at a time. Decoding runs once for every token, so it is written to be quick.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from radixbackend.errors import InvalidRequestError

REPLACEMENT = "\ufffd"

MOST_HELD = 32
"""Tokens held back before broken characters are taken for what they are. A character has four at most, but may
follow others that read U+FFFD without being broken."""

AT_ONCE = 4
"""Tokens from which on they are first tried as a whole: one call of the library instead of one for each."""


_FALLBACK = re.compile("(Replace )*ByteFallback Fuse( Strip)?")


class Spelling(NamedTuple):
    """The text of a token that is spelled alike after whatever says something and cuts no character."""

    after: str
    alone: str  # at the beginning of a text, where some tokenizers drop a space


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
        self._backend: Any = backend
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_tokens = frozenset(token for token in tokenizer.all_special_ids if token is not None) | {
            token for token, entry in added.items() if entry.special
        }
        vocabulary = tokenizer.get_vocab()
        self.size = 1 + max(vocabulary.values(), default=-1)
        self._spellings: dict[int, Spelling | None] = {}
        self._before = self._something(vocabulary) if _is_local(backend) else None

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
        return [token for token in tokens if token < self.size and token not in hidden]

    def join(self, visible: list[int]) -> str:
        """Text of visible tokens."""
        text: str = (
            self.inner.decode(visible, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if self._backend is None
            else self._backend.decode(visible, skip_special_tokens=False)  # a tenth of the time that its face takes
        )
        return text

    def spelling(self, token: int) -> Spelling | None:
        """How a token is always spelled; None if that depends on its neighbours."""
        if token not in self._spellings:
            self._spellings[token] = self._spell(token)
        return self._spellings[token]

    def _spell(self, token: int) -> Spelling | None:
        if self._before is None or _is_byte(self._backend.id_to_token(token)):
            return None
        alone, before = self.join([token]), self.join([self._before])
        after = self.join([self._before, token])[len(before) :]
        return None if not alone or REPLACEMENT in after else Spelling(after, alone)

    def _something(self, vocabulary: dict[str, int]) -> int | None:
        """A token that is a plain word, to see how others are spelled after it."""
        words = (token for piece, token in vocabulary.items() if piece.isascii() and piece.isalnum())
        return next((token for token in words if token not in self.special_tokens), None)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every entry and its id; two tokenizers of equal fingerprint make equal grammars."""
        entries = json.dumps(self.inner.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{entries}{sorted(self.special_tokens)}".encode()).hexdigest()[:16]


def _is_local(backend: Any) -> bool:
    """Whether tokens are spelled one by one but for bytes of a character, and only the first may lose a space."""
    if backend is None or backend.decoder is None:
        return False
    outer = json.loads(backend.decoder.__getstate__())
    steps = outer["decoders"] if outer["type"] == "Sequence" else [outer]
    kinds = " ".join(step["type"] for step in steps)
    cuts_ends = any(step.get("stop") for step in steps)
    return kinds == "ByteLevel" or (not cuts_ends and _FALLBACK.fullmatch(kinds) is not None)


def _is_byte(piece: str | None) -> bool:
    """Whether a vocabulary with byte fallback means a byte by it."""
    return piece is None or (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"))


class IncrementalDecoder:
    """Text of a growing token sequence, token by token, never half a character.

    A token's text depends on its neighbours (a space that a first piece drops, a character spread over tokens), so
    a window of recent tokens is decoded and what is new at its end is given out; U+FFFD at the end may be half a
    character and is held back until it cannot change any more. (The technique of Hugging Face's
    text-generation-inference and vLLM.) The pieces and `finish` joined are what the tokens decode to after
    ``context``, the last tokens of the prompt, however the tokens are split into feeds. Where nothing is held back, a
    token that is always spelled alike need not be decoded again (`Tokenizer.spelling`).

    One exception: tokenizers with byte fallback decode a run of byte tokens that is not UTF-8 to U+FFFD alone, though
    some of its characters were complete and given out. Those stay, and the run is decoded from there on.

    ``hidden`` are tokens without text, beside the special ones where these are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        hidden: Collection[int] = (),
    ) -> None:
        self._join = tokenizer.join
        self._spelling = tokenizer.spelling
        self._size = tokenizer.size
        special = tokenizer.special_tokens if skip_special_tokens else frozenset()
        self._hidden = special if special.issuperset(hidden) else special.union(hidden)
        self._window = self._clean_end(tokenizer.visible(context, skip_special_tokens))
        self._given = self._join(self._window)  # the beginning of the window's text that was given out
        self._fresh = 0  # tokens at the window's end of which something may be held back
        self._clean = self._says_something()

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        if len(tokens) >= AT_ONCE:
            visible = [token for token in tokens if token < self._size and token not in self._hidden]
            whole = self._push_all(visible)
            return "".join(map(self.push, visible)) if whole is None else whole
        return "".join(map(self.push, tokens))

    def push(self, token: int) -> str:
        """`feed` for one token."""
        if token >= self._size or token in self._hidden:
            return ""
        if self._clean and (spelling := self._spelling(token)) is not None:
            self._window, self._given = [token], spelling.alone
            return spelling.after
        self._clean = False
        self._window.append(token)
        self._fresh += 1
        text = self._window_text()
        if text.endswith(REPLACEMENT):
            return self._hold(text)
        piece = text[len(self._given) :]
        self._trim(text)
        return piece

    def finish(self) -> str:
        """What was held back, as it stands."""
        text = self._window_text()
        piece, self._given, self._fresh, self._clean = text[len(self._given) :], text, 0, False
        return piece

    def _push_all(self, tokens: list[int]) -> str | None:
        """The text of all of them if no character is broken, so that it is the same token by token; else None."""
        window = self._window + tokens
        text = self._join(window)
        piece = text[len(self._given) :]
        if not tokens or REPLACEMENT in piece or not text.startswith(self._given):
            return None
        for count in range(1, len(window)):
            alone = self._join(window[-count:])
            if alone and REPLACEMENT not in alone:
                window, text = window[-count:], alone
                break
        self._window, self._given, self._fresh = window, text, 0
        self._clean = self._says_something()
        return piece

    def _says_something(self) -> bool:
        """Whether the window's text is all given out, is not empty and ends with a whole character."""
        return not self._fresh and self._given != "" and not self._given.endswith(REPLACEMENT)

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
        self._clean = self._says_something()

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


class Piece(NamedTuple):
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
        self._decoder = IncrementalDecoder(
            tokenizer, prompt_tail, skip_special_tokens=skip_special_tokens, hidden=hidden_tokens
        )
        self._stops = tuple(stops)
        self._starts = frozenset(stop[0] for stop in stops)
        self._include_stop = include_stop
        self._unwatched = min_tokens if stops else 0
        self._held = ""

    def feed(self, tokens: Sequence[int]) -> Piece:
        """Not to be called again once a piece had a ``stop``."""
        if not self._stops:
            return Piece(self._decoder.feed(tokens), None, len(tokens))
        out = ""
        for count, token in enumerate(tokens, 1):
            text = self._decoder.push(token)
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
        if not self._held and self._starts.isdisjoint(text):
            return text, None
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

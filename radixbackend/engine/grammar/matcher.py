"""One matcher for every grammar library: end tokens, forced tokens and budget steering over a library's cursor.

Rules. The cursor sees tokens with text alone; end tokens are handled here, so every library ends alike. A grammar's
root cursor is never advanced, only forked. A token outside the table, or without text, is never accepted.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from radixbackend.engine.grammar.base import Mask
from radixbackend.engine.grammar.closing import Closer, Cursor, Path
from radixbackend.engine.grammar.forced import Speller
from radixbackend.engine.grammar.source import MAX_LEAST
from radixbackend.engine.grammar.steering import Steering
from radixbackend.engine.grammar.tokens import TokenTable
from radixbackend.errors import ConstraintError, GrammarCompileError

START_LIMIT = 4096  # tokens of the shortest output that is looked for when a grammar is compiled
START_IMPROVING = 5000  # questions spent on it
MAX_FORCED = 1024  # bytes of forced text considered at once


class CursorGrammar:
    """A compiled constraint, ready to be matched. Built on a worker thread; immutable and shared afterwards.

    ``markers`` are texts that end free text in it; budget steering needs to know them.
    """

    def __init__(
        self, root: Cursor, tokens: TokenTable, tokenizer: Any, nbytes: int, markers: Sequence[bytes] = ()
    ) -> None:
        self.nbytes = nbytes
        self._markers = tuple(markers)
        self._root = root
        self._lock = threading.Lock()  # a library may not allow two forks at once
        self._tokens = tokens
        self._speller = Speller(tokenizer, tokens)
        self._refuse_empty()
        self._start = self._shortest()

    def matcher(self) -> CursorMatcher:
        """A matcher at the start of the output."""
        with self._lock:
            cursor = self._root.fork()
        return CursorMatcher(cursor, self._tokens, self._speller, Steering(self._tokens, self._start, self._markers))

    def _shortest(self) -> Path | None:
        try:
            return Closer(self._tokens, self._markers).find(self._root.trial(), START_LIMIT, START_IMPROVING)
        except GrammarCompileError:  # the search went beyond the library's limits; outputs need not
            return None

    def _refuse_empty(self) -> None:
        row = np.zeros(-(-self._tokens.size // 32), dtype=np.int32)
        try:
            self._root.fill(row)
        except GrammarCompileError as fault:  # a library may call a dead end an error
            raise ConstraintError(f"no output can satisfy this constraint: {fault}") from fault
        if not (row & self._tokens.text_mask).any() and not self._root.complete():
            raise ConstraintError("no output can satisfy this constraint with this tokenizer")
        if len(self._root.forced()) > MAX_LEAST:
            raise ConstraintError(f"the output would begin with more than {MAX_LEAST} bytes of fixed text")


class CursorMatcher:
    """The state of one sequence inside its grammar; see `base.Matcher` for what its methods promise."""

    def __init__(self, cursor: Cursor, tokens: TokenTable, speller: Speller, steering: Steering) -> None:
        self._cursor = cursor
        self._tokens = tokens
        self._speller = speller
        self._steering = steering
        self._accepted: list[int] = []
        self._ended = False  # the last accepted token is an end token
        self._forced: bytes | None = None  # what is known to come next; None if it was not asked for

    def fill_mask(self, mask: Mask, row: int, remaining: int) -> bool:
        words = mask[row]
        if self._ended:
            words[:] = self._tokens.end_mask
            return True
        self._cursor.fill(words)
        words &= self._tokens.text_mask
        if self._cursor.complete():
            words |= self._tokens.end_mask
        elif not words.any():
            raise GrammarCompileError("the grammar came to a dead end: nothing may follow this output")
        self._steering.restrict(self._cursor, self._accepted, words, remaining)
        return True

    def accept(self, token: int) -> bool:
        if self._ended:
            return False
        if token in self._tokens.end_tokens:
            self._ended = self._cursor.complete()
            if self._ended:
                self._accepted.append(token)
            return self._ended
        text = self._tokens.texts[token] if 0 <= token < self._tokens.size else b""
        if not text or not self._cursor.accept(token):
            return False
        self._accepted.append(token)
        follows = self._forced is not None and len(self._forced) > len(text) and self._forced.startswith(text)
        self._forced = self._forced[len(text) :] if follows and self._forced is not None else None
        return True

    def rollback(self, count: int) -> None:
        if count < 1:
            return
        if count > len(self._accepted):
            raise ValueError(f"cannot take back {count} of {len(self._accepted)} tokens")
        self._cursor.rollback(count - self._ended)
        self._ended = False
        self._forced = None
        del self._accepted[-count:]
        self._steering.forget(len(self._accepted))

    def fork(self) -> CursorMatcher:
        copy = CursorMatcher(self._cursor.fork(), self._tokens, self._speller, self._steering.fork())
        copy._accepted = list(self._accepted)
        copy._ended = self._ended
        copy._forced = self._forced
        return copy

    def forced_tokens(self, limit: int) -> tuple[int, ...]:
        text = self._forced_text()
        if not text or limit < 1:
            return ()
        before = self._tokens.texts[self._accepted[-1]] if self._accepted else b""
        proposed = tuple(itertools.takewhile(self._has_text, self._speller.spell(before, text)[:limit]))
        good = self._cursor.follow(proposed)
        self._cursor.rollback(good)
        return proposed[:good]

    def is_complete(self) -> bool:
        return self._ended or self._cursor.complete()

    def is_finished(self) -> bool:
        if self._ended or not self._cursor.complete():
            return self._ended
        row = np.zeros(-(-self._tokens.size // 32), dtype=np.int32)
        self._cursor.fill(row)
        return not (row & self._tokens.text_mask).any()

    def _has_text(self, token: int) -> bool:
        return token < self._tokens.size and bool(self._tokens.texts[token])

    def _forced_text(self) -> bytes:
        if self._forced is None:
            self._forced = b"" if self._ended else self._cursor.forced()[:MAX_FORCED]
        return self._forced

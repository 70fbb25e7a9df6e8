"""Budget steering: the output closes within its budget whenever a way to close is known.

Rules. Near the end of the budget a closing path of the current state is kept as a certificate. The mask then loses
every token after which no path is known that fits what remains, and where only the path itself fits, it is all that
is left. If no path is known the mask stays as it is: the output may end cut, and is reported so.

What `Steering.restrict` does is a function of the accepted tokens and the budget alone. Certificates are computed at
positions that follow from those, so calls left out, repeated or taken back change nothing; what is kept between
calls only saves work. Nothing here knows about sampling or requests.

Far from the end this costs nothing: a path of length L at a position with slack S (budget left minus L) is looked at
again after S / (GROWTH + 1) tokens, as one token lengthens the closing by GROWTH at most in all but odd grammars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from radixbackend.engine.grammar.closing import Closer, Cursor, Path
from radixbackend.engine.grammar.tokens import Row, TokenTable, set_bit, tokens_in
from radixbackend.errors import GrammarCompileError

GROWTH = 32  # slack below which tokens are checked one by one
MARGIN = 8  # slack below which kinds of tokens too many to check are allowed only if their samples close in time
FEW = 24  # tokens of one kind that are checked one by one
QUESTIONS = 1500  # to the grammar per mask; tokens that could only be checked by more are not allowed
RETRY = 16  # tokens at least until a search that found nothing is repeated


class _Certificate(NamedTuple):
    """A closing path at a position, and what it was made of."""

    position: int
    path: Path | None
    before: Path | None = None  # of the certificate before
    taken: Path = ()  # the tokens between


class Steering:
    """The certificates of one matcher. Holds no cursor: the caller passes it, and gets it back as it was."""

    def __init__(self, tokens: TokenTable, start: Path | None, markers: Sequence[bytes] = ()) -> None:
        self._closer = Closer(tokens, markers)
        self._tokens = tokens
        self._start = start
        self._budget = -1
        self._known: list[_Certificate] = []  # ascending
        self._later: list[_Certificate] = []  # taken back; good again where the same tokens come again
        self._checked: tuple[int, dict[int, Path | None]] = (-1, {})  # position, paths after each token looked at

    def fork(self) -> Steering:
        """An independent copy."""
        copy = Steering(self._tokens, self._start, self._closer.markers)
        copy._budget = self._budget
        copy._known = list(self._known)
        return copy

    def forget(self, length: int) -> None:
        """The output was taken back to its first ``length`` tokens."""
        if self._known and self._known[-1].position > length:
            self._later = [known for known in self._known if known.position > length]
            self._known = [known for known in self._known if known.position <= length]
        if self._checked[0] > length:
            self._checked = (-1, {})

    def restrict(self, cursor: Cursor, accepted: Sequence[int], row: Row, remaining: int) -> None:
        """Take tokens out of ``row`` after which the output could not close in time."""
        position = len(accepted)
        if position + remaining != self._budget:
            self._budget = position + remaining
            self._known, self._later = [_Certificate(0, self._start)], []
            self._checked = (-1, {})
        self._recall(accepted)
        last = self._known[-1]
        if last.position != position and self._due(last) > position:
            return
        try:
            self._restrict(cursor.trial(), accepted, row, remaining)
        except GrammarCompileError:  # the library gave up on a search, not on the output
            self._known = [known for known in self._known if known.position < position]
            self._known.append(_Certificate(position, None))

    def _restrict(self, cursor: Cursor, accepted: Sequence[int], row: Row, remaining: int) -> None:
        path = self._path(cursor, accepted)
        if path is None or not 0 <= remaining - len(path) <= GROWTH:
            return
        check = _Check(self._closer, cursor, path, remaining - 1)
        kept = row & self._tokens.end_mask
        for kind in self._tokens.kinds:
            part = row & kind
            if part.any():
                check.restrict(part, tight=remaining - len(path) <= MARGIN)
                kept |= part
        if path:
            set_bit(kept, path[0], True)
        row[:] = kept
        self._checked = (len(accepted), check.paths)

    def _path(self, cursor: Cursor, accepted: Sequence[int]) -> Path | None:
        """The certificate at this position; None if none is known or none is due."""
        position = len(accepted)
        last = self._known[-1]
        while (due := self._due(last)) <= position:
            before, taken = last.path, tuple(accepted[last.position : due])
            cursor.rollback(position - due)
            last = _Certificate(due, self._next(cursor, before, taken, due), before, taken)
            cursor.follow(accepted[due:])
            self._known.append(last)
        return last.path if last.position == position else None

    def _recall(self, accepted: Sequence[int]) -> None:
        """Certificates of this very output from before it was taken back: a step's drafts are accepted twice."""
        for later in self._later:
            last = self._known[-1]
            if later.position > last.position:
                taken = tuple(accepted[last.position : later.position])
                if later.before is not last.path or later.taken != taken or later.position != self._due(last):
                    return
                self._known.append(later)

    def _due(self, last: _Certificate) -> int:
        """Where to look again after this certificate."""
        position, path = last.position, last.path
        remaining = self._budget - position
        if path is None or len(path) > remaining:
            return position + max(RETRY, remaining // 8)
        return position + max(1, (remaining - len(path)) // (GROWTH + 1))

    def _next(self, cursor: Cursor, path: Path | None, taken: tuple[int, ...], position: int) -> Path | None:
        checked_at, checked = self._checked
        if checked_at == position - 1 and len(taken) == 1 and taken[0] in checked:
            return checked[taken[0]]
        limit = self._budget - position
        carried = None if path is None else self._closer.carry(cursor, path, taken, limit)
        return self._closer.find(cursor, limit) if carried is None else carried


class _Check:
    """Which tokens of one mask still leave time to close. ``limit``: tokens that may follow them."""

    def __init__(self, closer: Closer, cursor: Cursor, path: Path, limit: int) -> None:
        self.paths: dict[int, Path | None] = {}
        self._closer = closer
        self._cursor = cursor
        self._path = path
        self._limit = limit
        self._may_ask = closer.asked + QUESTIONS

    def restrict(self, row: Row, *, tight: bool) -> None:
        """Keep those of one kind of tokens that close in time."""
        found = tokens_in(row) if tight or np.count_nonzero(row) <= FEW else None
        if found is not None and len(found) <= FEW:
            for token in map(int, found):
                if not self._fits(token):
                    set_bit(row, token, False)
        elif found is not None:
            samples = {int(found[0]), int(found[len(found) // 2]), int(found[-1])}
            if not all(self._fits(token, search=False) for token in samples):
                row[:] = 0

    def _fits(self, token: int, *, search: bool = True) -> bool:
        if not self._cursor.accept(token):
            return False
        path = self._closer.carry(self._cursor, self._path, (token,), self._limit)
        if path is None and search and self._closer.asked < self._may_ask:
            path = self.paths[token] = self._closer.find(self._cursor, self._limit)
        self._cursor.rollback(1)
        return path is not None and len(path) <= self._limit

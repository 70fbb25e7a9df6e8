"""The shortest way to end an output: a bounded search over the grammar, byte by byte.

Rules. The result is a path of tokens that the grammar accepts one after another and after which the output is
complete; it is near the shortest, not provably so. It is a function of the cursor's state and the limits alone: no
clocks, no memory of earlier searches, so asking twice gives the same path. The cursor is left as it was found.

The search writes text rather than tokens, since a grammar cannot tell how its bytes were cut: at each point it takes
the text that the grammar forces, else one character by a fixed order of preference (closing brackets and quotes
first). Free text that ends at a marker takes any character and would go on for ever: there the markers are tried, and
one after which other tokens may follow than before it is the way out. Then the search goes through its choices and
tries others at each, keeping what ends sooner. The text is spelled in few tokens at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from radixbackend.engine.grammar.tokens import Row, TokenTable, tokens_in

Path = tuple[int, ...]
"""Tokens after which the output is complete."""

MAX_QUESTIONS = 6000  # to the grammar, until a first closing is found
MAX_RUN = 256  # characters chosen in a row until a closing is given up
LONG_RUN = 8  # after which kinds of characters take turns
IMPROVING = 400  # questions spent on finding a shorter one
MAX_TEXT = 8192  # bytes of a closing
TRIES = 5  # other characters tried at a choice
SKIPPED = 4  # tokens that a path may be ahead of the text written instead

_PREFERENCE = b",;.)>/:0123456789ntf[{-\"_ @|!?*+=&%$#~^'`<(ABCDEFGHIJKLMNOPQRSTUVWXYZabcdeghijklmopqrsuvwxyz]}\\\n\t\r"
_SIGNS, _DIGITS, _LETTERS = b",;.)>/:-_@ ", b"0123456789", b"a"
_TURNS = (_SIGNS, _DIGITS, _SIGNS, _LETTERS, _SIGNS, _LETTERS, _LETTERS, _DIGITS)
_OTHERS = bytes(dict.fromkeys(b'0"[{nt1-f,a' + _PREFERENCE))


class Cursor(Protocol):
    """A library's matcher, reduced to what every library has; knows no end tokens.

    Every method but ``complete`` may raise `GrammarCompileError` where the library gives up (out of its limits).
    """

    def fill(self, row: Row) -> None:
        """Write the tokens that may come next; bits of tokens without text mean nothing."""

    def accept(self, token: int) -> bool:
        """Advance by one token that has text; False leaves the state as it was."""

    def follow(self, tokens: Sequence[int]) -> int:
        """Advance by these, which have text, until one is not accepted; how many were."""

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` accepted tokens."""

    def fork(self) -> Cursor:
        """An independent copy."""

    def trial(self) -> Cursor:
        """A cursor at this state to search on: itself, or a copy where a search could spoil it."""

    def forced(self) -> bytes:
        """Bytes that must come next, whatever the choice of tokens; empty when there is a choice."""

    def complete(self) -> bool:
        """Whether the text so far is whole."""


class _Step(NamedTuple):
    text: bytes
    tokens: tuple[int, ...]  # as the cursor was fed, not as the path spells it
    open: bool = False  # other characters may be worth a try


class Closer:
    """Finds closings. ``asked`` counts the questions to the grammar so far: the work done, whatever the machine.

    ``markers`` are texts that end free text somewhere in the grammar.
    """

    def __init__(self, tokens: TokenTable, markers: Sequence[bytes] = ()) -> None:
        self.tokens = tokens
        self.markers = tuple(markers)
        self.asked = 0

    def find(self, cursor: Cursor, limit: int, improving: int = IMPROVING) -> Path | None:
        """At most ``limit`` tokens that complete the output; None if the search finds none."""
        search = _Search(cursor, self.tokens, self.markers, limit)
        try:
            return search.run(improving)
        finally:
            search.rewind(0)
            self.asked += search.asked

    def carry(self, cursor: Cursor, path: Path, taken: tuple[int, ...], limit: int) -> Path | None:
        """What a closing from before ``taken`` says of the state after it; None if only a search can tell."""
        if path[: len(taken)] == taken:
            return path[len(taken) :]
        texts = self.tokens.texts
        text, start = (b"".join(texts[token] for token in run) for run in (path, taken))
        rest = self.tokens.spell(text[len(start) :]) if text.startswith(start) else None
        for candidate in (rest, path, *self._ends(path, len(taken))):
            if candidate is not None and len(candidate) <= limit:
                self.asked += 1
                if closes(cursor, candidate):
                    self.asked += len(candidate)
                    return candidate
        return None

    def _ends(self, path: Path, taken: int) -> Iterator[Path]:
        """Ends of a path, bare or after a quote: what may fit once its first part was written in other words."""
        quote = self.tokens.token(b'"')
        for cut in range(1, min(len(path), taken + SKIPPED) + 1):
            yield path[cut:]
            if quote is not None:
                yield (quote, *path[cut:])


def closes(cursor: Cursor, path: Sequence[int]) -> bool:
    """Whether the grammar accepts this path and is complete after it."""
    taken = cursor.follow(path)
    good = taken == len(path) and cursor.complete()
    cursor.rollback(taken)
    return good


class _Search:
    def __init__(self, cursor: Cursor, tokens: TokenTable, markers: Sequence[bytes], limit: int) -> None:
        self.asked = 0
        self._cursor = cursor
        self._tokens = tokens
        self._markers = markers
        self._limit = limit
        self._may_ask = MAX_QUESTIONS
        self._steps: list[_Step] = []  # the cursor stands after them
        self._max_text = min(MAX_TEXT, 16 + 8 * limit)

    def run(self, improving: int) -> Path | None:
        done = self._roll_out(self._max_text)
        best, path = list(self._steps), self._spell() if done else None
        self._may_ask = self.asked + improving
        at = 0
        while at < len(best) and self.asked < self._may_ask:
            if best[at].open:
                for other in self._others(best, at):
                    done = self._try(best[:at], other, None if path is None else _length(best))
                    found = self._spell() if done else None
                    if found is not None and (path is None or len(found) < len(path)):
                        best, path = list(self._steps), found
            at += 1
        return path

    def rewind(self, length: int) -> None:
        """Back to the first ``length`` steps."""
        count = sum(len(step.tokens) for step in self._steps[length:])
        del self._steps[length:]
        self._cursor.rollback(count)

    def _try(self, start: list[_Step], step: _Step, longest: int | None) -> bool:
        """Roll out from ``start`` by this step, up to ``longest`` bytes and a few."""
        self._go(start)
        if not self._push(step):
            return False
        return self._roll_out(self._max_text if longest is None else min(self._max_text, longest + 8))

    def _go(self, steps: list[_Step]) -> None:
        same = 0
        while same < min(len(steps), len(self._steps)) and steps[same] is self._steps[same]:
            same += 1
        self.rewind(same)
        for step in steps[same:]:
            self._push(step)

    def _push(self, step: _Step) -> bool:
        """Take the step; False (and nothing taken) if the grammar does not."""
        taken = self._cursor.follow(step.tokens)
        self.asked += min(taken + 1, len(step.tokens))
        if taken < len(step.tokens):
            self._cursor.rollback(taken)
            return False
        self._steps.append(step)
        return True

    def _roll_out(self, max_text: int) -> bool:
        """Go on by preference until the output is complete, or longer than ``max_text`` bytes."""
        rest = max_text - _length(self._steps)
        orders: dict[bytes, list[int]] = {}  # by the text before a choice: what was taken there comes last
        order = list(_PREFERENCE)
        run = 0
        quoted = False  # just left what looked like a string
        while not self._cursor.complete():
            self.asked += 1
            if self.asked >= self._may_ask or rest < 0 or run > MAX_RUN:
                return False
            given = self._forced() or self._leave()
            close = None if given else self._close(quoted)
            step = given or close or self._choose(order, run)
            if step is None or not self._push(step):
                return False
            if step.open:
                run += 1
            else:
                run, order = 0, orders.setdefault(step.text, list(_PREFERENCE))
            quoted = close is not None and close.text == b'"'
            rest -= len(step.text)
        return True

    def _forced(self) -> _Step | None:
        text = self._cursor.forced()[: self._max_text]
        spelled = self._tokens.spell(text) if text else None
        return _Step(text, spelled) if spelled else None

    def _leave(self) -> _Step | None:
        """A marker that ends the free text here."""
        before: Row | None = None
        for marker in self._markers:
            spelled = self._tokens.spell(marker)
            if spelled is None:
                continue
            step = _Step(marker, spelled)
            before = self._row() if before is None else before
            if self._push(step):
                ends = self._cursor.complete() or not np.array_equal(self._row(), before)
                self.rewind(len(self._steps) - 1)
                if ends:
                    return step
        return None

    def _row(self) -> Row:
        """The tokens that may come next."""
        self.asked += 1
        row = np.zeros(-(-self._tokens.size // 32), dtype=np.int32)
        self._cursor.fill(row)
        row &= self._tokens.text_mask
        return row

    def _close(self, quoted: bool) -> _Step | None:
        """A closing bracket or quote, where that is plainly the shortest way on.

        One of ``}`` and ``]`` alone is the end of an object or array, unless letters may come too. Both, and a quote,
        is the inside of a string.
        """
        brace, bracket = self._step(b"}"), self._step(b"]")
        if brace is not None and bracket is not None:
            return None if quoted else self._step(b'"')
        close = brace or bracket
        return None if close is not None and self._step(b"a") is not None else close

    def _choose(self, order: list[int], run: int) -> _Step | None:
        """The preferred character. One that was taken goes to the end, so that no loop is walked twice alike.

        What that does not leave may want several signs in turn with letters or digits between, as the names of hosts
        do: in a long run they take turns.
        """
        quote = self._step(b'"')
        if quote is not None and self._step(b"}") is None:
            return quote._replace(open=True)
        turn = _TURNS[run % len(_TURNS)] if run > LONG_RUN else b""
        for code in sorted(order, key=lambda code: code not in turn):
            step = self._step(bytes([code]))
            if step is not None:
                order.remove(code)
                order.append(code)
                return step._replace(open=True)
        return self._any()

    def _any(self) -> _Step | None:
        """Where no character is allowed: half of one, or a token that stands for no text of its own."""
        for token in tokens_in(self._row())[:1]:
            return _Step(self._tokens.texts[token], (int(token),))
        return None

    def _step(self, text: bytes) -> _Step | None:
        """This character as a step, if the grammar takes it."""
        token = self._tokens.token(text)
        self.asked += 1
        if token is None or not self._cursor.accept(token):
            return None
        self._cursor.rollback(1)
        return _Step(text, (token,))

    def _others(self, best: list[_Step], at: int) -> Iterator[_Step]:
        """Other characters for the choice at ``at``: those chosen later, to skip what lies between, then any."""
        seen = {best[at].text}
        run = at + 1
        while run < len(best) and best[run].open:
            run += 1
        later = [step.text for step in reversed(best[at + 1 : run])]
        tries = 0
        for text in [*later, *(bytes([code]) for code in _OTHERS)]:
            if text in seen or tries == TRIES or self.asked >= self._may_ask:
                continue
            seen.add(text)
            self._go(best[:at])
            step = self._step(text)
            if step is not None:
                tries += 1
                yield step._replace(open=True)

    def _spell(self) -> Path | None:
        """The steps' text in few tokens, if it stays within the limit and the grammar takes it so."""
        path = self._tokens.spell(b"".join(step.text for step in self._steps))
        if path is None or len(path) > self._limit:
            return None
        steps = list(self._steps)
        self.rewind(0)
        good = closes(self._cursor, path)
        self._go(steps)
        return path if good else None


def _length(steps: Sequence[_Step]) -> int:
    return sum(len(step.text) for step in steps)

"""What the engine asks of a grammar: compile once, then one matcher per sequence.

Rules. A `Grammar` is immutable and shared between threads; a `Matcher` belongs to one sequence and is touched by
the engine's thread alone. Nothing here knows about requests, sampling or scheduling. Masks are int32 words of a
`[rows, ceil(vocab / 32)]` array, bit ``token % 32`` of word ``token // 32`` set where the token is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from radixbackend.types import Constraint

Mask = NDArray[np.int32]


class Matcher(Protocol):
    """The state of one sequence inside its grammar."""

    def fill_mask(self, mask: Mask, row: int, remaining: int) -> bool:
        """Write the allowed tokens into ``mask[row]``; False leaves it alone: everything is allowed.

        ``remaining`` is how many tokens the budget still allows, this one included: a matcher that can close its
        output within it never allows a token after which it could not.
        """

    def accept(self, token: int) -> bool:
        """Advance by one token; False leaves the state as it was."""

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` accepted tokens."""

    def fork(self) -> Matcher:
        """An independent copy."""

    def forced_tokens(self, limit: int) -> tuple[int, ...]:
        """Canonical tokens of the text that must come next, at most ``limit``; empty when there is a choice.

        They are proposals: plain masked decoding might spell the same text in other tokens, so they are verified
        under the mask like any draft.
        """

    def is_complete(self) -> bool:
        """Whether the output may end here."""

    def is_finished(self) -> bool:
        """Whether the output must end here: nothing but an end token is allowed."""


class Grammar(Protocol):
    """A compiled constraint."""

    nbytes: int

    def matcher(self) -> Matcher:
        """A matcher at the start of the output."""


@dataclass(frozen=True)
class Vocabulary:
    """What a grammar backend has to know about a tokenizer.

    Attributes:
        tokenizer: the transformers tokenizer itself, for backends that convert it.
        size: number of logits per row (may exceed the tokenizer's entries; the tail is never allowed).
        end_tokens: every token that ends the output.
        fingerprint: hash of the vocabulary, part of cache keys.
    """

    tokenizer: Any
    size: int
    end_tokens: tuple[int, ...]
    fingerprint: str


class GrammarBackend(Protocol):
    """One grammar library over one vocabulary. ``compile`` may be called from several threads at once."""

    name: str
    version: str

    def compile(self, constraint: Constraint) -> Grammar:
        """Compile, or raise `ConstraintError` naming the pointer or position at fault."""

    def unsupported(self, constraint: Constraint) -> Sequence[str]:
        """JSON pointers of the keywords this backend would not enforce; empty means it enforces all of them."""

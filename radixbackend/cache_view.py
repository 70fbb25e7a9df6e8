"""What a backend's radix tree holds, as values that can be printed, sent and drawn.

Rules. A look, never a change. It shows what users have said, so whoever passes it on must mean to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from radixbackend.types import EngineStats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from radixbackend.backend import Backend
    from radixbackend.tokenizer import Tokenizer

IMAGE = "[image]"
"""Stands for the tokens of an image."""


@dataclass(frozen=True, slots=True)
class CacheNode:
    """One node of the tree, its run of tokens as text.

    Attributes:
        namespace: the ``cache_salt`` of the requests that share it.
        depth: 1 for the first run of a namespace.
        tokens: length of the run.
        hits: how often a new sequence found it.
        locks: sequences and pins that hold it now.
    """

    namespace: str | None
    depth: int
    tokens: int
    hits: int
    locks: int
    text: str


@dataclass(frozen=True, slots=True)
class CacheView:
    """A tree as it was, nodes depth first, and the engine's counters."""

    model: str
    nodes: tuple[CacheNode, ...]
    stats: EngineStats


def view_cache(backend: Backend) -> CacheView:
    """The tree as it is between two steps."""
    nodes = (
        CacheNode(
            node.namespace,
            node.depth,
            len(node.tokens),
            node.hits,
            node.locks,
            _text(node.tokens.tolist(), backend.tokenizer),
        )
        for node in backend.dump_cache()
    )
    return CacheView(backend.model_name, tuple(nodes), backend.stats())


def _text(tokens: Iterable[int], tokenizer: Tokenizer | None) -> str:
    """What tokens say; a key below zero belongs to an image."""
    runs = [(real, list(run)) for real, run in groupby(tokens, lambda token: token >= 0)]
    if tokenizer is None:
        return " ".join(str(run) if real else IMAGE for real, run in runs)
    return "".join(tokenizer.decode(run, skip_special_tokens=False) if real else IMAGE for real, run in runs)

"""What the runner asks of an attention kernel.

Rules. A backend is told once which attention calls a forward makes (`AttentionLayer`, in order) and where keys and
values lie (`KVStore`); then per step one `AttentionBatch`, between `begin` and `end`, and per call `attend`. It writes
the step's keys and values into their slots and lets every token see its own sequence's slots up to itself, within the
layer's window or chunk. It knows no requests, no scheduler and no modeling code. Masks are its own business: none are
handed to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from radixbackend.engine.kv_store import KVStore
from radixbackend.engine.plan import Blocks, IntArray, StepPlan


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention call of a forward; most modules make one, differential attention two.

    Attributes:
        index: which call of the forward it is, from 0.
        storage: index of its tensors in the store; lower than that of the layers before only where a layer attends
            to the very keys and values of an earlier one, which then has written them already.
        window: how many keys a token sees, itself included; None sees all.
        chunk: a token sees the keys of its own aligned chunk of that many positions; None sees all.
        dtype: of queries, keys, values and results.
        stored: type of keys and values in the store where it is another one, see `kv_store.narrowed`.
        softcap: scores become ``softcap * tanh(scores / softcap)`` after scaling.
        sinks: one extra logit per head takes part in each softmax and is then dropped.
    """

    index: int
    storage: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    scaling: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    writes: bool = True
    stored: torch.dtype | None = None

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    def first_key(self, position: int) -> int:
        """The first position that the token at ``position`` sees."""
        if self.window is not None:
            return max(0, position - self.window + 1)
        return 0 if self.chunk is None else position // self.chunk * self.chunk


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBatch:
    """A step as attention sees it: a ragged batch of query runs, each at the end of its own context.

    Attributes:
        starts: ``[n]`` position of each sequence's first query.
        contexts: ``[n]`` length of each sequence, its queries included.
        offsets: ``[n + 1]`` queries of sequence i are rows ``offsets[i]:offsets[i + 1]`` of the packed tensors.
        slots: per sequence ``[context]``, where each position's keys and values lie.
        write_slots: ``[T]`` where the packed rows go.
        blocks: per sequence the blocks that its queries are in, whole and within its context; None where no
            sequence has any. A token sees all of its block, whatever its layer's window.
    """

    starts: IntArray
    contexts: IntArray
    offsets: IntArray
    slots: tuple[IntArray, ...]
    write_slots: IntArray
    blocks: tuple[Blocks, ...] | None = None

    @classmethod
    def of(cls, plan: StepPlan) -> AttentionBatch:
        sequences = plan.sequences
        lengths = [len(s.tokens) for s in sequences]
        return cls(
            starts=np.array([s.start for s in sequences], np.int32),
            contexts=np.array([s.context for s in sequences], np.int32),
            offsets=np.cumsum([0, *lengths], dtype=np.int32),
            slots=tuple(s.slots for s in sequences),
            write_slots=np.concatenate([s.slots[s.start :] for s in sequences]),
            blocks=_blocks(plan),
        )


def _blocks(plan: StepPlan) -> tuple[Blocks, ...] | None:
    if all(s.images is None for s in plan.sequences):
        return None
    return tuple(
        () if s.images is None else tuple((a, b) for a, b in s.images.blocks if b > s.start and a < s.context)
        for s in plan.sequences
    )


class Places(NamedTuple):
    """A step's attention, for who calls the kernels without Python: addresses.

    Attributes:
        decode: of the kernel of decodes.
        prefill: of that of prompts.
        layers: of each layer's struct, its decodes and its prompts; None where the step has none.
    """

    decode: int
    prefill: int
    layers: tuple[tuple[int, int | None, int | None], ...]


class AttentionBackend(Protocol):
    """One kernel family over slots of page size 1.

    One that has ``head_major`` set wants its store laid out so, see `KVStore`. One that has ``converts`` set serves
    layers that are stored in another type; no other is asked to, see `refusal`. One that has a method ``places`` gives
    the `Places` of the step that has begun for these layers, or None where it does not serve all of it by kernels.
    """

    name: str

    def refuses(self, layer: AttentionLayer) -> str | None:
        """Why it cannot serve a layer; None if it can."""

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        """Learn the layers and where K/V lie; called again when the store is replaced."""

    def begin(self, batch: AttentionBatch) -> None:
        """Prepare a step: everything that its layers share is computed here."""

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Store the step's keys and values, attend with its queries.

        ``query [T, heads, key_dim]``, ``key [T, kv_heads, key_dim]``, ``value [T, kv_heads, value_dim]``, any strides;
        ``sinks [heads]`` where the layer has them. Returns ``[T, heads, value_dim]``, contiguous.
        """

    def end(self) -> None:
        """The step is over, even by an exception: let go of what `begin` prepared."""


def refusal(kernel: AttentionBackend, layer: AttentionLayer) -> str | None:
    """Why a kernel cannot serve a layer; None if it can."""
    if layer.stored is not None and not getattr(kernel, "converts", False):
        return f"it stores keys and values in the model's type alone, not in {layer.stored}"
    return kernel.refuses(layer)


class Capturable(AttentionBackend, Protocol):
    """A backend whose decodes can be captured in a CUDA graph: all that differs from step to step lies in arrays.

    Attributes:
        captures: True, once layers are bound; a backend without it cannot.
    """

    captures: bool

    def reserve(self, rows: int, longest: int, slots: int) -> Any:
        """Arrays for steps of ``rows`` single tokens, each context up to ``longest``, all of them up to ``slots``."""

    def begin_reserved(self, batch: AttentionBatch, reserved: Any) -> None:
        """As `begin`, into these arrays. Kernels launched by `attend` then serve every later step of the kind."""

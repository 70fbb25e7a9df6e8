"""Keys and values by slot: one pair of tensors per attention layer, page size 1.

Rules. A slot is a row; what it holds, who owns it and when it is free is for others to know. Nothing is zeroed: a
slot is read only after it was written. The last row of each tensor belongs to no one: padding rows of fixed-size
batches are written there. The type that is stored may be narrower than the one computed in; who writes then narrows as
`narrowed` does, and everybody reads what was stored, the step's own tokens included: cached or not, a token's keys and
values are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn
"""Four bits of exponent, three of mantissa, no infinity."""

FP8_MAX = 448.0


def narrowed(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As a store of this type holds it: rounded to nearest, what is too large as the largest; NaN stays NaN."""
    if dtype == FP8 and rows.dtype != FP8:
        rows = rows.clamp(-FP8_MAX, FP8_MAX)
    return rows.to(dtype)


@dataclass(frozen=True, slots=True)
class KVShape:
    """One layer's share of a slot; keys and values may differ in size (latent attention expands them unevenly)."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


def bytes_per_slot(shapes: Sequence[KVShape]) -> int:
    """What one token costs, in all layers together."""
    return sum(shape.nbytes for shape in shapes)


class KVStore:
    """``keys[i]`` is ``[capacity + 1, heads, key_dim]`` of layer i, ``values[i]`` likewise.

    ``head_major`` lays all slots of one head side by side, for kernels that multiply matrices head by head; shapes
    are the same either way, strides are not.
    """

    def __init__(
        self, shapes: Sequence[KVShape], capacity: int, device: torch.device, *, head_major: bool = False
    ) -> None:
        def empty(heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
            if head_major:
                return torch.empty(heads, capacity + 1, dim, dtype=dtype, device=device).transpose(0, 1)
            return torch.empty(capacity + 1, heads, dim, dtype=dtype, device=device)

        self.capacity = capacity
        self.keys = [empty(s.heads, s.key_dim, s.dtype) for s in shapes]
        self.values = [empty(s.heads, s.value_dim, s.dtype) for s in shapes]

    @property
    def dummy_slot(self) -> int:
        """Where rows that belong to no sequence are written."""
        return self.capacity

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def close(self) -> None:
        """Give the memory back; the store is empty afterwards."""
        self.keys.clear()
        self.values.clear()
        self.capacity = 0

"""Small arrays of the host, on the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from radixbackend.engine.plan import IntArray

ALIGNED = 4
"""Each array begins at a multiple of so many numbers: kernels load 16 bytes at once where an address allows it."""


def upload(arrays: Sequence[IntArray], device: torch.device) -> list[torch.Tensor]:
    """Views of one tensor, in order. The caller does not wait for the copy, only what it launches next does."""
    packed, ends = pack(arrays, pinned=device.type == "cuda")
    sent = packed.to(device, non_blocking=True)
    return [sent[end : end + len(array)] for array, end in zip(arrays, ends, strict=True)]


def pack(arrays: Sequence[IntArray], *, pinned: bool) -> tuple[torch.Tensor, list[int]]:
    """One tensor on the host, and where in it each array begins."""
    sizes = [-(-len(array) // ALIGNED) * ALIGNED for array in arrays]
    starts = [0, *np.cumsum(sizes).tolist()]
    packed = torch.empty(starts[-1], dtype=torch.int32, pin_memory=pinned)
    flat = packed.numpy()
    for array, start in zip(arrays, starts, strict=False):
        flat[start : start + len(array)] = array
    return packed, starts[:-1]


class Place:
    """Arrays at fixed addresses on the device, of up to these lengths: what a captured graph reads."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        sizes = [-(-length // ALIGNED) * ALIGNED for length in lengths]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self._lengths = list(lengths)
        self._kept = torch.zeros(self._starts[-1], dtype=torch.int32, device=device)

    def fill(self, arrays: Sequence[IntArray]) -> list[torch.Tensor]:
        """All but the last array are as long as their place; returns views of the places, whole ones."""
        starts = self._starts
        used = starts[len(arrays) - 1] + len(arrays[-1])
        # Fresh memory for each step: it is not used again before its copy is done, however far ahead the host is.
        packed = torch.empty(used, dtype=torch.int32, pin_memory=self._kept.device.type == "cuda")
        flat = packed.numpy()
        for array, start, length in zip(arrays, starts, self._lengths, strict=False):
            assert len(array) == length or array is arrays[-1]
            flat[start : start + len(array)] = array
        self._kept[:used].copy_(packed, non_blocking=True)
        return [self._kept[start : start + length] for start, length in zip(starts, self._lengths, strict=False)]

"""All decoder layers of a step in one call, where both their halves and their attention are kernels of ours.

Rules. The same kernels in the same order as layer by layer, so the same bits; only Python between them is left out: a
sixth of a 60M model's step, and the interpreter's lock, which others want meanwhile, is let go of once for the whole
stack. The first layer's forward computes all; the others hand on what they are given if it is that. A model has a stack
if its layers are a plain chain, which `fuse` has seen when it loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_void_p
from typing import Any

import torch
from torch import nn

from radixbackend.engine.attention.base import Places
from radixbackend.engine.halves import Angles, Halves
from radixbackend.engine.linear import LinearKernels


class _Level(ctypes.Structure):
    """``Level`` of layer.c."""

    _fields_ = tuple((name, c_void_p) for name in ("block", "layer", "decodes", "prompts"))


class Stack:
    """Layers in the order in which they are called.

    Args:
        halves: of each of them.
        modules: the attention module of each, by which the runner knows its calls.
    """

    def __init__(self, kernels: LinearKernels, halves: Sequence[Halves], modules: Sequence[nn.Module]) -> None:
        self._compute = kernels.library.radix_stack
        self._compute.argtypes = (c_void_p, c_int, *[c_void_p] * 5, c_int, c_void_p)
        self._halves, self._modules = tuple(halves), tuple(modules)
        self._levels = (_Level * len(self._halves))(*(_Level(block=its.address) for its in self._halves))
        self._out: torch.Tensor | None = None  # of the layers that are through, until the last has handed it on

    def forward(self, index: int, hidden: torch.Tensor, angles: Angles, attend: Any) -> torch.Tensor | None:
        """What layer ``index`` returns, or None if it has to be computed by itself.

        Args:
            attend: the attention function in use; a runner's own says where the step's keys and values lie.
        """
        if index == 0:
            self._out = self._all(hidden, angles, attend)
            return self._out
        if self._out is None or hidden is not self._out:
            return None
        if index == len(self._halves) - 1:
            self._out = None
        return hidden

    def _all(self, hidden: torch.Tensor, angles: Angles, attend: Any) -> torch.Tensor | None:
        find = getattr(attend, "places", None)
        if find is None or len(hidden) != 1 or not self._halves[0].take(hidden, angles):
            return None
        places: Places | None = find(self._modules)
        if places is None:
            return None
        for level, (layer, decodes, prompts) in zip(self._levels, places.layers, strict=True):
            level.layer, level.decodes, level.prompts = layer, decodes, prompts
        out = torch.empty_like(hidden)
        cos, sin = angles
        count = hidden.shape[1]
        done = self._compute(
            ctypes.addressof(self._levels),
            len(self._levels),
            *(places.decode, places.prefill, hidden.data_ptr(), cos.data_ptr(), sin.data_ptr()),
            count,
            out.data_ptr(),
        )
        if not done:
            raise MemoryError(f"no room for a stack of {count} rows")
        return out

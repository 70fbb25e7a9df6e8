"""What a decoder layer computes between its products: norms, sums, rotation, the gate.

Rules. `TorchOps` says what each is, in as few operators as torch has; `NativeOps` computes the same by C kernels on a
CPU, where a small step spends more on calling operators than on computing, and hands on to torch whatever its kernels
do not take. Both round where the modules of transformers do. They know nothing of layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from radixbackend.engine.native.build import LANES, TYPES, load_kernels
from radixbackend.errors import MissingDependencyError

log = logging.getLogger(__name__)


class RMSNorm:
    """What a norm module is made of."""

    __slots__ = ("epsilon", "shape", "weight")

    def __init__(self, module: Any) -> None:
        self.weight = module.weight
        self.shape = tuple(module.weight.shape)
        self.epsilon = float(module.variance_epsilon)

    @staticmethod
    def fits(module: Any) -> bool:
        weight = getattr(module, "weight", None)
        return isinstance(weight, nn.Parameter) and weight.ndim == 1 and hasattr(module, "variance_epsilon")


class TorchOps:
    """Each operation over ``[..., size]``; what comes in may be overwritten by `rotate` alone."""

    def norm(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        # The weight apart: like the modules, and unlike the operator's own, it multiplies what is already rounded.
        normed: torch.Tensor = F.rms_norm(x, norm.shape, None, norm.epsilon) * norm.weight
        return normed

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, and its norm."""
        x = x + more
        return x, self.norm(x, norm)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of ``[batch, T, heads, dim]``, half against half, by ``[batch, T, dim]``."""
        first, second = x.chunk(2, -1)
        return x * cos.unsqueeze(-2) + torch.cat((-second, first), -1) * sin.unsqueeze(-2)

    def gate(self, pairs: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The first half, activated, times the second half."""
        gate, up = pairs.chunk(2, -1)
        return activation(gate) * up

    def silu_gate(self, pairs: torch.Tensor) -> torch.Tensor:
        """The same with SiLU."""
        return self.gate(pairs, F.silu)


class NativeOps(TorchOps):
    """Raises `MissingDependencyError` where the kernels cannot be built."""

    def __init__(self) -> None:
        kernels = load_kernels("elementwise")
        self._norm, self._rotate, self._gate = kernels.radix_rms_norm, kernels.radix_rotate, kernels.radix_silu_gate
        self._norm.argtypes = (*[c_void_p] * 4, c_float, c_int, c_int, c_int, c_void_p)
        self._rotate.argtypes = (c_void_p, c_int64, c_void_p, c_void_p, c_int, c_int, c_int, c_int)
        self._gate.argtypes = (c_void_p, c_int, c_int, c_int, c_void_p)
        self._norm.restype = self._rotate.restype = self._gate.restype = None

    def norm(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        if not _takes(x, norm.weight):
            return super().norm(x, norm)
        normed = torch.empty_like(x)
        self._run_norm(x, None, None, norm, normed)
        return normed

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        if not _takes(x, norm.weight) or not _alike(more, x):
            return super().add_norm(x, more, norm)
        total, normed = torch.empty_like(x), torch.empty_like(x)
        self._run_norm(x, more.data_ptr(), total.data_ptr(), norm, normed)
        return total, normed

    def _run_norm(
        self, x: torch.Tensor, more: int | None, total: int | None, norm: RMSNorm, normed: torch.Tensor
    ) -> None:
        columns = x.shape[-1]
        self._norm(
            x.data_ptr(),
            more,
            total,
            norm.weight.data_ptr(),
            norm.epsilon,
            x.numel() // columns,
            columns,
            TYPES[x.dtype],
            normed.data_ptr(),
        )

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, heads, dim = x.shape
        rows_in_order = x.stride()[1:] == (x.stride(1), dim, 1) and (batch == 1 or x.stride(0) == length * x.stride(1))
        angles_fit = cos.shape == sin.shape == (batch, length, dim) and _takes(cos) and _alike(sin, cos)
        if dim % (2 * LANES) or x.dtype not in TYPES or cos.dtype != x.dtype or not rows_in_order or not angles_fit:
            return super().rotate(x, cos, sin)
        self._rotate(
            x.data_ptr(),
            x.stride(1),
            cos.data_ptr(),
            sin.data_ptr(),
            batch * length,
            heads,
            dim,
            TYPES[x.dtype],
        )
        return x

    def silu_gate(self, pairs: torch.Tensor) -> torch.Tensor:
        columns = pairs.shape[-1] // 2
        if columns % LANES or not _takes(pairs):
            return super().silu_gate(pairs)
        out = pairs.new_empty(*pairs.shape[:-1], columns)
        self._gate(pairs.data_ptr(), out.numel() // columns, columns, TYPES[pairs.dtype], out.data_ptr())
        return out


def _takes(x: torch.Tensor, weight: torch.Tensor | None = None) -> bool:
    """Whether a kernel can read ``[..., size]`` as rows."""
    size = x.shape[-1]
    return (
        x.dtype in TYPES
        and size % LANES == 0
        and size > 0
        and x.is_contiguous()
        and (weight is None or (weight.dtype == x.dtype and weight.shape == (size,)))
    )


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.is_contiguous()


def is_silu(activation: object) -> bool:
    """Whether a module's activation is the one that a kernel computes."""
    from transformers.activations import SiLUActivation

    return isinstance(activation, (nn.SiLU, SiLUActivation))


def choose_ops(device: torch.device) -> TorchOps:
    """The kernels on a CPU that can have them, else torch and a word in the log."""
    if device.type != "cpu":
        return TorchOps()
    try:
        return NativeOps()
    except MissingDependencyError as fault:
        log.info("layers are computed by torch's operators alone: %s", fault)
        return TorchOps()

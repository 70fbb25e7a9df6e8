"""What a decoder layer computes between its products: norms, sums, rotation, the gate.

Rules. `TorchOps` says what each is, in as few operators as torch has. `NativeOps` computes the same by C kernels on a
CPU and `TritonOps` on a GPU, where a small step spends more on calling operators than on computing; they hand on to
torch whatever their kernels do not take. All round where the modules of transformers do. They know nothing of layers.
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


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The types that Triton kernels know."""

LONGEST = 16384
"""Elements of a row that one program of a norm can hold."""


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
        if dim % (2 * LANES) or x.dtype not in TYPES or not _rows_in_order(x) or not _angles_fit(x, cos, sin):
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


class TritonOps(TorchOps):
    """On a GPU; raises `MissingDependencyError` where Triton is not installed or cannot compile."""

    def __init__(self, device: torch.device) -> None:
        try:
            from radixbackend.engine import triton_elementwise
        except ImportError as fault:
            raise MissingDependencyError(f"GPU kernels need triton: pip install triton ({fault})") from fault
        self._kernels = triton_elementwise
        try:
            self.silu_gate(torch.zeros(1, 2, device=device))
        except Exception as fault:  # Triton calls compilers, which fail in ways of their own
            raise MissingDependencyError(f"Triton cannot compile: {fault}") from fault

    def norm(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        row = _norm_rows(x, norm.weight)
        if row is None:
            return super().norm(x, norm)
        normed = x.new_empty(x.shape)
        self._kernels.norm(x, row, norm.weight, norm.epsilon, normed)
        return normed

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        row = _norm_rows(x, norm.weight)
        if row is None or _norm_rows(more, norm.weight) is None or not (_alike(x, more) and _alike(more, x)):
            return super().add_norm(x, more, norm)
        total, normed = torch.empty_like(x), torch.empty_like(x)
        self._kernels.norm(x, row, norm.weight, norm.epsilon, normed, more, total)
        return total, normed

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 2 or x.dtype not in FLOATS or not _rows_in_order(x) or not _angles_fit(x, cos, sin):
            return super().rotate(x, cos, sin)
        self._kernels.rotate(x, x.stride(1), cos, sin)
        return x

    def silu_gate(self, pairs: torch.Tensor) -> torch.Tensor:
        columns, odd = divmod(pairs.shape[-1], 2)
        if odd or not columns or pairs.dtype not in FLOATS or not pairs.is_contiguous():
            return super().silu_gate(pairs)
        out = pairs.new_empty(*pairs.shape[:-1], columns)
        self._kernels.silu_gate(pairs, out)
        return out


def _norm_rows(x: torch.Tensor, weight: torch.Tensor) -> int | None:
    """How far apart a Triton kernel finds rows of the weight's shape; None where it cannot be given them.

    Where a row begins decides how it is loaded, and so how it is summed: all that are taken begin at 16 bytes.
    """
    size = weight.shape[-1]
    if not (
        x.dtype == weight.dtype
        and x.dtype in FLOATS
        and x.shape[-weight.ndim :] == weight.shape
        and weight.is_contiguous()
        and 0 < size <= LONGEST
        and size % LANES == 0
        and x.data_ptr() % 16 == 0
    ):
        return None
    if x.is_contiguous():
        return weight.numel()
    return x.stride(1) if weight.ndim == 2 and x.ndim == 4 and _rows_in_order(x) else None


def _rows_in_order(x: torch.Tensor) -> bool:
    """Whether ``[batch, T, heads, dim]`` are rows of whole heads, each as far behind the one before."""
    batch, length, _, dim = x.shape
    return x.stride()[2:] == (dim, 1) and (batch == 1 or x.stride(0) == length * x.stride(1))


def _angles_fit(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    batch, length, _, dim = x.shape
    return cos.shape == (batch, length, dim) and cos.dtype == x.dtype and cos.is_contiguous() and _alike(sin, cos)


def _takes(x: torch.Tensor, weight: torch.Tensor | None = None) -> bool:
    """Whether a C kernel can read ``[..., size]`` as rows."""
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
    """The kernels on a CPU or a GPU that can have them, else torch and a word in the log."""
    try:
        if device.type == "cuda":
            return TritonOps(device)
        if device.type == "cpu":
            return NativeOps()
    except MissingDependencyError as fault:
        log.info("layers are computed by torch's operators alone: %s", fault)
    return TorchOps()

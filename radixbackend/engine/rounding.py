"""What stands before and after a product of 8-bit integers: rows to integers, each by a scale of its own, and back.

Rules. Two ways with the same results to a bit or so: torch's operators anywhere, and a C kernel that does each way in
one pass, for elementwise passes cost half of what the integers gain. A row that is not finite stays so.
"""

from __future__ import annotations

import logging
from ctypes import c_int, c_void_p
from typing import Protocol

import torch

from radixbackend.engine.native.build import LANES, TYPES, load_kernels
from radixbackend.errors import MissingDependencyError

log = logging.getLogger(__name__)

LARGEST = 127
MIDDLE = 128
"""oneDNN's fast kernels take unsigned inputs: zero lies here."""

SMALLEST = torch.finfo(torch.float32).tiny
"""Of a scale: keeps rows of zeros from dividing by zero."""


class Rounding(Protocol):
    """How rows become integers and sums become rows."""

    def to_integers(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[n, inputs]`` to unsigned integers around `MIDDLE` of the same shape and scales ``[n, 1]``."""

    def from_integers(
        self, sums: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """Sums ``[n, outputs]`` in float32 times their scales, plus ``bias [outputs]``; may overwrite the sums."""


class TorchRounding:
    """See `Rounding`."""

    def to_integers(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = rows.float()
        scales = rows.abs().amax(-1, keepdim=True).mul_(1 / LARGEST).clamp_min_(SMALLEST)
        # The half rounds what the type cuts off.
        return (rows / scales).add_(MIDDLE + 0.5).to(torch.uint8), scales

    def from_integers(
        self, sums: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        out = sums.mul_(scales)
        if bias is not None:
            out += bias
        return out.to(dtype)


class NativeRounding:
    """See `Rounding`; raises `MissingDependencyError` where the kernel cannot be built."""

    def __init__(self) -> None:
        kernels = load_kernels("int8_rows")
        self._to, self._from = kernels.radix_to_integers, kernels.radix_from_integers
        self._to.argtypes = (c_void_p, c_int, c_int, c_int, c_void_p, c_void_p)
        self._from.argtypes = (c_void_p, c_void_p, c_void_p, c_int, c_int, c_int, c_void_p, c_int)
        self._to.restype = self._from.restype = None

    @staticmethod
    def serves(inputs: int, outputs: int, dtype: torch.dtype) -> bool:
        return inputs % LANES == 0 and outputs % LANES == 0 and dtype in TYPES

    def to_integers(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = rows.contiguous()
        count, columns = rows.shape
        integers = torch.empty(count, columns, dtype=torch.uint8)
        scales = torch.empty(count, 1)
        self._to(
            rows.data_ptr(),
            TYPES[rows.dtype],
            count,
            columns,
            integers.data_ptr(),
            scales.data_ptr(),
        )
        return integers, scales

    def from_integers(
        self, sums: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        count, columns = sums.shape
        out = torch.empty(count, columns, dtype=dtype)
        self._from(
            sums.data_ptr(),
            scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            0 if bias is None else TYPES[bias.dtype],
            count,
            columns,
            out.data_ptr(),
            TYPES[dtype],
        )
        return out


def choose_rounding() -> NativeRounding | None:
    """The kernel, or None and a word in the log where it cannot be built."""
    try:
        return NativeRounding()
    except MissingDependencyError as fault:
        log.info("8-bit integers are rounded by torch, more slowly: %s", fault)
        return None

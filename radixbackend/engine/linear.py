"""Linear layers on a CPU with weights packed for this project's own C kernels.

Rules. What a row gets depends on that row alone, not on how many others come with it or on the threads: its sums go
through the inputs in order. In bfloat16 they are the ones oneDNN makes, to a rounding; in 8-bit integers they are
exact. A weight exists once, in the kernels' layout; `NativeLinear.dense` gives it back. Which modules become such
layers is for `prepack` and `quantize` to say.

Measured on two cores: on a Zen 4, which multiplies pairs of bfloat16, against oneDNN's packed layers 1.3 to 5 times as
fast for one row, where reading the weight takes the time, 1.0 to 2 times for sixteen, and as fast for a thousand. On a
Zen 3, which has AVX2 alone, oneDNN has none for bfloat16: torch takes 2.5 to 4 times as long for one row and far longer
for many; in float32 it takes 2 to 8 times as long for up to sixteen rows, and as long for a thousand. On an Intel Xeon
with AMX, up to 32 rows are 1.1 to 1.5 times as fast as by oneDNN and have its bits; more take 0.8 to 1.2 times as long.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_char_p, c_int, c_int32, c_void_p
from typing import Any

import torch
from torch import nn

from radixbackend.engine.native.build import LANES, TYPES, load_kernels
from radixbackend.engine.rounding import LARGEST, MIDDLE, SMALLEST
from radixbackend.errors import MissingDependencyError

log = logging.getLogger(__name__)

FULL = 64
"""Outputs are filled up to a multiple of it, as in linear.h."""

WORD = 4
"""Bytes of inputs that the kernels multiply at once."""

LONGEST = 2**16
"""Inputs whose products of 8 bits cannot overflow a sum of 32."""


class LinearStruct(ctypes.Structure):
    """``Linear`` of linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("weight", "scales", "shifts", "bias")),
        *((name, c_int32) for name in ("words", "outputs", "bias_type")),
    )


class LinearKernels:
    """Raises `MissingDependencyError` where they cannot be built.

    Attributes:
        pairs: whether they serve bfloat16.
        integers: whether they serve 8-bit integers.
        means: the instructions they use, as people call them.
    """

    means = ""

    def __init__(self) -> None:
        self.library = load_kernels("layer")
        self.pairs, self.integers = (bool(self.library[f"radix_serves_{name}"]()) for name in ("pairs", "integers"))
        if self.pairs or self.integers:
            self.panel = int(self.library.radix_panel())
            self.library.radix_means.restype = c_char_p
            self.means = self.library.radix_means().decode()
            self.product = self.library.radix_linear
            self.product.argtypes = (c_void_p, c_void_p, c_int, c_int, c_void_p)
            self._pack = self.library.radix_pack
            self._pack.argtypes = (c_void_p, c_int, c_int, c_void_p)
            self._pack.restype = None

    def packed(self, weight: torch.Tensor) -> torch.Tensor:
        """``[outputs, inputs]`` as ``[panels, words, panel, inputs of a word]``, zero beyond the outputs."""
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        each = WORD // weight.element_size()
        panels = weight.new_empty(-(-outputs // FULL) * FULL // self.panel, inputs // each, self.panel, each)
        self._pack(weight.data_ptr(), outputs, inputs // each, panels.data_ptr())
        return panels

    def serves(self, module: nn.Linear, *, integers: bool) -> bool:
        """Whether a plain linear layer can be had as one of these, in integers or as it is."""
        weight, bias = module.weight, module.bias
        return (
            (self.integers and weight.dtype in TYPES if integers else self.pairs and weight.dtype == torch.bfloat16)
            and weight.layout == torch.strided
            and module.in_features % (LANES if integers else 2) == 0
            and module.out_features % LANES == 0
            and (module.in_features <= LONGEST or not integers)
            and (bias is None or (bias.dtype in TYPES and bias.is_contiguous()))
            and not module._forward_hooks
        )


class NativeLinear(nn.Linear):
    """An ``nn.Linear`` whose weight lies in panels; `turn` makes it from one."""

    struct: LinearStruct
    kernels: LinearKernels
    held: tuple[torch.Tensor, ...]  # what the struct points to

    @staticmethod
    @torch.no_grad()
    def turn(module: Any, kernels: LinearKernels, *, integers: bool = False) -> None:
        """Make a plain layer one of these where it stands."""
        weight, bias, scales, shifts = module.weight.detach(), module.bias, None, None
        if integers:
            scales = (weight.float().abs().amax(1) / LARGEST).clamp_min_(SMALLEST)
            weight = (weight.float() / scales[:, None]).round_().to(torch.int8)
            shifts = MIDDLE * weight.sum(1, dtype=torch.int32)
        packed = kernels.packed(weight)
        parts = (packed, scales, shifts, bias)
        module.struct = LinearStruct(
            *(None if part is None else part.data_ptr() for part in parts),
            words=packed.shape[1],
            outputs=module.out_features,
            bias_type=0 if bias is None else TYPES[bias.dtype],
        )
        module.kernels = kernels
        module.held = tuple(part for part in parts if part is not None)
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.__class__ = NativeLinear

    def dense(self) -> torch.Tensor:
        """The weight as it was before it was packed; of integers, those."""
        rows: torch.Tensor = self.weight.transpose(1, 2).reshape(-1, self.in_features)
        return rows[: self.out_features].clone()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        exact = input.dtype == torch.bfloat16 or (self.struct.scales and input.dtype in TYPES)
        if input.shape[-1] != self.in_features or not exact:
            raise RuntimeError(f"a layer of {self.in_features} inputs was given {list(input.shape)} of {input.dtype}")
        rows = input.contiguous()
        out = rows.new_empty(*rows.shape[:-1], self.out_features)
        if out.numel():
            count = out.numel() // self.out_features
            done = self.kernels.product(
                ctypes.addressof(self.struct), rows.data_ptr(), count, TYPES[rows.dtype], out.data_ptr()
            )
            if not done:
                raise MemoryError(f"no room for a product of {count} rows")
        return out


def load_linear_kernels(device: torch.device) -> LinearKernels | None:
    """The kernels on a CPU that can have them, else None and a word in the log."""
    if device.type != "cpu":
        return None
    try:
        return LinearKernels()
    except MissingDependencyError as fault:
        log.info("linear layers are computed by torch: %s", fault)
        return None

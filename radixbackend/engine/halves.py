"""A decoder layer's two halves around its attention, each in one call of a C kernel.

Rules. The same steps as `FusedLayer` takes one by one, rounded at the same places: norm, queries, keys and values, the
heads' norms, rotation; then the output's product, the sum, norm, the gated MLP, the sum. With one row, the calls in
between take longer than what they do. A layer can have them whose products are native, whose MLP is gated by SiLU, and
whose sizes the kernels take.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int32, c_void_p
from typing import Any, Protocol

import torch

from radixbackend.engine.elementwise import RMSNorm
from radixbackend.engine.linear import LinearKernels, NativeLinear
from radixbackend.engine.native.build import LANES, TYPES


class HeadNorm(Protocol):
    """One norm for each of several heads."""

    weight: torch.Tensor
    epsilon: float


Angles = tuple[torch.Tensor, torch.Tensor]


class _Block(ctypes.Structure):
    """``Block`` of layer.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("before_attention", "before_mlp", "head_norm")),
        *((name, c_float) for name in ("attention_epsilon", "mlp_epsilon", "head_epsilon")),
        *((name, c_int32) for name in ("hidden", "inner", "turned", "head_dim", "type")),
    )


class Halves:
    """Both halves of one layer.

    Args:
        kernels: those its products are made by.
        products: of queries, keys and values together, of the output, of gate and up together, and back down.
        norms: before attention and before the MLP.
        head_norm: of query and key heads, with a weight ``[turned, head_dim]``, if there is one.
        turned: query and key heads, which are rotated.
        head_dim: of all heads.

    Attributes:
        address: of the layer's ``Block``, which lives as long as this.
    """

    def __init__(
        self,
        kernels: LinearKernels,
        products: tuple[NativeLinear, NativeLinear, NativeLinear, NativeLinear],
        norms: tuple[RMSNorm, RMSNorm],
        head_norm: HeadNorm | None,
        turned: int,
        head_dim: int,
    ) -> None:
        self._before, self._after = kernels.library.radix_before_attention, kernels.library.radix_after_attention
        self._before.argtypes = (*[c_void_p] * 4, c_int, c_void_p)
        self._after.argtypes = (*[c_void_p] * 3, c_int, c_void_p)
        weights = [norm.weight for norm in norms]
        if head_norm is not None:
            weights.append(head_norm.weight)
        self.dtype = weights[0].dtype
        self.head_dim = head_dim
        self._held = (products, weights)  # what the block points to
        qkv, _, _, down = products
        self._heads, self._turned = qkv.out_features // head_dim, turned
        self._block = _Block(
            *(ctypes.addressof(product.struct) for product in products),
            *(weight.data_ptr() for weight in weights),
            *([None] if head_norm is None else []),
            norms[0].epsilon,
            norms[1].epsilon,
            0.0 if head_norm is None else head_norm.epsilon,
            hidden=qkv.in_features,
            inner=down.in_features,
            turned=turned,
            head_dim=head_dim,
            type=TYPES[self.dtype],
        )
        self.address = ctypes.addressof(self._block)

    @staticmethod
    def fit(products: tuple[Any, ...], weights: tuple[torch.Tensor, ...], head_dim: int) -> bool:
        """Whether the kernels can make these products, with norms of these weights."""
        dtype = weights[0].dtype
        return (
            all(isinstance(product, NativeLinear) for product in products)
            and dtype in TYPES
            and all(weight.dtype == dtype and weight.is_contiguous() for weight in weights)
            and all(bool(product.struct.scales) or dtype == torch.bfloat16 for product in products)
            and head_dim % (2 * LANES) == 0
            and products[0].in_features % LANES == 0
            and products[3].in_features % LANES == 0
        )

    def take(self, hidden: torch.Tensor, angles: Angles) -> bool:
        """Whether they can be given hidden states ``[batch, T, hidden]`` and the cosines and sines of positions."""
        shape = (*hidden.shape[:-1], self.head_dim)
        return (
            all(x.shape == shape and x.dtype == self.dtype and x.is_contiguous() for x in angles)
            and hidden.dtype == self.dtype
            and hidden.is_contiguous()
            and hidden.numel() > 0
        )

    def before(self, hidden: torch.Tensor, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated query and key heads side by side, and value heads: ``[batch, T, heads, head_dim]`` each."""
        rows = hidden.shape[:-1]
        mixed = hidden.new_empty(*rows, self._heads, self.head_dim)
        cos, sin = angles
        count = rows.numel()
        done = self._before(self.address, hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(), count, mixed.data_ptr())
        _check(done, count)
        return mixed[..., : self._turned, :], mixed[..., self._turned :, :]

    def after(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output, from its input and from ``[batch, T, heads * head_dim]``."""
        out = torch.empty_like(hidden)
        count = hidden.shape[:-1].numel()
        attended = attended.contiguous()
        done = self._after(self.address, hidden.data_ptr(), attended.data_ptr(), count, out.data_ptr())
        _check(done, count)
        return out


def _check(done: int, count: int) -> None:
    if not done:
        raise MemoryError(f"no room for a layer of {count} rows")

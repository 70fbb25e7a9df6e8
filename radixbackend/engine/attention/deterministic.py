"""The same bits for a token however its batch looks: fixed matrix products and means beside fixed attention.

Rules. Libraries choose how to sum by how many rows there are, so a token computed in a prompt and the same token
computed alone differ in a bit, and sooner or later in a word. Here a row is summed in one order, whatever the others
are: tiles of one size, all of a row's products in one program from left to right. What is replaced is replaced while a
forward runs, between `begin` and `end`, in the thread that runs it, and nowhere else: a model needs no change, and
other models in the process see nothing. Elementwise operations, normalizations that torch computes with one block per
row, softmax and lookups are what they always were: on a GPU each row or element of theirs is computed by itself.

A model that sums in any other way (mixtures of experts, which multiply rows by groups; convolutions) raises
`UnsupportedModelError` from its first forward on, rather than be deterministic most of the time.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from radixbackend.engine.attention.base import AttentionBatch
from radixbackend.engine.attention.triton_paged import TritonAttention
from radixbackend.errors import UnsupportedModelError

TILE = 64
"""Rows, columns and depth of a tile of a product: one size, so that one instruction computes every row."""


class DeterministicAttention(TritonAttention):
    """See `AttentionBackend`; between `begin` and `end` linear layers and means are fixed too."""

    name = "triton-deterministic"

    def __init__(self, *, programs: int | None = None) -> None:
        super().__init__(deterministic=True, programs=programs)
        self._mode: FixedOrder | None = None

    def _prepare(self, batch: AttentionBatch, reserved: Any) -> None:
        super()._prepare(batch, reserved)
        assert self._mode is None
        self._mode = FixedOrder()
        self._mode.__enter__()

    def end(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
        super().end()


class FixedOrder(TorchFunctionMode):
    """Within it this thread's linear layers and means over the last dimension sum each row in one order.

    Other products and sums of floating-point numbers raise `UnsupportedModelError`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _SUMS:
            result = _REPLACED[func](*args, **(kwargs or {})) if func in _REPLACED else NotImplemented
            if result is not NotImplemented:
                return result
            if any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in args):
                raise UnsupportedModelError(f"it computes {func.__name__}, which is not summed in a fixed order")
        return func(*args, **(kwargs or {}))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """``x @ weight.T + bias``; `NotImplemented` for types that it has no kernel for."""
    if x.dtype not in _TYPES or weight.dtype != x.dtype:
        return NotImplemented
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(len(rows), len(weight))
    if out.numel():
        # Rows vary fastest: programs that share a piece of the weights run side by side.
        grid = triton.cdiv(len(rows), TILE), triton.cdiv(len(weight), TILE)
        extra = out if bias is None else bias
        _linear[grid](
            rows, weight, extra, out, len(rows), len(weight), rows.shape[1], weight.stride(0), weight.stride(1),
            HAS_BIAS=bias is not None, TILE=TILE if x.dtype.itemsize == 2 else TILE // 2, SPAN=TILE,
            num_warps=4, num_stages=3, enable_fp_fusion=False,
        )  # fmt: skip
    return out.view(*x.shape[:-1], len(weight))


def addmm(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, **factors: Any) -> Any:
    """``x @ weight + bias``, the linear layers of GPT-2; `NotImplemented` with factors or another bias."""
    if factors or bias.shape != weight.shape[1:] or bias.dtype != x.dtype:
        return NotImplemented
    return linear(x, weight.t(), bias)


def mean(
    x: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None, out: None = None
) -> Any:
    """Of the last dimension; `NotImplemented` for every other one."""
    last = (-1, x.ndim - 1)
    one = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if one not in last or x.dtype not in _TYPES or dtype not in (None, x.dtype) or out is not None:
        return NotImplemented
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    result = x.new_empty(len(rows))
    if len(rows):
        _mean[(len(rows),)](
            rows, result, rows.shape[1], WIDTH=triton.next_power_of_2(rows.shape[1]), num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    return result.view(*x.shape[:-1], 1) if keepdim else result.view(x.shape[:-1])


_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_REPLACED: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {functional.linear: linear, torch.addmm: addmm, torch.mean: mean, torch.Tensor.mean: mean}
)
_SUMS = frozenset(
    function
    for owner in (torch, torch.Tensor, torch.linalg, functional)
    for name in (
        *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "einsum"),
        *("addmm", "addbmm", "baddbmm", "addmv", "tensordot", "_grouped_mm", "grouped_mm", "multi_dot"),
        *("scaled_dot_product_attention", "conv1d", "conv2d", "conv3d"),
        *("sum", "nansum", "prod", "mean", "cumsum", "cumprod", "var", "std", "var_mean", "std_mean", "norm"),
        *("vector_norm", "normalize", "logsumexp", "logcumsumexp"),
        *("index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"),
        *("index_put_", "index_reduce", "index_reduce_"),
    )
    if (function := getattr(owner, name, None)) is not None
)
"""What may add up in an order of its own."""


@triton.jit(do_not_specialize=["num_rows"])
def _linear(X, WEIGHT, BIAS, OUT, num_rows, num_columns, depth, w_column, w_depth, HAS_BIAS: tl.constexpr,
            TILE: tl.constexpr, SPAN: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    columns = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    steps = tl.arange(0, TILE)
    inside, used = rows < num_rows, columns < num_columns
    x = X + rows.to(tl.int64)[:, None] * depth + steps[None, :]
    w = WEIGHT + columns.to(tl.int64)[None, :] * w_column + steps[:, None] * w_depth
    sums = tl.zeros([SPAN, SPAN], tl.float32)
    for start in range(0, depth, TILE):
        left = steps < depth - start
        a = tl.load(x + start, mask=inside[:, None] & left[None, :], other=0.0)
        b = tl.load(w + start * w_depth, mask=used[None, :] & left[:, None], other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(BIAS + columns, mask=used, other=0.0).to(tl.float32)[None, :]
    places = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(OUT + places, sums.to(OUT.dtype.element_ty), mask=inside[:, None] & used[None, :])


@triton.jit
def _mean(X, OUT, width, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    values = tl.load(X + row * width + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(OUT + row, (tl.sum(values, 0) / width).to(OUT.dtype.element_ty))

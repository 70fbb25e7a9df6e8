"""What lies between a layer's products on a GPU, a Triton kernel each.

Rules. The arithmetic is that of the operators that transformers' modules call: in float32, and rounded to the tensors'
type wherever such an operator hands one on; no product is fused with a sum, since torch fuses none there. A program
computes one row or a piece of one, and how it is cut follows from the sizes of a model: so a row is the same bits in
every batch. The sum in a norm alone has another order than torch's, by which a few of its results are rounded
otherwise. Nothing waits for the device or asks it, so a CUDA graph can record every call. What tensors they are given
is for `elementwise.TritonOps` to see to.
"""

# Parameters of kernels are tensors or constants of Triton's own, for which annotations mean something else.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

HEADS = 8
"""Heads that one program rotates: enough to share their angles, few enough that a single row keeps a GPU busy."""

COLUMNS = 1024
"""Columns that one program gates."""

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def norm(
    x: torch.Tensor,
    row: int,
    weight: torch.Tensor,
    epsilon: float,
    normed: torch.Tensor,
    more: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
) -> None:
    """Of rows of the weight's shape, ``row`` apart in ``x``; with ``more``, of ``x + more``, put into ``total``."""
    size = weight.shape[-1]
    heads, width = weight.numel() // size, triton.next_power_of_2(size)
    _norm[(normed.numel() // weight.numel(), heads)](
        x, more, total, weight, normed, row, epsilon, SIZE=size, WIDTH=width,
        num_warps=min(max(width // 512, 1), 16), enable_fp_fusion=False,
    )  # fmt: skip


def rotate(x: torch.Tensor, row: int, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """``[..., heads, dim]`` in place, its rows ``row`` apart."""
    heads, dim = x.shape[-2:]
    _rotate[(cos.numel() // dim, triton.cdiv(heads, HEADS))](
        x, cos, sin, row, heads, HALF=dim // 2, WIDTH=triton.next_power_of_2(dim // 2), HEADS=HEADS,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def silu_gate(pairs: torch.Tensor, out: torch.Tensor) -> None:
    columns = out.shape[-1]
    _silu_gate[(out.numel() // columns, triton.cdiv(columns, COLUMNS))](
        pairs, out, columns, COLUMNS=COLUMNS, num_warps=4, enable_fp_fusion=False
    )


@triton.jit
def _rounded(x, LIKE):
    return x.to(LIKE.dtype.element_ty).to(tl.float32)


@triton.jit
def _exp(x):
    """The one that torch calls; the interpreter has no library of the device."""
    if _INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def _norm(X, MORE, TOTAL, WEIGHT, OUT, x_row, epsilon, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, WIDTH)
    inside = at < SIZE
    place = (row * tl.num_programs(1) + head) * SIZE + at
    x = tl.load(X + row * x_row + head * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    if MORE is not None:
        x = _rounded(x + tl.load(MORE + place, mask=inside, other=0.0).to(tl.float32), X)
        tl.store(TOTAL + place, x.to(TOTAL.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, 0) * (1.0 / SIZE) + epsilon)
    weight = tl.load(WEIGHT + head * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + place, (_rounded(x * scale, X) * weight).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(X, COS, SIN, x_row, heads, HALF: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, WIDTH)
    there = at < HALF
    inside = (head < heads)[:, None] & there[None, :]
    first = X + row * x_row + head[:, None] * (2 * HALF) + at[None, :]
    second = first + HALF
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(second, mask=inside, other=0.0).to(tl.float32)
    cos, sin = COS + row * (2 * HALF) + at, SIN + row * (2 * HALF) + at
    cos_a = tl.load(cos, mask=there, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(cos + HALF, mask=there, other=0.0).to(tl.float32)[None, :]
    sin_a = tl.load(sin, mask=there, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(sin + HALF, mask=there, other=0.0).to(tl.float32)[None, :]
    tl.store(first, (_rounded(a * cos_a, X) - _rounded(b * sin_a, X)).to(X.dtype.element_ty), mask=inside)
    tl.store(second, (_rounded(b * cos_b, X) + _rounded(a * sin_b, X)).to(X.dtype.element_ty), mask=inside)


@triton.jit
def _silu_gate(PAIRS, OUT, columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < columns
    gate = tl.load(PAIRS + row * 2 * columns + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(PAIRS + row * 2 * columns + columns + at, mask=inside, other=0.0).to(tl.float32)
    silu = _rounded(tl.div_rn(gate, 1.0 + _exp(-gate)), PAIRS)
    tl.store(OUT + row * columns + at, (silu * up).to(OUT.dtype.element_ty), mask=inside)

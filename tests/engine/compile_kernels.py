"""Compiles the deterministic kernels for an H200, which takes no GPU, and says what came out.

A program of its own: in the tests' process Triton interprets.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from radixbackend.engine.attention.base import AttentionLayer
from radixbackend.engine.attention.deterministic import TILE, _linear, _mean
from radixbackend.engine.attention.triton_kernels import attend_tiles, fold_parts, write_rows
from radixbackend.engine.attention.triton_paged import SPLIT_KEYS, TileShape

LAYER = AttentionLayer(0, 0, 32, 8, 128, 128, torch.bfloat16, 0.1)
HALF = {"Q", "K", "V", "OUT", "EXTRA", "KEYS", "VALUES", "KEY", "VALUE", "X", "WEIGHT", "BIAS"}
FLOAT = {"PARTS": "*fp32", "SUMS": "*fp32", "scaling": "fp32", "softcap": "fp32"}


def compiled(kernel: Any, constants: dict[str, Any], **options: Any) -> str:
    """The PTX of a kernel: capital letters are tensors or constants, strides are multiples of 16."""
    signature, values, aligned = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[i,] = "constexpr", constants[name]
            continue
        signature[name] = "*bf16" if name in HALF else FLOAT.get(name, "*i32" if name.isupper() else "i32")
        if name.isupper() or re.match("[qkvw]_", name):
            aligned[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, aligned)
    ptx: str = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    return ptx


def main() -> None:
    shape = TileShape.of(LAYER, few=False, deterministic=True, shared=227 * 1024)
    shared = {"GROUP": LAYER.group, "VALUE_DIM": 128, "VALUE_PAD": 128, "ROWS": shape.rows, "SPLIT": SPLIT_KEYS}
    options = {"num_warps": shape.warps, "enable_fp_fusion": False}
    tiles = shared | {"KEY_DIM": 128, "KEY_PAD": 128, "KEYS": shape.keys, "SOFTCAP": False, "SINKS": False}
    found = []
    for label, apart in (("prefill", False), ("decode", True)):
        found.append(compiled(attend_tiles, tiles | {"APART": apart}, num_stages=shape.stages, **options))
        print(f"{label}: {'wgmma' if 'wgmma' in found[-1] else 'mma'}")
    found.append(compiled(fold_parts, shared | {"SINKS": True}, **options))
    found.append(compiled(_linear, {"HAS_BIAS": True, "TILE": TILE, "SPAN": TILE}, num_stages=3, **options))
    print(f"linear: {'wgmma' if 'wgmma' in found[-1] else 'mma'}")
    found.append(compiled(_mean, {"WIDTH": 4096}, **options))
    print(f"fused: {sum(ptx.count('fma.rn.f32') for ptx in found)}")
    sizes = {"HEADS": 8, "KEY_DIM": 128, "VALUE_DIM": 128, "KEY_PAD": 1024, "VALUE_PAD": 1024}
    compiled(write_rows, sizes)


if __name__ == "__main__":
    main()

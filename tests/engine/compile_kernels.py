"""Compiles the Triton kernels for an H200, which takes no GPU, and says what came out.

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
from radixbackend.engine.triton_elementwise import COLUMNS, HEADS, _norm, _rotate, _silu_gate

LAYER = AttentionLayer(0, 0, 32, 8, 128, 128, torch.bfloat16, 0.1)
HALF = {"Q", "K", "V", "OUT", "EXTRA", "KEYS", "VALUES", "KEY", "VALUE", "X", "WEIGHT", "BIAS"}
HALF |= {"MORE", "TOTAL", "COS", "SIN", "PAIRS"}
FLOAT = {"PARTS": "*fp32", "SUMS": "*fp32", "scaling": "fp32", "softcap": "fp32", "epsilon": "fp32"}


STORED = {"K", "V", "KEYS", "VALUES"}


def compiled(kernel: Any, constants: dict[str, Any], stored: str = "*bf16", **options: Any) -> str:
    """The PTX of a kernel: capital letters are tensors or constants, strides are multiples of 16."""
    signature, values, aligned = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[i,] = "constexpr", constants[name]
            continue
        signature[name] = "*bf16" if name in HALF else FLOAT.get(name, "*i32" if name.isupper() else "i32")
        if name in STORED:
            signature[name] = stored
        if name.isupper() or re.match("[qkvwx]_|columns", name):
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
        eight = compiled(attend_tiles, tiles | {"APART": apart}, "*fp8e4nv", num_stages=shape.stages, **options)
        how = "by hardware" if "cvt.rn.f16x2.e4m3x2" in eight else "in software"
        print(f"{label} from fp8: {'wgmma' if 'wgmma' in eight else 'mma'}, {how}")
    found.append(compiled(fold_parts, shared | {"SINKS": True}, **options))
    found.append(compiled(_linear, {"HAS_BIAS": True, "TILE": TILE, "SPAN": TILE}, num_stages=3, **options))
    print(f"linear: {'wgmma' if 'wgmma' in found[-1] else 'mma'}")
    found.append(compiled(_mean, {"WIDTH": 4096}, **options))
    found.append(compiled(_norm, {"SIZE": 5120, "WIDTH": 8192}, num_warps=16, enable_fp_fusion=False))
    heads = {"MORE": None, "TOTAL": None, "SIZE": 128, "WIDTH": 128}
    found.append(compiled(_norm, heads, num_warps=1, enable_fp_fusion=False))
    found.append(compiled(_rotate, {"HALF": 64, "WIDTH": 64, "HEADS": HEADS}, **options))
    print(f"fused: {sum(ptx.count('fma.rn') for ptx in found)}")
    sizes = {"HEADS": 8, "KEY_DIM": 128, "VALUE_DIM": 128, "KEY_PAD": 1024, "VALUE_PAD": 1024}
    compiled(write_rows, sizes | {"FP8": False})
    compiled(write_rows, sizes | {"FP8": True}, "*u8")
    gate = compiled(_silu_gate, {"COLUMNS": COLUMNS}, **options)
    print(f"gate: {'div.rn' if 'div.rn.f32' in gate else 'approximate'}")


if __name__ == "__main__":
    main()

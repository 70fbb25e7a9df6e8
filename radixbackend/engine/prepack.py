"""Linear layers in a weight layout made for small products: one to five times as fast at decoding in bfloat16 on a CPU.

Rules. Only plain ``nn.Linear`` modules are touched: where this project's kernels serve one it becomes theirs, else
oneDNN's (the layout that torch's inductor uses for frozen CPU graphs). Each is compared with its original on random
rows, and the whole model once more after; where anything differs by more than the order of sums or fails, all of it is
undone. A packed weight replaces the dense one; only a weight that another module shares (tied embeddings) then exists
twice. Knows nothing of plans, slots or attention.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from radixbackend.engine.linear import LinearKernels, NativeLinear
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.probe import probe_tokens

log = logging.getLogger(__name__)

TOLERANCE = 2e-3
"""``|Δ| / |output|`` up to which two results differ by summation order alone, a quarter of bfloat16's step."""

X86 = ("x86_64", "AMD64")

WHOLE_TOLERANCE = 0.2
"""The same for a model's logits, where roundings of all its layers add up; a weight that is misread gives about 1."""


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` whose weight is opaque to everything but oneDNN; `prepack` makes it from one."""

    product: Callable[..., torch.Tensor]  # looked up once: as long as a small product takes, it takes to find it

    @staticmethod
    def turn(module: Any) -> None:
        """Make a plain layer one of these where it stands."""
        packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
        module.product = torch.ops.mkldnn._linear_pointwise.default
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.__class__ = PackedLinear

    def dense(self) -> torch.Tensor:
        """The weight as it was before it was packed."""
        return self.weight.to_dense()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() == 0:
            return input.new_empty(*input.shape[:-1], self.out_features)
        out: torch.Tensor = self.product(input, self.weight, self.bias, "none", [], "")
        return out


def available() -> bool:
    """Whether this torch and this CPU have oneDNN's."""
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    return all(hasattr(torch.ops.mkldnn, name) for name in names) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepack(loaded: LoadedModel, kernels: LinearKernels | None) -> int:
    """Pack the linear layers of a bfloat16 model on a CPU and return how many; 0 leaves the model as it was."""
    if loaded.device.type != "cpu" or loaded.dtype != torch.bfloat16:
        return 0
    before = _logits(loaded)
    linears = [module for module in loaded.model.modules() if type(module) is nn.Linear]
    if kernels is None and not available() and platform.machine() in X86:
        log.warning("this processor only emulates bfloat16: apt install gcc for kernels, or pass dtype='float32'")
    shared = _shared(loaded.model)
    kept: dict[nn.Linear, Any] = {module: module.weight for module in linears if module.weight in shared}
    packed = [module for module in linears if _pack(module, kernels)]
    try:
        same = bool((_logits(loaded) - before).norm() <= WHOLE_TOLERANCE * before.norm())
    except (RuntimeError, NotImplementedError, TypeError) as fault:  # someone uses a weight past its module
        log.debug("packed weights fail: %s", fault)
        same = False
    if not same:
        log.info("linear layers stay as they are: packed, the model would not compute the same")
        for module in packed:
            _unpack(module, kept.get(module))
        return 0
    log.info("%d of %d linear layers are packed", len(packed), len(linears))
    return len(packed)


def _pack(module: nn.Linear, kernels: LinearKernels | None) -> bool:
    if module.weight.dtype != torch.bfloat16 or module.weight.layout != torch.strided or module._forward_hooks:
        return False
    native = kernels is not None and kernels.serves(module, integers=False)
    if not native and not available():
        return False
    rows = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).to(module.weight.dtype)
    original: Any = module.weight
    with torch.no_grad():
        plain = module(rows)
        if native and kernels is not None:
            NativeLinear.turn(module, kernels)
        else:
            PackedLinear.turn(module)
        same = bool((module(rows).float() - plain.float()).norm() <= TOLERANCE * plain.float().norm())
    if not same:
        _unpack(module, original)
    return same


def _unpack(module: Any, original: nn.Parameter | None) -> None:
    dense = original if original is not None else nn.Parameter(module.dense(), requires_grad=False)
    module.__class__ = nn.Linear
    module.weight = dense


def _shared(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that more than one module holds."""
    holders = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, count in holders.items() if count > 1}


def _logits(loaded: LoadedModel) -> torch.Tensor:
    model: Any = loaded.model
    tokens = torch.tensor([probe_tokens(loaded.config, loaded.vocab_size)])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits.float()
    return logits

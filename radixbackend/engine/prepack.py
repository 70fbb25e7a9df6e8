"""Linear layers in oneDNN's own weight layout: about twice as fast at decoding in bfloat16 on a CPU, bit for bit equal.

Rules. Only plain ``nn.Linear`` modules are touched, each is compared with its original on random rows before it
changes, and the whole model once more after; where anything differs or fails, all of it is undone. A packed weight
replaces the dense one; only a weight that another module shares (tied embeddings) then exists twice. Knows nothing of
plans, slots or attention. The layout is the one torch's inductor uses for frozen CPU graphs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.probe import probe_tokens

log = logging.getLogger(__name__)


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` whose weight is opaque to everything but oneDNN; `prepack` makes it from one."""

    product: Callable[..., torch.Tensor]  # looked up once: as long as a small product takes, it takes to find it

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() == 0:
            return input.new_empty(*input.shape[:-1], self.out_features)
        out: torch.Tensor = self.product(input, self.weight, self.bias, "none", [], "")
        return out


def available() -> bool:
    """Whether this torch and this CPU can do it."""
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    return all(hasattr(torch.ops.mkldnn, name) for name in names) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepack(loaded: LoadedModel) -> int:
    """Pack the linear layers of a bfloat16 model on a CPU and return how many; 0 leaves the model as it was."""
    if loaded.device.type != "cpu" or loaded.dtype != torch.bfloat16 or not available():
        return 0
    before = _logits(loaded)
    linears = [module for module in loaded.model.modules() if type(module) is nn.Linear]
    shared = _shared(loaded.model)
    kept: dict[nn.Linear, Any] = {module: module.weight for module in linears if module.weight in shared}
    packed = [module for module in linears if _pack(module)]
    try:
        same = bool((_logits(loaded) - before).norm() <= 1e-2 * before.norm())
    except (RuntimeError, NotImplementedError, TypeError) as fault:  # someone uses a weight past its module
        log.debug("prepacked weights are left out: %s", fault)
        same = False
    if not same:
        for module in packed:
            _unpack(module, kept.get(module))
        return 0
    return len(packed)


def _pack(module: Any) -> bool:
    weight = module.weight
    if weight.dtype != torch.bfloat16 or weight.layout != torch.strided or module._forward_hooks:
        return False
    rows = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        plain = module(rows)
        if not torch.equal(torch.ops.mkldnn._linear_pointwise(rows, packed, module.bias, "none", [], ""), plain):
            return False
    module.__class__ = PackedLinear
    module.product = torch.ops.mkldnn._linear_pointwise.default
    module.weight = nn.Parameter(packed, requires_grad=False)
    return True


def _unpack(module: nn.Linear, original: nn.Parameter | None) -> None:
    module.__class__ = nn.Linear
    module.weight = original if original is not None else nn.Parameter(module.weight.to_dense(), requires_grad=False)


def _shared(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that more than one module holds."""
    holders = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, count in holders.items() if count > 1}


def _logits(loaded: LoadedModel) -> torch.Tensor:
    model: Any = loaded.model
    tokens = torch.tensor([probe_tokens(loaded.config, loaded.vocab_size)])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits

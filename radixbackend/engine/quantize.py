"""Linear layers in 8-bit integers on a CPU: half the memory to read, twice the products in a cycle.

Rules. A weight has one scale for each output; an input has one for each row, found as it comes, so what a request gets
does not depend on whom it shares a batch with (one scale for the whole batch, as PyTorch's dynamic quantization has it,
would). Products are summed in 32-bit integers, exactly; a row that is not finite stays so. Norms, attention, embeddings
and the KV pool keep the model's type. The answers are not the model's own any more: it is for who asks for it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from radixbackend.config import INT8
from radixbackend.engine.linear import LinearKernels, NativeLinear
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.rounding import LARGEST, MIDDLE, SMALLEST, Rounding, TorchRounding, choose_rounding
from radixbackend.errors import ConfigError

log = logging.getLogger(__name__)


class Int8Linear(nn.Linear):
    """An ``nn.Linear`` in oneDNN's integers, where the project's own kernels do not serve."""

    scales: torch.Tensor
    zeros: torch.Tensor
    rounding: Rounding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        shape = (*input.shape[:-1], self.out_features)
        if input.numel() == 0:
            return input.new_empty(shape)
        integers, scales = self.rounding.to_integers(input.reshape(-1, self.in_features))
        sums = torch.ops.onednn.qlinear_pointwise(
            integers,
            1.0,
            MIDDLE,
            self.weight,
            self.scales,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return self.rounding.from_integers(sums, scales, self.bias, input.dtype).view(shape)


def quantize(loaded: LoadedModel, kernels: LinearKernels | None) -> int:
    """Turn the plain linear layers of a model into integers and return how many.

    Layers whose sums would not be exact stay as they are. Raises `ConfigError` where the model does not lie on a CPU or
    there is nothing to turn.
    """
    if loaded.device.type != "cpu":
        raise ConfigError(f"quantization={INT8!r} runs on a CPU, not on {loaded.device.type}; leave it out there")
    linears = [module for module in loaded.model.modules() if type(module) is nn.Linear]
    if not linears:
        raise ConfigError(f"quantization={INT8!r} finds no linear layers in {loaded.name!r}; leave it out")
    native = [] if kernels is None else [module for module in linears if kernels.serves(module, integers=True)]
    others = [module for module in linears if module not in native]
    if others and not sums_exactly():
        if not native:
            raise ConfigError(
                f"quantization={INT8!r} needs gcc on this machine (apt install gcc): what torch has for this processor "
                "does not sum 8-bit products exactly; or leave it out"
            )
        log.info(
            "%d of %d linear layers are not turned into integers: their sums would not be exact",
            *map(len, (others, linears)),
        )
        others = []
    if kernels is not None:
        for module in native:
            NativeLinear.turn(module, kernels, integers=True)
    rounding, plain = choose_rounding() if others else None, TorchRounding()
    for module in others:
        serves = rounding is not None and rounding.serves(module.in_features, module.out_features, module.weight.dtype)
        _quantize(module, rounding if rounding is not None and serves else plain)
    return len(native) + len(others)


def sums_exactly() -> bool:
    """Whether torch has oneDNN's products of 8-bit integers, and they are exact here.

    Processors without an instruction for four of them (VNNI) add two in 16 bits, which may be too few: tried out, since
    nothing tells which way oneDNN takes.
    """
    if not all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise")):
        return False
    layer = nn.Linear(64, 16, bias=False).requires_grad_(False)
    layer.weight.fill_(LARGEST)
    _quantize(layer, TorchRounding())
    rows = torch.full((1, 64), float(LARGEST))
    return bool((layer(rows) == LARGEST * LARGEST * 64).all())


@torch.no_grad()
def _quantize(module: Any, rounding: Rounding) -> None:
    weight = module.weight.detach().float()
    scales = (weight.abs().amax(1) / LARGEST).clamp_min_(SMALLEST)
    integers = (weight / scales[:, None]).round_().to(torch.int8)
    module.__class__ = Int8Linear
    module.rounding = rounding
    module.weight = nn.Parameter(torch.ops.onednn.qlinear_prepack(integers, None), requires_grad=False)
    module.register_buffer("scales", scales, persistent=False)
    module.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64), persistent=False)

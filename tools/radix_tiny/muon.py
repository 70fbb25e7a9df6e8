"""The optimizer of matrices: Muon (Jordan 2024), whose updates are made orthogonal by a Newton-Schulz iteration.

torch has one that iterates in bfloat16, which takes a CPU that only emulates it longer than the whole model; this one
takes the type that is fast, see `fast_type`, and is otherwise the same: Nesterov momentum, and steps as large as
AdamW's in the root mean square (arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tools.radix_tiny.model import fast_type

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For matrices alone; ``lr`` is as for AdamW."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly what is left of it when all its singular values are 1."""
    a, b, c = COEFFICIENTS
    wide = matrix.to(fast_type(matrix.device))
    wide = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)

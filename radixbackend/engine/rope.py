"""How long a context a model computes exactly, and how to have a longer one.

Rules. Most rotary embeddings depend on a token's position alone. LongRoPE switches all its factors when the longest
sequence of a batch passes a length: then batch-mates would change each other's output, and cached keys would carry
other factors than new ones. So the context ends where the switch is, unless a longer one was asked for: then the
factors for long contexts hold for every sequence, from its first token. Dynamic NTK scaling has new factors for every
length beyond its limit and is not served beyond it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)

UNLIMITED_CONTEXT = 1 << 20
"""Context of a model whose configuration names no limit (recurrent ones, ALiBi)."""

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")

Rotary = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def context_limit(model: Any, config: Any, wanted: int | None) -> int:
    """The longest sequence the model computes exactly; for more, LongRoPE is pinned to its factors for more."""
    known = [getattr(config, field, None) for field in CONTEXT_FIELDS]
    limit = next((value for value in known if isinstance(value, int) and value > 0), UNLIMITED_CONTEXT)
    switch = _switch(config)
    if switch is None or switch >= limit:
        return limit
    if wanted is None or wanted <= switch:
        return switch
    pin_long_factors(model, switch)
    log.info("LongRoPE is pinned to its factors for contexts above %d, in shorter sequences too", switch)
    return limit


def pin_long_factors(model: Any, switch: int) -> None:
    """Let every rotary embedding see one position past ``switch``, whose row is dropped from what it returns."""
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = functools.partial(_past, module.forward, switch)


def _past(
    forward: Rotary, switch: int, x: torch.Tensor, position_ids: torch.Tensor, *rest: Any, **named: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    beyond = position_ids.new_full((*position_ids.shape[:-1], 1), switch)
    cos, sin = forward(x, torch.cat((position_ids, beyond), -1), *rest, **named)
    return cos[..., :-1, :], sin[..., :-1, :]


def _switch(config: Any) -> int | None:
    """The length above which LongRoPE changes its factors; None where there is no LongRoPE."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return None
    for rope in (parameters, *(part for part in parameters.values() if isinstance(part, dict))):
        if rope.get("rope_type", rope.get("type")) == "longrope":
            named = rope.get("original_max_position_embeddings")
            return named or getattr(config, "original_max_position_embeddings", None)
    return None

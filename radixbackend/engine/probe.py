"""What a model's attention calls look like, learnt from one tiny forward and not from its name.

Rules. The forward runs with a recording attention function and a recording mask function in place of real ones. The
first notes shapes, scaling, soft cap and sinks of every call; the second hands each call a mask whose *value* names
the mask function that the model built, so that a layer's window is read from the very function that the plain model
masks with, however large it is. Anything a paged kernel could not reproduce raises `UnsupportedModelError` here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from radixbackend.engine.attention.base import AttentionLayer
from radixbackend.errors import UnsupportedModelError

PROBE_TOKENS = 4
MASK_REACH = 1 << 17
"""Windows are looked for up to this many positions back; beyond, a layer counts as seeing everything."""

MASK_SAMPLES = (0, 1, 7, 100, 4095, 4096, 5000, 65535, MASK_REACH - 3)
"""Positions at which a mask is compared with what was concluded from it."""

HARMLESS_KWARGS = frozenset({"position_ids", "position_embeddings", "cache_position", "attention_mask"})
"""Tensors that models pass along to attention although every kernel ignores them."""

KEY_VALUE_KINDS = frozenset({"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"})
"""Layers of a transformers cache that hold keys and values, or nothing."""

STATE_KINDS = "LinearAttention"
"""How the names of those begin that hold a state."""

Reach = tuple[int | None, int | None]
"""Window and chunk, as in `AttentionLayer`."""

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class AttentionCalls:
    """The attention calls of one forward, in order, and the modules that make them."""

    layers: tuple[AttentionLayer, ...]
    modules: tuple[nn.Module, ...]


def register_attention(name: str, attention: Callable[..., Any], mask: Callable[..., Any] | None = None) -> None:
    """Make an attention function known to transformers, without a mask builder unless one is given."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attention)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)


def unregister_attention(name: str) -> None:
    """Take it back; transformers has no call for this, hence the private table."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface._global_mapping.pop(name, None)
    AttentionMaskInterface._global_mapping.pop(name, None)


def text_part(model: Any) -> Any:
    """The module whose attention serves text: of a model with a vision part its decoder, else all of it.

    Switch attention on it alone: towers keep theirs.
    """
    config = model.config
    apart = getattr(config, "vision_config", None) is not None and config.get_text_config(decoder=True) is not config
    return model.get_decoder() if apart else model


class AttentionProbe:
    """Records one forward; `layers` then says what it saw."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._masks: list[MaskFunction] = []

    def attention(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """In place of an attention function: ``[1, heads, T, dim]`` in, zeros ``[1, T, heads, dim]`` out."""
        self._calls.append(_Call(module, query, key, value, self._named(attention_mask), scaling, kwargs))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    def mask(self, *_: Any, mask_function: MaskFunction, device: torch.device | None = None, **__: Any) -> torch.Tensor:
        """In place of a mask builder: a mask filled with the number of its function, from 1."""
        self._masks.append(mask_function)
        return torch.full((1, 1, PROBE_TOKENS, PROBE_TOKENS), float(len(self._masks)), device=device)

    def _named(self, mask: torch.Tensor | None) -> int | None:
        """Which mask function a call's mask came from."""
        if mask is None:
            return None
        number = float(mask.flatten()[0])
        if not bool((mask == number).all()) or number not in range(1, len(self._masks) + 1):
            raise UnsupportedModelError("it changes its attention mask by what the tokens are")
        return int(number) - 1

    def run(self, model: Any, name: str, tokens: list[int]) -> AttentionCalls:
        """One forward over a few tokens, after which the model's attention is ``name``.

        Raises `UnsupportedModelError`.
        """
        part = text_part(model)
        if not part._can_set_attn_implementation():
            raise UnsupportedModelError("its attention does not go through transformers' attention interface")
        device = next(model.parameters()).device
        ids = torch.tensor([tokens[:PROBE_TOKENS]], device=device)
        register_attention(name, self.attention, self.mask)
        try:
            with torch.inference_mode():
                part.set_attn_implementation(name)
                model(input_ids=ids, position_ids=torch.arange(ids.shape[1], device=device)[None], use_cache=False)
        finally:
            unregister_attention(name)
        if not self._calls:
            raise UnsupportedModelError("its attention does not go through transformers' attention interface")
        reaches = [_reach(function, device) for function in self._masks]
        layers: list[AttentionLayer] = []
        for call in self._calls:
            layers.append(self._layer(call, layers, reaches))
        return AttentionCalls(tuple(layers), tuple(call.module for call in self._calls))

    def _layer(self, call: _Call, before: list[AttentionLayer], reaches: list[Reach]) -> AttentionLayer:
        call.refuse_extras()
        index = len(before)
        twin = next((i for i in range(index) if self._calls[i].shares(call)), None)
        window, chunk = call.configured() if call.mask is None else reaches[call.mask]
        if call.query.shape[0] != 1 or call.query.shape[2] != PROBE_TOKENS or call.key.shape[2] != PROBE_TOKENS:
            raise UnsupportedModelError(f"attention call {index} is not over the tokens of the input")
        return AttentionLayer(
            index=index,
            storage=sum(layer.writes for layer in before) if twin is None else before[twin].storage,
            heads=call.query.shape[1],
            kv_heads=call.key.shape[1],
            key_dim=call.key.shape[3],
            value_dim=call.value.shape[3],
            dtype=call.key.dtype,
            scaling=call.query.shape[3] ** -0.5 if call.scaling is None else float(call.scaling),
            window=window,
            chunk=chunk,
            softcap=call.kwargs.get("softcap"),
            sinks=call.kwargs.get("s_aux") is not None,
            writes=twin is None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: int | None
    scaling: float | None
    kwargs: dict[str, Any]

    def shares(self, later: _Call) -> bool:
        """Whether a later call attends to the very tensors of this one (layers that share K/V)."""
        return all(
            mine.data_ptr() == its.data_ptr() and mine.shape == its.shape and mine.stride() == its.stride()
            for mine, its in ((self.key, later.key), (self.value, later.value))
        )

    def refuse_extras(self) -> None:
        for name, extra in self.kwargs.items():
            if isinstance(extra, torch.Tensor) and name not in HARMLESS_KWARGS and name != "s_aux":
                raise UnsupportedModelError(f"its attention takes {name!r}, which no paged kernel here understands")
        causal = self.kwargs.get("is_causal") is not False and getattr(self.module, "is_causal", True)
        if self.mask is None and not causal:  # a mask says it better
            raise UnsupportedModelError(f"{type(self.module).__name__} is not causal")

    def configured(self) -> Reach:
        """Window and chunk of a call that was given no mask: from its arguments and its module's configuration."""
        if "sliding_window" in self.kwargs:
            return self.kwargs["sliding_window"], None
        config = getattr(self.module, "config", None)
        kinds = getattr(config, "layer_types", None)
        index = getattr(self.module, "layer_idx", None)
        kind = kinds[index] if kinds and index is not None and index < len(kinds) else "sliding_attention"
        if kind == "chunked_attention":
            return None, getattr(config, "attention_chunk_size", None)
        return (getattr(config, "sliding_window", None) if kind == "sliding_attention" else None), None


def _reach(function: MaskFunction, device: torch.device) -> Reach:
    """Window and chunk of a mask function, found by asking it; anything but causal, window or chunk is refused."""

    def seen(position: int) -> torch.Tensor:
        """Which of the keys ``0 … position + 1`` the query at ``position`` sees."""
        zero, query = torch.tensor(0, device=device), torch.tensor(position, device=device)
        keys = torch.arange(position + 2, device=device)
        return torch.broadcast_to(function(zero, zero, query, keys), keys.shape)

    def first(position: int) -> int:
        return int(seen(position).int().argmax())

    last = MASK_REACH - 1
    window = chunk = None
    if first(last) > 0:
        # A window moves with the query, a chunk does not: its size is the distance to the start of the one before.
        if first(last) == first(last - 1) + 1:
            window = last - first(last) + 1
        else:
            chunk = first(last) - first(first(last) - 1)
    for position in MASK_SAMPLES:
        keys = torch.arange(position + 2, device=device)
        expected = (keys <= position) & (keys > position - (window or MASK_REACH))
        if chunk is not None:
            expected &= keys >= position // chunk * chunk
        if not torch.equal(seen(position), expected):
            raise UnsupportedModelError("its attention mask is neither causal, a sliding window nor chunks")
    return window, chunk


def special_tokens(config: Any) -> list[int]:
    """Tokens that the configuration gives a meaning of their own (padding, ends, images)."""
    fields = {**config.to_dict(), "pad_token_id": getattr(config, "pad_token_id", None)}
    return [v for k, v in fields.items() if k.endswith(("_token_id", "_token_index")) and isinstance(v, int)]


def probe_tokens(config: Any, vocab_size: int) -> list[int]:
    """`PROBE_TOKENS` ordinary tokens, from the middle of the vocabulary."""
    special = set(special_tokens(config))
    return [token for token in range(vocab_size // 3, vocab_size) if token not in special][:PROBE_TOKENS]


def has_states(config: Any) -> bool:
    """Whether transformers caches a state for some layer (recurrent, convolutional) instead of keys and values."""
    return any(kind.startswith(STATE_KINDS) for kind in _cache_kinds(config))


def refuse_unknown_caches(config: Any) -> None:
    """Raise `UnsupportedModelError` for layers that cache what none of our paths keeps or checks.

    Such are index keys and compressed contexts of sparse attention: they begin to matter at lengths far beyond those
    of the self-check.
    """
    for kind in _cache_kinds(config):
        if kind not in KEY_VALUE_KINDS and not kind.startswith(STATE_KINDS):
            raise UnsupportedModelError(f"it caches more than keys and values ({kind})")


def _cache_kinds(config: Any) -> set[str]:
    from transformers import DynamicCache

    return {type(layer).__name__ for layer in DynamicCache(config=config).layers}


def takes_index(model: Any) -> bool:
    """Whether the model computes logits of chosen rows only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters

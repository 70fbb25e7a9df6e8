"""Decoder layers in fewer and larger operators: the same arithmetic in less than half of the calls.

Rules. A layer is known by its parts, never by its name: two norms, ``self_attn`` with query, key, value and output
projections, ``mlp``. Its fused twin runs beside it on the hidden states of a probe, at several row counts, and takes
its place only if it gives the same numbers; a merged product may round the last bit otherwise (`TOLERANCE`), nothing
else may. Layers that have other parts or differ stay as they were. Queries, keys and values are one product, gate and
up another; their separate weights are given up, so a model takes no more memory than before. Knows nothing of plans,
slots or attention kernels.

Measured on two CPU cores, a Llama of 60 million parameters in bfloat16: a tenth to a quarter more tokens per second.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from radixbackend.engine.elementwise import RMSNorm, TorchOps, choose_ops, is_silu
from radixbackend.engine.halves import Angles, Halves
from radixbackend.engine.linear import LinearKernels
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.probe import probe_tokens, register_attention, text_part, unregister_attention
from radixbackend.engine.stack import Stack

log = logging.getLogger(__name__)

PROBE_LENGTHS = (1, 7, 40)
"""Rows of the forwards in which a layer and its twin are compared: kernels choose their way by the number of rows."""

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2e-3, torch.float16: 5e-4}
"""``|Δ| / |layer's output|`` up to which two results differ by summation order alone: up to half of the step of a type
of 16 bits; in float32 twice what two orders of 14,336 terms make, 2e-6. A library may choose another order for a merged
product, GPUs' do, and our norms have one of their own."""

_PROBING = "radixbackend_fuse"

_MISFITS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What a forward raises that is given what it was not made for."""


def fuse(loaded: LoadedModel) -> list[FusedLayer]:
    """Put fused twins in the place of the layers that they equal and return them; none leaves the model as it was."""
    text = text_part(loaded.model)
    layers = [module for module in text.modules() if FusedLayer.fits(module)]
    if not layers or loaded.dtype not in TOLERANCE or not text._can_set_attn_implementation():
        return []
    ops = choose_ops(loaded.device)
    fused: list[FusedLayer] = []
    with torch.no_grad(), _recording(text, layers) as notes:
        try:
            _probe(loaded)
        except _MISFITS as fault:  # whether such a model can be served is for others to find out
            log.info("no layers are fused: %s", fault)
            return []
        chained = _is_chain([notes.runs.get(layer, []) for layer in layers])
        for layer in layers:  # one after the other: a twin's weights are copies until the layer's own are given up
            runs = notes.runs.pop(layer, [])
            if layer.self_attn in notes.masked:
                continue
            handed_on = runs[0].keywords if runs else {}
            told = {k: v for k, v in notes.told.get(layer.self_attn, {}).items() if k not in handed_on}
            twin = FusedLayer(layer, told, ops)
            if _equal(twin, runs, TOLERANCE[loaded.dtype]):
                twin.take_over()
                fused.append(twin)
    log.info("%d of %d decoder layers are fused", len(fused), len(layers))
    if chained and len(fused) == len(layers):
        for index, twin in enumerate(fused):
            twin.index = index
    if fused:
        with torch.no_grad():
            _replace_norms(text, layers, ops, TOLERANCE[loaded.dtype])
    return fused


def _replace_norms(text: nn.Module, layers: Sequence[Any], ops: TorchOps, tolerance: float) -> None:
    """Norms of the layers' kind that stand outside of layers, as the last one does, are computed as theirs are."""
    inside = {module for layer in layers for module in layer.modules()}
    for module in text.modules():
        if module in inside or type(module) is not type(layers[0].input_layernorm) or not RMSNorm.fits(module):
            continue
        norm = RMSNorm(module)
        rows = torch.randn(3, *norm.shape, generator=torch.Generator().manual_seed(0)).to(norm.weight)
        plain: torch.Tensor = module(rows)
        if (ops.norm(rows, norm) - plain).float().norm() <= tolerance * plain.float().norm():
            module.forward = partial(ops.norm, norm=norm)


def join(layers: Sequence[FusedLayer], kernels: LinearKernels | None) -> int:
    """Let each layer's halves be one call where they can and give the same bits; return how many layers do so.

    Where all layers do and are a chain, they become a `Stack`.
    """
    if kernels is None:
        return 0
    with torch.no_grad():
        joined = sum(layer.join(kernels) for layer in layers)
    log.info("%d of %d fused layers are two calls around attention", joined, len(layers))
    halves = [layer.halves for layer in layers if layer.halves is not None and layer.index is not None]
    if halves and len(halves) == len(layers):
        stack = Stack(kernels, halves, [layer.attention for layer in layers])
        for layer in layers:
            layer.stack = stack
    return joined


def _is_chain(runs: Sequence[Sequence[_Run]]) -> bool:
    """Whether each layer was given what the one before made, untouched, and all of them the same angles."""
    if not all(len(its) == len(runs[0]) for its in runs):
        return False
    for forward in zip(*runs, strict=True):
        angles = forward[0].keywords.get("position_embeddings")
        if angles is None or any(run.keywords.get("position_embeddings") is not angles for run in forward):
            return False
        if any(not run.arguments or run.arguments[0] is not before.output for before, run in pairwise(forward)):
            return False
    return True


def _probe(loaded: LoadedModel) -> None:
    tokens = probe_tokens(loaded.config, loaded.vocab_size)
    for length in PROBE_LENGTHS:
        ids = torch.tensor([(tokens * length)[:length]], device=loaded.device)
        # Spread over the whole context: some models scale their queries from some position on.
        positions = torch.linspace(0, loaded.max_context - 1, length + 1, device=loaded.device)[1:].long()
        loaded.model(input_ids=ids, position_ids=positions[None], use_cache=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What a layer was given, and what it made of it."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


@dataclass(frozen=True, slots=True, eq=False)
class _Notes:
    """What each layer was given and gave, what each attention module tells its attention function, and which mask."""

    runs: dict[nn.Module, list[_Run]]
    told: dict[nn.Module, dict[str, Any]]
    masked: set[nn.Module]


@contextmanager
def _recording(text: Any, layers: Sequence[nn.Module]) -> Iterator[_Notes]:
    notes = _Notes({}, {}, set())

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **told: Any,
    ) -> tuple[torch.Tensor, None]:
        notes.told.setdefault(module, told)
        if attention_mask is not None:  # nobody here made it, so the module did, and a twin would not
            notes.masked.add(module)
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=told.get("scaling"), enable_gqa=grouped
        )
        return out.transpose(1, 2).contiguous(), None

    def note(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        notes.runs.setdefault(layer, []).append(_Run(arguments, keywords, output))

    original = text.config._attn_implementation
    register_attention(_PROBING, attention)
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        text.set_attn_implementation(_PROBING)
        yield notes
    finally:
        text.set_attn_implementation(original)
        unregister_attention(_PROBING)
        for hook in hooks:
            hook.remove()


def _equal(twin: FusedLayer, runs: Sequence[_Run], tolerance: float) -> bool:
    if not runs or any(isinstance(told, torch.Tensor) for told in twin.told.values()):
        return False
    for run in runs:
        try:
            output = twin.forward(*run.arguments, **run.keywords)
        except _MISFITS as fault:
            log.debug("a layer stays as it is: %s", fault)
            return False
        if not isinstance(run.output, torch.Tensor) or output.shape != run.output.shape:
            return False
        error = (output.float() - run.output.float()).norm()
        if not bool(error <= tolerance * run.output.float().norm()):
            log.debug("a layer stays as it is: its twin is off by %.1e", error / run.output.float().norm())
            return False
    return True


class FusedLayer:
    """A pre-norm decoder layer's twin; `take_over` puts it in that one's place.

    Args:
        layer: one that `fits`.
        told: what its attention module tells its attention function, beside the tensors.
        ops: what computes all that lies between its products.
    """

    def __init__(self, layer: Any, told: dict[str, Any], ops: TorchOps) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.attention, self.mlp, self.told, self.ops = layer, attention, mlp, told, ops
        self.functions: Any = ALL_ATTENTION_FUNCTIONS
        # Plain attention has no entry in transformers' table: each family has one of its own.
        self.eager = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
        self.before_attention, self.before_mlp = RMSNorm(layer.input_layernorm), RMSNorm(layer.post_attention_layernorm)
        self.qkv = _merged(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = attention.o_proj
        self.head_dim = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.head_dim
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.head_norm = _HeadNorm.of(attention, self.heads, self.kv_heads)
        self.gate_up: nn.Linear | None = None
        if _is_gated(mlp):
            self.gate_up, self.down, self.activation = _merged(mlp.gate_proj, mlp.up_proj), mlp.down_proj, mlp.act_fn
            self.silu = is_silu(mlp.act_fn)
        self.halves: Halves | None = None
        self.index: int | None = None  # in a chain of all layers, if they are one
        self.stack: Stack | None = None

    @staticmethod
    def fits(module: Any) -> bool:
        """Whether a module has the parts of such a layer."""
        attention = getattr(module, "self_attn", None)
        norms = (getattr(module, "input_layernorm", None), getattr(module, "post_attention_layernorm", None))
        projections = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        return (
            hasattr(module, "mlp")
            and all(RMSNorm.fits(norm) for norm in norms)
            and all(type(projection) is nn.Linear for projection in projections)
            and isinstance(getattr(attention, "head_dim", None), int)
            and _can_merge(projections[:3])
        )

    def take_over(self) -> None:
        """From now on the layer's forward is this one, and the weights that were merged exist once."""
        self.attention.qkv_proj = self.qkv
        for name in ("q_proj", "k_proj", "v_proj"):
            delattr(self.attention, name)
        if self.gate_up is not None:
            self.mlp.gate_up_proj = self.gate_up
            for name in ("gate_proj", "up_proj"):
                delattr(self.mlp, name)
        self.layer.forward = self.forward

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the layer's own: ``[batch, T, hidden]`` in and out. Newer versions call ``past_key_values`` ``cache``."""
        if position_embeddings is None:
            raise TypeError("a layer without rotary embeddings")
        cache = past_key_values if cache is None else cache
        rows = hidden_states.shape[:-1]
        attend: Any = self.functions.get(self.attention.config._attn_implementation, self.eager)
        if self.stack is not None and self.index is not None and cache is None:
            through = self.stack.forward(self.index, hidden_states, position_embeddings, attend)
            if through is not None:
                return through
        before, after, packed = self._before, self._after, None
        if self.halves is not None and self.halves.take(hidden_states, position_embeddings):
            before, after, packed = self.halves.before, self.halves.after, getattr(attend, "packed", None)
        turned, value = before(hidden_states, position_embeddings)
        if packed is not None and cache is None and len(hidden_states) == 1:
            query, key = turned[0, :, : self.heads], turned[0, :, self.heads :]
            return after(hidden_states, packed(self.attention, query, key, value[0], self.told))
        query = turned[..., : self.heads, :].transpose(1, 2)
        key = turned[..., self.heads :, :].transpose(1, 2)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.attention.layer_idx)
        out, _ = attend(self.attention, query, key, value, attention_mask, **{**kwargs, **self.told})
        return after(hidden_states, out.reshape(*rows, -1))

    def join(self, kernels: LinearKernels) -> bool:
        """Have both halves in one call each, if they give the same bits."""
        if self.gate_up is None or not self.silu or type(self.ops) is TorchOps:
            return False
        products: Any = (self.qkv, self.output, self.gate_up, self.down)
        norms, heads = (self.before_attention, self.before_mlp), self.head_norm
        weights = tuple(norm.weight for norm in (*norms, heads) if norm is not None)
        if self.output.in_features != self.heads * self.head_dim or not Halves.fit(products, weights, self.head_dim):
            return False
        halves = Halves(kernels, products, norms, heads, self.heads + self.kv_heads, self.head_dim)
        for rows in PROBE_LENGTHS:
            draw = torch.Generator().manual_seed(rows)
            hidden, attended, cos, sin = (
                torch.randn(1, rows, size, generator=draw).to(weights[0].dtype)
                for size in (self.qkv.in_features, self.output.in_features, self.head_dim, self.head_dim)
            )
            pairs = zip(halves.before(hidden, (cos, sin)), self._before(hidden, (cos, sin)), strict=True)
            same = [torch.equal(one, other) for one, other in pairs]
            if not all(same) or not torch.equal(halves.after(hidden, attended), self._after(hidden, attended)):
                log.debug("a layer's halves stay in steps")
                return False
        self.halves = halves
        return True

    def _before(self, hidden: torch.Tensor, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated query and key heads side by side, and value heads: ``[batch, T, heads, head_dim]`` each."""
        mixed = self.qkv(self.ops.norm(hidden, self.before_attention)).view(*hidden.shape[:-1], -1, self.head_dim)
        turned, value = mixed[..., : self.heads + self.kv_heads, :], mixed[..., self.heads + self.kv_heads :, :]
        if self.head_norm is not None:
            turned = self.ops.norm(turned, self.head_norm)
        return self.ops.rotate(turned, *angles), value

    def _after(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output, from its input and what its heads have attended to."""
        hidden, normed = self.ops.add_norm(hidden, self.output(attended), self.before_mlp)
        if self.gate_up is None:
            fed = self.mlp(normed)
        else:
            pairs = self.gate_up(normed)
            fed = self.down(self.ops.silu_gate(pairs) if self.silu else self.ops.gate(pairs, self.activation))
        output: torch.Tensor = hidden + fed
        return output


class _HeadNorm(RMSNorm):
    """Query and key norms of each head, at once, by a weight ``[heads, head_dim]``."""

    __slots__ = ()

    def __init__(self, query: Any, key: Any, heads: int, kv_heads: int) -> None:
        super().__init__(query)
        self.weight = torch.cat([query.weight.detach().expand(heads, -1), key.weight.detach().expand(kv_heads, -1)])

    @staticmethod
    def of(attention: Any, heads: int, kv_heads: int) -> _HeadNorm | None:
        query, key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        if query is None or key is None or not (RMSNorm.fits(query) and RMSNorm.fits(key)):
            return None
        if not query.weight.shape == key.weight.shape == (attention.head_dim,):
            return None
        return _HeadNorm(query, key, heads, kv_heads)


def _is_gated(mlp: Any) -> bool:
    linears = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return (
        all(type(x) is nn.Linear for x in linears)
        and callable(getattr(mlp, "act_fn", None))
        and _can_merge(linears[:2])
    )


def _can_merge(linears: Sequence[Any]) -> bool:
    first = linears[0]
    return all(
        type(x) is nn.Linear
        and x.in_features == first.in_features
        and x.weight.dtype == first.weight.dtype
        and x.weight.layout == torch.strided
        and not x._forward_hooks
        and (x.bias is None) == (first.bias is None)
        for x in linears
    )


def _merged(*linears: nn.Linear) -> nn.Linear:
    """One product for several of the same input, their outputs side by side."""
    with torch.device("meta"):
        merged = nn.Linear(linears[0].in_features, sum(x.out_features for x in linears), linears[0].bias is not None)
    with torch.no_grad():
        merged.weight = nn.Parameter(torch.cat([x.weight for x in linears]), requires_grad=False)
        if linears[0].bias is not None:
            merged.bias = nn.Parameter(torch.cat([x.bias for x in linears]), requires_grad=False)
    return merged

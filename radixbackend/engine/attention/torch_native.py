"""Attention in plain torch: CPU, MPS, anything.

Rules. A loop over sequences, since contexts differ; per step and kind of layer (full, window, chunk) the rows, keys
and mask of every sequence are worked out once and shared by all layers of the kind. Keys are read where they lie
when their slots run in order, gathered otherwise; a window is cut before it is gathered. Few queries (a decode, a
draft) go to SDPA with all query heads of one key head as its rows, so that keys are neither repeated nor read once
per head; one query needs no mask. Decodes of several sequences go together, see `grouped_decode`, unless keys are
stored in another type and converted as they are read. The softmax is spelled out only for what SDPA lacks, soft caps
and sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from radixbackend.engine.attention.base import AttentionBatch, AttentionLayer
from radixbackend.engine.attention.grouped_decode import DecodeGroup, GroupedDecode, make_groups
from radixbackend.engine.kv_store import KVStore, narrowed
from radixbackend.engine.plan import Blocks, IntArray

Kind = tuple[int | None, int | None, int, bool]

FEW_QUERIES = 16
"""Up to here packing the query heads of a key head into one matrix is faster than SDPA's own grouping (measured on
x86 in float32 and bfloat16: 1.5 to 10 times at 1 to 8 queries, even at 64)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What one sequence's queries see: rows of the packed tensors, and where the keys are."""

    rows: slice
    keys: slice | torch.Tensor | None  # of the store; None: the packed rows themselves, a prompt without context
    mask: torch.Tensor | None  # [q, keys] True where seen; None: everything, or the causal triangle
    packed_mask: torch.Tensor | None  # [group * q, keys] for few queries: `mask` once per query head
    causal: bool  # the triangle, for as many keys as queries
    few: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Reads:
    """A step in one kind of layer: what is attended together, and one by one."""

    groups: list[DecodeGroup]
    singles: list[_Read]


class TorchAttention:
    """See `AttentionBackend`."""

    name = "torch"
    head_major = True
    converts = True

    def __init__(self) -> None:
        self._store: KVStore | None = None
        self._grouped = GroupedDecode()
        self._batch: AttentionBatch | None = None
        self._write_slots: torch.Tensor | None = None
        self._reads: dict[Kind, _Reads] = {}

    def refuses(self, layer: AttentionLayer) -> str | None:
        return None

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        self._store = store
        self._grouped.clear()

    def begin(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._write_slots = None
        self._reads.clear()

    def end(self) -> None:
        self._batch = self._write_slots = None
        self._reads.clear()

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self._store is not None
        assert self._batch is not None
        keys, values = self._store.keys[layer.storage], self._store.values[layer.storage]
        if converts := layer.stored is not None:  # packed rows are read as everybody will read them from their slots
            key, value = narrowed(key, keys.dtype), narrowed(value, values.dtype)
        if layer.writes:
            if self._write_slots is None:
                self._write_slots = torch.from_numpy(self._batch.write_slots.astype(np.int64)).to(key.device)
            _movable(keys).index_copy_(0, self._write_slots, _movable(key))
            _movable(values).index_copy_(0, self._write_slots, _movable(value))
        explicit = layer.softcap is not None or sinks is not None
        kind = (layer.window, layer.chunk, layer.group, explicit)
        reads = self._reads.get(kind)
        if reads is None:
            grouped = not (explicit or converts)
            reads = self._reads[kind] = _reads(self._batch, layer, query.device, grouped=grouped)
        by_head = keys.transpose(0, 1), values.transpose(0, 1)
        if len(reads.groups) == 1 and len(reads.groups[0].rows) == len(query):
            return self._grouped.attend(layer, reads.groups[0], query, *by_head)
        outputs = []
        for read in reads.singles:
            rows = read.rows
            if read.keys is None:
                k, v = key[rows], value[rows]
            elif isinstance(read.keys, slice):
                k, v = keys[read.keys], values[read.keys]
            else:
                k, v = (_movable(x).index_select(1, read.keys).view(x.dtype).transpose(0, 1) for x in by_head)
            if converts:
                k, v = k.to(query.dtype), v.to(query.dtype)
            if explicit:
                outputs.append(_spelled_out(layer, query[rows], k, v, read, sinks))
            else:
                outputs.append(_sdpa(layer, query[rows], k, v, read))
        if not reads.groups:
            return outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs)
        out = query.new_empty(len(query), layer.heads, layer.value_dim)
        for read, output in zip(reads.singles, outputs, strict=True):
            out[read.rows] = output
        for group in reads.groups:
            out[group.rows] = self._grouped.attend(layer, group, query[group.rows], *by_head)
        return out


def _movable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or its bytes where torch moves no elements of the type on every device."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _reads(batch: AttentionBatch, layer: AttentionLayer, device: torch.device, *, grouped: bool) -> _Reads:
    groups: list[DecodeGroup] = []
    if grouped:
        alone = [i for i in range(len(batch.slots)) if batch.contexts[i] - batch.starts[i] == 1 and not batch.blocks]
        seen = [batch.slots[i][layer.first_key(int(batch.starts[i])) : batch.contexts[i]] for i in alone]
        groups = make_groups([int(batch.offsets[i]) for i in alone], seen, device)
    done = {row for group in groups for row in group.rows.tolist()}
    singles = [i for i in range(len(batch.slots)) if int(batch.offsets[i]) not in done]
    return _Reads(groups, [_read(batch, layer, i, device) for i in singles])


def _read(batch: AttentionBatch, layer: AttentionLayer, i: int, device: torch.device) -> _Read:
    start, context = int(batch.starts[i]), int(batch.contexts[i])
    blocks = batch.blocks[i] if batch.blocks else ()
    queries, first = context - start, min((layer.first_key(start), *(a for a, _ in blocks)))
    few = queries <= FEW_QUERIES
    triangle = first == start and layer.first_key(context - 1) <= first and not blocks
    mask = None
    if queries > 1 and (few or not triangle):
        mask = _mask(layer, start, context, first, blocks, device)
    return _Read(
        rows=slice(int(batch.offsets[i]), int(batch.offsets[i + 1])),
        keys=None if first == start else _lie(batch.slots[i][first:context], device),
        mask=mask,
        packed_mask=mask.repeat(layer.group, 1) if few and mask is not None else None,
        causal=triangle and not few,
        few=few,
    )


def _mask(
    layer: AttentionLayer, start: int, context: int, first: int, blocks: Blocks, device: torch.device
) -> torch.Tensor:
    queries = torch.arange(start, context, device=device)[:, None]
    keys = torch.arange(first, context, device=device)[None, :]
    mask = keys <= queries
    if layer.window is not None:
        mask &= keys > queries - layer.window
    if layer.chunk is not None:
        mask &= keys >= queries // layer.chunk * layer.chunk
    for low, high in blocks:
        mask |= (queries >= low) & (queries < high) & (keys >= low) & (keys < high)
    return mask


def _lie(slots: IntArray, device: torch.device) -> slice | torch.Tensor:
    """A slice when the slots run in order: a view instead of a copy, in every layer."""
    low, high = int(slots[0]), int(slots[-1])
    if high - low == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(low, high + 1)
    return torch.from_numpy(slots.copy()).to(device)


def _sdpa(layer: AttentionLayer, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, read: _Read) -> torch.Tensor:
    k, v = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
    if read.few:
        packed = _pack(layer, q).reshape(1, layer.kv_heads, -1, layer.key_dim)
        out = scaled_dot_product_attention(packed, k, v, attn_mask=read.packed_mask, scale=layer.scaling)
        return _unpack(layer, out.reshape(layer.kv_heads, layer.group, len(q), layer.value_dim))
    out = scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        k,
        v,
        attn_mask=read.mask,
        is_causal=read.causal,
        scale=layer.scaling,
        enable_gqa=layer.group > 1,
    )
    return out[0].transpose(0, 1)


def _spelled_out(
    layer: AttentionLayer,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    read: _Read,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax by hand, in float32: ``[kv_heads, group, q, keys]`` scores."""
    scores = (_pack(layer, q) @ k.permute(1, 2, 0).unsqueeze(1)).float() * layer.scaling
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    mask = read.mask
    if read.causal:
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        extra = sinks.float().view(layer.kv_heads, layer.group, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
    out = weights.to(v.dtype) @ v.transpose(0, 1).unsqueeze(1)
    return _unpack(layer, out)


def _pack(layer: AttentionLayer, q: torch.Tensor) -> torch.Tensor:
    """``[q, heads, dim]`` to ``[kv_heads, group, q, dim]``; of one query just a view."""
    if len(q) == 1:
        return q.reshape(layer.kv_heads, layer.group, 1, layer.key_dim)
    return q.reshape(-1, layer.kv_heads, layer.group, layer.key_dim).permute(1, 2, 0, 3)


def _unpack(layer: AttentionLayer, out: torch.Tensor) -> torch.Tensor:
    """``[kv_heads, group, q, dim]`` back to ``[q, heads, dim]``."""
    if out.shape[2] == 1:
        return out.reshape(1, layer.heads, layer.value_dim)
    return out.permute(2, 0, 1, 3).reshape(-1, layer.heads, layer.value_dim)

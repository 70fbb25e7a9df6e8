"""Attention on a CPU by two C kernels, one for decodes and one for prompt chunks; what neither takes is torch's.

Rules. A step is split once. Sequences of a few new tokens are rows, one for each token, and what a row gets depends on
its own keys alone, whatever the batch and the number of threads. Chunks are the other kernel's, where the processor and
the layers suit it; torch has the rest. Who takes which sequence is decided here; rows, tasks and sums are made in
`native/decode_attention.c` and `native/prefill_attention.c`, whose structures are mirrored below.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from radixbackend.engine.attention.base import AttentionBatch, AttentionLayer, Places
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.kv_store import KVStore
from radixbackend.engine.native.build import LANES, TYPES, load_kernels
from radixbackend.engine.plan import IntArray

FEW_QUERIES = 4
"""Up to here a sequence's new tokens are rows of their own; beyond, widening the keys once for all of them pays."""

Kind = tuple[int | None, int | None, int]


class _Layer(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        *((name, c_int64) for name in ("key_head", "key_slot", "value_head", "value_slot")),
        *((name, c_int32) for name in ("kv_heads", "group", "key_dim", "value_dim", "type")),
        ("scaling", c_float),
        ("softcap", c_float),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("rows", c_int32),
        ("runs", c_int32),
        *(
            (name, c_void_p)
            for name in ("slots", "first", "length", "packed", "base", "order_row", "order_run", "partial")
        ),
    )


class _Chunks(ctypes.Structure):
    _fields_ = (
        ("sequences", c_int32),
        ("tasks", c_int32),
        *(
            (name, c_void_p)
            for name in ("slots", "start", "length", "packed", "task_sequence", "task_query", "task_count")
        ),
        ("window", c_int32),
        ("chunk", c_int32),
    )


class _Tensors(ctypes.Structure):
    _fields_ = (
        *(
            (f"{name}_{what}" if what else name, kind)
            for name in ("query", "key", "value")
            for what, kind in (("", c_void_p), ("row", c_int64), ("head", c_int64))
        ),
        ("sinks", c_void_p),
        ("out", c_void_p),
    )


class _Rows:
    """The decode kernel's part of a step in one kind of layer; its memory is kept from step to step."""

    def __init__(self) -> None:
        self.batch = _Batch()
        self.room = np.empty(64, np.int64)  # what the batch points to, beside
        self.slots: list[IntArray] | None = None  # of this step, once it is filled in


@dataclass(frozen=True, slots=True, eq=False)
class _Prompts:
    """The prefill kernel's part of a step in one kind of layer."""

    chunks: _Chunks
    arrays: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """A step: which sequences are whose, and what is left for torch."""

    few: list[int]
    many: list[int]
    rest: AttentionBatch | None
    rest_rows: slice | torch.Tensor | None  # of the packed tensors


class NativeAttention:
    """See `AttentionBackend`. Raises `MissingDependencyError` where the kernels cannot be built."""

    name = "native"
    head_major = True

    def __init__(self) -> None:
        decode = load_kernels("decode_attention")
        self._decode, self._fill = decode.radix_decode, decode.radix_rows
        self._fill.argtypes = (*[c_void_p] * 5, *[c_int32] * 3, c_void_p, c_int64, c_void_p)
        self._fill.restype = c_int64
        prefill = load_kernels("prefill_attention")
        self._prefill, self._serves = prefill.radix_prefill, prefill.radix_prefill_serves
        self._queries = prefill.radix_prefill_queries
        self._decode.restype = self._prefill.restype = None
        self._decode_at, self._prefill_at = (_address(function) for function in (self._decode, self._prefill))
        self._torch = TorchAttention()
        self._layers: dict[int, _Layer] = {}
        self._takes_prompts = False
        self._plain = False  # no layer has sinks, or uses what another has written
        self._batch: AttentionBatch | None = None
        self._split: _Split | None = None
        self._rows: dict[Kind, _Rows] = {}
        self._prompts: dict[Kind, _Prompts] = {}
        self._partial = torch.empty(0)
        self._tensors = _Tensors()

    def refuses(self, layer: AttentionLayer) -> str | None:
        if layer.dtype not in TYPES:
            return f"the kernel knows no {layer.dtype}"
        if layer.key_dim % LANES or layer.value_dim % LANES:
            return f"heads of {layer.key_dim} and {layer.value_dim} are no multiples of {LANES}"
        return None

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        self._torch.bind(layers, store)
        self._layers = {layer.index: _layer(layer, store) for layer in layers}
        self._takes_prompts = all(self._serves(ctypes.byref(layer)) for layer in self._layers.values())
        self._plain = all(x.writes and not x.sinks and x.key_dim == x.value_dim for x in layers)
        self._partial = torch.empty(0)
        self._rows.clear()

    def begin(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._split = _split(batch, prompts=self._takes_prompts)
        if self._split.rest is not None:
            self._torch.begin(self._split.rest)

    def end(self) -> None:
        self._batch = self._split = None
        for rows in self._rows.values():
            rows.slots = None
        self._prompts.clear()
        self._torch.end()

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        split = self._split
        assert split is not None
        if not split.few and not split.many:
            return self._torch.attend(layer, query, key, value, sinks)
        out = query.new_empty(len(query), layer.heads, layer.value_dim)
        query, key, value = _in_rows(query), _in_rows(key), _in_rows(value)
        extra = None if sinks is None else sinks.float().contiguous()
        it = self._tensors
        it.query, it.query_row, it.query_head = query.data_ptr(), query.stride(0), query.stride(1)
        it.key, it.key_row, it.key_head = key.data_ptr() if layer.writes else None, key.stride(0), key.stride(1)
        it.value, it.value_row, it.value_head = value.data_ptr(), value.stride(0), value.stride(1)
        it.sinks = None if extra is None else extra.data_ptr()
        it.out = out.data_ptr()
        its, tensors = ctypes.byref(self._layers[layer.index]), ctypes.byref(it)
        if split.many:
            self._prefill(its, ctypes.byref(self._prompts_of(layer, split).chunks), tensors)
        if split.few:
            self._decode(its, ctypes.byref(self._rows_of(layer, split).batch), tensors)
        if split.rest_rows is not None:
            rows = split.rest_rows
            out[rows] = self._torch.attend(layer, query[rows], key[rows], value[rows], sinks)
        return out

    def places(self, layers: Sequence[AttentionLayer]) -> Places | None:
        """See `AttentionBackend`."""
        split = self._split
        if split is None or split.rest is not None or not self._plain:
            return None
        found = []
        for layer in layers:
            decodes = ctypes.addressof(self._rows_of(layer, split).batch) if split.few else None
            prompts = ctypes.addressof(self._prompts_of(layer, split).chunks) if split.many else None
            found.append((ctypes.addressof(self._layers[layer.index]), decodes, prompts))
        for rows in self._rows.values():  # a layer behind may have wanted more of it
            rows.batch.partial = self._partial.data_ptr()
        return Places(self._decode_at, self._prefill_at, tuple(found))

    def _rows_of(self, layer: AttentionLayer, split: _Split) -> _Rows:
        assert self._batch is not None
        kind = (layer.window, layer.chunk, layer.group)
        rows = self._rows.get(kind)
        if rows is None:
            rows = self._rows[kind] = _Rows()
        if rows.slots is None:
            self._fill_in(rows, self._batch, layer, split.few)
        size = layer.heads * rows.batch.runs * (layer.value_dim + LANES)
        if self._partial.numel() < size:
            self._partial = torch.empty(size + size // 4)
        rows.batch.partial = self._partial.data_ptr()
        return rows

    def _fill_in(self, rows: _Rows, batch: AttentionBatch, layer: AttentionLayer, sequences: list[int]) -> None:
        slots = _slots(batch, sequences)
        asked = (batch.starts, batch.contexts, batch.offsets, np.array(sequences, np.int32), _addresses(slots))
        whose, seen = [x.ctypes.data for x in asked], (layer.window or 0, layer.chunk or 0)
        while True:
            room = rows.room
            words = self._fill(*whose, len(sequences), *seen, room.ctypes.data, len(room), ctypes.byref(rows.batch))
            if words <= len(room):
                break
            rows.room = np.empty(2 * words, np.int64)
        rows.slots = slots

    def _prompts_of(self, layer: AttentionLayer, split: _Split) -> _Prompts:
        assert self._batch is not None
        kind = (layer.window, layer.chunk, layer.group)
        prompts = self._prompts.get(kind)
        if prompts is None:
            most = self._queries(ctypes.byref(self._layers[layer.index]))
            prompts = self._prompts[kind] = _prompts(self._batch, layer, split.many, most)
        return prompts


def _address(function: Any) -> int:
    return int(ctypes.cast(function, c_void_p).value or 0)


def _layer(layer: AttentionLayer, store: KVStore) -> _Layer:
    keys, values = store.keys[layer.storage], store.values[layer.storage]
    return _Layer(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        key_head=keys.stride(1),
        key_slot=keys.stride(0),
        value_head=values.stride(1),
        value_slot=values.stride(0),
        kv_heads=layer.kv_heads,
        group=layer.group,
        key_dim=layer.key_dim,
        value_dim=layer.value_dim,
        type=TYPES[layer.dtype],
        scaling=layer.scaling,
        softcap=layer.softcap or 0.0,
    )


def _in_rows(tensor: torch.Tensor) -> torch.Tensor:
    """``[T, heads, dim]`` as the kernels read it."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _split(batch: AttentionBatch, *, prompts: bool) -> _Split:
    queries = batch.contexts - batch.starts
    if batch.blocks is None and queries.max() <= FEW_QUERIES:
        return _Split(list(range(len(queries))), [], None, None)
    free = np.ones(len(queries), bool)
    if batch.blocks is not None:
        free = np.array([not blocks for blocks in batch.blocks])
    few = free & (queries <= FEW_QUERIES)
    many = free & ~few & prompts
    others = np.flatnonzero(~few & ~many)
    names = np.flatnonzero(few).tolist(), np.flatnonzero(many).tolist()
    if not len(others):
        return _Split(*names, None, None)
    if len(others) == len(queries):
        return _Split(*names, batch, None)
    rows = np.concatenate([np.arange(batch.offsets[i], batch.offsets[i + 1]) for i in others])
    rest = AttentionBatch(
        starts=batch.starts[others],
        contexts=batch.contexts[others],
        offsets=np.concatenate([[0], np.cumsum(queries[others])]).astype(np.int32),
        slots=tuple(batch.slots[i] for i in others),
        write_slots=batch.write_slots[rows],
        blocks=None if batch.blocks is None else tuple(batch.blocks[i] for i in others),
    )
    in_order = rows[-1] - rows[0] == len(rows) - 1
    lie = slice(int(rows[0]), int(rows[-1]) + 1) if in_order else torch.from_numpy(rows.astype(np.int64))
    return _Split(*names, rest, lie)


def _prompts(batch: AttentionBatch, layer: AttentionLayer, sequences: list[int], most: int) -> _Prompts:
    """``most`` queries of one sequence are a task."""
    starts, contexts = batch.starts[sequences], batch.contexts[sequences]
    queries = contexts - starts
    tasks = -(-queries // most)
    of, nth = _counted(tasks)
    first, end = (queries[of] * n // tasks[of] for n in (nth, nth + 1))  # alike
    slots = _slots(batch, sequences)
    arrays = (_addresses(slots), *_int32(starts, contexts, batch.offsets[sequences], of, first, end - first))
    places = (x.ctypes.data for x in arrays)
    chunks = _Chunks(len(sequences), len(of), *places, layer.window or 0, layer.chunk or 0)
    return _Prompts(chunks, (*arrays, slots))


def _counted(counts: IntArray) -> tuple[IntArray, IntArray]:
    """For counts of 2 and 3: 0, 0, 1, 1, 1 and 0, 1, 0, 1, 2."""
    which: IntArray = np.repeat(np.arange(len(counts)), counts)
    nth: IntArray = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]
    return which, nth


def _slots(batch: AttentionBatch, sequences: list[int]) -> list[IntArray]:
    return [np.ascontiguousarray(batch.slots[i], np.int32) for i in sequences]


def _addresses(arrays: list[IntArray]) -> Any:
    return np.array([x.ctypes.data for x in arrays], np.int64)


def _int32(*arrays: IntArray) -> list[IntArray]:
    return [np.ascontiguousarray(x, np.int32) for x in arrays]

"""Attention by FlashInfer's paged kernels, with pages of one slot.

Rules. What a plan depends on (`_Kind`) is shared by many layers, so a step makes one plan for each kind, in `begin`
and on host arrays alone; a layer just runs. A step of single tokens goes to the decode wrapper, which leaves out the
mask, every other one to the prefill wrapper, whose kernel (fa2) takes prompts and decodes in one batch. What a window
hides before the first query is cut off, and a run of queries is cut where its chunk ends: each piece then sees its
last keys causally, which is all that the kernels know. What they do not know (keys and values that differ in size,
float32, odd head sizes) is refused; a step with images, whose tokens see later ones too, goes to ``irregular``.

The library is handed in: nothing here imports it but `make`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer, refusal
from radixbackend.engine.attention.upload import upload
from radixbackend.engine.kv_store import KVStore
from radixbackend.engine.plan import IntArray
from radixbackend.errors import ConfigError, MissingDependencyError

log = logging.getLogger(__name__)

WORKSPACE_BYTES = 128 << 20
"""For partial results of long contexts; what FlashInfer recommends."""

HEAD_SIZES = (64, 128, 256)

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""``(keys, values, slots, key, value)``: packed rows into their slots."""


class _Kind(NamedTuple):
    """What one plan is for."""

    window: int | None
    chunk: int | None
    softcap: float | None
    scaling: float
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    stored: torch.dtype
    sinks: bool

    @classmethod
    def of(cls, layer: AttentionLayer) -> _Kind:
        return cls(
            layer.window,
            layer.chunk,
            layer.softcap,
            layer.scaling,
            layer.heads,
            layer.kv_heads,
            layer.key_dim,
            layer.dtype,
            layer.stored or layer.dtype,
            layer.sinks,
        )


class Pieces(NamedTuple):
    """A step as the kernels take it: each piece's queries are the last of its keys.

    Attributes:
        queries: ``[pieces + 1]`` piece i has the packed rows ``queries[i]:queries[i + 1]``.
        keys: ``[pieces + 1]`` and the keys in ``slots[keys[i]:keys[i + 1]]``.
    """

    queries: IntArray
    keys: IntArray
    slots: IntArray

    @property
    def single(self) -> bool:
        """Whether every piece is one query."""
        return len(self.queries) == int(self.queries[-1]) + 1

    @classmethod
    def of(cls, batch: AttentionBatch, window: int | None, chunk: int | None) -> Pieces:
        queries, keys, slots = [0], [0], []
        for i, (start, context) in enumerate(zip(batch.starts.tolist(), batch.contexts.tolist(), strict=True)):
            for begin, end, first in _cut(start, context, window, chunk):
                queries.append(queries[-1] + end - begin)
                keys.append(keys[-1] + end - first)
                slots.append(batch.slots[i][first:end])
        return cls(np.array(queries, np.int32), np.array(keys, np.int32), np.concatenate(slots))


def _cut(start: int, context: int, window: int | None, chunk: int | None) -> Iterator[tuple[int, int, int]]:
    """First query, one after the last, and first key of each piece."""
    if chunk is None:
        yield start, context, 0 if window is None else max(0, start - window + 1)
        return
    while start < context:
        first = start // chunk * chunk
        yield start, min(first + chunk, context), first
        start = first + chunk


class FlashInferAttention:
    """See `AttentionBackend`."""

    name = "flashinfer"
    captures = True
    converts = True

    def __init__(self, library: Any, irregular: AttentionBackend, write: Write) -> None:
        self._library = library
        self._irregular = irregular
        self._write = write
        self._store: KVStore | None = None
        self._kinds: dict[int, _Kind] = {}
        self._wrappers: _Wrappers = {}
        self._workspace: torch.Tensor | None = None
        self._planned: dict[_Kind, Any] = {}
        self._write_slots: torch.Tensor | None = None
        self._whole = False  # this step is for `irregular`

    def refuses(self, layer: AttentionLayer) -> str | None:
        if layer.dtype not in (torch.bfloat16, torch.float16):
            return f"it computes in bfloat16 and float16, not {layer.dtype}"
        if layer.key_dim != layer.value_dim:
            return f"keys of size {layer.key_dim} with values of size {layer.value_dim}"
        if layer.key_dim not in HEAD_SIZES:
            return f"heads of size {layer.key_dim}, not of {', '.join(map(str, HEAD_SIZES))}"
        if layer.sinks and (layer.softcap is not None or not hasattr(self._library, _SINKS)):
            return "sinks with a soft cap" if layer.softcap is not None else f"sinks, for which it has no {_SINKS}"
        if layer.sinks and layer.stored is not None:
            # Its kernels for sinks are named, and found again, by the type of the queries alone.
            return f"sinks with keys and values in {layer.stored}"
        return refusal(self._irregular, layer)

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        """Plans once for every kind, so that kernels are compiled now and what is missing for it is said now."""
        self._store = store
        self._kinds = {layer.index: _Kind.of(layer) for layer in layers}
        self._irregular.bind(layers, store)
        device = store.keys[0].device
        if self._workspace is None or self._workspace.device != device:
            self._wrappers.clear()
            self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        log.info("preparing FlashInfer's kernels; those never used before are compiled, which takes minutes")
        slot = np.array([store.dummy_slot], np.int32)
        one = np.array([0, 1], np.int32)
        try:
            for kind in set(self._kinds.values()):
                for single in (False, True):
                    pieces = Pieces(one, one, slot)
                    self._plan(self._wrappers, kind, pieces, torch.from_numpy(slot).to(device), single=single)
        except (RuntimeError, OSError) as fault:
            raise ConfigError(
                f"FlashInfer's kernels cannot be prepared: {fault}. They are compiled with nvcc and ninja when first "
                "used: install the CUDA toolkit and set CUDA_HOME, or pip install flashinfer-jit-cache, or choose "
                "attention='triton'"
            ) from fault

    def begin(self, batch: AttentionBatch) -> None:
        self._whole = any(batch.blocks or ())
        if self._whole:
            self._irregular.begin(batch)
        else:
            self._prepare(batch, None)

    def reserve(self, rows: int, longest: int, slots: int) -> _Reserved:
        """See `Capturable`."""
        assert self._store is not None
        device = self._store.keys[0].device
        kinds = set(self._kinds.values())
        wrappers = {(kind, True): self._make(kind, True, _Buffers.of(rows, slots, device)) for kind in kinds}
        return _Reserved(wrappers, torch.zeros(rows, dtype=torch.int64, device=device))

    def begin_reserved(self, batch: AttentionBatch, reserved: _Reserved) -> None:
        """See `Capturable`."""
        self._whole = False
        self._prepare(batch, reserved)

    def _prepare(self, batch: AttentionBatch, reserved: _Reserved | None) -> None:
        assert self._store is not None
        reach = {(kind.window, kind.chunk) for kind in self._kinds.values()}
        pieces = {pair: Pieces.of(batch, *pair) for pair in reach}
        sent = upload([batch.write_slots, *(p.slots for p in pieces.values())], self._store.keys[0].device)
        self._write_slots = sent[0].long() if reserved is None else reserved.write_slots.copy_(sent[0])
        slots = dict(zip(pieces, sent[1:], strict=True))
        wrappers = self._wrappers if reserved is None else reserved.wrappers
        for kind in set(self._kinds.values()):
            pair = kind.window, kind.chunk
            self._planned[kind] = self._plan(wrappers, kind, pieces[pair], slots[pair], single=pieces[pair].single)

    def end(self) -> None:
        self._planned.clear()
        self._write_slots = None
        if self._whole:
            self._irregular.end()

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self._store is not None
        if self._whole:
            return self._irregular.attend(layer, query, key, value, sinks)
        assert self._write_slots is not None
        keys, values = self._store.keys[layer.storage], self._store.values[layer.storage]
        if layer.writes:
            self._write(keys, values, self._write_slots, key, value)
        if query.stride(2) != 1:
            query = query.contiguous()
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        extra = () if sinks is None else (sinks.float(), layer.scaling)  # in the order of the kernel's own parameters
        wrapper = self._planned[self._kinds[layer.index]]
        wrapper.run(query, (keys.unsqueeze(1), values.unsqueeze(1)), *extra, out=out)
        return out

    def _plan(self, wrappers: _Wrappers, kind: _Kind, pieces: Pieces, slots: torch.Tensor, *, single: bool) -> Any:
        """The wrapper, planned. ``slots`` are on the device, everything else is read on the host."""
        wrapper = wrappers.get((kind, single))
        if wrapper is None:
            wrapper = wrappers[kind, single] = self._make(kind, single, None)
        indptr = torch.from_numpy(pieces.keys)
        shared: dict[str, Any] = {
            "num_qo_heads": kind.heads,
            "num_kv_heads": kind.kv_heads,
            "page_size": 1,
            "sm_scale": kind.scaling,
            "window_left": -1 if kind.window is None else kind.window - 1,  # theirs does not count the token itself
            "logits_soft_cap": kind.softcap,
            "q_data_type": kind.dtype,
            "kv_data_type": kind.stored,
        }
        last = torch.ones(len(indptr) - 1, dtype=torch.int32)
        if single and not kind.sinks:
            wrapper.plan(indptr=indptr, indices=slots, last_page_len=last, head_dim=kind.dim, **shared)
        else:
            wrapper.plan(
                qo_indptr=torch.from_numpy(pieces.queries),
                paged_kv_indptr=indptr,
                paged_kv_indices=slots,
                paged_kv_last_page_len=last,
                head_dim_qk=kind.dim,
                causal=True,
                **shared,
            )
        return wrapper

    def _make(self, kind: _Kind, single: bool, buffers: _Buffers | None) -> Any:
        """``buffers``: of a wrapper to be captured, for steps of single tokens of one size."""
        common: dict[str, Any] = {
            "float_workspace_buffer": self._workspace,
            "kv_layout": "NHD",
            "backend": "fa2",
            "use_cuda_graph": buffers is not None,
        }
        if single and not kind.sinks:
            if buffers is not None:
                common |= {
                    "paged_kv_indptr_buffer": buffers.keys,
                    "paged_kv_indices_buffer": buffers.slots,
                    "paged_kv_last_page_len_buffer": buffers.last,
                }
            return self._library.BatchDecodeWithPagedKVCacheWrapper(use_tensor_cores=True, **common)
        if buffers is not None:
            common |= {
                "qo_indptr_buf": buffers.queries,
                "paged_kv_indptr_buf": buffers.keys,
                "paged_kv_indices_buf": buffers.slots,
                "paged_kv_last_page_len_buf": buffers.last,
            }
        if not kind.sinks:
            return self._library.BatchPrefillWithPagedKVCacheWrapper(**common)
        return getattr(self._library, _SINKS)(
            q_data_type=kind.dtype,
            kv_data_type=kind.stored,
            head_dim_qk=kind.dim,
            head_dim_vo=kind.dim,
            window_left=-1 if kind.window is None else kind.window - 1,
            **common,
        )


_Wrappers = dict[tuple[_Kind, bool], Any]
"""By kind, and whether for steps of single tokens."""


class _Buffers(NamedTuple):
    """What a captured wrapper reads, at fixed addresses."""

    queries: torch.Tensor
    keys: torch.Tensor
    slots: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, rows: int, slots: int, device: torch.device) -> _Buffers:
        make = partial(torch.zeros, dtype=torch.int32, device=device)
        return cls(make(rows + 1), make(rows + 1), make(slots), make(rows))


class _Reserved(NamedTuple):
    """For decodes of one size."""

    wrappers: _Wrappers
    write_slots: torch.Tensor


_SINKS = "BatchAttentionWithAttentionSinkWrapper"


def make() -> FlashInferAttention:
    """With the installed library; `ConfigError` says what to install where it or its compiler is missing."""
    try:
        library = importlib.import_module("flashinfer")
    except ImportError as fault:
        cure = "pip install 'radixbackend[cuda]'"
        raise MissingDependencyError(f"attention='flashinfer' needs flashinfer: {cure} ({fault})") from fault
    if not _can_compile():
        raise ConfigError(
            "attention='flashinfer' compiles its kernels with nvcc, which is not here: install the CUDA toolkit and "
            "set CUDA_HOME, or pip install flashinfer-jit-cache; attention='triton' needs neither"
        )
    from radixbackend.engine.attention.triton_paged import TritonAttention, write

    return FlashInferAttention(library, TritonAttention(), write)


def _can_compile() -> bool:
    """Whether kernels are compiled already, or nvcc is where FlashInfer looks for it."""
    homes = [Path(h) for h in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if h]
    nvcc = shutil.which("nvcc") or any((home / "bin" / "nvcc").exists() for home in homes)
    return bool(nvcc or importlib.util.find_spec("flashinfer_jit_cache"))

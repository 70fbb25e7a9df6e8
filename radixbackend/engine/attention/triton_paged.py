"""Attention as one Triton kernel over a ragged batch: CUDA without anything to compile or to install.

Rules. What a query sees is always one interval of positions (causal, window, chunk and the blocks of images alike), so
the kernel knows two numbers per query and no masks. A tile holds a few queries of one sequence with all query heads of
one key head. Everything that a step's layers share is worked out on the host in `begin` and sent in one copy; `attend`
launches and never waits.

How a query's softmax is summed up depends on positions alone: blocks of `BLOCK_KEYS` keys, counted from position 0,
within splits of `SPLIT_KEYS`, and the splits folded from left to right. Whether one program computes all splits of a
tile or one each changes nothing, and neither do the other queries of a tile: keys that a query does not see add
exact zeros. With ``deterministic`` the shape of the tiles is fixed too, so the same matrix instructions compute a
query in a long prompt and in a decode; then a result depends, bit for bit, on the query and what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton

from radixbackend.engine.attention.base import AttentionBatch, AttentionLayer
from radixbackend.engine.attention.triton_kernels import attend_tiles, fold_parts, write_rows
from radixbackend.engine.attention.upload import Place, upload
from radixbackend.engine.kv_store import FP8, KVStore
from radixbackend.engine.plan import IntArray

SPLIT_KEYS = 256
"""Keys that one program computes at least: enough for its start to cost little, few enough to fill a GPU."""

FEW_QUERIES = 4
"""Up to so many per sequence (a decode, a draft) tiles are small."""

SHARED = 96 * 1024
"""Bytes of shared memory that a program may plan with, where the device does not say."""

Kind = tuple[int | None, int | None, int]
"""Window, chunk and queries per tile: what geometry depends on."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """How a program is cut for one layer.

    Attributes:
        rows: queries times query heads of a key head, padded to a power of two.
        keys: of a block.
    """

    rows: int
    keys: int
    warps: int
    stages: int

    @classmethod
    def of(cls, layer: AttentionLayer, *, few: bool, deterministic: bool, shared: int = SHARED) -> TileShape:
        """``few``: for steps with few queries per sequence; both are the same with ``deterministic``."""
        key_dim, value_dim = _padded(layer.key_dim), _padded(layer.value_dim)
        wide = max(key_dim, value_dim) > 128
        least = max(16, triton.next_power_of_2(layer.group))
        size = layer.dtype.itemsize
        if size == 4:  # no matrix instructions: every product is spelled out, and larger tiles take minutes to compile
            rows, keys = max(least, 32), 32
        else:
            rows, keys = max(least, 64 if deterministic or wide else 128), 64
        if few and not deterministic:
            rows = least
        stages = 2
        while rows * key_dim * size + stages * keys * (key_dim + value_dim) * size > shared:
            if stages > 1:
                stages = 1
            elif keys > 16:
                keys //= 2
            elif rows > least:
                rows //= 2
            else:
                break
        return cls(rows, keys, 8 if rows >= 128 or (wide and rows >= 64) else 4, stages)


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Of one kind of layer, in one step; the same on the host and on the device.

    Attributes:
        low, high: ``[T]`` each query sees the positions from low up to, not including, high.
        rows: ``[tiles]`` first packed row of each tile.
        counts: ``[tiles]`` its queries.
        bases: ``[tiles]`` where its sequence's slots begin.
        lows, highs: ``[tiles]`` the least low and the greatest high of its queries.
    """

    low: Any
    high: Any
    rows: Any
    counts: Any
    bases: Any
    lows: Any
    highs: Any
    splits: int  # of the tile that has most

    @property
    def arrays(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _ARRAYS)

    def moved(self, arrays: Sequence[torch.Tensor]) -> Geometry:
        """The same with these in the place of its arrays."""
        values: dict[str, Any] = dict(zip(_ARRAYS, arrays, strict=True))
        return replace(self, **values)

    @classmethod
    def of(cls, batch: AttentionBatch, kind: Kind) -> Geometry:
        window, chunk, per_tile = kind
        low, high = _intervals(batch, window, chunk)
        lengths = np.diff(batch.offsets)
        tiles = -(-lengths // per_tile)
        sequence = np.repeat(np.arange(len(lengths)), tiles)
        within = np.arange(len(sequence)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        rows = batch.offsets[:-1][sequence] + within * per_tile
        starts = np.cumsum(batch.contexts) - batch.contexts
        lows, highs = np.minimum.reduceat(low, rows), np.maximum.reduceat(high, rows)
        return cls(
            low,
            high,
            rows.astype(np.int32),
            np.minimum(per_tile, lengths[sequence] - within * per_tile).astype(np.int32),
            starts[sequence].astype(np.int32),
            lows,
            highs,
            int((-(-highs // SPLIT_KEYS) - lows // SPLIT_KEYS).max()),
        )


_ARRAYS = ("low", "high", "rows", "counts", "bases", "lows", "highs")


def _intervals(batch: AttentionBatch, window: int | None, chunk: int | None) -> tuple[IntArray, IntArray]:
    spans = zip(batch.starts, batch.contexts, strict=True)
    positions = np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in spans])
    low, high = np.zeros_like(positions), positions + 1
    if window is not None:
        low = np.maximum(positions - (window - 1), 0)
    elif chunk is not None:
        low = positions // chunk * chunk
    for i, blocks in enumerate(batch.blocks or ()):
        rows = slice(batch.offsets[i], batch.offsets[i + 1])
        for first, last in blocks:
            inside = (positions[rows] >= first) & (positions[rows] < last)
            low[rows][inside] = np.minimum(low[rows][inside], first)
            high[rows][inside] = np.maximum(high[rows][inside], last)
    return low.astype(np.int32), high.astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class _Reserved:
    """Where the arrays of decodes of one size are kept, and how many splits their kernels are launched for."""

    place: Place
    splits: int

    def splits_of(self, kind: Kind) -> int:
        reach = kind[0] or kind[1]
        return self.splits if reach is None else min(self.splits, -(-reach // SPLIT_KEYS) + 1)


class TritonAttention:
    """See `AttentionBackend`. ``programs``: how many keep the device busy; None asks the device."""

    name = "triton"
    captures = True
    converts = True

    def __init__(self, *, deterministic: bool = False, programs: int | None = None) -> None:
        self.deterministic = deterministic
        self._programs = programs
        self._busy = 1
        self._store: KVStore | None = None
        self._shapes: dict[bool, dict[int, TileShape]] = {}
        self._few = False
        self._layers: tuple[AttentionLayer, ...] = ()
        self._write_slots: torch.Tensor | None = None
        self._slots: torch.Tensor | None = None
        self._geometry: dict[Kind, Geometry] = {}

    def refuses(self, layer: AttentionLayer) -> str | None:
        if layer.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"it computes in float32, bfloat16 and float16, not {layer.dtype}"
        if layer.stored is not None and (layer.stored != FP8 or not _converts_fp8()):
            return f"it reads no {layer.stored} on this device"
        return None if layer.group <= 128 else f"{layer.group} query heads share a key head, more than 128"

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        self._store = store
        device = store.keys[0].device
        self._busy = self._programs or _programs(device)
        shared = _shared_memory(device)
        self._shapes = {
            few: {x.index: TileShape.of(x, few=few, deterministic=self.deterministic, shared=shared) for x in layers}
            for few in (False, True)
        }
        self._layers = layers

    def begin(self, batch: AttentionBatch) -> None:
        self._prepare(batch, None)

    def reserve(self, rows: int, longest: int, slots: int) -> _Reserved:
        """See `Capturable`."""
        assert self._store is not None
        self._few = True
        arrays = len(_ARRAYS) * len(self._sorted_kinds())
        place = Place([rows] * (1 + arrays) + [slots], self._store.keys[0].device)
        return _Reserved(place, -(-longest // SPLIT_KEYS))

    def begin_reserved(self, batch: AttentionBatch, reserved: _Reserved) -> None:
        """See `Capturable`."""
        self._prepare(batch, reserved)

    def _prepare(self, batch: AttentionBatch, reserved: _Reserved | None) -> None:
        assert self._store is not None
        self._few = bool(np.diff(batch.offsets).max() <= FEW_QUERIES)
        host = {kind: Geometry.of(batch, kind) for kind in self._sorted_kinds()}
        arrays = [batch.write_slots]
        for geometry in host.values():
            arrays.extend(geometry.arrays)
        arrays.append(np.concatenate(batch.slots))
        if reserved is None:
            sent = upload(arrays, self._store.keys[0].device)
        else:
            sent = reserved.place.fill(arrays)
            host = {kind: replace(g, splits=reserved.splits_of(kind)) for kind, g in host.items()}
        self._write_slots, *views, self._slots = sent
        left = iter(views)
        self._geometry = {kind: g.moved([next(left) for _ in _ARRAYS]) for kind, g in host.items()}

    def _sorted_kinds(self) -> list[Kind]:
        return sorted({self._kind(layer) for layer in self._layers}, key=str)

    def end(self) -> None:
        self._write_slots = self._slots = None
        self._geometry = {}

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self._store is not None
        assert self._write_slots is not None
        keys, values = self._store.keys[layer.storage], self._store.values[layer.storage]
        if layer.writes:
            write(keys, values, self._write_slots, key, value)
        query = _rows_in_order(query)
        out = torch.empty(len(query), layer.heads, layer.value_dim, dtype=query.dtype, device=query.device)
        self._launch(layer, query, keys, values, sinks, out)
        return out

    def _launch(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        shape, geometry = self._shapes[self._few][layer.index], self._geometry[self._kind(layer)]
        tiles = len(geometry.rows)
        apart = geometry.splits > 1 and tiles * layer.kv_heads < self._busy
        if apart:
            parts = out.new_empty(geometry.splits, *out.shape, dtype=torch.float32)
            sums = out.new_empty(2, geometry.splits, len(out), layer.heads, dtype=torch.float32)
        else:
            parts = sums = out.new_empty(0, dtype=torch.float32)
        softcap = layer.softcap or 0.0
        options: dict[str, Any] = {
            "GROUP": layer.group,
            "KEY_DIM": layer.key_dim,
            "VALUE_DIM": layer.value_dim,
            "KEY_PAD": _padded(layer.key_dim),
            "VALUE_PAD": _padded(layer.value_dim),
            "ROWS": shape.rows,
            "KEYS": shape.keys,
            "SPLIT": SPLIT_KEYS,
            "SOFTCAP": layer.softcap is not None,
            "SINKS": sinks is not None,
            # A product and a sum fused in one variant of a kernel and not in another would differ in a bit.
            "enable_fp_fusion": False,
            "num_warps": shape.warps,
        }
        extra = out if sinks is None else sinks
        stored = (*query.stride()[:2], *keys.stride()[:2], *values.stride()[:2])
        grid = (tiles, layer.kv_heads, geometry.splits if apart else 1)
        attend_tiles[grid](
            query, keys, values, out, parts, sums, extra, self._slots, *geometry.arrays, layer.scaling, softcap,
            len(out), geometry.splits, *stored, APART=apart, num_stages=shape.stages, **options,
        )  # fmt: skip
        if apart:
            for name in ("KEY_DIM", "KEY_PAD", "KEYS", "SOFTCAP"):
                del options[name]
            arrays = (geometry.rows, geometry.counts, geometry.lows, geometry.highs)
            fold_parts[grid[:2]](out, parts, sums, extra, *arrays, len(out), geometry.splits, **options)

    def _kind(self, layer: AttentionLayer) -> Kind:
        return layer.window, layer.chunk, self._shapes[self._few][layer.index].rows // layer.group


def write(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Packed rows into their slots, keys and values in one launch; see `kv_store.narrowed`."""
    key, value = _rows_in_order(key), _rows_in_order(value)
    narrow = keys.dtype == FP8
    if narrow:
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
    strides = (*key.stride()[:2], *value.stride()[:2], keys.stride(0), values.stride(0))
    write_rows[(len(slots),)](
        keys, values, slots, key, value, *strides, HEADS=key.shape[1], KEY_DIM=key.shape[2], VALUE_DIM=value.shape[2],
        KEY_PAD=triton.next_power_of_2(key.shape[1] * key.shape[2]),
        VALUE_PAD=triton.next_power_of_2(value.shape[1] * value.shape[2]), FP8=narrow,
    )  # fmt: skip


def _rows_in_order(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _padded(dim: int) -> int:
    return int(max(16, triton.next_power_of_2(dim)))


def _converts_fp8() -> bool:
    """Triton has no such type for NVIDIA GPUs before Ada and Hopper."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9)


def _programs(device: torch.device) -> int:
    """Two for each multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return SHARED
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SHARED))

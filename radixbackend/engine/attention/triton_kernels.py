"""The kernels of `triton_paged`, which says how they sum up; Triton compiles them from this source.

Rules. No sum depends on anything but positions: neither on the tile that a query is in, nor on how a tile's splits
are spread over programs. Both of `attend_tiles` and `fold_parts` put splits together by `_fold` and end by `_finish`.
"""

# Parameters are tensors or compile-time constants of Triton's own, for which annotations mean something else.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _fold(best, total, sums, part_best, part_total, part_sums):
    """Two stretches of keys as one; one without keys changes nothing."""
    higher = tl.maximum(best, part_best)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    old, new = tl.exp2(best - base), tl.exp2(part_best - base)
    return higher, total * old + part_total * new, sums * old[:, None] + part_sums * new[:, None]


@triton.jit
def _finish(OUT, EXTRA, best, total, sums, rows, heads, valid, num_heads, VALUE_DIM: tl.constexpr,
            VALUE_PAD: tl.constexpr, SINKS: tl.constexpr):  # fmt: skip
    """Divide by the sum of weights, to which a sink adds its own."""
    if SINKS:
        sink = tl.load(EXTRA + heads, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
        higher = tl.maximum(best, sink)
        scale = tl.exp2(best - higher)
        total = total * scale + tl.exp2(sink - higher)
        sums = sums * scale[:, None]
    result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    dims = tl.arange(0, VALUE_PAD)
    places = (rows * num_heads + heads).to(tl.int64)[:, None] * VALUE_DIM + dims[None, :]
    tl.store(OUT + places, result.to(OUT.dtype.element_ty), mask=valid[:, None] & (dims < VALUE_DIM)[None, :])


@triton.jit(do_not_specialize=["num_rows", "max_splits"])
def attend_tiles(Q, K, V, OUT, PARTS, SUMS, EXTRA, SLOTS, LOW, HIGH, TILE_ROWS, TILE_COUNTS, TILE_BASES, TILE_LOWS,
            TILE_HIGHS, scaling, softcap, num_rows, max_splits, q_row, q_head, k_slot, k_head, v_slot, v_head,
            GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEY_PAD: tl.constexpr,
            VALUE_PAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
            SOFTCAP: tl.constexpr, SINKS: tl.constexpr, APART: tl.constexpr):  # fmt: skip
    """One tile and key head: all its splits, or with ``APART`` one of them, which `fold_parts` puts together."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1) * GROUP
    lows, highs = tl.load(TILE_LOWS + tile), tl.load(TILE_HIGHS + tile)
    first, stop = lows // SPLIT, (highs + SPLIT - 1) // SPLIT
    if APART:
        first += tl.program_id(2)
        stop = tl.minimum(first + 1, stop)
    packed = tl.arange(0, ROWS)
    rows = tl.load(TILE_ROWS + tile) + packed // GROUP
    heads = kv_head * GROUP + packed % GROUP
    valid = packed // GROUP < tl.load(TILE_COUNTS + tile)
    low = tl.load(LOW + rows, mask=valid, other=0)
    high = tl.load(HIGH + rows, mask=valid, other=0)
    slots = SLOTS + tl.load(TILE_BASES + tile)
    dims, value_dims = tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    places = rows.to(tl.int64)[:, None] * q_row + heads[:, None] * q_head + dims[None, :]
    query = tl.load(Q + places, mask=valid[:, None] & (dims < KEY_DIM)[None, :], other=0.0)

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
    for split in range(first, stop):
        part_best = tl.full([ROWS], float("-inf"), tl.float32)
        part_total = tl.zeros([ROWS], tl.float32)
        part_sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
        begin = tl.maximum(split * SPLIT, lows // KEYS * KEYS)
        for start in range(begin, tl.minimum(split * SPLIT + SPLIT, highs), KEYS):
            positions = start + tl.arange(0, KEYS)
            there = (positions >= lows) & (positions < highs)
            slot = tl.load(slots + positions, mask=there, other=0).to(tl.int64)
            # Whatever the type that is stored, its values are exact in the queries' type.
            key = tl.load(
                K + slot[None, :] * k_slot + kv_head * k_head + dims[:, None],
                mask=there[None, :] & (dims < KEY_DIM)[:, None], other=0.0,
            ).to(query.dtype)  # fmt: skip
            value = tl.load(
                V + slot[:, None] * v_slot + kv_head * v_head + value_dims[None, :],
                mask=there[:, None] & (value_dims < VALUE_DIM)[None, :], other=0.0,
            ).to(query.dtype)  # fmt: skip
            scores = tl.dot(query, key, input_precision="ieee") * scaling
            if SOFTCAP:
                scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores / softcap * 2.8853900817779268)))
            seen = (positions[None, :] >= low[:, None]) & (positions[None, :] < high[:, None])
            scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
            higher = tl.maximum(part_best, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            scale = tl.exp2(part_best - base)
            weights = tl.exp2(scores - base[:, None])
            part_total = part_total * scale + tl.sum(weights, 1)
            part_sums = part_sums * scale[:, None]
            part_sums = tl.dot(weights.to(value.dtype), value, part_sums, input_precision="ieee")
            part_best = higher
        best, total, sums = _fold(best, total, sums, part_best, part_total, part_sums)

    if APART:
        if first < stop:
            at = (tl.program_id(2) * num_rows + rows).to(tl.int64) * num_heads + heads
            tl.store(SUMS + at, best, mask=valid)
            tl.store(SUMS + max_splits.to(tl.int64) * num_rows * num_heads + at, total, mask=valid)
            inside = valid[:, None] & (value_dims < VALUE_DIM)[None, :]
            tl.store(PARTS + at[:, None] * VALUE_DIM + value_dims[None, :], sums, mask=inside)
    else:
        _finish(OUT, EXTRA, best, total, sums, rows, heads, valid, num_heads, VALUE_DIM, VALUE_PAD, SINKS)


@triton.jit(do_not_specialize=["num_rows", "max_splits"])
def fold_parts(OUT, PARTS, SUMS, EXTRA, TILE_ROWS, TILE_COUNTS, TILE_LOWS, TILE_HIGHS, num_rows, max_splits,
                GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr, ROWS: tl.constexpr,
                SPLIT: tl.constexpr, SINKS: tl.constexpr):  # fmt: skip
    """Of one tile and key head, in the order and with the arithmetic of `attend_tiles`."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1) * GROUP
    splits = (tl.load(TILE_HIGHS + tile) + SPLIT - 1) // SPLIT - tl.load(TILE_LOWS + tile) // SPLIT
    packed = tl.arange(0, ROWS)
    rows = tl.load(TILE_ROWS + tile) + packed // GROUP
    heads = kv_head * GROUP + packed % GROUP
    valid = packed // GROUP < tl.load(TILE_COUNTS + tile)
    dims = tl.arange(0, VALUE_PAD)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
    for split in range(0, splits):
        at = (split * num_rows + rows).to(tl.int64) * num_heads + heads
        part_best = tl.load(SUMS + at, mask=valid, other=float("-inf"))
        part_total = tl.load(SUMS + max_splits.to(tl.int64) * num_rows * num_heads + at, mask=valid, other=0.0)
        inside = valid[:, None] & (dims < VALUE_DIM)[None, :]
        part_sums = tl.load(PARTS + at[:, None] * VALUE_DIM + dims[None, :], mask=inside, other=0.0)
        best, total, sums = _fold(best, total, sums, part_best, part_total, part_sums)
    _finish(OUT, EXTRA, best, total, sums, rows, heads, valid, num_heads, VALUE_DIM, VALUE_PAD, SINKS)


@triton.jit
def _to_fp8(values):
    """As `kv_store.narrowed` rounds, as bytes. Spelled out, since processors differ in what becomes of large ones."""
    values = values.to(tl.float32)
    size = tl.abs(values)
    bits = size.to(tl.int32, bitcast=True)
    # Three bits of the fraction are left, rounded to even; the exponent then counts from 7 instead of 127.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9; added to 2^23, whose last bit is 1, that many of them are the last bits of the sum.
    small = (size * 512.0 + 8388608.0).to(tl.int32, bitcast=True) & 0xF
    code = tl.where(size < 0.015625, small, tl.where(size < 448.0, normal, 0x7E))
    code = tl.where(size == size, code, 0x7F)
    return (code | ((values.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def write_rows(KEYS, VALUES, SLOTS, KEY, VALUE, k_row, k_head, v_row, v_head, k_slot, v_slot, HEADS: tl.constexpr,
           KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
           FP8: tl.constexpr):  # fmt: skip
    """With ``FP8`` KEYS and VALUES are the bytes of float8_e4m3fn."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(SLOTS + row).to(tl.int64)
    at = tl.arange(0, KEY_PAD)
    inside = at < HEADS * KEY_DIM
    rows = tl.load(KEY + row * k_row + at // KEY_DIM * k_head + at % KEY_DIM, mask=inside)
    tl.store(KEYS + slot * k_slot + at, _to_fp8(rows) if FP8 else rows, mask=inside)
    at = tl.arange(0, VALUE_PAD)
    inside = at < HEADS * VALUE_DIM
    rows = tl.load(VALUE + row * v_row + at // VALUE_DIM * v_head + at % VALUE_DIM, mask=inside)
    tl.store(VALUES + slot * v_slot + at, _to_fp8(rows) if FP8 else rows, mask=inside)

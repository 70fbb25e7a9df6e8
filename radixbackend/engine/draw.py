"""From a step's edited logits to one token of each row: masks, temperature, filters, one draw.

Rules. A row's token depends on its own values, parameters, seed and output position alone, bit for bit. So filters are
thresholds on a row's own values (ties stay in), weights are integers, whose sums are the same in any order, and the
draw is a hash of (seed, position) turned into a token by the inverse of the cumulative distribution. `TorchDraw` does
that on every device without waiting for it; `NativeDraw`, a C kernel that reads a row once or twice where operators
write it out a dozen times, on a CPU. Either's tokens are the other's but where a weight is rounded otherwise, once in
millions of draws. They know nothing of sequences.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from ctypes import c_int, c_int64, c_void_p
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from radixbackend.engine.grammar.base import Mask
from radixbackend.engine.native.build import TYPES, load_kernels
from radixbackend.engine.transfer import send
from radixbackend.errors import MissingDependencyError
from radixbackend.types import SamplingParams

log = logging.getLogger(__name__)

FEW = 1024
"""Candidates sorted first for top_p; nearly always their mass suffices, and 128k values need not be sorted."""

UNIT = 2.0**40
"""Weight of a row's likeliest token; others are whole parts of it, and 2^23 of them still sum up in 64 bits."""

BLOCK_CPU = 2**18
"""Values drawn from at once: what is computed on the way stays in the processor's cache."""

BLOCK_GPU = 2**25
"""Values drawn from at once: bounds the memory for what is computed on the way (24 bytes each)."""

LIMITS = torch.finfo(torch.float32)


class Ask(NamedTuple):
    """How to draw from one row."""

    params: SamplingParams
    seed: int
    position: int  # of the token in its output

    @property
    def is_random(self) -> bool:
        return self.params.temperature > 0

    @property
    def temperature(self) -> float:
        """As float32 holds it: what only float64 holds would become 0 or infinity, and either gives NaN."""
        return min(max(self.params.temperature, LIMITS.tiny), LIMITS.max) if self.is_random else 0.0

    @property
    def floor(self) -> float:
        """The logarithm that min_p leaves, of a weight of which the greatest is 1."""
        return math.log(self.params.min_p) if self.params.min_p else -math.inf


class Drawing(NamedTuple):
    """What came out of each row, on the device."""

    tokens: torch.Tensor
    bests: torch.Tensor  # the greatest values; where not finite, the token means nothing
    flat: torch.Tensor  # whether `FEW` values did not reach its top_p; then the token counts only if it was wide


class Draw(Protocol):
    def reads(self, values: torch.Tensor) -> bool:
        """Whether it draws from these as they are, at once; of others it wants a copy in float32 that stays."""
        ...

    def mask(self, values: torch.Tensor, rows: Sequence[int], words: Mask) -> None:
        """Make impossible in each of ``rows``, in place, the tokens whose bit is not set in its row of ``words``.

        ``rows`` ascend.
        """
        ...

    def __call__(self, values: torch.Tensor, asks: Sequence[Ask], wide: Sequence[bool]) -> Drawing:
        """A token from each row of ``values``; those that are ``wide`` are sorted in full, where it matters."""
        ...


class NativeDraw:
    """Raises `MissingDependencyError` where the kernel cannot be built. No row is ever flat."""

    def __init__(self) -> None:
        kernels = load_kernels("draw")
        self._draw, self._mask = kernels.radix_draw, kernels.radix_mask
        self._draw.argtypes = (c_void_p, c_int, c_int, c_int64, *[c_void_p] * 7)
        self._mask.argtypes = (c_void_p, c_int64, c_void_p, c_void_p, c_int)
        self._mask.restype = None
        self._torch = TorchDraw()

    def reads(self, values: torch.Tensor) -> bool:
        return values.dtype in TYPES and values.is_contiguous()

    def mask(self, values: torch.Tensor, rows: Sequence[int], words: Mask) -> None:
        if values.dtype != torch.float32 or not values.is_contiguous():
            return self._torch.mask(values, rows, words)
        where, words = np.array(rows, np.int64), np.ascontiguousarray(words)
        self._mask(values.data_ptr(), values.shape[1], words.ctypes.data, where.ctypes.data, len(where))

    def __call__(self, values: torch.Tensor, asks: Sequence[Ask], wide: Sequence[bool]) -> Drawing:
        if not self.reads(values):
            return self._torch(values, asks, wide)
        count, size = values.shape
        tokens, bests = torch.empty(count, dtype=torch.long), torch.empty(count)
        columns = _columns(asks) if any(ask.is_random for ask in asks) else ()
        pointers: list[int | None] = [column.ctypes.data for column in columns] or [None] * 5
        found = tokens.data_ptr(), bests.data_ptr()
        if self._draw(values.data_ptr(), TYPES[values.dtype], count, size, *pointers, *found):
            raise MemoryError("no memory to draw tokens with")
        return Drawing(tokens, bests, torch.zeros(count, dtype=torch.bool))


def _columns(asks: Sequence[Ask]) -> tuple[NDArray[Any], ...]:
    """As the kernel reads them."""
    return (
        np.array([ask.temperature for ask in asks], np.float32),
        np.array([ask.params.top_k for ask in asks], np.int64),
        np.array([ask.params.top_p for ask in asks], np.float64),
        np.array([ask.floor for ask in asks], np.float32),
        uniforms([ask.seed for ask in asks], [ask.position for ask in asks]),
    )


class TorchDraw:
    """By torch's operators, NumPy's where those are faster on a CPU."""

    def reads(self, values: torch.Tensor) -> bool:
        return False

    def mask(self, values: torch.Tensor, rows: Sequence[int], words: Mask) -> None:
        refused = _refused(words, values.shape[1], values.device)
        if len(rows) == len(values):
            values.masked_fill_(refused, -math.inf)
        else:
            where = index(rows, values)
            values[where] = values[where].masked_fill_(refused, -math.inf)

    def __call__(self, values: torch.Tensor, asks: Sequence[Ask], wide: Sequence[bool]) -> Drawing:
        winners = _argmax(values)
        bests = values.gather(1, winners[:, None]).squeeze(1)
        flat = torch.zeros_like(winners, dtype=torch.bool)
        random = [j for j, ask in enumerate(asks) if ask.is_random]
        for block in blocks(len(random), values):
            some = random[block]
            where = index(some, values)
            chosen, fully = [asks[j] for j in some], [wide[j] for j in some]
            winners[where], flat[where] = _draw_random(values[where], bests[where], chosen, fully)
        return Drawing(winners, bests, flat)


def choose_draw(device: torch.device) -> Draw:
    """The kernel on a CPU that can have it, else torch and a word in the log."""
    if device.type != "cpu":
        return TorchDraw()
    try:
        return NativeDraw()
    except MissingDependencyError as fault:
        log.info("tokens are drawn by torch's operators: %s", fault)
        return TorchDraw()


def take(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some of the rows, in ascending order: a copy, or the tensor itself if they are all."""
    return values if len(rows) == len(values) else values[index(rows, values)]


def index(rows: Sequence[int], values: torch.Tensor) -> torch.Tensor:
    """On the device of ``values``; a list as an index would be sent there while everyone waits."""
    return send(rows, values.device, torch.long)


def blocks(count: int, values: torch.Tensor) -> Iterator[slice]:
    """Cuts ``count`` rows as wide as ``values`` into blocks."""
    size = max(1, (BLOCK_CPU if values.device.type == "cpu" else BLOCK_GPU) // values.shape[1])
    return (slice(i, i + size) for i in range(0, count, size))


def _refused(words: Mask, size: int, device: torch.device) -> torch.Tensor:
    """Masks of which a set bit is a token *not* allowed, as bools ``[rows, size]``."""
    if device.type == "cpu":
        bits = np.unpackbits(~words.view(np.uint8), axis=1, count=size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    return _unpack(send(~words, device, torch.int32), size)  # an eighth of the bytes to send


def _unpack(words: torch.Tensor, size: int) -> torch.Tensor:
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return (words[:, :, None] >> shifts & 1).bool().flatten(1)[:, :size]


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """The lowest id on ties, and NaN above all; NumPy's is ten times faster than torch's on a CPU."""
    return torch.from_numpy(values.numpy().argmax(-1)) if values.device.type == "cpu" else values.argmax(-1)


def _draw_random(
    values: torch.Tensor, bests: torch.Tensor, asks: Sequence[Ask], wide: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF draw per row, in the order of token ids, and as in `Drawing`; ``values`` is overwritten."""
    temperatures = send([ask.temperature for ask in asks], values.device, torch.float32)
    # Relative to the best, so that a tiny temperature does not overflow; a row without a best is an error later.
    bests = torch.where(bests.isfinite(), bests, 0.0)
    scaled = values.sub_(bests[:, None]).div_(temperatures[:, None])
    weights = _weights(scaled)
    flat = torch.zeros_like(bests, dtype=torch.bool)
    filtered = [j for j, (p, _, _) in enumerate(asks) if p.top_k or p.top_p < 1 or p.min_p]
    if filtered:
        floor = torch.full_like(bests, -math.inf)
        where = index(filtered, values)
        asked, fully = [asks[j] for j in filtered], [wide[j] for j in filtered]
        floor[where], flat[where] = _floor(take(scaled, filtered), take(weights, filtered), asked, fully)
        weights.masked_fill_(scaled < floor[:, None], 0)
    cumulative = weights.cumsum(-1)
    uniform = uniforms([ask.seed for ask in asks], [ask.position for ask in asks])
    target = _times(cumulative[:, -1], uniform).long().to(values.device)
    # The first id whose cumulative weight exceeds the target; an id of weight zero never does. None: a row at fault.
    drawn = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    return drawn.clamp_(max=values.shape[1] - 1), flat


def _times(totals: torch.Tensor, shares: NDArray[np.float64]) -> torch.Tensor:
    """Products in float64, which Apple's GPUs do not have: there they are computed on the host."""
    where = torch.device("cpu") if totals.device.type == "mps" else totals.device
    return totals.to(where) * send(shares, where, torch.float64)


def _weights(scaled: torch.Tensor) -> torch.Tensor:
    """Integers in proportion to the probabilities, given logarithms of which the greatest is 0."""
    return scaled.exp().mul_(UNIT).long()


def _floor(
    scaled: torch.Tensor, weights: torch.Tensor, asks: Sequence[Ask], wide: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least value that stays in each row: top_k, then top_p of what is left, and min_p; and what is flat."""
    device, size = scaled.device, scaled.shape[1]
    floor = send([ask.floor for ask in asks], device, torch.float32)
    flat = torch.zeros_like(floor, dtype=torch.bool)
    params = [ask.params for ask in asks]
    ks = [p.top_k if 0 < p.top_k < size else 0 for p in params]
    kth = torch.full_like(floor, -math.inf)
    if any(ks):
        best = _greatest(scaled, max(ks))
        last = best.gather(1, index([max(k - 1, 0) for k in ks], scaled)[:, None]).squeeze(1)
        kth = torch.where(index(ks, scaled) > 0, last, kth)
    for fully in (False, True):
        nucleus = [j for j, p in enumerate(params) if p.top_p < 1 and wide[j] is fully]
        if not nucleus:
            continue
        some, left, where = take(scaled, nucleus), take(weights, nucleus), index(nucleus, scaled)
        if any(ks):
            left = left.masked_fill(some < kth[where][:, None], 0)
        share = np.array([params[j].top_p for j in nucleus])
        wanted = _times(left.sum(-1), share).ceil().long().to(device)
        least, flat[where] = _nucleus(some, wanted, size if fully else FEW)
        floor[where] = torch.maximum(floor[where], least)
    return torch.maximum(floor, kth), flat


def _nucleus(scaled: torch.Tensor, wanted: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest value such that it and all greater ones weigh ``wanted``, if it is among the first ``count``, and
    whether it is not even among the first `FEW`."""
    best = _greatest(scaled, min(count, scaled.shape[1]))
    reached = _weights(best).cumsum(-1)
    at = torch.searchsorted(reached, wanted[:, None]).clamp_(max=best.shape[1] - 1)
    return best.gather(1, at).squeeze(1), reached[:, min(FEW, best.shape[1]) - 1] < wanted


def _greatest(scaled: torch.Tensor, count: int) -> torch.Tensor:
    """The greatest values of each row, descending; NumPy is several times faster than torch on a CPU."""
    if scaled.device.type != "cpu":
        return scaled.topk(count).values
    values = scaled.numpy()
    if count < values.shape[1]:
        values = np.partition(values, -count, axis=-1)[:, -count:]
    return torch.from_numpy(-np.sort(-values, axis=-1))


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, output position), the same on every machine.

    Two rounds of SplitMix64's finalizer (Steele, Lea, Flood 2014, with Stafford's mix 13), which passes statistical
    tests also on consecutive inputs; 52 bits, so that times a sum it stays below the sum.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    seed = np.array([s % 2**64 for s in seeds], np.uint64)
    position = np.array(positions, np.uint64)
    mixed = _mix(_mix(seed + golden) + (position + np.uint64(1)) * golden)
    return (mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

"""From logits to tokens: penalties, masks, temperature, filters, one draw per row, log-probabilities.

Rules. A row's token depends on its logits, its `SampleSpec` and its output position alone, bit for bit, whatever else
is in the batch and whatever came before. So filters are thresholds on a row's own values (ties stay in),
weights are integers, whose sums are the same in any order, and the draw is a hash of (seed, position) turned into a
token by the inverse of the cumulative distribution. Work that only some rows ask for touches only those rows, and
what is wrong with a row or its grammar ends that row's sequence alone. Nobody waits for the device but a grammar whose
last token is being drawn by the step before, and that while the device computes this one; if such a token turns out
not to fit, its sequence is in this step for nothing and may draw anything. It must not know of requests, slots or text.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from radixbackend.engine.grammar.base import Mask, Matcher
from radixbackend.engine.plan import (
    IntArray,
    Sampled,
    SampleSpec,
    SequenceId,
    SequencePlan,
    StepPlan,
    StepResult,
)
from radixbackend.engine.runner import Logits
from radixbackend.engine.transfer import Fetch, send
from radixbackend.types import SamplingParams, TokenLogprob

log = logging.getLogger(__name__)

FEW = 1024
"""Candidates sorted first for top_p; nearly always their mass suffices, and 128k values need not be sorted."""

NOT_FINITE = "the logits are not finite: those of the model, or what logit_bias or a penalty made of them"

UNIT = 2.0**40
"""Weight of a row's likeliest token; others are whole parts of it, and 2^23 of them still sum up in 64 bits."""

BLOCK_CPU = 2**18
"""Values drawn from at once: what is computed on the way stays in the processor's cache."""

BLOCK_GPU = 2**25
"""Values drawn from at once: bounds the memory for what is computed on the way (24 bytes each)."""


class _Row(NamedTuple):
    """One row to draw from: draft ``i`` of ``spec`` was accepted before it."""

    sequence_id: SequenceId
    at: int  # index of the logit row
    spec: SampleSpec
    i: int
    ahead: int | None  # see `SequencePlan`

    @property
    def position(self) -> int:
        return self.spec.num_generated + self.i

    def tokens(self, start: int) -> IntArray:
        """History and accepted drafts from ``start`` on."""
        return np.concatenate([self.spec.history[start:], np.array(self.spec.drafts[: self.i], np.int32)])


class Sampler:
    """``vocab_size`` is the width of the logits, ``end_tokens`` what ends an output."""

    def __init__(self, vocab_size: int, end_tokens: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._end_tokens = tuple(token for token in end_tokens if token < vocab_size)
        self._flat: frozenset[SequenceId] = frozenset()  # at the last draw known, so sorted in full at the next

    def launch(self, plan: StepPlan, logits: Logits, before: Drawn | None = None) -> Draws:
        """Draw for every sequence that samples; overwrites ``logits.rows``.

        ``before`` is what the step before drew; grammars wait for it, and ``prompt_logprobs`` for this step. Masks are
        filled before the logits are touched, so on an accelerator that happens while the forward runs.
        """
        rows = [row for i, s in enumerate(plan.sequences) for row in _rows(s, logits.offsets[i + 1])]
        masks = _Masks(rows, self._vocab_size, before)
        reports = {
            i: _prompt_logprobs(sequence, logits.of(i))
            for i, sequence in enumerate(plan.sequences)
            if sequence.prompt_logprobs is not None
        }
        rows = masks.usable
        values = _take(logits.rows, [row.at for row in rows])
        asked = [j for j, row in enumerate(rows) if row.spec.params.logprobs is not None]
        raw = values[_index(asked, values)] if asked else None  # a copy: the model's own values
        if rows:
            self._edit(values, rows)
            masks.apply(values)
        draws = Draws(plan, logits.offsets, rows, masks.faults, reports, asked, raw, self._note)
        draws.launch(values, [row.sequence_id in self._flat for row in rows])
        return draws

    def sample(self, plan: StepPlan, logits: Logits) -> StepResult:
        """Draw, and wait for it."""
        return self.launch(plan, logits).result()

    def _note(self, flat: frozenset[SequenceId]) -> None:
        self._flat = flat

    def _edit(self, values: torch.Tensor, rows: Sequence[_Row]) -> None:
        """Bias, penalties and the suppression of early ends, in place, for the rows that ask for them."""
        for j, row in enumerate(rows):
            params = row.spec.params
            if params.logit_bias:
                amounts = send(list(params.logit_bias.values()), values.device, values.dtype)
                values[j, _index(list(params.logit_bias), values)] += amounts
            if params.repetition_penalty != 1.0:
                _penalize_repetition(values[j], row.tokens(0), params.repetition_penalty)
            if params.frequency_penalty or params.presence_penalty:
                _penalize_frequency(values[j], row.tokens(row.spec.num_prompt), params)
            if row.position < params.min_tokens and (ends := [*self._end_tokens, *params.stop_token_ids]):
                values[j].index_fill_(0, _index(ends, values), -math.inf)


class Drawn:
    """What the sequences of a step drew last: as if every draft were right, and any token where nothing is drawn.

    Attributes:
        tokens: ``[sequences]`` on the device.
    """

    def __init__(self, tokens: torch.Tensor, fetch: Fetch | None, rows: Sequence[int]) -> None:
        self.tokens = tokens
        self._fetch, self._rows = fetch, rows  # ids of all rows on their way to the host, and which are these

    def known(self) -> list[int]:
        """The tokens, once the device has got that far; what was launched later is not waited for."""
        if self._fetch is None:
            return [0] * len(self.tokens)
        ids = self._fetch.wait()[0].tolist()
        return [int(ids[j]) for j in self._rows]


class Draws:
    """The draws of one step, on their way to the host.

    Attributes:
        drawn: for the step behind.
    """

    drawn: Drawn

    def __init__(
        self,
        plan: StepPlan,
        offsets: Sequence[int],
        rows: Sequence[_Row],
        faults: dict[int, str],
        reports: dict[int, tuple[TokenLogprob, ...]],
        asked: Sequence[int],
        raw: torch.Tensor | None,
        note: Callable[[frozenset[SequenceId]], None],
    ) -> None:
        self._plan, self._offsets, self._rows = plan, offsets, rows
        self._faults, self._reports = faults, reports
        self._asked, self._raw = asked, raw  # rows with log-probabilities, and the model's own values there
        self._note = note
        self._wide: Sequence[bool] = ()
        self._values: torch.Tensor | None = None  # to draw from again, where that may be needed
        self._fetch: Fetch | None = None

    def launch(self, values: torch.Tensor, wide: Sequence[bool]) -> None:
        """Draw from the rows; ``wide`` as in `_draw`."""
        if not self._rows:
            self.drawn = Drawn(torch.zeros(len(self._plan.sequences), dtype=torch.long, device=values.device), None, ())
            return
        winners, bests, flat = _draw(values, self._rows, wide)
        index = {row.at: j for j, row in enumerate(self._rows)}
        last = [index.get(end - 1, 0) for end in self._offsets[1:]]
        tokens = winners if last == list(range(len(self._rows))) else winners[_index(last, winners)]
        self._fetch = Fetch(torch.stack([winners.float(), bests, flat.float()]))  # token ids are exact below 2^24
        self.drawn = Drawn(tokens, self._fetch, last)
        if any(_has_nucleus(row) for row in self._rows):
            self._values, self._wide = values, wide

    def result(self) -> StepResult:
        """Wait for the draws, and for nothing launched after them if no log-probabilities are wanted."""
        drawn = {} if self._fetch is None else self._drawn(self._fetch.wait())
        self._values = self._raw = None
        return StepResult(tuple(self._sampled(i, s, drawn) for i, s in enumerate(self._plan.sequences)))

    def _drawn(self, fetched: torch.Tensor) -> dict[int, _Drawn]:
        """By logit row."""
        tokens, bests = [int(token) for token in fetched[0].tolist()], fetched[1].tolist()
        flat = [j for j, found in enumerate(fetched[2].tolist()) if found]
        redrawn = self._redraw(tokens, [j for j in flat if not self._wide[j]])
        self._note(frozenset(self._rows[j].sequence_id for j in flat))
        logprobs: dict[int, TokenLogprob] = {}
        if self._raw is not None:
            counts = [self._rows[j].spec.params.logprobs or 0 for j in self._asked]
            found = _logprobs(self._raw, [tokens[j] for j in self._asked], counts)
            logprobs = dict(zip(self._asked, found, strict=True))
        return {row.at: _Drawn(tokens[j], bests[j], logprobs.get(j), j in redrawn) for j, row in enumerate(self._rows)}

    def _redraw(self, tokens: list[int], flat: Sequence[int]) -> set[int]:
        """Draw rows again of which too little was sorted; returns those with another token now."""
        if not flat:
            return set()
        assert self._values is not None
        winners, _, _ = _draw(_take(self._values, flat), [self._rows[j] for j in flat], [True] * len(flat))
        changed = set()
        for j, token in zip(flat, winners.tolist(), strict=True):
            if tokens[j] != token:
                changed.add(j)
                tokens[j] = token
        return changed

    def _sampled(self, index: int, sequence: SequencePlan, drawn: dict[int, _Drawn]) -> Sampled:
        """Keep drafts while the draw at their row equals them, then one token more."""
        report = self._reports.get(index, ())
        if any(map(_is_broken, report)):
            return Sampled(error=NOT_FINITE)
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        redrawn = False
        for row in _rows(sequence, self._offsets[index + 1]):
            if row.at in self._faults:
                return Sampled(error=self._faults[row.at], prompt_logprobs=report)
            result = drawn.get(row.at)
            if result is None:
                break  # the grammar refuses the draft before it
            if tokens and result.best == -math.inf:
                break  # the output ends with the draft before it; where it does not, the next step says so
            if not math.isfinite(result.best):
                return Sampled(error=_fault(result.best, row), prompt_logprobs=report)
            if result.logprob is not None and _is_broken(result.logprob):  # by what a mask hid
                return Sampled(error=NOT_FINITE, prompt_logprobs=report)
            tokens.append(result.token)
            redrawn = redrawn or result.redrawn
            if result.logprob is not None:
                logprobs.append(result.logprob)
            if row.i < len(row.spec.drafts) and result.token != row.spec.drafts[row.i]:
                break
        return Sampled(tuple(tokens), tuple(logprobs), report, redrawn=redrawn)


class _Drawn(NamedTuple):
    token: int
    best: float  # the row's greatest value after masks; not finite if nothing could be drawn
    logprob: TokenLogprob | None
    redrawn: bool  # it was another one on the device


class _Masks:
    """What the grammars of this step allow, packed; the rows that can be drawn from, and why others cannot.

    Attributes:
        usable: in the order of the logits; not the rows behind a draft that its grammar refuses.
        faults: by logit row, what a grammar raised there.
    """

    def __init__(self, rows: Sequence[_Row], vocab_size: int, before: Drawn | None) -> None:
        self.usable = [row for row in rows if row.spec.matcher is None]
        self.faults: dict[int, str] = {}
        self._vocab_size = vocab_size
        self._masked: list[int] = []  # logit rows, in the order of their masks
        self._words = np.zeros((len(rows) - len(self.usable), -(-vocab_size // 32)), np.int32)
        firsts = [row for row in rows if row.spec.matcher is not None and row.i == 0]
        for row in firsts:
            if row.ahead is None:
                self._fill(row)
        if behind := [row for row in firsts if row.ahead is not None]:
            assert before is not None
            known = before.known()  # last of all, so that what could be done was done meanwhile
            for row in behind:
                assert row.ahead is not None
                self._fill(row, known[row.ahead])
        self.usable.sort(key=lambda row: row.at)

    def _fill(self, first: _Row, known: int | None = None) -> None:
        """Masks of a sequence's rows, walking the matcher along what comes before them and back."""
        spec, matcher = first.spec, first.spec.matcher
        assert matcher is not None
        coming = [] if known is None else [*spec.history[len(spec.history) - spec.assumed :].tolist(), known]
        try:
            with _Walk(matcher) as walk:
                if not all(map(walk.accepts, coming)):  # it ended, or a draft was refused: in this step for nothing
                    self.usable.append(first)
                    return
                for i in range(len(spec.drafts) + 1):
                    if i > 0 and not walk.accepts(spec.drafts[i - 1]):
                        break
                    if matcher.fill_mask(self._words, len(self._masked), spec.remaining - i):
                        self._masked.append(first.at + i)
                    self.usable.append(first._replace(at=first.at + i, i=i))
        except Exception as fault:
            log.warning("a grammar failed: %s: %s", type(fault).__name__, fault, exc_info=True)
            self.faults[first.at] = f"the grammar failed: {fault}"

    def apply(self, values: torch.Tensor) -> None:
        """Make what is not allowed impossible, in place."""
        if not self._masked:
            return
        order = np.argsort(self._masked)
        refused = _refused(self._words[order], self._vocab_size, values.device)
        if len(order) == len(values):
            values.masked_fill_(refused, -math.inf)
        else:
            index = {row.at: j for j, row in enumerate(self.usable)}
            where = _index([index[self._masked[k]] for k in order], values)
            values[where] = values[where].masked_fill_(refused, -math.inf)


class _Walk:
    """Leads a matcher along tokens, and back at the end: whatever happens, the step before has yet to be taken in."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._steps = 0

    def __enter__(self) -> _Walk:
        return self

    def accepts(self, token: int) -> bool:
        accepted = self._matcher.accept(token)
        self._steps += accepted
        return accepted

    def __exit__(self, *_: object) -> None:
        if self._steps:
            self._matcher.rollback(self._steps)


def _refused(words: Mask, size: int, device: torch.device) -> torch.Tensor:
    """Masks of which a set bit is a token *not* allowed, as bools ``[rows, size]``."""
    if device.type == "cpu":
        bits = np.unpackbits(~words.view(np.uint8), axis=1, count=size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    return _unpack(send(~words, device, torch.int32), size)  # an eighth of the bytes to send


def _unpack(words: torch.Tensor, size: int) -> torch.Tensor:
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return (words[:, :, None] >> shifts & 1).bool().flatten(1)[:, :size]


def _take(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some of the rows, in ascending order: a copy, or the tensor itself if they are all."""
    return values if len(rows) == len(values) else values[_index(rows, values)]


def _index(rows: Sequence[int], values: torch.Tensor) -> torch.Tensor:
    """On the device of ``values``; a list as an index would be sent there while everyone waits."""
    return send(rows, values.device, torch.long)


def _rows(sequence: SequencePlan, end: int) -> list[_Row]:
    """The rows a sequence draws from: the last ones of those it has logits for, which end at ``end``."""
    spec, number, count, ahead = sequence.sample, sequence.sequence_id, sequence.num_drawn, sequence.ahead
    return [] if spec is None else [_Row(number, end - count + i, spec, i, ahead) for i in range(count)]


def _has_nucleus(row: _Row) -> bool:
    return row.spec.params.top_p < 1 and row.spec.params.temperature > 0


def _fault(best: float, row: _Row) -> str:
    if best != -math.inf:
        return NOT_FINITE
    why = ": the grammar allows none" if row.spec.matcher is not None else ""
    if row.position < row.spec.params.min_tokens:
        why += f" before min_tokens={row.spec.params.min_tokens} but one that ends the output"
    return f"no token is possible here{why}"


# -- penalties -------------------------------------------------------------------------------------------------------


def _penalize_repetition(row: torch.Tensor, tokens: IntArray, penalty: float) -> None:
    """Divide positive and multiply negative logits of what occurred (CTRL, arXiv 1909.05858)."""
    ids = send(tokens, row.device, torch.long)  # one that occurred twice is written twice, alike
    chosen = row[ids]
    row[ids] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)


def _penalize_frequency(row: torch.Tensor, generated: IntArray, params: SamplingParams) -> None:
    ids, counts = np.unique(generated, return_counts=True)
    amount = params.frequency_penalty * counts + params.presence_penalty
    row[send(ids, row.device, torch.long)] -= send(amount, row.device, row.dtype)


# -- drawing ---------------------------------------------------------------------------------------------------------


def _draw(
    values: torch.Tensor, rows: Sequence[_Row], wide: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A token and the greatest value of each row, and whether it is flat: `FEW` values do not reach its top_p.

    A flat row has its token only where it is ``wide``: sorted in full. Elsewhere it must be drawn again.
    """
    winners = _argmax(values)
    bests = values.gather(1, winners[:, None]).squeeze(1)
    flat = torch.zeros_like(winners, dtype=torch.bool)
    random = [j for j, row in enumerate(rows) if row.spec.params.temperature > 0]
    for block in _blocks(len(random), values):
        some = random[block]
        where = _index(some, values)
        chosen, fully = [rows[j] for j in some], [wide[j] for j in some]
        winners[where], flat[where] = _draw_random(values[where], bests[where], chosen, fully)
    return winners, bests, flat


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """The lowest id on ties, and NaN above all; NumPy's is ten times faster than torch's on a CPU."""
    return torch.from_numpy(values.numpy().argmax(-1)) if values.device.type == "cpu" else values.argmax(-1)


def _blocks(count: int, values: torch.Tensor) -> Iterator[slice]:
    """Cuts ``count`` rows as wide as ``values`` into blocks."""
    size = max(1, (BLOCK_CPU if values.device.type == "cpu" else BLOCK_GPU) // values.shape[1])
    return (slice(i, i + size) for i in range(0, count, size))


def _draw_random(
    values: torch.Tensor, bests: torch.Tensor, rows: Sequence[_Row], wide: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF draw per row, in the order of token ids, and as in `_draw`; ``values`` is overwritten."""
    params = [row.spec.params for row in rows]
    limits = torch.finfo(torch.float32)
    # What float64 holds and float32 does not would become 0 or infinity, and either gives NaN.
    clipped = [min(max(p.temperature, limits.tiny), limits.max) for p in params]
    temperatures = send(clipped, values.device, torch.float32)
    # Relative to the best, so that a tiny temperature does not overflow; a row without a best is an error later.
    bests = torch.where(bests.isfinite(), bests, 0.0)
    scaled = values.sub_(bests[:, None]).div_(temperatures[:, None])
    weights = _weights(scaled)
    flat = torch.zeros_like(bests, dtype=torch.bool)
    filtered = [j for j, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p]
    if filtered:
        floor = torch.full_like(bests, -math.inf)
        where = _index(filtered, values)
        asked, fully = [params[j] for j in filtered], [wide[j] for j in filtered]
        floor[where], flat[where] = _floor(_take(scaled, filtered), _take(weights, filtered), asked, fully)
        weights.masked_fill_(scaled < floor[:, None], 0)
    cumulative = weights.cumsum(-1)
    uniform = uniforms([r.spec.seed for r in rows], [r.position for r in rows])
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
    scaled: torch.Tensor, weights: torch.Tensor, params: Sequence[SamplingParams], wide: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least value that stays in each row: top_k, then top_p of what is left, and min_p of the best; see `_draw`."""
    device, size = scaled.device, scaled.shape[1]
    floor = send([math.log(p.min_p) if p.min_p else -math.inf for p in params], device, torch.float32)
    flat = torch.zeros_like(floor, dtype=torch.bool)
    ks = [p.top_k if 0 < p.top_k < size else 0 for p in params]
    kth = torch.full_like(floor, -math.inf)
    if any(ks):
        best = _greatest(scaled, max(ks))
        last = best.gather(1, _index([max(k - 1, 0) for k in ks], scaled)[:, None]).squeeze(1)
        kth = torch.where(_index(ks, scaled) > 0, last, kth)
    for fully in (False, True):
        nucleus = [j for j, p in enumerate(params) if p.top_p < 1 and wide[j] is fully]
        if not nucleus:
            continue
        some, left, where = _take(scaled, nucleus), _take(weights, nucleus), _index(nucleus, scaled)
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


# -- log-probabilities -----------------------------------------------------------------------------------------------


def _logprobs(raw: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Of the model's own distribution: the token's and those of the ``counts[j]`` likeliest, one for each row."""
    blocks = _blocks(len(tokens), raw)
    return [entry for some in blocks for entry in _block_logprobs(raw[some], tokens[some], counts[some])]


def _block_logprobs(raw: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    # Each row by itself, unlike `logsumexp`, whose sums depend on how many rows there are. NaN for infinite logits.
    scaled = raw.log_softmax(-1)
    chosen = scaled.gather(1, torch.tensor(tokens, device=raw.device)[:, None]).squeeze(1).tolist()
    best = _likeliest(raw, max(counts))
    columns = zip(tokens, counts, chosen, best.tolist(), scaled.gather(1, best).tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(ids[:count], logprobs[:count], strict=True)))
        for token, count, logprob, ids, logprobs in columns
    ]


def _likeliest(raw: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of the greatest values of each row, descending; the lower id first on ties."""
    top = raw.topk(count)
    ids = top.indices.sort(-1).values
    if count:
        least = top.values[:, -1:]
        for j in ((raw >= least).sum(-1) > count).nonzero().squeeze(1).tolist():  # more tie for the last place
            above = (raw[j] > least[j]).nonzero().squeeze(1)
            tied = (raw[j] == least[j]).nonzero().squeeze(1)
            ids[j] = torch.cat([above, tied[: count - len(above)]]).sort().values
    order = raw.gather(1, ids).argsort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order)


def _is_broken(entry: TokenLogprob) -> bool:
    return math.isnan(entry.logprob)


def _prompt_logprobs(sequence: SequencePlan, raw: torch.Tensor) -> tuple[TokenLogprob, ...]:
    """Of the prompt tokens that follow each token of the chunk."""
    drafts = len(sequence.sample.drafts) if sequence.sample else 0
    following = sequence.tokens[1 : len(sequence.tokens) - drafts].tolist()
    if sequence.next_token is not None:
        following.append(sequence.next_token)
    if not following:
        return ()
    return tuple(_logprobs(raw[: len(following)], following, [sequence.prompt_logprobs or 0] * len(following)))

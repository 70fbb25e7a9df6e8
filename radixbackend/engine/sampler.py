"""From logits to tokens: penalties, masks, temperature, filters, one draw per row, log-probabilities.

Rules. Nothing is kept between steps: a row's token depends on its logits, its `SampleSpec` and its output position
alone, bit for bit, whatever else is in the batch. So filters are thresholds on a row's own values (ties stay in),
sums over a row run in one order, and the draw is a hash of (seed, position) turned into a token by the inverse of
the cumulative distribution. Work that only some rows ask for touches only those rows. It must not know of requests,
slots or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from radixbackend.engine.plan import IntArray, Sampled, SampleSpec, SequencePlan, StepPlan, StepResult
from radixbackend.engine.runner import Logits
from radixbackend.types import SamplingParams, TokenLogprob

FEW = 1024
"""Candidates sorted first for top_p; nearly always their mass suffices, and 128k values need not be sorted."""


class _Row(NamedTuple):
    """One row to draw from: draft ``i`` of ``spec`` was accepted before it."""

    at: int  # index of the logit row
    spec: SampleSpec
    i: int

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
        self._end_tokens = tuple(end_tokens)

    def sample(self, plan: StepPlan, logits: Logits) -> StepResult:
        """Draw for every sequence that samples; overwrites ``logits.rows``.

        Masks are filled before the logits are touched, so on an accelerator that happens while the forward runs.
        """
        rows = [row for i, s in enumerate(plan.sequences) for row in _rows(s, logits.offsets[i + 1])]
        masks = _Masks(rows, self._vocab_size)
        rows = masks.usable
        reports = {
            i: _prompt_logprobs(sequence, logits.of(i))
            for i, sequence in enumerate(plan.sequences)
            if sequence.prompt_logprobs is not None
        }
        drawn: dict[int, _Drawn] = {}
        if rows:
            where = torch.tensor([row.at for row in rows], device=logits.rows.device)
            values = logits.rows if len(rows) == len(logits.rows) else logits.rows[where]
            raw = {j: values[j].clone() for j, row in enumerate(rows) if row.spec.params.logprobs is not None}
            self._edit(values, rows)
            masks.apply(values)
            tokens, bests = _draw(values, rows)
            for j, row in enumerate(rows):
                drawn[row.at] = _Drawn(tokens[j], bests[j], raw.get(j))
        return StepResult(
            tuple(
                self._gather(s, logits.offsets[i + 1], drawn, reports.get(i, ())) for i, s in enumerate(plan.sequences)
            )
        )

    def _edit(self, values: torch.Tensor, rows: Sequence[_Row]) -> None:
        """Bias, penalties and the suppression of early ends, in place, for the rows that ask for them."""
        for j, row in enumerate(rows):
            params = row.spec.params
            if params.logit_bias:
                ids = torch.tensor(list(params.logit_bias), device=values.device)
                values[j, ids] += torch.tensor(list(params.logit_bias.values()), device=values.device)
            if params.repetition_penalty != 1.0:
                _penalize_repetition(values[j], row.tokens(0), params.repetition_penalty)
            if params.frequency_penalty or params.presence_penalty:
                _penalize_frequency(values[j], row.tokens(row.spec.num_prompt), params)
            if row.position < params.min_tokens and (ends := [*self._end_tokens, *params.stop_token_ids]):
                values[j, ends] = -math.inf

    def _gather(
        self, sequence: SequencePlan, end: int, drawn: dict[int, _Drawn], report: tuple[TokenLogprob, ...]
    ) -> Sampled:
        """Keep drafts while the draw at their row equals them, then one token more."""
        if sequence.sample is None:
            return Sampled(prompt_logprobs=report)
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        for row in _rows(sequence, end):
            result = drawn.get(row.at)
            if result is None:
                break  # the grammar refuses the draft before it
            if not math.isfinite(result.best):
                return Sampled(error=_fault(result.best, sequence.sample), prompt_logprobs=report)
            tokens.append(result.token)
            if result.raw is not None:
                logprobs.append(_logprob(result.raw, result.token, row.spec.params.logprobs or 0))
            if row.i < len(row.spec.drafts) and result.token != row.spec.drafts[row.i]:
                break
        return Sampled(tuple(tokens), tuple(logprobs), report)


class _Drawn(NamedTuple):
    token: int
    best: float  # the row's greatest value after masks; not finite if nothing could be drawn
    raw: torch.Tensor | None  # the row as the model gave it, where log-probabilities are asked for


class _Masks:
    """What the grammars of this step allow, packed; and the rows that can be drawn from at all."""

    def __init__(self, rows: Sequence[_Row], vocab_size: int) -> None:
        self.usable: list[_Row] = []
        self._vocab_size = vocab_size
        self._masked: list[int] = []  # indices into `usable`
        constrained = sum(row.spec.matcher is not None for row in rows)
        self._words = np.zeros((constrained, -(-vocab_size // 32)), np.int32)
        for row in rows:
            if row.spec.matcher is None:
                self.usable.append(row)
            elif row.i == 0:
                self._fill(row.spec, row.at)

    def _fill(self, spec: SampleSpec, first: int) -> None:
        """Masks of a sequence's rows, walking the matcher along the drafts and back."""
        matcher = spec.matcher
        assert matcher is not None
        walked = 0
        try:
            for i in range(len(spec.drafts) + 1):
                if i > 0:
                    if not matcher.accept(spec.drafts[i - 1]):
                        break
                    walked += 1
                if matcher.fill_mask(self._words, len(self._masked), spec.remaining - i):
                    self._masked.append(len(self.usable))
                self.usable.append(_Row(first + i, spec, i))
        finally:
            if walked:
                matcher.rollback(walked)

    def apply(self, values: torch.Tensor) -> None:
        """Make what is not allowed impossible, in place."""
        if not self._masked:
            return
        words = self._words[: len(self._masked)]
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=self._vocab_size, bitorder="little")
        refused = torch.from_numpy(bits == 0).to(values.device)
        if len(self._masked) == len(values):
            values.masked_fill_(refused, -math.inf)
        else:
            where = torch.tensor(self._masked, device=values.device)
            values[where] = values[where].masked_fill_(refused, -math.inf)


def _rows(sequence: SequencePlan, end: int) -> list[_Row]:
    """The rows a sequence draws from: the last ones of those it has logits for, which end at ``end``."""
    spec = sequence.sample
    if spec is None:
        return []
    first = end - len(spec.drafts) - 1
    return [_Row(first + i, spec, i) for i in range(len(spec.drafts) + 1)]


def _fault(best: float, spec: SampleSpec) -> str:
    if best == -math.inf:
        return "no token is possible here" + (": the grammar allows none" if spec.matcher is not None else "")
    return "the model produced logits that are not finite"


# -- penalties -------------------------------------------------------------------------------------------------------


def _penalize_repetition(row: torch.Tensor, tokens: IntArray, penalty: float) -> None:
    """Divide positive and multiply negative logits of what occurred (CTRL, arXiv 1909.05858)."""
    ids = torch.from_numpy(np.unique(tokens)).long().to(row.device)
    chosen = row[ids]
    row[ids] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)


def _penalize_frequency(row: torch.Tensor, generated: IntArray, params: SamplingParams) -> None:
    ids, counts = np.unique(generated, return_counts=True)
    amount = params.frequency_penalty * counts + params.presence_penalty
    row[torch.from_numpy(ids).long().to(row.device)] -= torch.from_numpy(amount).to(row)


# -- drawing ---------------------------------------------------------------------------------------------------------


def _draw(values: torch.Tensor, rows: Sequence[_Row]) -> tuple[list[int], list[float]]:
    """A token and the greatest value of each row."""
    winners = values.argmax(-1)  # the lowest id on ties
    bests = values.gather(1, winners[:, None]).squeeze(1)
    random = [j for j, row in enumerate(rows) if row.spec.params.temperature > 0]
    if random:
        where = torch.tensor(random, device=values.device)
        chosen = [rows[j] for j in random]
        winners = winners.clone()
        winners[where] = _draw_random(values[where], bests[where], chosen)
    return winners.tolist(), bests.tolist()


def _draw_random(values: torch.Tensor, bests: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
    """Inverse-CDF draw per row, in the order of token ids."""
    params = [row.spec.params for row in rows]
    temperatures = torch.tensor([p.temperature for p in params], device=values.device)
    # Relative to the best, so that a tiny temperature does not overflow; a row without a best is an error later.
    bests = torch.where(bests.isfinite(), bests, torch.zeros_like(bests))
    scaled = (values - bests[:, None]) / temperatures[:, None]
    filtered = [j for j, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p]
    if filtered:
        where = torch.tensor(filtered, device=values.device)
        subset = scaled[where]
        floor = _thresholds(subset, [params[j] for j in filtered])
        scaled[where] = subset.masked_fill_(subset < floor[:, None], -math.inf)
    cumulative = scaled.exp_().cumsum(-1, dtype=torch.float64)
    uniform = torch.from_numpy(uniforms([r.spec.seed for r in rows], [r.position for r in rows])).to(values.device)
    targets = uniform[:, None] * cumulative[:, -1:]
    # The first id whose cumulative weight exceeds the target; an id of weight zero never does.
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp_(max=values.shape[1] - 1)


def _thresholds(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """The least value that stays in each row: top_k, then top_p of what is left, and min_p of the best."""
    device, size = scaled.device, scaled.shape[1]
    floor = torch.tensor([math.log(p.min_p) if p.min_p else -math.inf for p in params], device=device)
    ks = [min(p.top_k, size) if p.top_k else size for p in params]
    nucleus = [j for j, p in enumerate(params) if p.top_p < 1]
    narrow = max([k for k in ks if k < size], default=0)
    count = min(size, max(narrow, FEW if nucleus else 0))
    if not count:
        return floor
    best = scaled.topk(count).values  # [n, count], descending
    last = torch.tensor([k - 1 if k <= count else 0 for k in ks], device=device)
    limited = torch.tensor([k < size for k in ks], device=device)
    kth = torch.where(limited, best.gather(1, last[:, None]).squeeze(1), -math.inf)
    floor = torch.maximum(floor, kth)
    if nucleus:
        where = torch.tensor(nucleus, device=device)
        mass = _nucleus(scaled[where], best[where], kth[where], [params[j].top_p for j in nucleus])
        floor[where] = torch.maximum(floor[where], mass)
    return floor


def _nucleus(scaled: torch.Tensor, best: torch.Tensor, kth: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """The value at which the mass of greater or equal ones reaches top_p of what top_k leaves."""
    share = torch.tensor(top_p, dtype=torch.float64, device=scaled.device)
    kept = torch.where(scaled >= kth[:, None], scaled.exp(), 0.0).cumsum(-1, dtype=torch.float64)[:, -1]
    wanted = share * kept
    reached = best.exp().cumsum(-1, dtype=torch.float64)
    short = reached[:, -1] < wanted
    at = torch.searchsorted(reached, wanted[:, None]).clamp_(max=best.shape[1] - 1)
    floor = best.gather(1, at).squeeze(1)
    if best.shape[1] < scaled.shape[1] and bool(short.any()):
        # A flat distribution: sort these rows whole. The sums begin alike, so the others' result is the same.
        whole = scaled[short].sort(-1, descending=True).values
        picks = torch.tensor(top_p, device=scaled.device)[short].tolist()
        floor[short] = _nucleus(scaled[short], whole, kth[short], picks)
    return floor


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


def _logprob(raw: torch.Tensor, token: int, top: int) -> TokenLogprob:
    return _logprobs(raw[None], [token], top)[0]


def _logprobs(raw: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Of the model's own distribution, one per row."""
    norms = raw.logsumexp(-1, keepdim=True)
    chosen = raw.gather(1, torch.tensor(tokens, device=raw.device)[:, None]) - norms
    best = raw.topk(top) if top else None
    values = (best.values - norms).tolist() if best else [[]] * len(tokens)
    ids = best.indices.tolist() if best else [[]] * len(tokens)
    return [
        TokenLogprob(token, value, tuple(zip(i, v, strict=True)))
        for token, value, i, v in zip(tokens, chosen.squeeze(1).tolist(), ids, values, strict=True)
    ]


def _prompt_logprobs(sequence: SequencePlan, raw: torch.Tensor) -> tuple[TokenLogprob, ...]:
    """Of the prompt tokens that follow each token of the chunk."""
    drafts = len(sequence.sample.drafts) if sequence.sample else 0
    following = sequence.tokens[1 : len(sequence.tokens) - drafts].tolist()
    if sequence.next_token is not None:
        following.append(sequence.next_token)
    if not following:
        return ()
    return tuple(_logprobs(raw[: len(following)], following, sequence.prompt_logprobs or 0))

"""From logits to tokens: penalties, masks, draws of whole sequences with their drafts, log-probabilities.

Rules. A row's token depends on its logits, its `SampleSpec` and its output position alone, bit for bit, whatever else
is in the batch and whatever came before; see `Draw`. Work that only some rows ask for touches only those rows, and
what is wrong with a row or its grammar ends that row's sequence alone. Nobody waits for the device but a grammar whose
last token is being drawn by the step before, and that while the device computes this one; if such a token turns out
not to fit, its sequence is in this step for nothing and may draw anything. It must not know of requests, slots or text.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from radixbackend.engine.draw import Ask, Draw, TorchDraw, blocks, index, take
from radixbackend.engine.grammar.base import Matcher
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

NOT_FINITE = "the logits are not finite: those of the model, or what logit_bias or a penalty made of them"


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

    @property
    def ask(self) -> Ask:
        return Ask(self.spec.params, self.spec.seed, self.position)

    def tokens(self, start: int) -> IntArray:
        """History and accepted drafts from ``start`` on."""
        return np.concatenate([self.spec.history[start:], np.array(self.spec.drafts[: self.i], np.int32)])


class Sampler:
    """``vocab_size`` is the width of the logits, ``end_tokens`` what ends an output."""

    def __init__(self, vocab_size: int, end_tokens: Sequence[int], draw: Draw | None = None) -> None:
        self._draw = draw or TorchDraw()
        self._vocab_size = vocab_size
        self._end_tokens = tuple(token for token in end_tokens if token < vocab_size)
        self._flat: frozenset[SequenceId] = frozenset()  # at the last draw known, so sorted in full at the next

    def launch(self, plan: StepPlan, logits: Logits, before: Drawn | None = None) -> Draws:
        """Draw for every sequence that samples.

        ``before`` is what the step before drew; grammars wait for it, and ``prompt_logprobs`` for this step. Masks are
        filled before the logits are touched, so on an accelerator that happens while the forward runs.
        """
        rows = [row for i, s in enumerate(plan.sequences) for row in _rows(s, logits.offsets[i + 1])]
        masks = _Masks(rows, self._vocab_size, before)
        reports = {
            i: _prompt_logprobs(sequence, logits.of(i).float())
            for i, sequence in enumerate(plan.sequences)
            if sequence.prompt_logprobs is not None
        }
        rows = masks.usable
        values = take(logits.rows, [row.at for row in rows])
        asked = [j for j, row in enumerate(rows) if row.spec.params.logprobs is not None]
        raw = values[index(asked, values)].float() if asked else None  # a copy: the model's own values
        edits = [(j, edit) for j, row in enumerate(rows) for edit in self._edits(row)]
        if edits or masks.any or not self._draw.reads(values):
            values = values.to(torch.float32, copy=True)
        for j, edit in edits:
            edit(values[j])
        masks.apply(values, self._draw)
        draws = Draws(plan, logits.offsets, rows, masks.faults, reports, asked, raw, self._draw, self._note)
        draws.launch(values, [row.sequence_id in self._flat for row in rows])
        return draws

    def sample(self, plan: StepPlan, logits: Logits) -> StepResult:
        """Draw, and wait for it."""
        return self.launch(plan, logits).result()

    def _note(self, flat: frozenset[SequenceId]) -> None:
        self._flat = flat

    def _edits(self, row: _Row) -> Iterator[Callable[[torch.Tensor], None]]:
        """Bias, penalties and the suppression of early ends, where a row asks for them; each changes its values."""
        params = row.spec.params
        if params.logit_bias:
            yield partial(_add_bias, bias=params.logit_bias)
        if params.repetition_penalty != 1.0:
            yield lambda values: _penalize_repetition(values, row.tokens(0), params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            yield lambda values: _penalize_frequency(values, row.tokens(row.spec.num_prompt), params)
        if row.position < params.min_tokens and (ends := [*self._end_tokens, *params.stop_token_ids]):
            yield partial(_forbid, tokens=ends)


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
        draw: Draw,
        note: Callable[[frozenset[SequenceId]], None],
    ) -> None:
        self._plan, self._offsets, self._rows = plan, offsets, rows
        self._faults, self._reports = faults, reports
        self._asked, self._raw = asked, raw  # rows with log-probabilities, and the model's own values there
        self._draw, self._note = draw, note
        self._wide: Sequence[bool] = ()
        self._values: torch.Tensor | None = None  # to draw from again, where that may be needed
        self._fetch: Fetch | None = None

    def launch(self, values: torch.Tensor, wide: Sequence[bool]) -> None:
        """Draw from the rows; ``wide`` as in `Draw`."""
        if not self._rows:
            self.drawn = Drawn(torch.zeros(len(self._plan.sequences), dtype=torch.long, device=values.device), None, ())
            return
        winners, bests, flat = self._draw(values, [row.ask for row in self._rows], wide)
        at = {row.at: j for j, row in enumerate(self._rows)}
        last = [at.get(end - 1, 0) for end in self._offsets[1:]]
        tokens = winners if last == list(range(len(self._rows))) else winners[index(last, winners)]
        self._fetch = Fetch(winners, bests, flat)  # as floats token ids are exact below 2^24
        self.drawn = Drawn(tokens, self._fetch, last)
        if any(_has_nucleus(row) for row in self._rows):
            self._values, self._wide = values, wide

    def result(self) -> StepResult:
        """Wait for the draws, and for nothing launched after them if no log-probabilities are wanted."""
        drawn = {} if self._fetch is None else self._drawn(self._fetch.wait())
        self._values = self._raw = None
        return StepResult(tuple(self._sampled(i, s, drawn) for i, s in enumerate(self._plan.sequences)))

    def _drawn(self, fetched: Sequence[torch.Tensor]) -> dict[int, _Drawn]:
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
        asks = [self._rows[j].ask for j in flat]
        winners, _, _ = self._draw(take(self._values, flat), asks, [True] * len(flat))
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

    @property
    def any(self) -> bool:
        return bool(self._masked)

    def apply(self, values: torch.Tensor, draw: Draw) -> None:
        """Make what is not allowed impossible, in place."""
        if not self._masked:
            return
        order = np.argsort(self._masked)
        at = {row.at: j for j, row in enumerate(self.usable)}
        draw.mask(values, [at[self._masked[k]] for k in order], self._words[order])


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


def _add_bias(row: torch.Tensor, bias: Mapping[int, float]) -> None:
    row[index(list(bias), row)] += send(list(bias.values()), row.device, row.dtype)


def _forbid(row: torch.Tensor, tokens: Sequence[int]) -> None:
    row.index_fill_(0, index(tokens, row), -math.inf)


def _penalize_repetition(row: torch.Tensor, tokens: IntArray, penalty: float) -> None:
    """Divide positive and multiply negative logits of what occurred (CTRL, arXiv 1909.05858)."""
    ids = send(tokens, row.device, torch.long)  # one that occurred twice is written twice, alike
    chosen = row[ids]
    row[ids] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)


def _penalize_frequency(row: torch.Tensor, generated: IntArray, params: SamplingParams) -> None:
    ids, counts = np.unique(generated, return_counts=True)
    amount = params.frequency_penalty * counts + params.presence_penalty
    row[send(ids, row.device, torch.long)] -= send(amount, row.device, row.dtype)


# -- log-probabilities -----------------------------------------------------------------------------------------------


def _logprobs(raw: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Of the model's own distribution: the token's and those of the ``counts[j]`` likeliest, one for each row."""
    return [
        entry for some in blocks(len(tokens), raw) for entry in _block_logprobs(raw[some], tokens[some], counts[some])
    ]


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

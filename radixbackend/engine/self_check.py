"""Which way to run a model, decided by measuring: paged and plain logits must agree at load.

Rules. The reference is the model's own forward over each whole sequence, without any cache of ours or
transformers'. The script against it holds everything that serving does: packed sequences, chunks of prompts beside
decodes, a prefix reused from another sequence's slots, several tokens verified at once, slots in any order. Logits
are compared, not tokens, since a wrong model can still guess right. Windows longer than the script are read from the
model's mask functions instead (see `probe`).

Keys and values stored in another type change logits by more than a small mistake would. So attention is checked in the
model's own type first, and then storing: it must give what the same attention gives where keys and values are rounded
first and then stored as they are. How far that is from the plain model is another question, with a bound of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from radixbackend.engine.attention.base import AttentionBackend, AttentionLayer
from radixbackend.engine.kv_store import narrowed
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import ExecutorTraits, IntArray, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.probe import has_states, refuse_unknown_caches, special_tokens, text_part
from radixbackend.engine.runner import Runner
from radixbackend.engine.sequential_runner import SequentialRunner
from radixbackend.errors import UnsupportedModelError

log = logging.getLogger(__name__)

LENGTH = 48
"""Of the script's sequences, where no window asks for more: kernels treat a few queries unlike many."""

LONGEST_WINDOW = 64
"""Windows and chunks up to this long are exceeded by the script."""

MOST_LOST = 0.5
"""Of a row of logits, in the median, to the rounding of keys and values: beyond, a model is hardly itself any more.
Random models of three layers that look hard at single keys lose 0.01 to 0.4."""


Found = dict[int, dict[int, tuple[int, torch.Tensor]]]
"""By sequence and position: where the step that computed it started, and its logits."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a runner's logits are from plain ones: per row ``|Δ| / |row - mean|``.

    In low precision single rows may differ by much (a router's near tie), so the median decides there, that of rows
    without and of rows with a context before their step, whichever is larger.
    """

    median: float
    worst: float
    dtype: torch.dtype

    @property
    def acceptable(self) -> bool:
        if self.dtype == torch.float32:
            return self.worst < 1e-2
        return self.median < 0.1

    def __str__(self) -> str:
        return f"logits differ by {self.median:.1e} in the median and {self.worst:.1e} at worst"


def choose_runner(
    loaded: LoadedModel,
    attention: AttentionBackend,
    *,
    self_check: bool = True,
    same_bits: bool = False,
    stored: torch.dtype | None = None,
) -> Runner:
    """The fastest exact runner for a model, already without slots: call `Runner.allocate` next.

    Paged if the check passes, else sequential if its own passes, else `UnsupportedModelError`. With
    ``self_check=False`` the model's structure alone decides. With ``same_bits`` it is the paged one or none, and its
    logits must be the same bits in every batch, whatever ``self_check`` is. With ``stored``, the type that keys and
    values are kept in, it is the paged one or none, too.
    """
    reasons = []
    ways: list[tuple[str, Callable[[], Runner]]] = [("paged", lambda: _paged(loaded, attention, self_check, stored))]
    if same_bits:
        ways = [("paged", lambda: _paged_same_bits(loaded, attention, self_check, stored))]
    elif stored is None:
        ways.append(("sequential", lambda: _sequential(loaded, self_check)))
    for path, make in ways:
        try:
            with _faults_as_unsupported():
                refuse_unknown_caches(loaded.model.config)
                runner = make()
        except UnsupportedModelError as reason:
            reasons.append(f"{path}: {reason}")
            continue
        log.info("%s runs on the %s path%s", loaded.name, path, f" ({reasons[0]})" if reasons else "")
        return runner
    raise UnsupportedModelError(f"{loaded.name!r} cannot be served exactly; {'; '.join(reasons)}")


@contextmanager
def _faults_as_unsupported() -> Iterator[None]:
    """A model that fails on a path does not support it, whatever it raises; running out of memory says nothing."""
    try:
        yield
    except (UnsupportedModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as fault:
        raise UnsupportedModelError(f"{type(fault).__name__}: {fault}") from fault


def _paged(
    loaded: LoadedModel, attention: AttentionBackend, self_check: bool, stored: torch.dtype | None = None
) -> Runner:
    if has_states(loaded.model.config):
        raise UnsupportedModelError("it has recurrent layers, whose state does not lie in slots")
    if stored is not None and self_check:
        _paged(loaded, attention, self_check).close()
    runner = ModelRunner(loaded, attention, stored)
    try:
        if stored is not None and self_check:
            _require_stored(loaded, runner, stored)
        elif self_check:
            _require(loaded, runner)
    except BaseException:
        runner.close()
        raise
    return runner


def _paged_same_bits(
    loaded: LoadedModel, attention: AttentionBackend, self_check: bool, stored: torch.dtype | None
) -> Runner:
    runner = _paged(loaded, attention, self_check, stored)
    try:
        _require_same_bits(loaded, runner)
    except BaseException:
        runner.close()
        raise
    return runner


def _require_same_bits(loaded: LoadedModel, runner: Runner) -> None:
    """The script's rows, computed in chunks and batches, against those of each sequence whole and alone."""
    script = Script.of(loaded, runner)
    runner.allocate(script.slots)
    try:
        found = script.run(runner)
        for which, rows in found.items():
            tokens = script.sequences[which]
            whole = SequencePlan(SequenceId(which), tokens, 0, np.arange(len(tokens), dtype=np.int32), None, 0)
            alone = runner.run(StepPlan(0, (whole,))).rows
            if not all(torch.equal(row, alone[position]) for position, (_, row) in rows.items()):
                raise UnsupportedModelError("its logits depend on what else is computed in the same step")
    finally:
        runner.allocate(0)


class Rounding:
    """An attention whose keys and values are rounded to a type, and stored in the model's own.

    See `AttentionBackend`.
    """

    def __init__(self, kernel: AttentionBackend, dtype: torch.dtype) -> None:
        self.name, self.head_major = kernel.name, getattr(kernel, "head_major", False)
        self._kernel, self._dtype = kernel, dtype
        self.refuses, self.bind = kernel.refuses, kernel.bind
        self.begin, self.end = kernel.begin, kernel.end

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        key, value = (narrowed(rows, self._dtype).to(rows.dtype) for rows in (key, value))
        return self._kernel.attend(layer, query, key, value, sinks)


def _require_stored(loaded: LoadedModel, runner: ModelRunner, stored: torch.dtype) -> None:
    """Keys and values read as rounded ones that were stored unrounded, and not too much lost by it."""
    script = Script.of(loaded, runner)
    unrounded = ModelRunner(loaded, Rounding(runner.attention, stored))
    try:
        rounded = _run(script, unrounded)
    finally:
        unrounded.close()

    def expected(sequence: int) -> dict[int, torch.Tensor]:
        return {position: row for position, (_, row) in rounded[sequence].items()}

    difference = _difference(_run(script, runner), expected, loaded.dtype)
    if not difference.acceptable:
        raise UnsupportedModelError(f"keys and values stored in {stored} are not read as such: {difference}")
    if not (lost := compare(loaded, runner)).median < MOST_LOST:
        raise UnsupportedModelError(f"it loses too much with keys and values rounded to {stored}: {lost}")


def _sequential(loaded: LoadedModel, self_check: bool) -> Runner:
    if not self_check:
        return SequentialRunner(loaded, chunks=not has_states(loaded.model.config))
    runner = SequentialRunner(loaded)
    try:
        with _faults_as_unsupported():
            _require(loaded, runner)
    except UnsupportedModelError as reason:
        log.debug("%s: prompts in several pieces: %s", loaded.name, reason)
        runner = SequentialRunner(loaded, chunks=False)
        _require(loaded, runner)
    return runner


def _require(loaded: LoadedModel, runner: Runner) -> None:
    difference = compare(loaded, runner)
    if not difference.acceptable:
        raise UnsupportedModelError(str(difference))


def compare(loaded: LoadedModel, runner: Runner) -> Difference:
    """Run the script on ``runner`` and on the plain model; the runner's slots are allocated, used and dropped."""
    script = Script.of(loaded, runner)
    found = _run(script, runner)

    def plain(sequence: int) -> torch.Tensor:
        tokens = torch.from_numpy(script.sequences[sequence]).long()[None].to(loaded.device)
        logits: torch.Tensor = loaded.model(input_ids=tokens, use_cache=False).logits[0].float()
        return logits

    with plain_attention(loaded.model, runner), torch.no_grad():
        return _difference(found, plain, loaded.dtype)


def _run(script: Script, runner: Runner) -> Found:
    """Of slots that are allocated, used and dropped."""
    runner.allocate(script.slots)
    try:
        return script.run(runner)
    finally:
        runner.allocate(0)


def _difference(
    found: Found, reference: Callable[[int], torch.Tensor | dict[int, torch.Tensor]], dtype: torch.dtype
) -> Difference:
    """``reference`` has the rows of a sequence, by position."""
    fresh: list[torch.Tensor] = []
    continued: list[torch.Tensor] = []
    for sequence, rows in found.items():
        expected = reference(sequence)
        for position, (start, row) in rows.items():
            plain = expected[position]
            error = (row - plain).norm() / (plain - plain.mean()).norm().clamp_min(1e-6)
            (continued if start else fresh).append(error.nan_to_num(nan=float("inf")))
    groups = [torch.stack(errors) for errors in (fresh, continued)]
    return Difference(max(float(g.median()) for g in groups), max(float(g.max()) for g in groups), dtype)


@contextmanager
def plain_attention(model: Any, runner: Runner) -> Iterator[None]:
    """transformers' own attention for a while: eager, the one that knows soft caps and sinks."""
    if not isinstance(runner, ModelRunner):
        yield
        return
    part = text_part(model)
    part.set_attn_implementation("eager")
    try:
        yield
    finally:
        part.set_attn_implementation(runner.name)


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """Three sequences, the third of which begins like the first, and who computes how many tokens in each step."""

    sequences: tuple[IntArray, IntArray, IntArray]
    shared: int  # tokens that the third has in common with the first
    steps: tuple[tuple[tuple[int, int], ...], ...]  # per step (sequence, tokens)
    slots: int
    traits: ExecutorTraits

    @classmethod
    def of(cls, loaded: LoadedModel, runner: Runner) -> Script:
        length = min(_length(runner), loaded.max_context)
        rng = np.random.default_rng(0)
        vocabulary = np.setdiff1d(np.arange(loaded.vocab_size), special_tokens(loaded.config))
        first, second, third = (rng.choice(vocabulary, size).astype(np.int32) for size in (length, length - 5, length))
        shared = length // 2
        third[:shared] = first[:shared]
        traits = runner.traits
        if not traits.chunks:
            steps = [[(0, length - 3), (1, length - 8)], *([(0, 1), (1, 1)] for _ in range(3))]
        else:
            half, rest = shared + 1, length - shared - 1
            steps = [[(0, half)], [(1, 4)], [(1, length - 12), (0, rest - 5)], [(1, 1), (0, 1)]]
            drafted = 3 if traits.drafts else 1
            if traits.shares_prefixes:
                steps += [[(0, 1), (2, rest - 6), (1, 1)], [(2, 1), (1, 1)], [(0, drafted), (2, drafted)]]
            else:
                steps += [[(0, drafted), (1, 1)]]
        return cls((first, second, third), shared, tuple(map(tuple, steps)), 3 * length, traits)

    def run(self, runner: Runner) -> Found:
        order = np.random.default_rng(1).permutation(self.slots).astype(np.int32)
        slots = [order[i * len(self.sequences[0]) :][: len(s)].copy() for i, s in enumerate(self.sequences)]
        slots[2][: self.shared] = slots[0][: self.shared]
        done = [0, 0, self.shared]
        found: Found = {}
        for number, step in enumerate(self.steps):
            plans = []
            for which, count in step:
                start, end = done[which], done[which] + count
                tokens = self.sequences[which][start:end]
                plans.append(SequencePlan(SequenceId(which), tokens, start, slots[which][:end], None, 0))
            logits = runner.run(StepPlan(number, tuple(plans)))
            for i, (which, count) in enumerate(step):
                rows = logits.of(i)
                found.setdefault(which, {}).update((done[which] + j, (done[which], rows[j])) for j in range(count))
                done[which] += count
        for which in found:
            runner.forget(SequenceId(which))
        return found


def _length(runner: Runner) -> int:
    """Long enough for every short window to close within the shared prefix."""
    layers = runner.layers if isinstance(runner, ModelRunner) else ()
    reaches = [x.window or x.chunk or 0 for x in layers]
    short = [reach for reach in reaches if reach <= LONGEST_WINDOW]
    return LENGTH + max(short, default=0) * 2

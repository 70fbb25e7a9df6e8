"""What the sampler's tests share: sequences to sample from, fake grammars, and plain references for one row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from radixbackend.engine.draw import Draw, NativeDraw, TorchDraw
from radixbackend.engine.plan import Sampled, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.runner import Logits, num_wanted
from radixbackend.engine.sampler import Sampler
from radixbackend.errors import MissingDependencyError
from radixbackend.types import SamplingParams

END = 0
Allowed = Callable[[tuple[int, ...]], set[int] | None]
Share = tuple[SequencePlan, torch.Tensor]


class FakeMatcher:
    """Allows what ``allowed`` says after the tokens accepted so far; None: everything."""

    def __init__(self, allowed: Allowed, vocab_size: int, accepted: Sequence[int] = ()) -> None:
        self._allowed = allowed
        self._vocab_size = vocab_size
        self.accepted = list(accepted)
        self.remaining: list[int] = []

    def fill_mask(self, mask: np.ndarray, row: int, remaining: int) -> bool:
        self.remaining.append(remaining)
        allowed = self._allowed(tuple(self.accepted))
        if allowed is None:
            return False
        bits = np.zeros(32 * mask.shape[1], np.uint8)
        bits[self._vocab_size :] = 1  # beyond the vocabulary anything may stand
        bits[list(allowed)] = 1
        mask[row] = np.packbits(bits, bitorder="little").view(np.int32)
        return True

    def accept(self, token: int) -> bool:
        allowed = self._allowed(tuple(self.accepted))
        if allowed is not None and token not in allowed:
            return False
        self.accepted.append(token)
        return True

    def rollback(self, count: int) -> None:
        assert 0 < count <= len(self.accepted)
        del self.accepted[-count:]


class BrokenMatcher(FakeMatcher):
    """Raises in one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__(lambda _: None, 8)

        def fail(*_: Any) -> bool:
            raise RuntimeError("dead end")

        setattr(self, method, fail)


def ask(
    row: Sequence[float] | torch.Tensor,
    *,
    seed: int = 0,
    prompt: Sequence[int] = (1,),
    generated: Sequence[int] = (),
    drafts: Sequence[int] = (),
    matcher: Any = None,
    remaining: int = 100,
    **params: Any,
) -> Share:
    """A sequence that samples from ``row`` (``[1 + drafts, V]`` with drafts)."""
    history = np.array([*prompt, *generated], np.int32)
    asked = SamplingParams(max_tokens=None, **params)
    spec = SampleSpec(asked, seed, history, len(prompt), tuple(drafts), matcher, remaining)
    tokens = np.array([history[-1], *drafts], np.int32)
    start = len(history) - 1
    plan = SequencePlan(SequenceId(0), tokens, start, np.arange(start + len(tokens), dtype=np.int32), spec)
    logits = torch.as_tensor(row, dtype=torch.float32)
    return plan, logits.reshape(num_wanted(plan), -1)


def drawings() -> dict[str, Draw]:
    """What draws tokens here: the kernel only where there is a compiler."""
    try:
        return {"torch": TorchDraw(), "native": NativeDraw()}
    except MissingDependencyError:
        return {"torch": TorchDraw()}


class Drawing:
    """What `run` draws with: each in turn, see `each_drawing`."""

    now: Draw = TorchDraw()


@pytest.fixture(scope="module", params=sorted(drawings()), autouse=True)
def each_drawing(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a module that imports it: every test with each of them."""
    Drawing.now = drawings()[request.param]
    yield
    Drawing.now = TorchDraw()


def run(*shares: Share, ends: Sequence[int] = (END,)) -> tuple[Sampled, ...]:
    """One step of all of these."""
    rows = torch.cat([logits for _, logits in shares]).clone()
    offsets = np.cumsum([0, *(len(logits) for _, logits in shares)]).tolist()
    plan = StepPlan(0, tuple(share for share, _ in shares))
    return Sampler(rows.shape[1], ends, Drawing.now).sample(plan, Logits(rows, tuple(offsets))).sampled


def draw(*args: Any, **options: Any) -> int:
    (sampled,) = run(ask(*args, **options))
    assert sampled.error is None
    (token,) = sampled.tokens
    return token


def edited(
    row: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    generated: Sequence[int],
    allowed: set[int] | None = None,
) -> list[float]:
    """Logits after bias, penalties, masks and the suppression of early ends, as their definitions say."""
    out = list(row)
    for token, amount in params.logit_bias.items():
        out[token] += amount
    for token in {*prompt, *generated}:  # CTRL
        out[token] = (
            out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
        )
    for token in set(generated):  # OpenAI
        out[token] -= generated.count(token) * params.frequency_penalty + params.presence_penalty
    if len(generated) < params.min_tokens:
        for token in (END, *params.stop_token_ids):
            out[token] = -math.inf
    if allowed is not None:
        out = [value if token in allowed else -math.inf for token, value in enumerate(out)]
    return out


def kept(logits: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Probability of every token that the filters leave; unclear cases (rounding decides) are not for this test."""
    best = max(logits)
    weights = {t: math.exp((x - best) / params.temperature) for t, x in enumerate(logits) if x > -math.inf}
    order = sorted(weights, key=lambda t: -weights[t])
    floor = weights[order[min(params.top_k, len(order)) - 1]] if params.top_k else 0.0
    left = [t for t in order if weights[t] >= floor]
    if params.top_p < 1:
        total, reached = math.fsum(weights[t] for t in left), 0.0
        for t in left:
            reached += weights[t]
            assume(abs(reached - params.top_p * total) > 1e-5 * total)
            if reached >= params.top_p * total:
                floor = max(floor, weights[t])
                break
    assume(all(abs(w - params.min_p) > 1e-5 for w in weights.values()) or params.min_p in (0, 1))
    floor = max(floor, params.min_p)
    left = [t for t in order if weights[t] >= floor]
    total = math.fsum(weights[t] for t in left)
    return {t: weights[t] / total for t in sorted(left)}


VOCAB = 12
quarters = st.integers(-16, 16).map(lambda n: n / 4)  # exact in float32, with many ties
some_tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)
some_row = st.lists(quarters, min_size=VOCAB, max_size=VOCAB)
edits = st.fixed_dictionaries(
    {},
    optional={
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), quarters, max_size=4),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0, 4.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.25, 1.0]),
        "presence_penalty": st.sampled_from([-2.0, 0.5, 3.0]),
        "min_tokens": st.integers(0, 6),
        "stop_token_ids": st.lists(st.integers(0, VOCAB - 1), max_size=3),
    },
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.integers(0, VOCAB + 3),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.floats(0.0, 1.0),
    },
)
seeds = st.integers(-(2**63), 2**64)

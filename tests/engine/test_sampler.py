"""The sampler against plain references: edits, masks, drafts, batches, faults and log-probabilities."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from radixbackend.engine.draw import _unpack
from radixbackend.engine.plan import Sampled, SampleSpec, SequenceId, SequencePlan
from radixbackend.types import SamplingParams
from tests.engine.sampling import (
    END,
    VOCAB,
    BrokenMatcher,
    Drawing,
    FakeMatcher,
    Share,
    ask,
    draw,
    each_drawing,  # noqa: F401
    edited,
    edits,
    filters,
    run,
    seeds,
    some_row,
    some_tokens,
)

# -- edits -----------------------------------------------------------------------------------------------------------


@given(some_row, edits, some_tokens.filter(bool), some_tokens, st.none() | st.sets(st.integers(0, VOCAB - 1)))
def test_edits_follow_their_definitions(row, options, prompt, generated, allowed):
    matcher = None if allowed is None else FakeMatcher(lambda _: allowed, VOCAB)
    share = ask(row, prompt=prompt, generated=generated, matcher=matcher, temperature=0, **options)
    expected = edited(row, share[0].sample.params, prompt, generated, allowed)
    (sampled,) = run(share)
    if max(expected) == -math.inf:
        assert "no token is possible" in sampled.error
        assert not sampled.tokens
    else:
        assert sampled.tokens == (expected.index(max(expected)),)


def test_repetition_counts_the_prompt_and_the_others_do_not():
    row = [0.0, 3.0, 2.9, 2.0]
    assert draw(row, prompt=[1], temperature=0, presence_penalty=2, frequency_penalty=2) == 1
    assert draw(row, prompt=[1], temperature=0, repetition_penalty=1.1) == 2
    assert draw(row, prompt=[3], generated=[1], temperature=0, presence_penalty=0.2) == 2
    assert draw(row, prompt=[3], generated=[1, 1, 1, 2], temperature=0, frequency_penalty=0.2) == 2


def test_ends_are_suppressed_until_min_tokens():
    row = [9.0, 1.0, 8.0, 7.0]
    options = {"temperature": 0, "min_tokens": 2, "stop_token_ids": [2]}
    assert draw(row, generated=[1], **options) == 3
    assert draw(row, generated=[1, 1], **options) == 0
    (sampled,) = run(ask([row] * 3, drafts=[3, 3], **options))
    assert sampled.tokens == (3, 3, 0)


def test_end_tokens_beyond_the_logits_are_ignored():
    (sampled,) = run(ask([1.0, 2.0], temperature=0, min_tokens=1), ends=(1, 7))
    assert sampled.tokens == (0,)


# -- masks -----------------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from([1, 5, 31, 32, 33, 64, 100, 1000]))
def test_only_allowed_tokens_are_drawn(data, size):
    allowed = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=40))
    row = torch.randn(size, generator=torch.Generator().manual_seed(size))
    temperature = data.draw(st.sampled_from([0.0, 1.0, 100.0]))
    shares = [ask(row, seed=i, matcher=FakeMatcher(lambda _: allowed, size), temperature=temperature) for i in range(9)]
    free = ask(row, seed=3, temperature=temperature)
    results = run(*shares, free)
    assert {sampled.tokens[0] for sampled in results[:-1]} <= allowed
    if temperature == 0:
        assert results[0].tokens == (max(allowed, key=lambda t: float(row[t])),)
    assert results[-1].tokens == run(free)[0].tokens


@pytest.mark.parametrize("size", [1, 31, 32, 33, 95, 1000])
def test_masks_hide_alike_on_every_device(size):
    rng = np.random.default_rng(size)
    words = rng.integers(-(2**31), 2**31, (3, -(-size // 32)), dtype=np.int64).astype(np.int32)
    words[rng.random(words.shape) < 0.3] = 0
    words[rng.random(words.shape) < 0.3] = -1
    naive = [[not word >> bit & 1 for word in row.tolist() for bit in range(32)][:size] for row in words]
    for rows, where in ((4, [0, 2, 3]), (3, [0, 1, 2])):
        values = torch.ones(rows, size)
        Drawing.now.mask(values, where, words)
        assert values[where].isinf().tolist() == naive
        assert int(values.isinf().sum()) == sum(map(sum, naive))
    assert _unpack(torch.from_numpy(~words), size).tolist() == naive


def test_an_unrestricted_row_is_left_alone():
    row = [1.0, 5.0, 2.0]
    restricted = ask(row, matcher=FakeMatcher(lambda _: {2}, 3), temperature=0)
    free = ask(row, matcher=FakeMatcher(lambda _: None, 3), temperature=0)
    assert [s.tokens for s in run(restricted, free, restricted, free)] == [(2,), (1,), (2,), (1,)]


# -- drafts ----------------------------------------------------------------------------------------------------------


def _logits_after(prefix: Sequence[int], size: int) -> torch.Tensor:
    digest = hashlib.blake2b(np.array(prefix, np.int32).tobytes(), digest_size=8).digest()
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63))


def _some_allowed(prefix: tuple[int, ...], size: int) -> set[int] | None:
    kind = (sum(prefix) + len(prefix)) % 3
    return None if kind == 0 else {t for t in range(size) if (t + sum(prefix)) % (kind + 1) == 0}


def _one_by_one(prompt: list[int], count: int, size: int, constrained: bool, **options: Any) -> list[Sampled]:
    """What plain decoding gives, a step for each token."""
    generated: list[int] = []
    results = []
    for i in range(count):
        matcher = FakeMatcher(lambda p: _some_allowed(p, size), size, generated) if constrained else None
        row = _logits_after([*prompt, *generated], size)
        (sampled,) = run(ask(row, prompt=prompt, generated=generated, matcher=matcher, remaining=99 - i, **options))
        assert sampled.error is None
        generated.append(sampled.tokens[0])
        results.append(sampled)
    return results


@settings(max_examples=150)
@given(st.data(), st.sampled_from([9, 40]), st.booleans(), seeds, filters, edits)
def test_drafts_give_what_single_tokens_give(data, size, constrained, seed, options, changes):
    changes = {k: v for k, v in changes.items() if k not in ("logit_bias", "stop_token_ids")}
    options = {**options, **changes, "temperature": data.draw(st.sampled_from([0.0, 0.7, 1.5])), "logprobs": 2}
    prompt, before, steps = [1, 2], data.draw(st.integers(0, 3)), 6
    plain = _one_by_one(prompt, before + steps, size, constrained, seed=seed, **options)
    tokens = [sampled.tokens[0] for sampled in plain]
    generated, future = tokens[:before], tokens[before:]
    right = data.draw(st.integers(0, steps - 1))
    drafts = future[:right] + data.draw(st.lists(st.integers(0, size - 1), max_size=steps - 1 - right))
    agreed = next((i for i, (a, b) in enumerate(zip(drafts, future, strict=False)) if a != b), len(drafts))
    matcher = FakeMatcher(lambda p: _some_allowed(p, size), size, generated) if constrained else None
    rows = torch.stack([_logits_after([*prompt, *generated, *drafts[:i]], size) for i in range(len(drafts) + 1)])
    share = ask(
        rows,
        prompt=prompt,
        generated=generated,
        drafts=drafts,
        matcher=matcher,
        remaining=99 - before,
        seed=seed,
        **options,
    )
    others = ask(rows[0], seed=5), ask(rows[0], seed=6, matcher=FakeMatcher(lambda _: {3}, size))
    sampled = run(others[0], share, others[1])[1]
    assert list(sampled.tokens) == future[: agreed + 1]
    together = [entry for result in plain[before:] for entry in result.logprobs][: agreed + 1]
    assert [e.token_id for e in sampled.logprobs] == [e.token_id for e in together]
    assert np.allclose([e.logprob for e in sampled.logprobs], [e.logprob for e in together], atol=1e-5)
    if matcher is not None:
        assert matcher.accepted == generated  # as it was found
        assert matcher.remaining == [99 - before - i for i in range(len(matcher.remaining))]


def test_a_refused_draft_ends_the_drafts_before_its_row():
    rows = torch.zeros(3, 8)
    rows[:, 5] = 1
    matcher = FakeMatcher(lambda accepted: {2, 3} if accepted else {3, 4}, 8)
    rows[0, 3] = rows[1, 2] = 2
    (sampled,) = run(ask(rows, drafts=[3, 6], matcher=matcher, temperature=0))
    assert sampled.tokens == (3, 2)
    assert not matcher.accepted


def test_an_output_may_end_with_a_draft_behind_which_nothing_is_possible():
    rows = torch.zeros(3, 8)
    matcher = FakeMatcher(lambda accepted: {3, 4} - set(accepted), 8)
    (sampled,) = run(ask(rows, drafts=[3, 4], matcher=matcher, temperature=0))
    assert (sampled.tokens, sampled.error) == ((3, 4), None)


# -- batches ---------------------------------------------------------------------------------------------------------


def _mixed(size: int, count: int) -> list[Share]:
    """Sequences of every kind, some with drafts, some asking for log-probabilities."""
    rng = np.random.default_rng(size)
    shares: list[Share] = []
    for i in range(count):
        drafts = rng.integers(0, size, int(rng.integers(0, 3))).tolist() if i % 4 == 3 else []
        rows = torch.from_numpy(
            rng.normal(size=(1 + len(drafts), size)).astype(np.float32) * float(rng.choice([0.05, 3]))
        )
        allowed = set(rng.integers(0, size, 50).tolist())
        options: dict[str, Any] = {
            "temperature": float(rng.choice([0.0, 0.3, 1.0, 2.5])),
            "top_k": int(rng.choice([0, 0, 1, 40, 2000])),
            "top_p": float(rng.choice([1.0, 1.0, 0.5, 0.95])),
            "min_p": float(rng.choice([0.0, 0.0, 0.1])),
            "repetition_penalty": float(rng.choice([1.0, 1.3])),
            "frequency_penalty": float(rng.choice([0.0, 0.2])),
            "min_tokens": int(rng.choice([0, 8])),
            "logprobs": [None, 0, 3][int(rng.integers(3))],
        }
        shares.append(
            ask(
                rows,
                seed=int(rng.integers(2**63)),
                prompt=rng.integers(0, size, 5).tolist(),
                generated=rng.integers(0, size, int(rng.integers(0, 9))).tolist(),
                drafts=drafts,
                matcher=FakeMatcher(lambda _, allowed=allowed: allowed, size) if i % 3 == 1 else None,
                **options,
            )
        )
    return shares


@pytest.mark.parametrize(("size", "count"), [(50, 80), (1003, 60), (32_000, 40)])
def test_a_batch_gives_each_row_what_it_gets_alone(size, count):
    shares = _mixed(size, count)
    order = np.random.default_rng(0).permutation(count)
    together = dict(zip(order.tolist(), run(*(shares[i] for i in order)), strict=True))
    for i, share in enumerate(shares):
        (alone,) = run(share)
        assert together[i].tokens == alone.tokens
        assert together[i].logprobs == alone.logprobs


def test_sequences_that_do_not_sample_get_nothing_and_change_nothing():
    silent = SequencePlan(SequenceId(1), np.array([3, 4], np.int32), 0, np.arange(2, dtype=np.int32), None)
    row = ask([1.0, 2.0, 0.0], temperature=0)
    first, second, third = run((silent, torch.empty(0, 3)), row, (silent, torch.empty(0, 3)))
    assert (first.tokens, second.tokens, third.tokens) == ((), (1,), ())
    assert [s.tokens for s in run((silent, torch.empty(0, 3)))] == [()]


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 2, "min_p": 0.1}, {"logprobs": 2}])
def test_a_bad_row_ends_its_own_sequence_alone(temperature, options):
    options = {**options, "temperature": temperature}
    size = 40
    row = torch.randn(size, generator=torch.Generator().manual_seed(3))
    good = [ask(row, seed=i, **options) for i in range(4)]
    spoilt = [row.clone() for _ in range(4)]
    spoilt[0][7] = math.nan
    spoilt[1][7] = math.inf
    spoilt[2][:] = -math.inf
    spoilt[3][:] = math.nan
    bad = [ask(r, **options) for r in spoilt] + [
        ask(row, matcher=FakeMatcher(lambda _: set(), size), **options),
        ask(row, matcher=FakeMatcher(lambda _: {END}, size), min_tokens=1, **options),
        ask(row, logit_bias={3: 1e300}, **options),
    ]
    mixed = [share for pair in zip(bad, [*good, *good[:3]], strict=True) for share in pair]
    results = run(*mixed)
    for sampled in results[::2]:
        assert sampled.tokens == ()
        assert sampled.error
    assert [r.error.split(":")[0] for r in results[::2]] == [
        "the logits are not finite",
        "the logits are not finite",
        "no token is possible here",
        "the logits are not finite",
        "no token is possible here",
        "no token is possible here",
        "the logits are not finite",
    ]
    assert "min_tokens=1" in results[10].error
    alone = [s.tokens for s in run(*good)]
    assert [s.tokens for s in results[1::2]] == [*alone, *alone[:3]]


@pytest.mark.parametrize("method", ["fill_mask", "accept", "rollback"])
def test_a_grammar_that_raises_ends_its_own_sequence_alone(method):
    rows = torch.zeros(2, 8)
    rows[:, 3] = 1
    good = ask(rows, drafts=[3], temperature=0, matcher=FakeMatcher(lambda _: {3}, 8))
    before, broken, after = run(good, ask(rows, drafts=[3], temperature=0, matcher=BrokenMatcher(method)), good)
    assert before.tokens == after.tokens == (3, 3)
    assert broken.error == "the grammar failed: dead end"
    assert not broken.tokens


def test_a_bad_row_behind_a_rejected_draft_is_no_error():
    rows = torch.zeros(3, 8)
    rows[0, 4] = 1
    rows[1] = math.nan
    assert run(ask(rows, drafts=[3, 3], temperature=0))[0].tokens == (4,)
    assert run(ask(rows, drafts=[4, 3], temperature=0))[0].error


# -- log-probabilities -----------------------------------------------------------------------------------------------


@given(some_row, edits, st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, VOCAB))
def test_logprobs_are_of_the_models_own_distribution(row, changes, temperature, count):
    matcher = FakeMatcher(lambda _: {3, 4, 5, 11}, VOCAB)
    (sampled,) = run(ask(row, seed=2, temperature=temperature, matcher=matcher, logprobs=count, **changes))
    assume(sampled.error is None)
    own = torch.log_softmax(torch.tensor(row, dtype=torch.float64), -1)
    (entry,) = sampled.logprobs
    assert (entry.token_id,) == sampled.tokens
    assert entry.logprob == pytest.approx(float(own[entry.token_id]), abs=1e-5)
    assert [value for _, value in entry.top] == pytest.approx(
        own.sort(descending=True).values[:count].tolist(), abs=1e-5
    )
    assert all(value == pytest.approx(float(own[token]), abs=1e-5) for token, value in entry.top)
    assert len({token for token, _ in entry.top}) == count


def test_logprobs_are_given_only_where_asked_for():
    row = [0.0, 1.0, 2.0]
    plain, none, two = run(ask(row), ask(row, logprobs=0), ask(row, logprobs=2))
    assert plain.logprobs == ()
    assert len(none.logprobs) == len(two.logprobs) == 1
    assert none.logprobs[0].top == ()
    assert [token for token, _ in two.logprobs[0].top] == [2, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_likeliest_that_tie_come_by_their_ids(count):
    row = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0]
    alone, beside = run(ask(row, logprobs=count), ask(row, logprobs=6))
    assert [token for token, _ in alone.logprobs[0].top] == [1, 3, 2, 4, 5, 0][:count]
    assert beside.logprobs[0].top[:count] == alone.logprobs[0].top
    wide = torch.zeros(500)
    wide[[17, 250, 499]] = 1.0
    assert [token for token, _ in run(ask(wide, logprobs=5))[0].logprobs[0].top] == [17, 250, 499, 0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_a_mask_hides_is_no_logprob(value):
    """The grammar forbids the token whose logit is broken; without a report that does no harm."""
    row = [0.0, 1.0, value, 2.0]
    matcher = FakeMatcher(lambda _: {0, 1}, 4)
    assert run(ask(row, temperature=0, matcher=matcher))[0].tokens == (1,)
    reported = run(ask(row, temperature=0, matcher=FakeMatcher(lambda _: {0, 1}, 4), logprobs=0), ask([1.0, 0, 0, 0]))
    assert "not finite" in (reported[0].error or "")
    assert reported[1].error is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_row_of_a_prompt_ends_its_request_alone(value):
    rows = torch.zeros(3, 8)
    rows[1, 5] = value
    broken, fine = _chunk([1, 2, 3, 4], 0, 3, 1, None), _chunk([1, 2, 3, 4], 0, 3, 1, None)
    first, second = run((broken, rows), (fine, torch.zeros(3, 8)))
    assert "not finite" in (first.error or "")
    assert second.error is None
    assert [entry.token_id for entry in second.prompt_logprobs] == [2, 3, 4]


def _chunk(prompt: list[int], start: int, stop: int, count: int, sample: SampleSpec | None) -> SequencePlan:
    """A chunk of a prompt whose log-probabilities are asked for."""
    tokens = np.array(prompt[start:stop], np.int32)
    following = prompt[stop] if stop < len(prompt) else None
    return SequencePlan(SequenceId(0), tokens, start, np.arange(stop, dtype=np.int32), sample, count, following)


@given(st.lists(st.integers(0, 19), min_size=1, max_size=9), st.sets(st.integers(1, 8)), st.integers(0, 3))
def test_prompt_logprobs_do_not_depend_on_the_chunks(prompt, cuts, count):
    rows = torch.randn(len(prompt), 20, generator=torch.Generator().manual_seed(len(prompt)))
    expected = torch.log_softmax(rows.double(), -1)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(prompt)), len(prompt)]
    params = SamplingParams(temperature=0, logit_bias={4: 100}, logprobs=1)
    spec = SampleSpec(params, 0, np.array(prompt, np.int32), len(prompt), (), None, 5)
    entries = []
    for start, stop in itertools.pairwise(bounds):
        last = stop == len(prompt)
        chunk = _chunk(prompt, start, stop, count, spec if last else None)
        other = ask(rows[0], logit_bias={4: 100})
        _, sampled, _ = run(other, (chunk, rows[start:stop]), other)
        entries += sampled.prompt_logprobs
        assert sampled.tokens == ((4,) if last else ())
        assert len(sampled.logprobs) == last
    assert [entry.token_id for entry in entries] == prompt[1:]
    for i, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(float(expected[i, entry.token_id]), abs=1e-5)
        best = expected[i].sort(descending=True)
        assert [token for token, _ in entry.top] == best.indices[:count].tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values[:count].tolist(), abs=1e-5)

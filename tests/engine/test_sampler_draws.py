"""Which tokens the sampler's filters leave, and that its draws follow the distribution that is left."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from radixbackend.engine.draw import uniforms
from tests.engine.sampling import (
    VOCAB,
    FakeMatcher,
    ask,
    draw,
    each_drawing,  # noqa: F401
    edited,
    edits,
    filters,
    kept,
    run,
    seeds,
    some_row,
    some_tokens,
)


@settings(max_examples=50)
@given(
    st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=VOCAB, max_size=VOCAB),
    filters,
    st.sampled_from([1.0, 2.0]),
)
def test_filters_keep_exactly_their_set(row, options, temperature):
    shares = [ask(row, seed=seed, temperature=temperature, **options) for seed in range(600)]
    expected = kept(row, shares[0][0].sample.params)
    assert {sampled.tokens[0] for sampled in run(*shares)} == set(expected)


@given(
    some_row,
    filters,
    edits,
    st.sampled_from([1e-300, 1e-40, 0.0625, 0.5, 1.0, 3.0]),
    st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=1),
    some_tokens,
    st.lists(seeds, min_size=20, max_size=20),
)
def test_the_draw_inverts_the_cumulative_distribution(row, options, changes, temperature, allowed, generated, drawn):
    shares = [
        ask(
            row,
            seed=seed,
            generated=generated,
            matcher=None if allowed is None else FakeMatcher(lambda _: allowed, VOCAB),
            temperature=temperature,
            **options,
            **changes,
        )
        for seed in drawn
    ]
    params = shares[0][0].sample.params
    logits = edited(row, params, [1], generated, allowed)
    assume(max(logits) > -math.inf)
    expected = kept(logits, params)
    for seed, sampled in zip(drawn, run(*shares), strict=True):
        (token,) = sampled.tokens
        assert token in expected
        below = math.fsum(p for t, p in expected.items() if t < token)
        (u,) = uniforms([seed], [len(generated)])
        assert below - 1e-6 <= u <= below + expected[token] + 1e-6


def test_ties_stay_in():
    row = [1.0, 3.0, 3.0, 3.0, 2.0]
    for options in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.2}, {"min_p": 1.0}, {"temperature": 1e-30}):
        assert {run(ask(row, seed=seed, **options))[0].tokens[0] for seed in range(60)} == {1, 2, 3}


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-20, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature):
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        row = torch.randn(100, generator=generator) * 1000
        assert draw(row, seed=seed, temperature=temperature, top_p=0.9) == int(row.argmax())


@pytest.mark.parametrize("temperature", [1e6, 1e39, 1e308])
def test_a_huge_temperature_is_uniform_over_what_is_possible(temperature):
    row = [-1000.0, -math.inf, 0.0, 1000.0]
    matcher = FakeMatcher(lambda _: {0, 1, 2}, 4)
    drawn = run(*(ask(row, seed=seed, temperature=temperature, matcher=matcher) for seed in range(400)))
    counts = np.bincount([sampled.tokens[0] for sampled in drawn], minlength=4)
    assert counts[1] == counts[3] == 0
    assert 150 < counts[0] < 250


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.8), (1500, 0.9), (1500, 1.0)])
def test_a_set_wider_than_the_first_look_is_found_whole(top_k, top_p):
    row = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 0.1
    order = row.argsort(descending=True)[: top_k or None]
    size = int((torch.softmax(row.double()[order], -1).cumsum(-1) < top_p - 1e-9).sum()) + 1
    assert 1300 < size < 1600
    drawn = {s.tokens[0] for s in run(*(ask(row, seed=seed, top_k=top_k, top_p=top_p) for seed in range(8000)))}
    assert drawn <= set(order[:size].tolist())
    assert len(drawn) > 0.95 * size


def test_tokens_of_little_weight_are_drawn_as_often_as_they_should():
    row = torch.zeros(100_000)
    row[70_000] = math.log(99_999)  # as likely as all others together
    drawn = [sampled.tokens[0] for sampled in run(*(ask(row, seed=seed) for seed in range(100)))]
    assert 35 < drawn.count(70_000) < 65
    assert len(set(drawn)) > 30


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 2), (1 - 2.0**-52, 5)])
def test_the_ends_of_the_unit_interval_are_tokens_that_are_possible(monkeypatch, uniform, expected):
    monkeypatch.setattr("radixbackend.engine.draw.uniforms", lambda seeds, _: np.full(len(seeds), uniform))
    for row in ([0.0] * 8, [3.0, 0.0, 1.0, 2.0, -5.0, -20.0, 0.0, 0.0], np.linspace(0, -20, 8)):
        assert draw(row, matcher=FakeMatcher(lambda _: {2, 3, 5}, 8)) == expected


def test_draws_fit_the_distribution_over_positions_and_over_seeds():
    row = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 1.5, -2.0, 3.0])
    expected = torch.softmax(row / 1.5, -1).numpy()
    count = 20_000
    over_seeds = [ask(row, seed=seed, temperature=1.5) for seed in range(count)]
    plan = ask(row, seed=7, temperature=1.5)[0]
    tokens = np.ones(count + 1, np.int32)
    over_positions = [
        (replace(plan, sample=replace(plan.sample, history=tokens[: i + 1])), row[None]) for i in range(count)
    ]
    for shares in (over_seeds, over_positions):
        counts = np.bincount([s.tokens[0] for s in run(*shares)], minlength=8)
        assert _chi_square(counts, expected * count) < 24.3  # 99.9th percentile, 7 degrees of freedom


def _chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniforms_are_in_range_even_and_uncorrelated():
    count = 100_000
    lines = {
        "positions": uniforms([5] * count, range(count)),
        "seeds": uniforms(range(count), [0] * count),
        "negative": uniforms(range(-count, 0), [3] * count),
        "large": uniforms(range(2**63, 2**63 + count), [3] * count),
        "choices": uniforms([i * 0x9E3779B97F4A7C15 % 2**63 for i in range(count)], [0] * count),
        "both": uniforms(range(count), range(count)),
    }
    bound = 4.5 / math.sqrt(count)
    for name, line in lines.items():
        assert 0 <= line.min() < line.max() < 1, name
        assert _chi_square(np.histogram(line, 100, (0, 1))[0], np.full(100, count / 100)) < 157, name  # 99.99 %
        for lag in (1, 2, 7):
            assert abs(np.corrcoef(line[:-lag], line[lag:])[0, 1]) < bound, name
    names = list(lines)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert abs(np.corrcoef(lines[a], lines[b])[0, 1]) < bound, (a, b)


def test_uniforms_are_the_same_on_every_machine_and_for_every_batch():
    asked = [(0, 0), (1, 5), (-1, 1_000_000), (2**63, 2)]
    pinned = [0.6524484863740321, 0.7743991716672016, 0.4611314684076886, 0.021792699884188638]
    assert uniforms(*zip(*asked, strict=True)).tolist() == pinned
    assert [float(uniforms([seed], [position])[0]) for seed, position in asked] == pinned

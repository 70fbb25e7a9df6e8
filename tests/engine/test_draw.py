"""The kernel that draws tokens against the operators that do."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from radixbackend.engine import draw
from radixbackend.engine.draw import Ask, NativeDraw, TorchDraw, choose_draw
from radixbackend.errors import MissingDependencyError
from radixbackend.types import SamplingParams
from tests.engine.sampling import drawings

needs_kernel = pytest.mark.skipif("native" not in drawings(), reason="no gcc here")


def _asks(rng: np.random.Generator, count: int, size: int) -> list[Ask]:
    return [
        Ask(
            SamplingParams(
                temperature=float(rng.choice([0, 0.01, 0.5, 1, 3])),
                top_k=int(rng.choice([0, 0, 1, 5, 50, 400, size])),
                top_p=float(rng.choice([1, 1, 0.01, 0.5, 0.95, 0.9999])),
                min_p=float(rng.choice([0, 0, 0.1, 1e-6])),
            ),
            seed=int(rng.integers(2**62)),
            position=int(rng.integers(1000)),
        )
        for _ in range(count)
    ]


def _rows(rng: np.random.Generator, count: int, size: int) -> torch.Tensor:
    """Flat and peaked ones, with ties, and with what a mask hides."""
    rows = rng.normal(size=(count, size)) * rng.choice([0.1, 1, 4, 20], (count, 1))
    for row in rows:
        if rng.random() < 0.3:
            row[:] = row.round()
        if rng.random() < 0.3:
            row[rng.random(size) < rng.choice([0.3, 0.99])] = -math.inf
    return torch.from_numpy(rows.astype(np.float32))


@needs_kernel
@pytest.mark.parametrize("size", [1, 2, 15, 16, 127, 128, 129, 1000, 4096, 50_257])
def test_the_kernel_draws_what_the_operators_draw(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12):
        asks, rows = _asks(rng, 8, size), _rows(rng, 8, size)
        given, due = (each(rows.clone(), asks, [True] * 8) for each in (NativeDraw(), TorchDraw()))
        assert given.bests.equal(due.bests)
        possible = due.bests.isfinite()
        assert given.tokens[possible].equal(due.tokens[possible])
        assert not given.flat.any()


@needs_kernel
@pytest.mark.parametrize("size", [1, 100, 129, 4096])
def test_rows_of_bfloat16_are_read_as_they_are(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12):
        asks, rows = _asks(rng, 8, size), _rows(rng, 8, size).bfloat16()
        draws = NativeDraw()
        assert draws.reads(rows)
        given, due = (draws(values, asks, [False] * 8) for values in (rows, rows.float()))
        assert given.tokens.equal(due.tokens)
        assert given.bests.equal(due.bests)


@needs_kernel
def test_the_kernel_leaves_the_row_as_it_was() -> None:
    rng = np.random.default_rng(0)
    asks, rows = _asks(rng, 20, 1000), _rows(rng, 20, 1000)
    before = rows.clone()
    NativeDraw()(rows, asks, [False] * 20)
    assert rows.equal(before)


@needs_kernel
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 77, 128, 299])
def test_what_is_not_finite_is_the_greatest_of_its_row(value: float, where: int) -> None:
    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    row[0, where] = value
    row[0, 299] = value
    for temperature in (0.0, 1.0):
        ask = Ask(SamplingParams(temperature=temperature, top_k=3, top_p=0.5), 1, 1)
        given = NativeDraw()(row, [ask], [False])
        assert torch.equal(given.bests, torch.tensor([value])) or given.bests.isnan().all() == math.isnan(value)
        assert given.tokens.tolist() == [where]


@needs_kernel
def test_rows_that_the_kernel_cannot_read_are_drawn_all_the_same() -> None:
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    asks = [Ask(SamplingParams(temperature=1.0), seed, 0) for seed in range(4)]
    due = NativeDraw()(rows, asks, [False] * 4).tokens
    apart = torch.randn(4, 128)
    apart[:, ::2] = rows
    assert NativeDraw()(apart[:, ::2], asks, [False] * 4).tokens.equal(due)
    double = NativeDraw()(rows.double(), asks, [False] * 4)
    assert double.tokens.equal(due)


def test_without_a_compiler_torch_draws(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(name: str) -> None:
        raise MissingDependencyError("CPU kernels need gcc")

    monkeypatch.setattr(draw, "load_kernels", missing)
    with caplog.at_level(logging.INFO):
        assert isinstance(choose_draw(torch.device("cpu")), TorchDraw)
    assert "need gcc" in caplog.text
    assert isinstance(choose_draw(torch.device("meta")), TorchDraw)

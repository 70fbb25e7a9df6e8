from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from radixbackend.backend import get_backend
from radixbackend.cli.bench import Shape, run
from radixbackend.cli.step_profile import PARTS, StepProfile, TimedStep, middle
from radixbackend.types import EngineStats, StepRecord

QUICK = ("--shared", 64, "--own", 8, "--max-tokens", 12)
OPTIONS = {"kv_cache_tokens": 2048, "self_check": False}


def cells(out: str, row: str) -> list[str]:
    """Of the row that begins so, without its name."""
    line = next(line for line in out.splitlines() if re.match(rf"[│┃] {re.escape(row)} +[│┃]", line))
    return [cell.strip() for cell in re.split("[│┃]", line)[2:-1]]


def test_the_cache_on_and_off(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    code, out, err = radix("bench", tiny_checkpoint, *QUICK, "--requests", 6, "--concurrency", 3, *small)
    assert (code, err) == (0, "")
    table = {line.split("│")[1].strip(): line for line in out.splitlines() if re.match(r"│ +(on|off) ", line)}
    numbers = {
        name: [int(n.replace(",", "")) for n in re.findall(r"│ +([\d,]+) (?=│)", line)] for name, line in table.items()
    }
    prompts = 6 * (64 + 8)
    assert numbers["off"][1:] == [prompts, 0]
    _, computed, cached = numbers["on"]
    assert computed + cached == prompts
    assert cached >= 5 * 64, "five of six find what they share"
    assert re.search(r"The cache makes it \d+\.\d times as fast\.", out)


def test_profile(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    batches = ("--batch", 1, "--batch", 3)
    code, out, err = radix("bench", tiny_checkpoint, "--profile", *batches, *QUICK, *small)
    assert (code, err) == (0, "")
    shares = [[int(share.rstrip("%")) for share in cells(out, part)[1::2]] for part in PARTS]
    assert [abs(sum(column) - 100) <= len(PARTS) for column in zip(*shares, strict=True)] == [True, True]
    assert cells(out, "step")[1::2] == ["100%", "100%"]
    assert cells(out, "prompt tokens computed")[0] == str(64 + 8)
    assert cells(out, "from the cache")[::2][0] == "0"
    assert int(cells(out, "from the cache")[2]) >= 2 * 64
    assert (
        len(re.findall(r"^Batch [13]: \d+ timers, and layers one by one; without, a step takes", out, re.MULTILINE))
        == 2
    )


def test_every_part_is_found_and_nothing_stays_behind(tiny_checkpoint: Path) -> None:
    watch, shape = StepProfile(), Shape(2, 2, 32, 8, 8)
    with get_backend(str(tiny_checkpoint), plugins=[watch], **OPTIONS) as backend:
        before = run(backend, shape)
        assert not any(step.parts for step in watch.steps), "nothing is timed yet"
        watch.steps.clear()
        with watch.timing():
            during = run(backend, shape)
        steps = list(watch.steps)
        after = run(backend, shape)
        model, kernel = watch._loaded.model, watch._kernel
        assert "forward" not in vars(model)
        assert not any("forward" in vars(module) for module in model.modules() if "Linear" in type(module).__name__)
        assert "attend" not in vars(kernel)
    assert before.answers == during.answers == after.answers
    assert steps
    for step in steps:
        assert set(step.parts) == set(PARTS)
        assert all(seconds > 0 for seconds in step.parts.values()), step.parts
        assert sum(step.parts.values()) == pytest.approx(step.seconds)
    assert not any(step.parts for step in watch.steps[len(steps) :])


def test_middle_half() -> None:
    def step(seconds: float) -> TimedStep:
        return TimedStep(StepRecord(0, 0.0, seconds, 0.0, 0.0, 1, 0, 1, 0, EngineStats()), {})

    steps = [step(seconds) for seconds in (9.0, 1.0, 2.0, 3.0, 100.0, 0.0, 4.0, 5.0)]
    assert sorted(s.seconds for s in middle(steps)) == [2.0, 3.0, 4.0, 5.0]
    assert middle(steps[:1]) == steps[:1]


def test_what_does_not_fit_is_said(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    code, out, err = radix("bench", tiny_checkpoint, "--shared", 2000, *small)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "--shared, --own and --max-tokens come to 2064" in err
    assert radix("bench", tiny_checkpoint, "--requests", 0)[0] == 2

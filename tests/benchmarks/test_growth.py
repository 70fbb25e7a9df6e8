from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import FLAT, Curve, Point, context_curves, exponent, nodes_curve, waiting_curve


def test_exponent_is_the_slope_of_the_larger_half() -> None:
    sizes = [1, 10, 100, 1000, 10_000, 100_000]
    assert exponent(sizes, [3.0] * 6) == pytest.approx(0)
    assert exponent(sizes, [2.0 * size for size in sizes]) == pytest.approx(1)
    assert exponent(sizes, [size**2 for size in sizes]) == pytest.approx(2)
    assert exponent(sizes, [1, 100, 10_000, 7, 7, 7]) == pytest.approx(0), "what happens among small sizes is left out"


def test_the_scheduler_is_driven_without_torch() -> None:
    script = "import sys; from benchmarks.growth import *; waiting_curve((1, 3), 40); print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(growth.__file__).parents[1], capture_output=True, text=True
    )
    assert (run.stdout.strip(), run.stderr) == ("False", "")


@pytest.mark.parametrize("measure", [waiting_curve, nodes_curve])
def test_every_size_is_measured(measure) -> None:
    curve = measure((1, 20), 40)
    assert [point.size for point in curve.points] == [1, 20]
    assert all(point.microseconds > 0 for point in curve.points)
    assert all(point.tokens_per_second > 0 for point in curve.points)


def test_a_full_tree_keeps_its_nodes_and_evicts(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []

    class Seen(growth.PrefixCache):
        def __init__(self, capacity: int) -> None:
            super().__init__(capacity)
            caches.append(self)

    monkeypatch.setattr(growth, "PrefixCache", Seen)
    nodes_curve((500,), 200)
    usage = caches[0].usage()
    assert usage.nodes > 300
    assert usage.evicted_tokens > 0
    caches[0].check()


def test_context_has_a_curve_for_what_surrounds_the_model_and_one_for_it() -> None:
    overhead, model = context_curves((48, 96), 16)
    assert [curve.name for curve in (overhead, model)] == ["step overhead", "model"]
    assert overhead.most < 1 < model.most
    for curve in (overhead, model):
        assert [point.size for point in curve.points] == [48, 96]
        assert all(point.microseconds > 0 for point in curve.points)


@pytest.mark.parametrize(("power", "code"), [(0.1, None), (0.9, "grows too fast: step overhead against things")])
def test_what_grows_too_fast_is_the_exit_code(
    power: float, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tuple(Point(size, 10 * size**power, 1.0) for size in (1, 10, 100, 1000))
    curve = Curve("step overhead", "things", points, FLAT)
    monkeypatch.setattr(growth, "CURVES", {"things": lambda: (curve,)})
    arguments = ["--results", str(tmp_path)]
    if code is None:
        growth.main(arguments)
    else:
        with pytest.raises(SystemExit) as end:
            growth.main(arguments)
        assert end.value.code == code
    assert f"{power:.2f}" in capsys.readouterr().out
    [file] = tmp_path.glob("growth-*.json")
    kept = json.loads(file.read_text())
    assert {"date", "machine"} <= kept.keys()
    assert kept["curves"][0]["exponent"] == pytest.approx(power)
    assert [point["size"] for point in kept["curves"][0]["points"]] == [1, 10, 100, 1000]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = tuple(Point(size, 10.0, 1.0) for size in (1, 10, 100))
    growth.plot([Curve("step overhead", kind, points, FLAT) for kind in ("things", "others")], tmp_path / "a.svg")
    assert "</svg>" in (tmp_path / "a.svg").read_text()

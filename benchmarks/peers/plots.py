"""Bar charts of what `benchmarks.peers.compare` kept.

    pip install '.[bench]'
    python -m benchmarks.peers.plots benchmarks/results/peers-60m-….json --out charts [--format svg|png]

For every workload a file with two panels: output tokens per second (the median of the repeats, with a line from the
slowest to the fastest) and the time to the first token (median, with a line up to the 95th percentile of all requests).
``peers`` has the speeds of all workloads on one sheet.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt

from benchmarks.peers.drive import OURS, speeds

OUR_COLOUR, OTHER_COLOUR = "#00897b", "#b0bec5"


@dataclass(frozen=True)
class Bar:
    """A value and what it ranges over."""

    engine: str
    value: float
    low: float
    high: float


def workload_names(kept: dict[str, Any]) -> list[str]:
    """In the order in which they ran."""
    return list(dict.fromkeys(run["workload"] for result in kept["results"] for run in result["runs"]))


def speed_bars(kept: dict[str, Any], workload: str) -> list[Bar]:
    """Output tokens per second of each engine that ran it."""
    bars = []
    for result in kept["results"]:
        if rates := speeds([run for run in result["runs"] if run["workload"] == workload]):
            bars.append(Bar(result["peer"], statistics.median(rates), min(rates), max(rates)))
    return bars


def first_token_bars(kept: dict[str, Any], workload: str) -> list[Bar]:
    """Milliseconds until the first token, for each engine that ran it."""
    bars = []
    for result in kept["results"]:
        runs = [run for run in result["runs"] if run["workload"] == workload]
        if firsts := sorted(1000 * first for run in runs for first in run["first_token"]):
            middle = statistics.median(firsts)
            bars.append(Bar(result["peer"], middle, middle, max(middle, firsts[int(len(firsts) * 0.95)])))
    return bars


def draw(axes: Any, bars: Sequence[Bar], title: str) -> None:
    lengths = [bar.value for bar in bars]
    ranges = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
    colours = [OUR_COLOUR if bar.engine == OURS else OTHER_COLOUR for bar in bars]
    drawn = axes.barh([bar.engine for bar in bars], lengths, xerr=ranges, color=colours, ecolor="#546e7a", capsize=2)
    axes.bar_label(drawn, labels=[f" {bar.value:,.0f}" for bar in bars], label_type="center", fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")


def plot(kept: dict[str, Any], out: Path, kind: str) -> list[Path]:
    """Write the charts; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    machine, names = kept["machine"], workload_names(kept)
    about = f"{kept['shape']} shape, bf16, {kept['threads']} threads on {machine['cpu']}, {kept['date'][:10]}"
    files = []

    def write(figure: Any, name: str) -> None:
        figure.suptitle(about, fontsize=8, color="#546e7a")
        files.append(out / f"{name}.{kind}")
        figure.savefig(files[-1], dpi=150)
        plt.close(figure)

    for name in names:
        bars = speed_bars(kept, name)
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 1.2 + 0.35 * len(bars)), layout="constrained")
        draw(left, bars, f"{name}: output tokens per second")
        draw(right, first_token_bars(kept, name), f"{name}: time to the first token, ms")
        write(figure, name)
    rows = -(-len(names) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(9, 2.2 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        draw(axes, speed_bars(kept, name), f"{name}: output tokens per second")
    write(figure, "peers")
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    asked = parser.parse_args(arguments)
    for file in plot(json.loads(asked.result.read_text(encoding="utf-8")), asked.out, asked.format):
        print(file)


if __name__ == "__main__":
    main()

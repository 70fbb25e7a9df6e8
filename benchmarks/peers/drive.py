"""Drives one engine through the workloads and measures what its users would see.

    python -m benchmarks.peers.drive PEER CHECKPOINT --out results.json [--workloads W1 W2] [--repeat 3]

Rules. Standard library alone: this runs in the engine's own virtual environment. An engine is a module of
`benchmarks.peers` named ``peer_<name>`` with a function ``start(checkpoint) -> Peer`` and the names of the packages
that it consists of, ``PACKAGES``. All are measured in the same way: a request's clock starts when its caller asks,
before any engine hears of it, and its first token is there when the caller has it. Answers are token ids; memory is
that of all processes that the engine started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.workloads import FIRST_TOKEN, Turn, Workload, workloads

OURS = "radix"
"""The peer that the others are compared with."""


@dataclass(frozen=True)
class Ask:
    """One request: generate greedily, ``output`` tokens without looking at end tokens unless there is a schema."""

    prompt: tuple[int, ...]
    output: int
    schema: dict[str, Any] | None = None


class Peer(Protocol):
    """An engine under test. ``stream`` yields the new token ids as they come."""

    def stream(self, ask: Ask) -> AsyncIterator[list[int]]: ...

    def serves(self, workload: Workload) -> bool: ...

    def prefilled(self) -> int | None:
        """Prompt tokens computed since the start, if the engine can tell."""
        ...

    async def forget(self) -> None:
        """Drop cached prefixes."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Measured:
    """One run of one workload. Times in seconds, memory in MiB; a ``first_token`` for every request."""

    workload: str
    seconds: float
    output_tokens: int
    first_token: list[float]
    prefilled: int | None
    ideal_prefill: int
    peak_memory: float
    answers: list[list[int]]


async def run(peer: Peer, workload: Workload) -> Measured:
    """One run on an empty cache, but for what the workload wants warm."""
    await peer.forget()
    if workload.warm:
        async for _ in peer.stream(Ask((*workload.warm, workload.warm[0]), 1)):
            pass
    gate = asyncio.Semaphore(workload.concurrency)
    firsts: list[float] = []

    async def answer(ask: Ask) -> list[int]:
        asked, tokens = time.perf_counter(), []
        await asyncio.sleep(0)  # the clocks of all who ask at this moment run before the engine is busy
        async for new in peer.stream(ask):
            if new and not tokens:
                firsts.append(time.perf_counter() - asked)
            tokens += new
        return tokens

    async def converse(turns: tuple[Turn, ...]) -> list[int]:
        history: tuple[int, ...] = ()
        answers: list[int] = []
        async with gate:
            for turn in turns:
                history += turn.tokens
                answers += (said := await answer(Ask(history, turn.output, workload.schema)))
                history += tuple(said)
        return answers

    before, started = peer.prefilled(), time.perf_counter()
    answers = await asyncio.gather(*(converse(turns) for turns in workload.conversations))
    seconds = time.perf_counter() - started
    after = peer.prefilled()
    return Measured(
        workload.name,
        seconds,
        sum(map(len, answers)),
        firsts,
        None if before is None or after is None else after - before,
        workload.ideal_prefill,
        peak_memory(),
        answers,
    )


def peak_memory() -> float:
    """MiB that this process had at most, and those that it started and that still run: the sum of their peaks."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return sum(map(_peak, _family("self")))


def _family(process: str) -> Iterator[str]:
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(child)


def _peak(process: str) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has just ended
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


async def measure(peer_name: str, checkpoint: Path, rounds: list[list[Workload]]) -> dict[str, Any]:
    """Load, warm up with one token, then round after round; a round is every workload once."""
    started = time.perf_counter()
    module = import_module(f"benchmarks.peers.peer_{peer_name}")
    peer: Peer = await module.start(checkpoint)
    loaded = time.perf_counter() - started
    async for _ in peer.stream(Ask(tuple(range(FIRST_TOKEN, FIRST_TOKEN + 32)), 1)):
        pass
    ready = time.perf_counter() - started
    try:
        runs = [asdict(await run(peer, workload)) for chosen in rounds for workload in chosen if peer.serves(workload)]
    finally:
        await peer.close()
    versions = {package: metadata.version(package) for package in module.PACKAGES}
    return {
        "peer": peer_name,
        "versions": versions,
        "load_seconds": loaded,
        "first_token_seconds": ready,
        "runs": runs,
    }


def speeds(runs: Iterable[Mapping[str, Any]]) -> list[float]:
    """Output tokens per second of each of these runs, as they were written down."""
    return [run["output_tokens"] / run["seconds"] for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--workloads", nargs="*", default=[])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--requests", type=int)
    asked = parser.parse_args()
    rounds = [
        workloads(asked.vocabulary, asked.workloads, asked.scale, repeat, asked.requests)
        for repeat in range(asked.repeat)
    ]
    result = asyncio.run(measure(asked.peer, asked.checkpoint, rounds))
    asked.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

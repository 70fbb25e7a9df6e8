"""radixbackend itself, by its stream of events: in this process, and with the text that nobody reads here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.peers.drive import Ask
from benchmarks.peers.workloads import Workload
from radixbackend import Constraint, Engine, SamplingParams

PACKAGES = ("radixbackend", "torch", "transformers")


class Radix:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def stream(self, ask: Ask) -> AsyncIterator[list[int]]:
        constraint = Constraint.json_schema(ask.schema) if ask.schema else None
        sampling = SamplingParams(max_tokens=ask.output, temperature=0, ignore_eos=constraint is None)
        async for event in self._engine.astream(list(ask.prompt), sampling, constraint=constraint):
            if event.token_ids:
                yield list(event.token_ids)

    def serves(self, workload: Workload) -> bool:
        return True

    def prefilled(self) -> int:
        return self._engine.stats().prefilled_tokens

    async def forget(self) -> None:
        self._engine.flush_cache()

    async def close(self) -> None:
        self._engine.close()


async def start(checkpoint: Path) -> Radix:
    return Radix(Engine(checkpoint, dtype="bfloat16", kv_cache_tokens=24_000))

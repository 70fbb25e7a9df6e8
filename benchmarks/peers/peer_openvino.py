"""OpenVINO GenAI's continuous batching pipeline, over a folder that ``optimum-cli export openvino`` wrote."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.peers.drive import Ask
from benchmarks.peers.workloads import Workload


class OpenVino:
    """One thread steps the pipeline; requests are added and read under a lock between two steps."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Any, asyncio.AbstractEventLoop, asyncio.Queue[list[int] | None]]] = {}
        self._awake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def stream(self, ask: Ask) -> AsyncIterator[list[int]]:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = ask.output, False, ask.schema is None
        if ask.schema:
            config.structured_output_config = genai.StructuredOutputConfig(json_schema=json.dumps(ask.schema))
        came: asyncio.Queue[list[int] | None] = asyncio.Queue()
        name = next(self._ids)
        ids = ov.Tensor(np.array([ask.prompt], dtype=np.int64))
        with self._lock:
            handle = self._pipeline.add_request(name, ids, config)
            self._open[name] = (handle, asyncio.get_running_loop(), came)
        self._awake.set()
        while (new := await came.get()) is not None:
            yield new

    def _run(self) -> None:
        while not self._closed:
            if not self._open:
                self._awake.wait(0.1)
                self._awake.clear()
                continue
            with self._lock:
                self._pipeline.step()
                self._deliver()

    def _deliver(self) -> None:
        for name, (handle, loop, came) in list(self._open.items()):
            while handle.can_read():
                for output in handle.read().values():
                    loop.call_soon_threadsafe(came.put_nowait, list(output.generated_ids))
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                del self._open[name]
                loop.call_soon_threadsafe(came.put_nowait, None)

    def serves(self, workload: Workload) -> bool:
        return True

    def prefilled(self) -> None:
        return None

    async def forget(self) -> None:
        """It offers no way; the workloads' prompts differ, so only repeats of one workload find their own prefixes."""

    async def close(self) -> None:
        self._closed = True
        self._thread.join()


async def start(checkpoint: Path) -> OpenVino:
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.cache_size, scheduler.max_num_seqs = True, 2, 64
    return OpenVino(genai.ContinuousBatchingPipeline(str(checkpoint / "openvino"), scheduler, "CPU"))

"""OpenVINO GenAI's continuous batching pipeline, over a folder that ``optimum-cli export openvino`` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.peers.drive import Ask
from benchmarks.peers.stepped import News, Stepped
from benchmarks.peers.workloads import Workload

PACKAGES = ("openvino", "openvino-genai")


class Pipeline:
    """See `Steps`."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._open: dict[int, Any] = {}

    def add(self, request: int, ask: Ask) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = ask.output, False, ask.schema is None
        if ask.schema:
            config.structured_output_config = genai.StructuredOutputConfig(json_schema=json.dumps(ask.schema))
        ids = ov.Tensor(np.array([ask.prompt], dtype=np.int64))
        self._open[request] = self._pipeline.add_request(request, ids, config)

    def step(self) -> Iterator[News]:
        self._pipeline.step()
        for request, handle in list(self._open.items()):
            tokens: list[int] = []
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
            ended = handle.get_status() != genai.GenerationStatus.RUNNING
            if ended:
                del self._open[request]
            yield News(request, tokens, ended)


class OpenVino(Stepped):
    """See `Peer`."""

    def serves(self, workload: Workload) -> bool:
        return True

    def prefilled(self) -> None:
        return None

    async def forget(self) -> None:
        """It offers no way, and needs none: no two workloads share a prompt."""

    async def close(self) -> None:
        """Nothing runs any more; the process ends."""


async def start(checkpoint: Path) -> OpenVino:
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.cache_size, scheduler.max_num_seqs = True, 2, 64
    properties = {"INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"])}  # of itself it does not look there
    pipeline = genai.ContinuousBatchingPipeline(str(checkpoint / "openvino"), scheduler, "CPU", properties)
    return OpenVino(Pipeline(pipeline))

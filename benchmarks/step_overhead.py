"""What a step costs beside the model: scheduler, sampler and detokenizer, over a model that does nothing.

    python -m benchmarks.step_overhead [--vocab 32000] [--steps 200]

Prints microseconds per step (median) at batch 1, 32 and 128, greedy and with top_p, at 500 tokens of context.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from radixbackend.builtin_plugin import radix_rank_waiting
from radixbackend.engine.draw import choose_draw
from radixbackend.engine.plan import ExecutorTraits
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.request import Request
from radixbackend.engine.runner import Logits, wanted_rows
from radixbackend.engine.sampler import Sampler
from radixbackend.engine.scheduler import Limits, Scheduler
from radixbackend.tokenizer import TextStream, Tokenizer
from radixbackend.types import RequestId, SamplingParams

CONTEXT = 500


def tokenizer(vocab: int) -> Tokenizer:
    words = {f"w{i}": i for i in range(vocab)}
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=FastTokenizer(models.WordLevel(words, unk_token="w0"))))


def measure(batch: int, vocab: int, steps: int, params: SamplingParams) -> dict[str, float]:
    """Median microseconds per decode step, by part."""
    cache = PrefixCache(batch * (CONTEXT + steps + 20))
    scheduler = Scheduler(
        cache,
        Limits(running=batch, step_tokens=8192),
        traits=ExecutorTraits(),
        end_tokens=(0,),
        rank=radix_rank_waiting,
        on_leave=lambda sequence_id: None,
    )
    rng = np.random.default_rng(0)
    texts = [TextStream(tokenizer(vocab)) for _ in range(batch)]
    for i in range(batch):
        prompt = rng.integers(1, vocab, CONTEXT).astype(np.int32)
        request = Request(RequestId(i), prompt, params, CONTEXT + steps + 10, (i,), sink=lambda update: None)
        scheduler.add([request])
    sampler = Sampler(vocab, (0,), choose_draw(torch.device("cpu")))
    values = torch.randn(batch, vocab) * 3
    values[:, 0] = -100.0
    parts: dict[str, list[float]] = {"schedule": [], "sample": [], "commit": [], "text": []}
    while True:
        started = time.perf_counter()
        plan, _ = scheduler.schedule()
        scheduled = time.perf_counter()
        if plan is None or len(parts["schedule"]) == steps:
            break
        rows, offsets = wanted_rows(plan)
        logits = Logits(values[: len(rows)].clone(), offsets)
        before = time.perf_counter()
        result = sampler.sample(plan, logits)
        sampled = time.perf_counter()
        updates = scheduler.commit(plan, result)
        committed = time.perf_counter()
        for update in updates:
            if update.event:
                texts[update.request.id].feed(update.event.token_ids)
        done = time.perf_counter()
        if all(len(s.tokens) == 1 for s in plan.sequences) and len(plan.sequences) == batch:
            durations = (scheduled - started, sampled - before, committed - sampled, done - committed)
            for part, seconds in zip(parts.values(), durations, strict=True):
                part.append(seconds * 1e6)
    return {name: statistics.median(values) for name, values in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"µs per step beside the model, vocabulary {arguments.vocab}, context {CONTEXT}")
    for column in ("sampling", "batch", "schedule", "sample", "commit", "engine thread", "text (caller's thread)"):
        table.add_column(column, justify="right")
    kinds = {
        "greedy": SamplingParams(temperature=0, ignore_eos=True),
        "top_p": SamplingParams(top_p=0.9, ignore_eos=True),
    }
    for name, params in kinds.items():
        for batch in (1, 32, 128):
            cost = measure(batch, arguments.vocab, arguments.steps, params.replace(max_tokens=arguments.steps + 10))
            engine = cost["schedule"] + cost["sample"] + cost["commit"]
            cells = (cost["schedule"], cost["sample"], cost["commit"], engine, cost["text"])
            table.add_row(name, str(batch), *(f"{cell:,.0f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()

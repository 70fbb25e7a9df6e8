"""What the radix tree saves: few-shot, agent and branch workloads with the cache on and off.

    python -m benchmarks.prefix_cache [--shape 60m|0.5b] [--scale 1.0]

Random bf16 weights, fixed token ids, greedy, end tokens ignored. Both engines run one after the other in this
process over the same model object; the ratio of their times is what to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from radixbackend import Engine, EngineStats, GenerationRequest, SamplingParams, hookimpl
from radixbackend.engine.model_loader import LoadedModel

VOCAB = 32_000

Workload = Callable[["Engine", float], Coroutine[Any, Any, None]]


def build(shape: str) -> Any:
    """A random model of a known shape."""
    torch.manual_seed(0)
    if shape == "60m":
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=10,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=8192,
        )
        return LlamaForCausalLM(config).to(torch.bfloat16)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return Qwen2ForCausalLM(config).to(torch.bfloat16)


class InMemory:
    def __init__(self, model: Any) -> None:
        self.model = model

    @hookimpl
    def radix_load_model(self) -> LoadedModel:
        return LoadedModel.of(self.model)


def tokens(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(10, VOCAB) for _ in range(count))


def asked(prompt: tuple[int, ...], count: int, n: int = 1) -> GenerationRequest:
    return GenerationRequest(prompt, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, n=n))


async def few_shot(engine: Engine, scale: float) -> None:
    """32 requests, 1,000 shared and 50 own tokens, 16 out, 8 at a time, nothing warm."""
    gate = asyncio.Semaphore(8)
    shared = tokens(0, int(1000 * scale))

    async def one(i: int) -> None:
        async with gate:
            await engine.agenerate(asked(shared + tokens(i, 50), 16))

    await asyncio.gather(*(one(i) for i in range(1, 33)))


async def agent(engine: Engine, scale: float) -> None:
    """8 conversations of 4 turns, 1,000 shared system tokens, 80 more a turn, 32 out."""
    system = tokens(0, int(1000 * scale))

    async def conversation(i: int) -> None:
        history = system
        for turn in range(4):
            history += tokens(100 * i + turn, 80)
            history += (await engine.agenerate(asked(history, 32))).token_ids

    await asyncio.gather(*(conversation(i) for i in range(1, 9)))


async def branches(engine: Engine, scale: float) -> None:
    """16 continuations of 32 tokens from one 600-token prompt."""
    await engine.agenerate(asked(tokens(0, int(600 * scale)), 32, n=16))


def run(model: Any, workload: Workload, scale: float, cache: bool) -> tuple[float, EngineStats]:
    with Engine("bench", plugins=[InMemory(model)], prefix_cache=cache, self_check=False) as engine:
        engine.generate([5] * 32, SamplingParams(max_tokens=4))  # first calls allocate
        engine.flush_cache()
        before = engine.stats()
        started = time.perf_counter()
        asyncio.run(workload(engine, scale))
        seconds = time.perf_counter() - started
        after = engine.stats()
        used = EngineStats(
            prompt_tokens=after.prompt_tokens - before.prompt_tokens,
            cached_tokens=after.cached_tokens - before.cached_tokens,
            prefilled_tokens=after.prefilled_tokens - before.prefilled_tokens,
            generated_tokens=after.generated_tokens - before.generated_tokens,
        )
        return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("60m", "0.5b"), default="60m")
    parser.add_argument("--scale", type=float, default=1.0, help="of the shared prefix")
    arguments = parser.parse_args()
    model = build(arguments.shape)
    table = Table(title=f"{arguments.shape} shape, random bf16 weights, {torch.get_num_threads()} threads")
    for column in ("workload", "cache", "seconds", "output tok/s", "prefilled", "from cache", "off / on"):
        table.add_column(column, justify="right")
    for workload in (few_shot, agent, branches):
        seconds_off, off = run(model, workload, arguments.scale, cache=False)
        seconds_on, on = run(model, workload, arguments.scale, cache=True)
        for label, seconds, used, ratio in (
            ("off", seconds_off, off, ""),
            ("on", seconds_on, on, f"{seconds_off / seconds_on:.2f}x"),
        ):
            rate = used.generated_tokens / seconds
            table.add_row(
                workload.__name__,
                label,
                f"{seconds:.1f}",
                f"{rate:.0f}",
                f"{used.prefilled_tokens:,}",
                f"{used.cache_hit_rate:.0%}",
                ratio,
            )
    Console().print(table)


if __name__ == "__main__":
    main()

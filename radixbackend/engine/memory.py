"""How many slots the KV pool has: what memory is free, and what of it the steps need to compute in.

Rules. On a GPU the largest step is run once, on slots made for it, and what it took at its peak is left free: that
depends on model, kernels and sampling, and is measured instead of estimated. On a CPU nothing is measured, since memory
that is left over serves other programs. It decides sizes and allocates nothing that stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from radixbackend.config import EngineConfig
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.plan import Executor, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.runner import Runner
from radixbackend.errors import ConfigError
from radixbackend.types import SamplingParams

log = logging.getLogger(__name__)

STEP_TOKENS_CPU = 256
"""A CPU computes prompts no faster in larger chunks, and a decode waits for at most one of them."""

STEP_TOKENS_GPU = 8192

CONTEXTS = 8
"""Full contexts that the KV pool has room for if its size is not given and memory allows: more is seldom used."""

MOST_TOKENS_CPU = 1 << 18
"""Size of the KV pool on a CPU at most, if it is not given."""


def step_tokens(config: EngineConfig, device: torch.device) -> int:
    """Tokens computed in a step at most."""
    return config.max_step_tokens or (STEP_TOKENS_GPU if device.type == "cuda" else STEP_TOKENS_CPU)


def max_context(config: EngineConfig, model: LoadedModel) -> int:
    """Longest sequence served."""
    return min(config.max_context or model.max_context, model.max_context)


def pool_size(config: EngineConfig, model: LoadedModel, runner: Runner, executor: Executor) -> int:
    """Slots of the KV pool. Runs ``executor``, so it comes before the pool that is served from is allocated."""
    given, slot, context = config.kv_cache_tokens, max(runner.bytes_per_slot, 1), max_context(config, model)
    working = 0
    if given is None and model.device.type == "cuda":
        working = _working_bytes(config, model, runner, executor)
    free = max(0, free_memory(model.device) - working)
    affordable = int(free * config.memory_share(model.device.type)) // slot
    if given is not None:
        if given * slot > free:
            raise ConfigError(f"kv_cache_tokens={given} takes {given * slot / 2**30:.1f} GiB; about {affordable} fit")
        return given
    if affordable < 1:
        raise ConfigError("no memory is left for the KV pool after loading the model; free some or use a smaller model")
    if model.device.type != "cpu":
        return affordable
    capacity = min(affordable, max(CONTEXTS * context, 16_384), max(MOST_TOKENS_CPU, context))
    if capacity < context:
        log.warning("the KV pool holds %d tokens, less than the context of %d", capacity, context)
    return capacity


def free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _working_bytes(config: EngineConfig, model: LoadedModel, runner: Runner, executor: Executor) -> int:
    """What the largest step allocates at its peak, beside model and slots."""
    plan = largest_step(step_tokens(config, model.device), config.max_running, max_context(config, model))
    try:
        runner.allocate(plan.num_tokens)
        in_flight = 2 if config.overlaps(model.device.type) else 1
        peak = _peak(lambda: _run(executor, plan, in_flight), model.device)
    except torch.OutOfMemoryError as fault:
        raise ConfigError(
            f"a step of {plan.num_tokens} tokens does not fit into the memory that the model leaves: "
            "lower max_step_tokens or max_running, free some, or use a smaller model"
        ) from fault
    finally:
        for sequence in plan.sequences:
            executor.forget(sequence.sequence_id)
        runner.allocate(0)
        torch.cuda.empty_cache()
    log.info("a step of %d tokens takes %.2f GiB beside model and slots", plan.num_tokens, peak / 2**30)
    return peak


def _run(executor: Executor, plan: StepPlan, in_flight: int) -> None:
    """So many at once: what a step keeps until it has landed is there while the next one starts."""
    for launched in [executor.launch(plan) for _ in range(in_flight)]:
        launched.result()


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that ``run`` has allocated at its peak. Once before, for what is allocated only the first time."""
    run()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def largest_step(tokens: int, running: int, context: int) -> StepPlan:
    """Of so many tokens, or as many as fit into the contexts: prompts as long as can be, and all that run sample."""
    params = SamplingParams(temperature=1.0, top_p=0.9, logprobs=1)
    left = max(tokens, running)
    sequences: list[SequencePlan] = []
    used = 0
    for i in range(running):
        length = min(context, left - (running - i - 1))
        row = np.full(length, 1, np.int32)
        spec = SampleSpec(params, i, row, length, (), None, 1)
        slots = np.arange(used, used + length, dtype=np.int32)
        sequences.append(SequencePlan(SequenceId(-1 - i), row, 0, slots, spec))
        used, left = used + length, left - length
    return StepPlan(0, tuple(sequences))

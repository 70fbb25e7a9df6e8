"""How large the KV pool becomes; the GPU is a fake one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend.config import EngineConfig
from radixbackend.engine import memory
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.executor import ModelExecutor
from radixbackend.engine.kv_store import FP8
from radixbackend.engine.memory import largest_step, pool_size, step_tokens
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import StepPlan
from radixbackend.engine.sampler import Sampler
from radixbackend.errors import ConfigError
from tests import zoo

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("tokens", "running", "context", "lengths"),
    [
        (100, 4, 200, [97, 1, 1, 1]),
        (100, 4, 60, [60, 38, 1, 1]),
        (100, 4, 10, [10, 10, 10, 10]),  # more cannot be computed at once
        (2, 4, 10, [1, 1, 1, 1]),  # whoever runs has a token in every step
        (8, 1, 8, [8]),
    ],
)
def test_the_largest_step(tokens: int, running: int, context: int, lengths: list[int]) -> None:
    plan = largest_step(tokens, running, context)
    assert [len(s.tokens) for s in plan.sequences] == lengths
    assert all(s.sample is not None and s.context == len(s.slots) for s in plan.sequences)
    slots = np.concatenate([s.slots for s in plan.sequences])
    assert sorted(slots.tolist()) == list(range(plan.num_tokens))
    assert len({s.sequence_id for s in plan.sequences}) == running


def test_a_model_can_run_it() -> None:
    runner = ModelRunner(LoadedModel.of(zoo.build("llama")), TorchAttention())
    plan = largest_step(30, 4, 20)
    runner.allocate(plan.num_tokens)
    result = ModelExecutor(runner, Sampler(zoo.VOCAB, ())).launch(plan).result()
    assert [(len(s.tokens), len(s.logprobs), s.error) for s in result.sampled] == [(1, 1, None)] * 4


@dataclass
class Machine:
    """Runner, executor and memory of a GPU: 1000 bytes for a slot, ``per_token`` for what a step computes."""

    free: int
    per_token: int
    bytes_per_slot: int = 1000
    slots: list[int] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)
    forgotten: int = 0
    peak: int = 0

    def allocate(self, capacity: int) -> None:
        self.slots.append(capacity)

    def launch(self, plan: StepPlan) -> Machine:
        self.ran.append(plan.num_tokens)
        self.peak = plan.num_tokens * (self.per_token + self.bytes_per_slot)
        if self.peak > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self

    def result(self) -> None:
        """Nobody looks at it."""

    def forget(self, sequence_id: int) -> None:
        self.forgotten += 1

    def size(self, device: torch.device, **options: Any) -> int:
        model = replace(LoadedModel.of(zoo.build("llama")), device=device, max_context=512)
        return pool_size(EngineConfig("m", **options), model, self, self)  # type: ignore[arg-type]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(free=1_000_000, per_token=2000)
    monkeypatch.setattr(memory, "free_memory", lambda device: made.free)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: made.slots[-1] * made.bytes_per_slot)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: made.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(made, "peak", 0))
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    return made


def test_a_gpu_keeps_free_what_the_largest_step_takes(machine: Machine) -> None:
    assert machine.size(GPU, max_step_tokens=100, max_running=4) == (1_000_000 - 100 * 2000) * 9 // 10 // 1000
    assert machine.ran == [100] * 4  # two in flight, and once before for what is only made the first time
    assert machine.slots == [100, 0]  # nothing stays
    assert machine.forgotten == 4
    assert machine.size(GPU, max_step_tokens=100, max_running=4, memory_fraction=0.5) == 400
    machine.ran.clear()
    assert machine.size(GPU, max_step_tokens=100, max_running=4, memory_fraction=0.5, overlap=False) == 400
    assert machine.ran == [100] * 2


def test_a_step_that_does_not_fit_names_the_option(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"a step of 500 tokens does not fit.*lower max_step_tokens"):
        machine.size(GPU, max_step_tokens=500, max_running=4)
    assert machine.slots == [500, 0]


def test_a_size_that_is_given_is_taken_if_it_fits(machine: Machine) -> None:
    assert machine.size(GPU, kv_cache_tokens=950) == 950
    assert machine.ran == []
    with pytest.raises(ConfigError, match=r"kv_cache_tokens=1001 takes .* GiB; about 900 fit"):
        machine.size(GPU, kv_cache_tokens=1001)


def test_a_cpu_takes_half_and_no_more_than_is_used(machine: Machine) -> None:
    assert machine.size(CPU) == 500
    machine.free = 10**12
    assert machine.size(CPU) == 16_384
    assert machine.size(CPU, max_context=100) == 16_384
    machine.free = 100
    with pytest.raises(ConfigError, match="no memory is left"):
        machine.size(CPU)
    assert machine.ran == []


def test_keys_in_eight_bits_make_twice_the_slots_of_bfloat16(machine: Machine) -> None:
    loaded = LoadedModel.of(zoo.build("llama").bfloat16())
    sizes = []
    for stored in (None, FP8):
        runner = ModelRunner(loaded, TorchAttention(), stored)
        sizes.append(pool_size(EngineConfig("m"), loaded, runner, machine))  # type: ignore[arg-type]
        runner.allocate(sizes[-1])
        assert runner._store is not None
        assert runner._store.nbytes == (sizes[-1] + 1) * runner.bytes_per_slot <= machine.free
        runner.close()
    assert sizes[0] > 0
    assert abs(sizes[1] - 2 * sizes[0]) <= 1


def test_a_pool_below_the_context_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.free = 200_000
    assert machine.size(CPU) == 100
    assert "holds 100 tokens, less than the context of 512" in caplog.text


def test_steps_are_larger_on_a_gpu() -> None:
    assert step_tokens(EngineConfig("m"), GPU) > step_tokens(EngineConfig("m"), CPU)
    assert step_tokens(EngineConfig("m", max_step_tokens=7), GPU) == 7

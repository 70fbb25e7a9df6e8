"""Which steps run by graph and how they are padded; replays equal plain steps. The device is a fake one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend.engine.attention.base import AttentionBatch
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.cuda_graphs import Bucket, DecodeGraphs, contexts, is_decode, padded, sizes
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.types import SamplingParams
from tests import zoo

SLOTS = 100


class CapturableTorch(TorchAttention):
    """Reserves nothing, since the fake capture runs everything again."""

    def reserve(self, rows: int, longest: int, slots: int) -> tuple[int, int, int]:
        return rows, longest, slots

    def begin_reserved(self, batch: AttentionBatch, reserved: tuple[int, int, int]) -> None:
        rows, longest, slots = reserved
        assert len(batch.starts) == rows
        assert max(batch.contexts) <= longest
        assert sum(map(len, batch.slots)) <= slots
        self.begin(batch)


class Recorder:
    """Captures by remembering the function."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        self.captured += 1
        with torch.inference_mode():
            logits = run()

        def replay() -> None:
            with torch.inference_mode():
                logits.copy_(run())

        return logits, replay


def decode(*contexts: int, first_slot: int = 0, **fields: Any) -> StepPlan:
    sequences = []
    for i, context in enumerate(contexts):
        spec = SampleSpec(SamplingParams(), 0, np.zeros(context, np.int32), context, (), None, 8)
        slots = np.arange(first_slot, first_slot + context, dtype=np.int32)
        first_slot += context
        token = np.array([60 + i], np.int32)
        sequences.append(SequencePlan(**{
            "sequence_id": SequenceId(i), "tokens": token, "start": context - 1, "slots": slots, "sample": spec,
        } | fields))  # fmt: skip
    return StepPlan(0, tuple(sequences))


def graphs(recorder: Recorder | None = None, **options: Any) -> tuple[DecodeGraphs, ModelRunner]:
    runner = ModelRunner(LoadedModel.of(zoo.build("llama")), CapturableTorch())
    runner.allocate(SLOTS)
    for layer in range(len(runner._store.keys)):  # type: ignore[union-attr]
        for tensor in (runner._store.keys[layer], runner._store.values[layer]):  # type: ignore[union-attr]
            tensor.normal_(generator=torch.Generator().manual_seed(layer))

    def forward(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        runner._call = 0
        return runner._forward(ids, positions, torch.arange(ids.shape[1]))

    made = DecodeGraphs(
        forward, runner.attention, slots=SLOTS, device=torch.device("cpu"), capture=recorder or Recorder(),
        **{"max_rows": 8, "max_context": 64} | options,
    )  # fmt: skip
    return made, runner


@pytest.mark.parametrize("most", [1, 3, 8, 64, 200, 256, 1000])
def test_sizes_rise_to_the_greatest(most: int) -> None:
    found = sizes(most)
    assert list(found) == sorted(set(found))
    assert found[-1] == most
    assert all(b <= max(2 * a, a + 4, 1.5 * a) for a, b in itertools.pairwise(found))  # padding is bounded
    assert len(found) < 16 + most / 32


@pytest.mark.parametrize("most", [64, 1024, 1025, 8192, 131072])
def test_contexts_rise_to_the_longest(most: int) -> None:
    found = contexts(most)
    assert list(found) == sorted(set(found))
    assert found[-1] == most
    assert len(found) <= 5


def test_what_is_a_decode() -> None:
    assert is_decode(decode(3, 5))
    assert not is_decode(decode(3, sample=None))
    assert not is_decode(decode(3, prompt_logprobs=0))
    assert not is_decode(decode(4, tokens=np.array([1, 2], np.int32), start=2))
    mixed = StepPlan(0, (*decode(3).sequences, *decode(4, tokens=np.array([1, 2], np.int32), start=2).sequences))
    assert not is_decode(mixed)


def test_padding_belongs_to_no_one() -> None:
    batch = padded(AttentionBatch.of(decode(3, 5)), 4, 99)
    assert batch.starts.tolist() == [2, 4, 0, 0]
    assert batch.contexts.tolist() == [3, 5, 1, 1]
    assert batch.offsets.tolist() == [0, 1, 2, 3, 4]
    assert batch.write_slots.tolist() == [2, 7, 99, 99]
    assert [s.tolist() for s in batch.slots[2:]] == [[99], [99]]


def test_buckets() -> None:
    made, _ = graphs(max_context=5000)
    assert made.bucket(decode(3, 5)) == Bucket(2, 1024)
    assert made.bucket(decode(3, 5, 7)) == Bucket(4, 1024)
    assert made.bucket(decode(*[2] * 8)) == Bucket(8, 1024)
    assert made.bucket(decode(*[2] * 9)) is None
    assert made.bucket(decode(60, 60, 60)) == Bucket(4, 1024)  # more than there are slots: they share a prefix
    assert made.bucket(decode(150, 100)) is None  # no longer what attention reserved for
    small, _ = graphs(max_context=64)
    assert small.bucket(decode(64)) == Bucket(1, 64)
    assert small.bucket(decode(65)) is None


def test_replays_equal_plain_steps() -> None:
    recorder = Recorder()
    made, runner = graphs(recorder)
    for lengths in ((5, 9, 14), (2,), (20, 3, 1, 6), (11, 12, 13), (7, 8)):
        plan = decode(*lengths)
        stored = [tensor.clone() for tensor in runner._store.keys]  # type: ignore[union-attr]
        found = made.run(plan)
        assert found is not None
        found = found.clone()
        for before, now in zip(stored, runner._store.keys, strict=True):  # type: ignore[union-attr]
            changed = {i for i in range(SLOTS) if not torch.equal(before[i], now[i])}
            assert changed == {int(s.slots[-1]) for s in plan.sequences}  # and the slot of no one, which is behind
        torch.testing.assert_close(found, runner.run(plan).rows, atol=1e-5, rtol=1e-5)
    assert recorder.captured == 3  # for one, two and four rows
    assert made.run(decode(3, sample=None)) is None


def test_warm_up_captures_ahead() -> None:
    recorder = Recorder()
    made, _ = graphs(recorder)
    made.warm_up(rows=4)
    assert recorder.captured == 3
    made.run(decode(5, 9, 14))
    assert recorder.captured == 3
    made.clear()
    made.run(decode(5, 9, 14))
    assert recorder.captured == 4

"""Which steps run by graph and how they are padded; replays equal plain steps. The device is a fake one."""

from __future__ import annotations

import gc
import itertools
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend import Engine, hookimpl
from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.cuda_graphs import Bucket, DecodeGraphs, contexts, is_decode, padded, sizes
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import PromptImages, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.types import SamplingParams
from tests import zoo

SLOTS = 100


class CapturableTorch(TorchAttention):
    """Reserves nothing, since the fake capture runs everything again."""

    captures = True

    def reserve(self, rows: int, longest: int, slots: int) -> tuple[int, int, int]:
        return rows, longest, slots

    def begin_reserved(self, batch: AttentionBatch, reserved: tuple[int, int, int]) -> None:
        rows, longest, slots = reserved
        assert len(batch.starts) == rows
        assert max(batch.contexts) <= longest
        assert sum(map(len, batch.slots)) <= slots
        self.begin(batch)


class Recorder:
    """Captures by remembering the function; ``spoil`` is done to what a replay gives."""

    def __init__(self, spoil: Callable[[torch.Tensor], object] = lambda logits: None) -> None:
        self.captured = self.replayed = 0
        self.spoil = spoil

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        self.captured += 1
        with torch.inference_mode():
            logits = run()

        def replay() -> None:
            self.replayed += 1
            with torch.inference_mode():
                logits.copy_(run())
                self.spoil(logits)

        return logits, replay


def refusing(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
    raise RuntimeError("operation not permitted when stream is capturing")


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


def a_runner() -> ModelRunner:
    """Whose slots hold something, the same in every runner."""
    runner = ModelRunner(LoadedModel.of(zoo.build("llama")), CapturableTorch())
    runner.allocate(SLOTS)
    for layer in range(len(runner._store.keys)):  # type: ignore[union-attr]
        for tensor in (runner._store.keys[layer], runner._store.values[layer]):  # type: ignore[union-attr]
            tensor.normal_(generator=torch.Generator().manual_seed(layer))
    return runner


def graphs(recorder: Recorder | None = None, **options: Any) -> tuple[DecodeGraphs, ModelRunner]:
    runner = a_runner()
    made = DecodeGraphs(
        runner._forward, runner._plain, runner.attention, slots=SLOTS,  # type: ignore[arg-type]
        device=torch.device("cpu"), capture=recorder or Recorder(), **{"max_rows": 8, "max_context": 64} | options,
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
    assert not is_decode(decode(3, images=PromptImages((), np.zeros(2, np.int32))))  # positions of their own
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


# -- as the runner uses them ------------------------------------------------------------------------------------------


def test_the_runner_replays_decodes_and_nothing_else() -> None:
    recorder = Recorder()
    runner, plain = a_runner(), a_runner()
    runner.capture_decodes(8, 64, recorder)
    assert recorder.captured == len(sizes(8))  # ahead of any step
    prompt = SequencePlan(SequenceId(0), np.arange(60, 70, dtype=np.int32), 0, np.arange(10, dtype=np.int32), None, 0)
    steps = [decode(5, 9, 14), decode(2), StepPlan(0, (prompt,)), StepPlan(0, (*decode(3).sequences, prompt))]
    replayed = []
    for plan in steps:
        found, expected = runner.run(plan), plain.run(plan)
        torch.testing.assert_close(found.rows, expected.rows, atol=1e-5, rtol=1e-5)
        assert found.offsets == expected.offsets
        replayed.append(recorder.replayed)
    assert replayed == [1, 2, 2, 2]
    assert recorder.captured == len(sizes(8))


def test_rows_outlive_the_next_replay() -> None:
    runner = a_runner()
    runner.capture_decodes(8, 64, Recorder())
    first = runner.run(decode(5, 9)).rows
    kept = first.clone()
    runner.run(decode(7, 8))
    assert torch.equal(first, kept)


def test_nothing_is_captured_on_a_cpu_or_by_attention_that_cannot() -> None:
    runner = a_runner()
    runner.capture_decodes(8, 64)
    assert runner._graphs is None
    other = ModelRunner(LoadedModel.of(zoo.build("llama")), TorchAttention())
    other.allocate(SLOTS)
    other.capture_decodes(8, 64, refusing)
    assert other._graphs is None


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (refusing, "RuntimeError: operation not permitted when stream is capturing"),
        (Recorder(torch.Tensor.zero_), "gives other logits than the model"),
        (Recorder(lambda logits: logits.fill_(float("nan"))), "gives other logits than the model"),
        (Recorder(lambda logits: logits.copy_(logits.roll(1, 0))), "gives other logits than the model"),
    ],
)
def test_what_fails_or_is_wrong_is_left_out_and_said_once(
    capture: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner, plain = a_runner(), a_runner()
    with caplog.at_level(logging.WARNING):
        runner.capture_decodes(8, 64, capture)
        for plan in (decode(5, 9, 14), decode(2), decode(5, 9, 14)):
            torch.testing.assert_close(runner.run(plan).rows, plain.run(plan).rows, atol=1e-5, rtol=1e-5)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("decodes run without CUDA graphs")
    assert reason in caplog.messages[0]


def test_graphs_go_with_the_slots_and_with_the_runner() -> None:
    runner = a_runner()
    recorder = Recorder()
    runner.capture_decodes(8, 64, recorder)
    runner.run(decode(5, 9))
    runner.allocate(50)
    runner.run(decode(5, 9))
    assert recorder.replayed == 1
    runner.capture_decodes(8, 64, recorder)
    graph = weakref.ref(next(iter(runner._graphs._graphs.values())).ids)  # type: ignore[union-attr]
    runner.close()
    gc.collect()
    assert graph() is None


class FakeDevice:
    """A plugin whose attention can be captured."""

    @hookimpl
    def radix_make_attention(self, name: str) -> AttentionBackend | None:
        return CapturableTorch() if name == "fake" else None


def test_an_engine_gives_the_same_answers_by_graph(tiny_checkpoint: Path) -> None:
    prompts = [[40 + i, 7, 8, 9, *range(60, 60 + i)] for i in range(5)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    options = {"kv_cache_tokens": 300, "max_running": 4, "plugins": [FakeDevice()], "self_check": False}
    with Engine(tiny_checkpoint, attention="fake", **options) as engine:
        expected = [r.token_ids for r in engine.generate(prompts, params)]
        engine.flush_cache()
        runner: ModelRunner = engine._parts.loop._executor._runner  # type: ignore[attr-defined]
        recorder = Recorder()
        engine._parts.loop.call(lambda: runner.capture_decodes(4, 128, recorder)).result(60)
        assert [r.token_ids for r in engine.generate(prompts, params)] == expected
        assert [r.token_ids for r in engine.generate(prompts, params)] == expected  # from the cache
    assert recorder.replayed >= 22


@pytest.mark.parametrize("wanted", [True, False])
def test_the_option(tiny_checkpoint: Path, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(ModelRunner, "capture_decodes", lambda self, rows, context: asked.append((rows, context)))
    options: dict[str, Any] = {"kv_cache_tokens": 300, "max_running": 4, "self_check": False, "cuda_graphs": wanted}
    Engine(tiny_checkpoint, **options).close()
    Engine(tiny_checkpoint, **options, max_context=100).close()
    assert asked == ([(4, 300), (4, 100)] if wanted else [])


# -- where there is a GPU ----------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def a_cuda_runner() -> ModelRunner:
    from radixbackend.engine.attention.triton_paged import TritonAttention

    runner = ModelRunner(LoadedModel.of(zoo.build("llama").cuda()), TritonAttention())
    runner.allocate(SLOTS)
    for tensor in (*runner._store.keys, *runner._store.values):  # type: ignore[union-attr]
        tensor.normal_(generator=torch.Generator("cuda").manual_seed(0))
    return runner


@on_a_gpu
def test_cuda_replays_equal_plain_steps_and_leave_nothing_behind() -> None:
    plain = a_cuda_runner()
    before = torch.cuda.memory_allocated()
    runner = a_cuda_runner()
    runner.capture_decodes(8, 64)
    assert len(runner._graphs._graphs) == len(sizes(8))  # type: ignore[union-attr]
    for lengths in ((5, 9, 14), (2,), (20, 3, 1, 6), (5, 9, 14)):
        plan = decode(*lengths)
        torch.testing.assert_close(runner.run(plan).rows, plain.run(plan).rows, atol=1e-3, rtol=1e-3)
    assert not runner._graphs._failed  # type: ignore[union-attr]
    runner.close()
    del runner
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@on_a_gpu
def test_cuda_goes_on_after_a_capture_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    runner, plain = a_cuda_runner(), a_cuda_runner()
    runner.model.register_forward_pre_hook(lambda *_: torch.ones(1, device="cuda").item())  # waits for the GPU
    stream = torch.cuda.current_stream()
    runner.capture_decodes(8, 64)
    assert "decodes run without CUDA graphs" in caplog.text
    assert torch.cuda.current_stream() == stream
    for lengths in ((5, 9, 14), (2,)):
        plan = decode(*lengths)
        torch.testing.assert_close(runner.run(plan).rows, plain.run(plan).rows, atol=1e-3, rtol=1e-3)

"""The engine with overlap on CPU tensors, where a launch computes at once: the same answers as without."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend import Constraint, Engine, GenerationRequest, SamplingParams, errors, hookimpl
from radixbackend.config import EngineConfig
from radixbackend.engine import sampler
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.executor import ModelExecutor
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import Sampled, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.runner import Logits
from radixbackend.engine.sampler import FEW, Sampler
from radixbackend.engine.transfer import fill_in
from radixbackend.errors import IntegrityError
from radixbackend.types import StepRecord
from tests import zoo
from tests.engine.test_cuda_graphs import FakeDevice, Recorder


class Watch:
    """A plugin: the steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    @hookimpl
    def radix_step_finished(self, record: StepRecord) -> None:
        self.steps.append(record)

    @property
    def ahead(self) -> int:
        return sum(record.ahead for record in self.steps)


@contextmanager
def an_engine(checkpoint: Path, **options: Any) -> Iterator[tuple[Engine, Watch]]:
    watch = Watch()
    options = {"kv_cache_tokens": 700, "max_running": 6, "max_step_tokens": 32, "self_check": False} | options
    plugins = [watch, *options.pop("plugins", [])]
    with Engine(checkpoint, plugins=plugins, **options) as engine:
        yield engine, watch
        end = time.monotonic() + 10
        while (stats := engine.stats()).running or stats.waiting or stats.slots_held:
            assert time.monotonic() < end, f"something is left: {stats}"
            time.sleep(0.01)
        engine._parts.loop.call(engine._parts.cache.check).result()
        assert engine.stats().quarantines == 0


def asked() -> list[GenerationRequest]:
    """Everything that goes ahead, and some that does not."""
    rng = random.Random(3)
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "ignore_eos": True, "n": 3},
        {"seed": 1, "temperature": 1.5},
        {"seed": 2, "top_p": 0.8},
        {"seed": 3, "temperature": 100.0, "top_p": 0.99},
        {"seed": 4, "top_k": 5, "min_p": 0.01, "n": 2},
        {"seed": 5, "min_tokens": 10, "temperature": 3.0},
        {"seed": 6, "logit_bias": {70: 3.0}},
        {"seed": 7, "stop": ("e", "a"), "temperature": 2.0},
        {"seed": 8, "stop_token_ids": tuple(range(100, 140)), "temperature": 3.0},
        {"seed": 9, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "max_tokens": 8},
        {"temperature": 0, "logprobs": 2, "max_tokens": 8},
        {"temperature": 0, "prompt_logprobs": 0, "max_tokens": 8},
        {"seed": 10, "max_tokens": 1},
        {"max_tokens": 0},
    ]
    shared = [rng.randrange(5, 200) for _ in range(40)]
    requests = []
    for i, params in enumerate(options):
        own = [rng.randrange(5, 200) for _ in range(rng.randrange(1, 50))]
        requests.append(
            GenerationRequest(tuple(shared[: 7 * (i % 4)] + own), SamplingParams(**{"max_tokens": 24} | params))
        )
    requests.append(GenerationRequest((7, 8, 9), SamplingParams(seed=4, max_tokens=20), Constraint.regex("[ab]{3,9}")))
    return requests


def test_the_answers_are_the_same(tiny_checkpoint: Path) -> None:
    found = {}
    for overlap in (False, True):
        with an_engine(tiny_checkpoint, overlap=overlap) as (engine, watch):
            alone = [engine.generate(request) for request in asked()[:9]]
            together = engine.generate(asked())
            found[overlap] = [
                [(c.token_ids, c.text, c.finish_reason, c.stop_reason) for c in result.choices]
                for result in (*alone, *together)
            ]
            assert (watch.ahead > 60) if overlap else not watch.ahead
    assert found[True] == found[False]


def test_streams_dropped_midway_leave_the_others_alone(tiny_checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    prompts = [[40 + i, 7, 8, 9, *range(60, 60 + 3 * i)] for i in range(8)]
    with an_engine(tiny_checkpoint, overlap=True) as (engine, watch):
        expected = [engine.generate(p, params).token_ids for p in prompts]
        engine.flush_cache()
        found: dict[int, tuple[int, ...]] = {}

        def ask(i: int) -> None:
            if i % 2:
                found[i] = engine.generate(prompts[i], params).token_ids
                return
            with engine.stream(prompts[i], params) as stream:
                found[i] = tuple(t for event, _ in zip(stream, range(i + 1)) for t in event.token_ids)  # noqa: B905

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for i in range(8):
            assert found[i] == expected[i][: len(found[i])]
            assert len(found[i]) >= (60 if i % 2 else 1)
        assert watch.ahead > 100
        assert engine.generate(prompts, params)[3].token_ids == expected[3]  # from what they left in the cache


def test_a_model_that_raises_ends_the_one_it_raises_for(tiny_checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    with an_engine(tiny_checkpoint, overlap=True) as (engine, _):
        expected = engine.generate([7, 8, 9], params).token_ids

        def fail(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if (kwargs["input_ids"] == 222).any():
                raise RuntimeError("cannot read 222")

        model = engine._parts.model.model
        handle = model.register_forward_pre_hook(fail, with_kwargs=True)
        stream = iter(engine.stream([7, 8, 9], params))
        found = list(next(stream).token_ids)
        with pytest.raises(errors.StepError, match="cannot read 222"):
            engine.generate([9, 222, 9], params)
        handle.remove()
        found += [token for event in stream for token in event.token_ids]
        assert tuple(found) == expected
        assert engine.generate([9, 222, 9], params)


def test_by_graph(tiny_checkpoint: Path) -> None:
    prompts = [[40 + i, 7, 8, 9, *range(60, 60 + i)] for i in range(5)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    recorder = Recorder()
    options = {"attention": "fake", "plugins": [FakeDevice()], "max_running": 4}
    with an_engine(tiny_checkpoint, overlap=True, **options) as (engine, watch):
        expected = [r.token_ids for r in engine.generate(prompts, params)]
        engine.flush_cache()
        runner: ModelRunner = engine._parts.loop._executor._runner  # type: ignore[attr-defined]
        engine._parts.loop.call(lambda: runner.capture_decodes(4, 128, recorder)).result(60)
        assert [r.token_ids for r in engine.generate(prompts, params)] == expected
        assert watch.ahead > 30
    assert recorder.replayed >= 11


@pytest.mark.parametrize(
    ("asked", "device", "overlaps"),
    [(None, "cpu", False), (True, "cpu", True), (None, "cuda", True), (False, "cuda", False)],
)
def test_it_is_on_where_it_pays(asked: bool | None, device: str, overlaps: bool) -> None:
    assert EngineConfig("m", overlap=asked).overlaps(device) is overlaps


# -- executor and sampler ----------------------------------------------------------------------------------------------


def an_executor() -> ModelExecutor:
    runner = ModelRunner(LoadedModel.of(zoo.build("llama")), TorchAttention())
    runner.allocate(100)
    return ModelExecutor(runner, Sampler(zoo.VOCAB, ()))


def share(number: int, tokens: list[int], start: int, params: SamplingParams, **options: Any) -> SequencePlan:
    history = np.array(options.pop("history", tokens), np.int32)
    unknown = int(options.get("ahead") is not None)
    spec = SampleSpec(params, number, history, 3, (), None, 8, unknown)
    slots = np.arange(20 * number, 20 * number + start + len(tokens), dtype=np.int32)
    return SequencePlan(SequenceId(number), np.array(tokens, np.int32), start, slots, spec, **options)


def test_tokens_are_taken_from_the_step_before() -> None:
    params = [SamplingParams(temperature=0), SamplingParams(temperature=2.0, top_p=0.9)]
    prompts = [[60, 61, 62], [63, 64, 65]]
    first = StepPlan(1, tuple(share(i, prompts[i], 0, params[i]) for i in range(2)))
    known = an_executor()
    drawn = [s.tokens[0] for s in known.launch(first).result().sampled]
    second = StepPlan(2, tuple(share(i, [drawn[i]], 3, params[i], history=[*prompts[i], drawn[i]]) for i in range(2)))
    expected = [s.tokens for s in known.launch(second).result().sampled]

    ahead = an_executor()
    early = ahead.launch(first)
    # In another order, and next to a prompt: each takes the token of its own row.
    turned = [share(i, [0], 3, params[i], history=prompts[i], ahead=i) for i in (1, 0)]
    late = ahead.launch(StepPlan(2, (turned[0], share(2, [70, 71], 0, params[0]), turned[1])))
    assert [s.tokens[0] for s in early.result().sampled] == drawn
    found = late.result().sampled
    assert [found[2].tokens, found[0].tokens] == expected


def test_behind_a_step_that_failed_there_is_nothing_to_take() -> None:
    executor = an_executor()
    params = SamplingParams(temperature=0)
    executor.launch(StepPlan(1, (share(0, [60, 61, 62], 0, params),))).result()
    with pytest.raises(IndexError):
        executor.launch(StepPlan(2, (share(0, [10**6], 3, params, history=[60, 61, 62, 10**6]),)))
    with pytest.raises(IntegrityError, match="no step before it draws"):
        executor.launch(StepPlan(3, (share(0, [0], 4, params, history=[60, 61, 62], ahead=0),)))


def test_a_nucleus_wider_than_what_was_sorted_is_drawn_again_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = -1e-4 * torch.arange(4 * FEW).repeat(8, 1)
    rows[7] *= 1e5  # steep
    plan = StepPlan(1, tuple(share(i, [1, 2, 3], 0, SamplingParams(top_p=0.9)) for i in range(8)))

    def launch(sampling: Sampler) -> tuple[list[int], tuple[Sampled, ...]]:
        draws = sampling.launch(plan, Logits(rows.clone(), tuple(range(9))))
        return draws.tokens.tolist(), draws.result().sampled

    sampling = Sampler(rows.shape[1], ())
    on_the_device, found = launch(sampling)
    assert [s.redrawn for s in found] == [a != s.tokens[0] for a, s in zip(on_the_device, found, strict=True)]
    assert sum(s.redrawn for s in found) > 3
    assert not found[7].redrawn
    on_the_device, again = launch(sampling)
    assert on_the_device == [s.tokens[0] for s in again]  # flat once, flat again: sorted in full at once
    assert not any(s.redrawn for s in again)
    monkeypatch.setattr(sampler, "FEW", rows.shape[1])
    alike = launch(Sampler(rows.shape[1], ()))[1]
    assert [s.tokens for s in found] == [s.tokens for s in again] == [s.tokens for s in alike]


def test_a_launch_does_not_look_at_what_the_device_computes() -> None:
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_p": 0.9},
        {"top_k": 5, "top_p": 0.5, "min_p": 0.1},
        {"min_tokens": 5, "stop_token_ids": (3,), "logit_bias": {4: 1.0}},
        {"frequency_penalty": 0.5, "repetition_penalty": 1.5},
        {"logprobs": 2},
    ]
    plan = StepPlan(1, tuple(share(i, [1, 2, 3], 0, SamplingParams(**o)) for i, o in enumerate(options)))
    unreadable = torch.empty(len(options), 50, device="meta")  # any look at a value of it raises
    draws = Sampler(50, (0,)).launch(plan, Logits(unreadable, tuple(range(len(options) + 1))))
    assert draws.tokens.shape == (len(options),)
    ids = torch.empty(2, dtype=torch.long, device="meta")
    params = SamplingParams()
    fill_in(ids, StepPlan(2, tuple(share(i, [0], 3, params, history=[1, 2, 3], ahead=i) for i in (1, 0))), draws.tokens)
    with pytest.raises(NotImplementedError, match="meta"):
        draws.result()

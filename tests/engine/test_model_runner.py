"""Plans made by hand, run without a scheduler: logits equal those of the plain model."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import ExecutorTraits, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.sequential_runner import SequentialRunner
from radixbackend.errors import IntegrityError, UnsupportedModelError
from radixbackend.types import SamplingParams
from tests import zoo

REPRESENTATIVE = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "qwen2_moe", "gemma3", "gemma3n", "diffllama", "gpt2"]
ONE_BY_ONE = ["falcon", "bloom", "mpt", "gptj", "gpt_neo", "codegen", "lfm2", "qwen3_next", "mamba2"]


def paged(name: str) -> ModelRunner:
    runner = ModelRunner(LoadedModel.of(zoo.build(name)), TorchAttention())
    runner.allocate(200)
    return runner


def prompt(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(50, zoo.VOCAB - 10, length).astype(np.int32)


class Sequence:
    """Tokens, their slots, and how far they are computed."""

    def __init__(self, number: int, tokens: np.ndarray, slots: np.ndarray, done: int = 0) -> None:
        self.number, self.tokens, self.slots, self.done = number, tokens, slots[: len(tokens)], done

    def take(self, count: int, *, drafts: int | None = None) -> SequencePlan:
        """The next tokens: every row wanted, or the last ``1 + drafts``."""
        start, end = self.done, self.done + count
        self.done = end
        spec = None
        if drafts is not None:
            words = tuple(int(t) for t in self.tokens[end - drafts : end])
            history = self.tokens[: end - drafts]
            spec = SampleSpec(SamplingParams(), 0, history, len(history), words, None, 8)
        tokens, every = self.tokens[start:end], 0 if drafts is None else None
        return SequencePlan(SequenceId(self.number), tokens, start, self.slots[:end], spec, every)


class Reference:
    """Logits of the plain model, one whole forward per sequence."""

    def __init__(self, name: str) -> None:
        self.model = zoo.build(name)
        if self.model._can_set_attn_implementation():
            self.model.set_attn_implementation("eager")

    def __call__(self, tokens: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return self.model(input_ids=torch.tensor(tokens.tolist())[None], use_cache=False).logits[0]


def check(runner: Any, reference: Reference, *steps: list[tuple[Sequence, int]]) -> None:
    for number, step in enumerate(steps):
        logits = runner.run(StepPlan(number, tuple(sequence.take(count) for sequence, count in step)))
        for i, (sequence, count) in enumerate(step):
            plain = reference(sequence.tokens)[sequence.done - count : sequence.done]
            torch.testing.assert_close(logits.of(i), plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_chunks_mixed_with_decodes_and_a_reused_prefix(name: str) -> None:
    runner, reference = paged(name), Reference(name)
    free = np.random.default_rng(7).permutation(200).astype(np.int32)
    a, b = Sequence(1, prompt(1, 40), free[:40]), Sequence(2, prompt(2, 23), free[40:63])
    check(runner, reference, [(a, 9), (b, 1)], [(b, 15), (a, 1)], [(a, 20), (b, 1)], [(b, 3), (a, 10)])
    # b is finished; c starts with its first 17 tokens, in its slots, while d starts with a's.
    c = Sequence(3, np.concatenate((b.tokens[:17], prompt(3, 12))), np.concatenate((b.slots[:17], free[70:82])), 17)
    d = Sequence(4, np.concatenate((a.tokens[:30], prompt(4, 6))), np.concatenate((a.slots[:30], free[90:96])), 30)
    check(runner, reference, [(c, 5), (d, 1)], [(d, 4), (c, 1)], [(c, 6), (d, 1)])
    runner.close()


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_drafts_are_verified_at_once_and_rewritten_when_wrong(name: str) -> None:
    runner, reference = paged(name), Reference(name)
    right = prompt(1, 20)
    wrong = right.copy()
    wrong[13:] = prompt(9, 7)
    slots = np.random.default_rng(3).permutation(200).astype(np.int32)
    guess = Sequence(1, wrong, slots)
    runner.run(StepPlan(0, (guess.take(12),)))
    logits = runner.run(StepPlan(1, (guess.take(5, drafts=4),)))
    assert logits.offsets == (0, 5)
    torch.testing.assert_close(logits.rows, reference(wrong)[12:17], atol=1e-3, rtol=0)
    # Only the token at 12 was right: the next step overwrites what the drafts left in the slots.
    check(runner, reference, [(Sequence(1, right, slots, done=13), 7)])
    runner.close()


def test_rows_follow_from_the_plan() -> None:
    runner, reference = paged("llama"), Reference("llama")
    slots = np.arange(200, dtype=np.int32)
    a, b, c = (Sequence(i, prompt(i, 12), slots[i * 20 :]) for i in range(3))
    silent = SequencePlan(SequenceId(0), a.tokens[:6], 0, a.slots[:6], None, None)
    logits = runner.run(StepPlan(0, (silent,)))
    assert logits.rows.shape == (0, zoo.VOCAB)
    assert logits.offsets == (0, 0)
    a.done = 6
    everything = c.take(7)
    rest = SequencePlan(SequenceId(0), a.tokens[6:9], 6, a.slots[:9], None, None)
    logits = runner.run(StepPlan(1, (rest, b.take(8, drafts=2), everything)))
    assert logits.offsets == (0, 0, 3, 10)
    assert logits.rows.dtype == torch.float32
    torch.testing.assert_close(logits.of(1), reference(b.tokens)[5:8], atol=1e-3, rtol=0)
    torch.testing.assert_close(logits.of(2), reference(c.tokens)[:7], atol=1e-3, rtol=0)


def test_a_head_that_computes_all_rows_is_sliced() -> None:
    runner, reference = paged("llama"), Reference("llama")
    runner._takes_index = False
    sequence = Sequence(1, prompt(1, 12), np.arange(12, dtype=np.int32))
    logits = runner.run(StepPlan(0, (sequence.take(12, drafts=1),)))
    torch.testing.assert_close(logits.rows, reference(sequence.tokens)[10:12], atol=1e-3, rtol=0)


def test_layers_say_what_the_modeling_code_says() -> None:
    layers = paged("gemma2").layers
    assert [x.window for x in layers] == [zoo.WINDOW, None, zoo.WINDOW]
    assert {x.softcap for x in layers} == {5.0}
    assert [x.sinks for x in paged("gpt_oss").layers] == [True] * 3
    assert [x.chunk for x in paged("llama4").layers] == [zoo.WINDOW, None, zoo.WINDOW]
    assert len(paged("diffllama").layers) == 6
    latent = paged("deepseek_v3").layers[0]
    assert (latent.key_dim, latent.value_dim) == (24, 12)
    # qwen2_moe names its window nowhere but in its mask; olmoe names one that it never masks by.
    assert [x.window for x in paged("qwen2_moe").layers] == [zoo.WINDOW, None, None]
    assert [x.window for x in paged("olmoe").layers] == [None] * 3


def test_long_windows_are_read_from_the_mask() -> None:
    model = zoo.build("mistral")
    model.config.sliding_window = 4096
    assert {x.window for x in ModelRunner(LoadedModel.of(model), TorchAttention()).layers} == {4096}
    model = zoo.build("llama4")
    model.config.attention_chunk_size = 8192
    assert {x.chunk for x in ModelRunner(LoadedModel.of(model), TorchAttention()).layers} == {8192, None}


def test_layers_that_share_keys_are_stored_once() -> None:
    runner = paged("gemma3n")
    assert [x.writes for x in runner.layers] == [True, True, False, False]
    assert [x.storage for x in runner.layers] == [0, 1, 0, 1]
    assert runner.bytes_per_slot == 2 * (2 * 16 * 2) * 4


def test_longrope_serves_long_contexts_with_its_factors_for_those() -> None:
    """In one batch a sequence that passes the switch and one that does not; without pinning they disturb each other."""
    long = prompt(1, 150)
    plain = Reference("phi3_longrope")(long)
    loaded = LoadedModel.of(zoo.build("phi3_longrope"), max_context=300)
    assert loaded.max_context == 512
    runner = ModelRunner(loaded, TorchAttention())
    runner.allocate(200)
    a, b = Sequence(1, long, np.arange(200)), Sequence(2, prompt(2, 20), np.arange(150, 200))
    first = runner.run(StepPlan(0, (a.take(100), b.take(10))))
    second = runner.run(StepPlan(1, (b.take(10), a.take(50))))
    found = torch.cat((first.of(0), second.of(1)))
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)
    rows = torch.cat((first.of(1), second.of(0)))
    runner.close()
    alone = SequentialRunner(loaded)
    b.done = 0
    torch.testing.assert_close(alone.run(StepPlan(0, (b.take(20),))).rows, rows, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("error")
def test_plans_may_be_read_only() -> None:
    runner, reference = paged("llama"), Reference("llama")
    tokens, slots = prompt(1, 12), np.random.default_rng(0).permutation(20).astype(np.int32)
    for array in (tokens, slots):
        array.flags.writeable = False
    check(runner, reference, [(Sequence(1, tokens, slots), 6)], [(Sequence(1, tokens, slots, 6), 6)])


def test_two_runners_of_two_models_do_not_meet() -> None:
    first, second = paged("llama"), paged("gemma2")
    assert first.name != second.name
    a, b = Sequence(1, prompt(1, 12), np.arange(12)), Sequence(1, prompt(2, 12), np.arange(12))
    check(first, Reference("llama"), [(a, 6)])
    check(second, Reference("gemma2"), [(b, 7)])
    check(first, Reference("llama"), [(a, 6)])


def test_close_takes_everything_back() -> None:
    runner = paged("llama")
    original, name = "sdpa", runner.name
    assert name in AttentionInterface()
    store = weakref.ref(runner._store.keys[0])
    runner.close()
    runner.close()
    gc.collect()
    assert store() is None
    assert name not in AttentionInterface()
    assert runner.model.config._attn_implementation == original
    with pytest.raises(IntegrityError, match="no slots"):
        runner.run(StepPlan(0, (Sequence(1, prompt(1, 4), np.arange(4)).take(4),)))


def test_a_failed_probe_leaves_the_model_as_it_was() -> None:
    model = zoo.build("doge")
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match="mask"):
        ModelRunner(LoadedModel.of(model), TorchAttention())
    assert model.config._attn_implementation == before


def test_a_failed_step_leaves_the_runner_usable() -> None:
    runner, reference = paged("llama"), Reference("llama")
    sequence = Sequence(1, prompt(1, 12), np.arange(12, dtype=np.int32))
    check(runner, reference, [(sequence, 6)])
    broken = SequencePlan(SequenceId(2), np.array([10**6], np.int32), 0, np.array([50], np.int32), None, 0)
    with pytest.raises(IndexError):
        runner.run(StepPlan(1, (broken,)))
    check(runner, reference, [(sequence, 6)])


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_one_by_one(name: str) -> None:
    runner, reference = SequentialRunner(LoadedModel.of(zoo.build(name))), Reference(name)
    a, b = Sequence(1, prompt(1, 30), np.arange(30)), Sequence(2, prompt(2, 17), np.arange(17))
    check(runner, reference, [(a, 11), (b, 1)], [(b, 9), (a, 1)], [(a, 10), (b, 1)], [(b, 3), (a, 8)])


@pytest.mark.parametrize("name", ["falcon", "gpt_neo", "mamba2", "lfm2"])
def test_one_by_one_rewinds_to_where_a_step_starts(name: str) -> None:
    runner, reference = SequentialRunner(LoadedModel.of(zoo.build(name))), Reference(name)
    right = prompt(1, 20)
    wrong = np.concatenate((right[:13], prompt(9, 7)))
    check(runner, reference, [(Sequence(1, wrong, np.arange(20)), 17)])
    check(runner, reference, [(Sequence(1, right, np.arange(20), done=13), 7)])


def test_one_by_one_begins_anew_and_forgets() -> None:
    runner, reference = SequentialRunner(LoadedModel.of(zoo.build("falcon"))), Reference("falcon")
    check(runner, reference, [(Sequence(1, prompt(1, 12), np.arange(12)), 8)])
    check(runner, reference, [(Sequence(1, prompt(2, 12), np.arange(12)), 8)])
    runner.forget(SequenceId(1))
    with pytest.raises(IntegrityError, match="goes on at 8 after 0 tokens"):
        check(runner, reference, [(Sequence(1, prompt(2, 12), np.arange(12), done=8), 1)])


def test_one_by_one_repeats_a_step_that_failed_midway() -> None:
    runner, reference = SequentialRunner(LoadedModel.of(zoo.build("falcon"))), Reference("falcon")
    a, b = Sequence(1, prompt(1, 12), np.arange(12)), Sequence(2, prompt(2, 12), np.arange(12))
    check(runner, reference, [(a, 6), (b, 6)])
    poisoned = SequencePlan(SequenceId(2), np.array([10**6], np.int32), 6, np.arange(7, dtype=np.int32), None, 0)
    with pytest.raises(IndexError):
        runner.run(StepPlan(1, (a.take(2), poisoned)))
    a.done = 6
    check(runner, reference, [(a, 2)], [(b, 2), (a, 1)])


def test_one_by_one_names_what_it_can_do() -> None:
    def traits(name: str, **options: bool) -> ExecutorTraits:
        return SequentialRunner(LoadedModel.of(zoo.build(name)), **options).traits

    none = ExecutorTraits(shares_prefixes=False, chunks=False, drafts=False, ahead=False)
    assert traits("falcon") == replace(none, chunks=True, drafts=True)
    assert traits("lfm2") == replace(none, chunks=True)
    assert traits("mamba", chunks=False) == none
    # What a token costs: keys and values of three layers and four heads of 16, in float32.
    assert SequentialRunner(LoadedModel.of(zoo.build("gptj"))).bytes_per_slot == 3 * 2 * 4 * 16 * 4

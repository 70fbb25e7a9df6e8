"""Every architecture through the whole engine: greedy tokens in float32 equal ``transformers.generate``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from radixbackend import Engine, SamplingParams, hookimpl
from radixbackend.engine.model_loader import LoadedModel
from tests import zoo

NEW_TOKENS = 12
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)


class InMemory:
    """A plugin that serves a copy of a model: an engine changes what it is given, and the original is compared with."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @hookimpl
    def radix_load_model(self) -> LoadedModel:
        return LoadedModel.of(copy.deepcopy(self.model))


def prompts(seed: int = 0) -> list[list[int]]:
    """Mixed lengths, two of them with 30 tokens in common."""
    rng = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        return torch.randint(3, zoo.VOCAB, (count,), generator=rng).tolist()

    shared = some(30)
    return [some(3), some(17), shared + some(4), shared + some(9), some(41)]


def reference(model: Any, prompt: list[int], count: int) -> list[int]:
    model.generation_config.eos_token_id = None  # as with ignore_eos: the end token is a token like any other
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def references(model: Any, asked: list[list[int]], count: int) -> list[list[int]]:
    """One by one, by the plainest attention there is."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return [reference(model, prompt, count) for prompt in asked]
    finally:
        model.set_attn_implementation(implementation)


@pytest.mark.parametrize("name", list(zoo.PACKED))
def test_packed(name: str) -> None:
    model = zoo.build(name)
    asked = prompts()
    expected = references(model, asked, NEW_TOKENS)
    with Engine(name, plugins=[InMemory(model)], max_step_tokens=16, max_running=4, self_check=False) as engine:
        cold = engine.generate(asked, GREEDY)
        assert [list(r.token_ids) for r in cold] == expected
        assert cold[2].usage.cached_tokens + cold[3].usage.cached_tokens >= 30, "the shared prefix was computed twice"
        warm = engine.generate(asked, GREEDY)
        assert [list(r.token_ids) for r in warm] == expected
        assert [r.usage.cached_tokens for r in warm] == [len(p) - 1 for p in asked]
    short = [p[:10] for p in asked]
    with Engine(
        name, plugins=[InMemory(model)], max_step_tokens=8, max_running=4, kv_cache_tokens=60, self_check=False
    ) as engine:
        squeezed = engine.generate(short, GREEDY.replace(max_tokens=26))
        assert engine.stats().retractions > 0
        assert engine.stats().slots_held == 0
    assert [list(r.token_ids) for r in squeezed] == references(model, short, 26)


@pytest.mark.parametrize("name", list(zoo.SEQUENTIAL))
def test_sequential(name: str) -> None:
    """The slower path: nothing is shared, everything else holds."""
    model = zoo.build(name)
    asked = prompts()
    expected = references(model, asked, NEW_TOKENS)
    with Engine(name, plugins=[InMemory(model)], max_step_tokens=16, max_running=4) as engine:
        answers = engine.generate(asked, GREEDY)
        assert [list(r.token_ids) for r in answers] == expected
        assert engine.stats().cached_tokens == 0
    short = [p[:10] for p in asked]
    with Engine(
        name, plugins=[InMemory(model)], max_step_tokens=8, max_running=4, kv_cache_tokens=60, self_check=True
    ) as engine:
        squeezed = engine.generate(short, GREEDY.replace(max_tokens=26))
        assert engine.stats().retractions > 0
    assert [list(r.token_ids) for r in squeezed] == references(model, short, 26)

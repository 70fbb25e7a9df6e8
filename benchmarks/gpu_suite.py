"""The CUDA path in one run: is it right, and how fast is it.

    python -m benchmarks.gpu_suite [--out FOLDER] [--only SECTION ...] [--budget 540] [--quick] [--device cuda|cpu]

Random bf16 weights of the shape of Llama-3-8B, fixed token ids, greedy. Every section stands alone: what fails or
takes too long is written down and the next one starts, and the results are saved after each. Made for one H200 in
under 10 minutes; kernels that FlashInfer compiles on first use come on top, once, and are in a section of their own.
``--quick --device cpu`` runs the same code on tiny shapes anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import random
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.prefix_cache import agent, few_shot
from radixbackend import Constraint, Engine, SamplingParams, hookimpl
from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, AttentionLayer
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.cuda_graphs import CudaCapture
from radixbackend.engine.elementwise import RMSNorm, TorchOps, TritonOps
from radixbackend.engine.kv_store import FP8, KVShape, KVStore
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.self_check import compare
from radixbackend.plugins import Plugins
from radixbackend.types import GenerationResult, StepRecord

SECTION_SECONDS = 150
"""After which a section is given up."""


@dataclass(frozen=True)
class Shape:
    """Of a Llama, and how much to ask of it."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    context: int = 1024
    steps: int = 96
    batches: tuple[int, ...] = (1, 64, 256)
    prefill: tuple[int, int] = (8, 8000)  # prompts, tokens of each
    shared: float = 4.0  # thousands of tokens that the prompts of a workload share

    def config(self, **others: Any) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=16384,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            bos_token_id=None,
            eos_token_id=None,
            **others,
        )


LLAMA_3_8B = Shape(128_256, 4096, 14336, 32, 32, 8)
SMALL = Shape(32_000, 512, 1536, 8, 8, 4)
TINY = Shape(
    32_000, 64, 128, 2, 4, 2, context=24, steps=6, batches=(1, 3), prefill=(2, 50), shared=0.05
)  # the workloads draw tokens below 32,000


GOALS = {
    "decode, batch 1": 230,
    "decode, batch 64": 9_000,
    "decode, batch 256": 15_000,
    "prefill": 40_000,
    "few_shot, off / on": 5.0,
    "agent, off / on": 5.0,
    "constrained / unconstrained": 0.97,
    "same bits cold and warm, deterministic": 1.0,
    "same bits cold and alone, deterministic": 1.0,
}
"""What should be reached at the shape of Llama-3-8B on one H200, at least."""


@dataclass
class Suite:
    """What sections share: the device, models made once, and the figures so far."""

    device: torch.device
    quick: bool
    out: Path
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def shape(self) -> Shape:
        return TINY if self.quick else LLAMA_3_8B

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """Attention that can be made here."""
        if not self.cuda:
            return ("torch",)
        found = []
        for name in ("torch", "triton", "triton-deterministic", "flashinfer"):
            try:
                Plugins(discover=False).make_attention(name, "cuda")
            except Exception as fault:
                self.note(f"no {name}", str(fault))
            else:
                found.append(name)
        return tuple(found)

    @cached_property
    def large(self) -> LoadedModel:
        return make_model(self.shape, torch.bfloat16, self.device)

    def note(self, name: str, value: Any) -> None:
        self.figures[name] = value
        print(f"  {name}: {value}", flush=True)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def make_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Random weights, made on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(before)
    return LoadedModel.of(model, words_tokenizer(shape.vocab))


def words_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Every byte, and random words: as many tokens as the model has logits, so that masks are as wide as usual."""
    drawn = random.Random(0)
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    while len(vocabulary) < size:
        word = "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(2, 9)))
        vocabulary.setdefault(drawn.choice(("", "Ġ")) + word, len(vocabulary))
    bpe = Tokenizer(models.BPE(vocabulary, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


class Loaded:
    """A plugin: this model under any name; and when each step ended."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.steps: list[tuple[float, StepRecord]] = []

    @hookimpl
    def radix_load_model(self) -> LoadedModel:
        return self.model

    @hookimpl
    def radix_step_finished(self, record: StepRecord) -> None:
        self.steps.append((time.perf_counter(), record))


@contextmanager
def engine(model: LoadedModel, **options: Any) -> Iterator[tuple[Engine, Loaded]]:
    plugin = Loaded(model)
    made = Engine("suite", plugins=[plugin], **{"self_check": False, **options})
    try:
        yield made, plugin
    finally:
        made.close()
        del made
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def prompts(count: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    drawn = np.random.default_rng(seed)
    return [drawn.integers(300, vocab, length).tolist() for _ in range(count)]


def greedy(count: int, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, **options)


def decode_rate(steps: Sequence[tuple[float, StepRecord]], batch: int) -> tuple[float, dict[str, float]]:
    """Tokens per second of the steps in which the whole batch decodes, and milliseconds of the parts of one."""
    spans: list[float] = []
    parts: dict[str, list[float]] = {"schedule": [], "execute": [], "commit": []}
    for (before, _), (now, record) in itertools.pairwise(steps):
        if record.prefill_tokens == 0 and record.sequences == batch:
            spans.append(now - before)
            for part, values in parts.items():
                values.append(getattr(record, f"{part}_seconds"))
    spans = spans[len(spans) // 8 :]  # the first ones still make room
    milliseconds = {part: 1000 * statistics.median(values) for part, values in parts.items()}
    return batch * len(spans) / sum(spans), milliseconds


def written_rate(steps: Sequence[tuple[float, StepRecord]]) -> float:
    """Tokens per second once every prompt is computed, however many a step brings and until the last has ended."""
    last_prompt = max(i for i, (_, record) in enumerate(steps) if record.prefill_tokens)
    (since, first), (until, last) = steps[last_prompt], steps[-1]
    return (last.stats.generated_tokens - first.stats.generated_tokens) / (until - since)


# -- is it right -------------------------------------------------------------------------------------------------------


def environment(suite: Suite) -> None:
    """What runs here."""
    suite.note("versions", {"torch": torch.__version__, "transformers": transformers.__version__})
    suite.note("device", torch.cuda.get_device_name() if suite.cuda else "cpu")
    suite.note("attention", suite.kernels)


LAYER = AttentionLayer(0, 0, 32, 8, 128, 128, torch.bfloat16, 128**-0.5)
LAYERS = {
    "plain": LAYER,
    "window": replace(LAYER, window=300),
    "chunk": replace(LAYER, chunk=256),
    "softcap": replace(LAYER, softcap=20.0),
    "sinks": replace(LAYER, sinks=True, key_dim=64, value_dim=64),
    "window_sinks": replace(LAYER, sinks=True, window=128, key_dim=64, value_dim=64),
    "wide": replace(LAYER, heads=8, kv_heads=4, key_dim=256, value_dim=256),
    "uneven": replace(LAYER, heads=16, kv_heads=16, key_dim=192, value_dim=128),
    "odd": replace(LAYER, heads=12, kv_heads=4, key_dim=80, value_dim=80),
    "float32": replace(LAYER, dtype=torch.float32),
}


class Bench:
    """Contexts in scattered slots, and steps over them."""

    def __init__(self, layer: AttentionLayer, contexts: Sequence[int], device: torch.device) -> None:
        drawn = torch.Generator().manual_seed(0)

        def random_rows(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=drawn).to(device, layer.dtype)

        total = sum(contexts)
        ends = np.cumsum([0, *contexts])
        order = np.random.default_rng(0).permutation(total).astype(np.int32)
        self.layer = layer
        self.slots = [order[a:b] for a, b in itertools.pairwise(ends)]
        shape = KVShape(layer.kv_heads, layer.key_dim, layer.value_dim, layer.dtype)
        self.store = KVStore([shape], total, device)
        self.store.keys[0].copy_(random_rows(total + 1, layer.kv_heads, layer.key_dim))
        self.store.values[0].copy_(random_rows(total + 1, layer.kv_heads, layer.value_dim))
        self.queries = [random_rows(n, layer.heads, layer.key_dim) for n in contexts]
        self.sinks = random_rows(layer.heads) if layer.sinks else None

    def run(
        self, kernel: AttentionBackend, runs: Sequence[tuple[int, int, int]], like: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """Outputs of ``(sequence, start, end)`` runs, in one step; computed in another type with ``like``."""
        layer, store = self.layer, self.store
        if like is not None:
            layer = replace(layer, dtype=like)
            store = KVStore([], 0, store.keys[0].device)
            store.keys, store.values = [self.store.keys[0].to(like)], [self.store.values[0].to(like)]
        kernel.bind((layer,), store)
        written = np.concatenate([self.slots[i][a:b] for i, a, b in runs])
        batch = AttentionBatch(
            np.array([a for _, a, _ in runs], np.int32),
            np.array([b for _, _, b in runs], np.int32),
            np.cumsum([0, *(b - a for _, a, b in runs)], dtype=np.int32),
            tuple(self.slots[i][:b] for i, _, b in runs),
            written,
        )
        at = torch.from_numpy(written).long().to(store.keys[0].device)
        query = torch.cat([self.queries[i][a:b] for i, a, b in runs]).to(layer.dtype)
        kernel.begin(batch)
        out = kernel.attend(layer, query, store.keys[0][at], store.values[0][at], self.sinks)
        kernel.end()
        return list(out.split([b - a for _, a, b in runs]))


def kernels(suite: Suite) -> None:
    """Every kernel against float32 in plain torch, in a mixed step and a decode; 1.0 is torch's own error in bf16."""
    scale = 20 if suite.quick else 1
    contexts = [n // scale for n in (2000, 700, 300, 40)]
    mixed = [(0, contexts[0] - 500 // scale, contexts[0]), (1, contexts[1] - 1, contexts[1]), (2, 0, contexts[2])]
    steps = {"mixed": mixed, "decode": [(i, n - 1, n) for i, n in enumerate(contexts)]}
    benches = {name: Bench(layer, contexts, suite.device) for name, layer in LAYERS.items()}
    exact = {
        (name, step): bench.run(TorchAttention(), runs, torch.float32)
        for name, bench in benches.items()
        for step, runs in steps.items()
    }

    def error(kernel: AttentionBackend, name: str, step: str) -> float:
        found = benches[name].run(kernel, steps[step])
        pairs = zip(found, exact[name, step], strict=True)
        return max(float((a.float() - b).abs().max()) for a, b in pairs)

    own = {key: max(error(TorchAttention(), *key), 1e-6) for key in exact}
    for kernel_name in suite.kernels:  # FlashInfer last: it may have to compile
        kernel = Plugins(discover=False).make_attention(kernel_name, suite.device.type)
        for name, step in exact:
            if kernel_name == "triton-deterministic" and name not in BITWISE:
                continue
            if reason := kernel.refuses(LAYERS[name]):
                suite.note(f"{kernel_name} refuses {name}", reason)
                continue
            ratio = error(kernel, name, step) / own[name, step]
            suite.note(f"error of {kernel_name}, {name}, {step}", round(ratio, 2))
            if not ratio < 4:
                suite.note(f"WRONG: {kernel_name}, {name}, {step}", ratio)


BITWISE = ("plain", "window_sinks")
"""Layers for which results are compared bit by bit; each takes a while to compile."""


def bitwise(suite: Suite) -> None:
    """Share of queries of a deterministic kernel that are bit for bit the same however they are computed."""
    names = [name for name in suite.kernels if name == "triton-deterministic"] or ["torch"]
    contexts = [1500, 800, 30] if not suite.quick else [60, 40, 5]
    for name in names:
        for layer_name in BITWISE:
            bench = Bench(LAYERS[layer_name], contexts, suite.device)
            end = contexts[0]
            kernel = Plugins(discover=False).make_attention(name, suite.device.type)
            cold = bench.run(kernel, [(0, 0, end)])[0]
            same, count = 0, 0
            for start in (end - 1, end - 3, end // 2 + 7, end // 3):
                for others in ([], [(1, 0, contexts[1])], [(2, 4, 5), (1, contexts[1] - 1, contexts[1])]):
                    warm = bench.run(kernel, [*others, (0, start, end)])[-1]
                    same += int((warm == cold[start:]).all(-1).all(-1).sum())
                    count += end - start
            suite.note(f"same bits, {name}, {layer_name}", round(same / count, 4))


def exact(suite: Suite) -> None:
    """Greedy outputs in float32 equal to `generate` of transformers."""
    torch.backends.cuda.matmul.allow_tf32 = False
    shape = TINY if suite.quick else SMALL
    model = make_model(shape, torch.float32, suite.device)
    asked = prompts(4 if suite.quick else 16, 70, shape.vocab)
    count = 8 if suite.quick else 48
    plain = []
    for prompt in asked:
        row = model.model.generate(
            torch.tensor([prompt], device=suite.device), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        plain.append(row[0, len(prompt) :].tolist())
    for name in suite.kernels:
        if name == "flashinfer":
            continue  # computes in bf16 and float16
        with engine(model, attention=name, kv_cache_tokens=8192, self_check=True) as (made, _):
            found = [list(r.token_ids) for r in made.generate(asked, greedy(count))]
        suite.note(
            f"equal to generate, {name}", f"{sum(a == b for a, b in zip(found, plain, strict=True))}/{len(asked)}"
        )


def cold_warm(suite: Suite) -> None:
    """Share of greedy outputs in bf16 that are the same with and without their prompt in the cache."""
    shape = TINY if suite.quick else SMALL
    model = make_model(shape, torch.bfloat16, suite.device)
    asked = prompts(4 if suite.quick else 64, 60 if suite.quick else 300, shape.vocab)
    for name in suite.kernels:
        with engine(model, attention=name, kv_cache_tokens=65536) as (made, _):
            alone = [made.generate(prompt, greedy(32)).token_ids for prompt in asked]
            made.flush_cache()
            cold = [r.token_ids for r in made.generate(asked, greedy(32))]
            warm = [r.token_ids for r in made.generate(asked, greedy(32))]
        for label, other in (("warm", warm), ("alone", alone)):
            share = sum(a == b for a, b in zip(cold, other, strict=True)) / len(asked)
            suite.note(f"same tokens cold and {label}, {name}", round(share, 3))


def deterministic(suite: Suite) -> None:
    """Share of answers whose log-probabilities are the same bits cold, warm and alone, and what that costs."""
    shape = TINY if suite.quick else SMALL
    model = make_model(shape, torch.bfloat16, suite.device)
    asked = prompts(4 if suite.quick else 64, 60 if suite.quick else 300, shape.vocab)
    rates = {}
    for wanted in (False, True):
        if wanted and not suite.cuda:
            suite.note("deterministic", "takes a GPU")
            return
        label = "deterministic" if wanted else "default"
        options = {"deterministic": wanted, "kv_cache_tokens": 65536, "max_running": len(asked)}
        params = greedy(32, logprobs=2)
        with engine(model, **options) as (made, plugin):
            alone = bits([made.generate(prompt, params) for prompt in asked])
            made.flush_cache()
            plugin.steps.clear()
            cold = bits(made.generate(asked, params))
            rates[wanted] = decode_rate(plugin.steps, len(asked))[0]
            warm = bits(made.generate(asked, params))
        for kind, other in (("warm", warm), ("alone", alone)):
            share = sum(a == b for a, b in zip(cold, other, strict=True)) / len(asked)
            suite.note(f"same bits cold and {kind}, {label}", round(share, 3))
    suite.note("deterministic / default, decode", round(rates[True] / rates[False], 2))


def bits(results: Sequence[GenerationResult]) -> list[Any]:
    return [(result.token_ids, result.logprobs) for result in results]


# -- how fast is it ----------------------------------------------------------------------------------------------------


def compiling(suite: Suite) -> None:
    """Seconds until every kernel has computed once at the large shape: long the first time, short after."""
    for kept, label in (("auto", ""), ("fp8", ", keys in fp8")):
        for name in suite.kernels:
            started = time.perf_counter()
            with engine(suite.large, attention=name, kv_cache_dtype=kept, kv_cache_tokens=4096) as (made, _):
                made.generate(prompts(2, 40, suite.shape.vocab), greedy(3))
            suite.note(f"seconds to the first answer, {name}{label}", round(time.perf_counter() - started, 1))


def decode(suite: Suite) -> None:
    """Tokens per second of the engine at several batch sizes."""
    shape = suite.shape
    for batch in shape.batches:
        tokens = batch * (shape.context + shape.steps + 8)
        with engine(suite.large, kv_cache_tokens=tokens, max_running=batch) as (made, plugin):
            made.generate(prompts(batch, shape.context, shape.vocab), greedy(shape.steps))
            rate, parts = decode_rate(plugin.steps, batch)
        suite.note(f"decode, batch {batch}", round(rate))
        suite.note(f"decode, batch {batch}, ms by part", {k: round(v, 3) for k, v in parts.items()})


def fp8(suite: Suite) -> None:
    """Keys and values in 8 bits: what they change by each kernel, how many slots there are, how fast decodes are."""
    shape = TINY if suite.quick else SMALL
    model = make_model(shape, torch.bfloat16, suite.device)
    asked = prompts(4 if suite.quick else 32, 60 if suite.quick else 300, shape.vocab)
    for name in suite.kernels:
        answers = {}
        for kept in ("auto", "fp8"):
            options = {"attention": name, "kv_cache_dtype": kept, "kv_cache_tokens": 32768, "self_check": True}
            with engine(model, **options) as (made, _):
                answers[kept], warm = ([r.token_ids for r in made.generate(asked, greedy(32))] for _ in range(2))
        equal = [a == b for pair in zip(*answers.values(), strict=True) for a, b in zip(*pair, strict=True)]
        suite.note(f"share of tokens as without fp8, {name}", round(sum(equal) / len(equal), 3))
        same = sum(a == b for a, b in zip(answers["fp8"], warm, strict=True)) / len(asked)
        suite.note(f"same tokens cold and warm, fp8, {name}", round(same, 3))
        runner = ModelRunner(model, Plugins(discover=False).make_attention(name, suite.device.type), FP8)
        suite.note(f"by fp8, {name}", str(compare(model, runner)))
        runner.close()
    for kept in ("auto", "fp8"):
        with engine(suite.large, kv_cache_dtype=kept) as (made, _):
            suite.note(f"slots, {kept}", made.stats().slots_total)
    for batch in suite.shape.batches[1:]:
        tokens = batch * (suite.shape.context + suite.shape.steps + 8)
        with engine(suite.large, kv_cache_dtype="fp8", kv_cache_tokens=tokens, max_running=batch) as (made, plugin):
            made.generate(prompts(batch, suite.shape.context, suite.shape.vocab), greedy(suite.shape.steps))
            suite.note(f"decode in fp8, batch {batch}", round(decode_rate(plugin.steps, batch)[0]))


def prefill(suite: Suite) -> None:
    """Tokens per second of prompts that nothing is known of."""
    count, length = suite.shape.prefill
    with engine(suite.large, kv_cache_tokens=count * (length + 8)) as (made, _):
        made.generate(prompts(1, length, suite.shape.vocab, seed=1), greedy(1))
        made.flush_cache()
        started = time.perf_counter()
        made.generate(prompts(count, length, suite.shape.vocab), greedy(1))
        suite.note("prefill", round(count * length / (time.perf_counter() - started)))


def forwards(suite: Suite) -> None:
    """Milliseconds of a decode forward alone, by attention, launched step by step and replayed as a CUDA graph."""
    shape = suite.shape
    model = suite.large
    for name in suite.kernels:
        runner = ModelRunner(model, Plugins(discover=False).make_attention(name, suite.device.type))
        try:
            for batch in shape.batches:
                runner.allocate(batch * (shape.context + 1))
                plan = decode_plan(batch, shape.context)
                eager = timed(suite, lambda plan=plan, runner=runner: runner.run(plan).rows)
                suite.note(f"ms of a forward, {name}, batch {batch}", round(eager[0], 3))
                if not suite.cuda or not getattr(runner.attention, "captures", False):
                    continue
                runner.capture_decodes(batch, 2 * shape.context)
                replayed = timed(suite, lambda plan=plan, runner=runner: runner.run(plan).rows)
                suite.note(f"ms of a replay, {name}, batch {batch}", round(replayed[0], 3))
                apart = float((replayed[1] - eager[1]).abs().max())
                suite.note(f"logits of a replay differ by, {name}, batch {batch}", round(apart, 4))
        finally:
            runner.close()
            gc.collect()
            if suite.cuda:
                torch.cuda.empty_cache()


def graphs(suite: Suite) -> None:
    """What CUDA graphs do for the engine's decodes, and whether it gives the same tokens with and without them."""
    for batch in suite.shape.batches:
        rates, same = switched(suite, "cuda_graphs", batch, greedy(suite.shape.steps))
        if suite.cuda:  # elsewhere they are the same
            suite.note(f"decode without graphs, batch {batch}", round(rates[False]))
            suite.note(f"graphs on / off, batch {batch}", round(rates[True] / rates[False], 2))
        suite.note(f"same tokens with and without graphs, batch {batch}", same)


def overlap(suite: Suite) -> None:
    """What launching a step while another computes does for decodes, and whether the tokens are the same."""
    sampled = SamplingParams(max_tokens=suite.shape.steps, top_p=0.9, seed=1, ignore_eos=True)
    for batch in suite.shape.batches:
        for label, params in (("greedy", greedy(suite.shape.steps)), ("sampled", sampled)):
            rates, same = switched(suite, "overlap", batch, params)
            if suite.cuda:
                suite.note(f"decode without overlap, {label}, batch {batch}", round(rates[False]))
                suite.note(f"overlap on / off, {label}, batch {batch}", round(rates[True] / rates[False], 2))
            suite.note(f"same tokens with and without overlap, {label}, batch {batch}", same)
    batch, params = shape_batch(suite), greedy(4 * suite.shape.steps + 64)
    for label, schema in (("JSON of a text", long_text(suite)), ("JSON of many keys", many_keys(suite))):
        rates, same = switched(suite, "overlap", batch, params, Constraint.json_schema(schema))
        if suite.cuda:
            suite.note(f"without overlap, {label}, batch {batch}", round(rates[False]))
            suite.note(f"overlap on / off, {label}, batch {batch}", round(rates[True] / rates[False], 2))
        suite.note(f"same tokens with and without overlap, {label}, batch {batch}", same)


BETWEEN_CALLS = 32
"""In one graph, so that what is timed is the device's share."""


def between(suite: Suite) -> None:
    """What lies between a layer's products: kernels beside torch's operators, and microseconds of a call in a graph."""
    if not suite.cuda:
        suite.note("kernels between products", "take a GPU")
        return
    kernels = TritonOps(suite.device)
    for rows in (1, 64, 256):
        for name, call in calls_between(suite, rows).items():
            plain, found = call(TorchOps()), call(kernels)  # in this order: rotation may overwrite what it is given
            pairs = list(zip(found, plain, strict=True))
            suite.note(
                f"same bits, {name}, {rows} rows", min(round(float((a == b).float().mean()), 5) for a, b in pairs)
            )
            if not all(torch.allclose(a, b, rtol=2**-6, atol=2**-6) for a, b in pairs):
                suite.note(f"WRONG: {name}, {rows} rows", max(float((a - b).abs().max()) for a, b in pairs))
            for label, ops in (("torch", TorchOps()), ("triton", kernels)):
                capture = CudaCapture(suite.device)
                _, replay = capture(lambda ops=ops, call=call: [call(ops)[0] for _ in range(BETWEEN_CALLS)][-1])
                microseconds = 1000 * timed(suite, replay)[0] / BETWEEN_CALLS
                suite.note(f"us of a {name}, {label}, {rows} rows", round(microseconds, 2))


def calls_between(suite: Suite, rows: int) -> dict[str, Callable[[TorchOps], tuple[torch.Tensor, ...]]]:
    shape, drawn = suite.shape, torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(1, rows, *sizes, generator=drawn).to(suite.device, torch.bfloat16)

    weight = 1 + draw(shape.hidden)[0, 0] / 10
    norm = RMSNorm(SimpleNamespace(weight=weight, variance_epsilon=1e-5))
    x, more, pairs = draw(shape.hidden), draw(shape.hidden), draw(2 * shape.mlp)
    heads, dim = shape.heads + shape.kv_heads, shape.hidden // shape.heads
    turned, angles = draw(heads + shape.kv_heads, dim)[..., :heads, :], 9 * draw(dim)
    cos, sin = angles.cos(), angles.sin()
    return {
        "norm": lambda ops: (ops.norm(x, norm),),
        "sum and norm": lambda ops: ops.add_norm(x, more, norm),
        "rotation": lambda ops: (ops.rotate(turned, cos, sin),),
        "gate": lambda ops: (ops.silu_gate(pairs),),
    }


def fused(suite: Suite) -> None:
    """Tokens per second of decodes with and without fused layers."""
    rates = {on: fused_rates(suite, on) for on in (False, True)}
    for batch in suite.shape.batches:
        suite.note(f"decode without fused layers, batch {batch}", round(rates[False][batch]))
        suite.note(f"fused layers on / off, batch {batch}", round(rates[True][batch] / rates[False][batch], 2))


def fused_rates(suite: Suite, on: bool) -> dict[int, float]:
    """By batch, of a model of its own: what is once fused stays so."""
    shape, rates = suite.shape, {}
    model = make_model(shape, torch.bfloat16, suite.device)
    for batch in shape.batches:
        tokens = batch * (shape.context + shape.steps + 8)
        with engine(model, fused_layers=on, kv_cache_tokens=tokens, max_running=batch) as (made, plugin):
            made.generate(prompts(batch, shape.context, shape.vocab), greedy(shape.steps))
            rates[batch] = decode_rate(plugin.steps, batch)[0]
    if on:
        count = sum(hasattr(layer.self_attn, "qkv_proj") for layer in model.model.model.layers)
        suite.note("layers that are fused", f"{count}/{shape.layers}")
    return rates


def long_text(suite: Suite) -> dict[str, Any]:
    """Of JSON that is a choice at nearly every token."""
    return {
        "type": "object",
        "properties": {"text": {"type": "string", "minLength": 4 * suite.shape.steps}},
        "required": ["text"],
        "additionalProperties": False,
    }


def many_keys(suite: Suite) -> dict[str, Any]:
    """Of JSON with much that is forced, in digits, which this vocabulary can spell in one way alone."""
    keys = [f"{i:08}" for i in range(suite.shape.steps // 6)]
    return {
        "type": "object",
        "properties": {key: {"type": "string", "minLength": 4, "maxLength": 40} for key in keys},
        "required": keys,
        "additionalProperties": False,
    }


def switched(
    suite: Suite, option: str, batch: int, params: SamplingParams, constraint: Constraint | None = None
) -> tuple[dict[bool, float], float]:
    """Tokens per second with an option of the engine off and on, and the share of answers that are the same."""
    shape = suite.shape
    tokens = batch * (shape.context + (params.max_tokens or shape.steps) + 8)
    asked = prompts(batch, shape.context, shape.vocab)
    rates, answers = {}, {}
    for on in (False, True):
        options: dict[str, Any] = {"kv_cache_tokens": tokens, "max_running": batch, option: on}
        with engine(suite.large, **options) as (made, plugin):
            answers[on] = [result.token_ids for result in made.generate(asked, params, constraint=constraint)]
            rates[on] = decode_rate(plugin.steps, batch)[0] if constraint is None else written_rate(plugin.steps)
            if on:
                ahead = sum(record.ahead for _, record in plugin.steps)
                kind = "" if constraint is None else " of JSON"
                suite.note(f"steps{kind} launched ahead, {option} on, batch {batch}", f"{ahead}/{len(plugin.steps)}")
    same = sum(a == b for a, b in zip(answers[True], answers[False], strict=True))
    return rates, round(same / batch, 3)


def decode_plan(batch: int, context: int) -> StepPlan:
    sequences = []
    for i in range(batch):
        spec = SampleSpec(SamplingParams(), 0, np.zeros(context, np.int32), context, (), None, 8)
        slots = np.arange(i * context, (i + 1) * context, dtype=np.int32)
        token = np.array([300 + i], np.int32)
        sequences.append(SequencePlan(SequenceId(i), token, context - 1, slots, spec))
    return StepPlan(0, tuple(sequences))


def timed(suite: Suite, run: Callable[[], Any]) -> tuple[float, Any]:
    """Median milliseconds, and what it returned."""
    spans = []
    for i in range(3 if suite.quick else 25):
        suite.sync()
        started = time.perf_counter()
        result = run()
        suite.sync()
        if i > 1:
            spans.append(1000 * (time.perf_counter() - started))
    return statistics.median(spans), result


def workloads(suite: Suite) -> None:
    """How many times longer few-shot and agent workloads take without the cache."""
    for workload in (few_shot, agent):
        seconds = {}
        for cache in (True, False):
            with engine(suite.large, prefix_cache=cache, kv_cache_tokens=None if suite.cuda else 4096) as (made, _):
                made.generate([5] * 32, greedy(4))
                made.flush_cache()
                started = time.perf_counter()
                asyncio.run(workload(made, suite.shape.shared))
                seconds[cache] = time.perf_counter() - started
        suite.note(f"{workload.__name__}, off / on", round(seconds[False] / seconds[True], 2))
        suite.note(f"{workload.__name__}, seconds on", round(seconds[True], 2))


def constrained(suite: Suite) -> None:
    """Decode of JSON against plain decode, at the same batch."""
    shape, batch = suite.shape, shape_batch(suite)
    schema = long_text(suite)
    count = 4 * shape.steps + 64
    options = {"kv_cache_tokens": batch * (count + 80), "max_running": batch, "jump_forward": False}
    rates = {}
    with engine(suite.large, **options) as (made, plugin):
        for label, constraint in (("plain", None), ("warm-up", schema), ("constrained", schema)):
            plugin.steps.clear()
            made.flush_cache()
            asked = prompts(batch, 64, shape.vocab)
            limit = greedy(shape.steps if constraint is None else count)
            made.generate(asked, limit, constraint=None if constraint is None else Constraint.json_schema(constraint))
            rates[label], parts = decode_rate(plugin.steps, batch)
            if label != "warm-up":
                suite.note(f"{label} at batch {batch}", round(rates[label]))
                suite.note(f"{label} at batch {batch}, ms by part", {k: round(v, 3) for k, v in parts.items()})
    suite.note("constrained / unconstrained", round(rates["constrained"] / rates["plain"], 3))


def shape_batch(suite: Suite) -> int:
    return suite.shape.batches[1]


def transformers_batching(suite: Suite) -> None:
    """transformers' own continuous batching, whole requests per second, beside ours."""
    shape, batch = suite.shape, shape_batch(suite)
    asked = prompts(batch, shape.context, shape.vocab)
    with engine(suite.large, kv_cache_tokens=batch * (shape.context + shape.steps + 8)) as (made, _):
        made.generate(asked[:2], greedy(2))
        made.flush_cache()
        started = time.perf_counter()
        made.generate(asked, greedy(shape.steps))
        ours = time.perf_counter() - started
    suite.note(f"radixbackend, {batch} requests, output tok/s", round(batch * shape.steps / ours))
    if not suite.cuda:
        suite.note("transformers' continuous batching", "takes a GPU")
        return
    model = suite.large.model
    settings = transformers.GenerationConfig(max_new_tokens=shape.steps, do_sample=False, eos_token_id=-1)
    for label in ("warm-up", "measured"):
        started = time.perf_counter()
        outputs = model.generate_batch(
            asked[:4] if label == "warm-up" else asked, generation_config=settings, progress_bar=False
        )
        theirs = time.perf_counter() - started
    made_tokens = sum(len(output.generated_tokens) for output in outputs.values())
    suite.note(f"transformers, {batch} requests, output tok/s", round(made_tokens / theirs))


def memory(suite: Suite) -> None:
    """What two engines one after the other leave on the device, in MiB."""
    model = suite.large
    free = [torch.cuda.memory_allocated() if suite.cuda else 0]
    for _ in range(2):
        with engine(model, kv_cache_tokens=20_000) as (made, _plugin):
            made.generate(prompts(4, 50, suite.shape.vocab), greedy(4))
        free.append(torch.cuda.memory_allocated() if suite.cuda else 0)
    suite.note("MiB left behind by each engine", [round((b - free[0]) / 2**20, 1) for b in free[1:]])


def profile(suite: Suite) -> None:
    """Where the time of a decode goes, by kernel, into a file of its own."""
    shape, batch = suite.shape, shape_batch(suite)
    kernel = Plugins(discover=False).make_attention("auto", suite.device.type)
    runner = ModelRunner(suite.large, kernel)
    try:
        runner.allocate(batch * (shape.context + 1))
        plan = decode_plan(batch, shape.context)
        runner.run(plan)
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                runner.run(plan)
            suite.sync()
        order = "self_cuda_time_total" if suite.cuda else "self_cpu_time_total"
        text = profiler.key_averages().table(sort_by=order, row_limit=40)
        (suite.out / "profile-decode.txt").write_text(text)
        suite.note("profile", f"profile-decode.txt, batch {batch}, {kernel.name}")
    finally:
        runner.close()


SECTIONS: tuple[Callable[[Suite], None], ...] = (
    environment,
    compiling,
    decode,
    fp8,
    prefill,
    forwards,
    kernels,
    bitwise,
    exact,
    cold_warm,
    deterministic,
    graphs,
    overlap,
    between,
    fused,
    workloads,
    constrained,
    transformers_batching,
    memory,
    profile,
)


# -- the run -----------------------------------------------------------------------------------------------------------


def run(suite: Suite, sections: Sequence[Callable[[Suite], None]], budget: float) -> None:
    started = time.perf_counter()
    faults: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for section in sections:
        name, left = section.__name__, budget - (time.perf_counter() - started)
        if left < 5:
            faults[name] = "no time left"
        else:
            print(f"{name}: {(section.__doc__ or '').strip()}", flush=True)
            begun = time.perf_counter()
            try:
                with limited(min(left, SECTION_SECONDS)):
                    section(suite)
            except Exception as fault:
                faults[name] = f"{type(fault).__name__}: {fault}"
                print(f"  FAILED\n{traceback.format_exc()}", flush=True)
            seconds[name] = round(time.perf_counter() - begun, 1)
        result = {"figures": suite.figures, "faults": faults, "seconds": seconds, "goals": GOALS}
        (suite.out / "gpu_suite.json").write_text(json.dumps(result, indent=2, default=str))
    show(suite, faults, seconds)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Give up after so many seconds; what waits inside a library gives up when it returns."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def show(suite: Suite, faults: dict[str, str], seconds: dict[str, float]) -> None:
    table = Table(title=f"{suite.figures.get('device', '')}, {sum(seconds.values()):.0f} s")
    for column in ("figure", "value", "goal"):
        table.add_column(column)
    for name, value in suite.figures.items():
        goal = None if suite.quick else GOALS.get(name)
        reached = "" if goal is None else f"≥ {goal:g} {'reached' if value >= goal else 'MISSED'}"
        table.add_row(name, str(value), reached)
    for name, fault in faults.items():
        table.add_row(name, f"FAILED: {fault}", "")
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")), help="folder")
    parser.add_argument("--only", nargs="+", choices=[section.__name__ for section in SECTIONS], metavar="SECTION")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(torch.device(arguments.device), arguments.quick, arguments.out)
    chosen = [s for s in SECTIONS if not arguments.only or s.__name__ in arguments.only]
    run(suite, chosen, arguments.budget)


if __name__ == "__main__":
    main()

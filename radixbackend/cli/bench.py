"""``radix bench``: what the radix cache saves a model on this machine, and where a step's time goes."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixbackend.cli.options import EngineOptions, engine_options
from radixbackend.cli.step_profile import PARTS, StepProfile, TimedStep, middle
from radixbackend.errors import ConfigError
from radixbackend.types import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from rich.table import Table

    from radixbackend.backend import Backend

TEXT = (
    "Dear guests, welcome to our small hotel by the sea. Breakfast is served from seven to ten, the sauna is open in "
    "the evening, and the key to the garden hangs beside the door. Please tell us when you would like to leave."
)
"""What prompts are drawn from, token by token: every model gets tokens that it knows, and nobody reads the answers."""

ROUNDS = 3
"""Of a profile; each runs without timers and with them, so that a busy moment spoils neither alone."""


@dataclass(frozen=True)
class Run:
    """One run of the workload."""

    seconds: float
    first_tokens: tuple[float, ...]
    answers: tuple[tuple[int, ...], ...]
    cached_tokens: int
    prefilled_tokens: int

    @property
    def speed(self) -> float:
        """Output tokens per second."""
        return sum(map(len, self.answers)) / self.seconds

    def first_token(self, share: float) -> float:
        """Seconds that this share of the requests had their first token in."""
        ordered = sorted(self.first_tokens)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


@dataclass(frozen=True)
class Shape:
    """Requests that share a prefix."""

    requests: int
    concurrency: int
    shared: int
    own: int
    output: int

    def prompts(self, backend: Backend) -> list[tuple[int, ...]]:
        """Token ids, the same in every run; raises `ConfigError` where the model cannot have them."""
        if backend.tokenizer is None:
            raise ConfigError("radix bench needs a model with a tokenizer")
        length = self.shared + self.own + self.output
        if length > backend.max_context:
            raise ConfigError(
                f"{backend.model_name} has a context of {backend.max_context} tokens, and --shared, --own and "
                f"--max-tokens come to {length}"
            )
        known = backend.tokenizer.encode(TEXT, add_special_tokens=False)
        draw = random.Random(0)
        shared = draw.choices(known, k=self.shared)
        return [tuple(shared + draw.choices(known, k=self.own)) for _ in range(self.requests)]


def bench(
    model: Annotated[
        str, typer.Argument(help="Folder of a checkpoint, hub id, or a name that a plugin serves.")
    ] = "radix-tiny",
    profile: Annotated[bool, typer.Option("--profile", help="Show where a step's time goes instead.")] = False,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences in a profiled step; repeatable.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests, all with the same beginning.")] = 32,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    shared: Annotated[int, typer.Option(min=1, help="Tokens that all prompts begin with.")] = 384,
    own: Annotated[int, typer.Option(min=1, help="Tokens of each prompt alone.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate for each.")] = 32,
    option: EngineOptions = None,
) -> None:
    """Measure a model on this machine: the cache on and off, or with --profile the parts of a step."""
    from rich.console import Console

    options = engine_options(option)
    console = Console(markup=False, highlight=False)
    if profile:
        shapes = [Shape(n, n, shared, own, max_tokens) for n in batch or (1, 16)]
        table, about = _profile(model, shapes, options)
    else:
        table, about = _compare(model, Shape(requests, concurrency, shared, own, max_tokens), options)
    console.print(table)
    console.print(about)


# -- the workload ----------------------------------------------------------------------------------------------------


def run(backend: Backend, shape: Shape) -> Run:
    """All requests of the shape, from an empty cache."""
    prompts = shape.prompts(backend)
    sampling = SamplingParams(max_tokens=shape.output, temperature=0, ignore_eos=True)
    backend.flush_cache()
    before, started = backend.stats(), time.perf_counter()
    answers = asyncio.run(_ask(backend, [GenerationRequest(prompt, sampling) for prompt in prompts], shape.concurrency))
    seconds, after = time.perf_counter() - started, backend.stats()
    backend.flush_cache()  # waits for the end of the last step, too, whose record comes after its answer
    return Run(
        seconds=seconds,
        first_tokens=tuple(first for first, _ in answers),
        answers=tuple(tokens for _, tokens in answers),
        cached_tokens=after.cached_tokens - before.cached_tokens,
        prefilled_tokens=after.prefilled_tokens - before.prefilled_tokens,
    )


async def _ask(
    backend: Backend, requests: Sequence[GenerationRequest], concurrency: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Seconds to the first token, and the tokens, of each request."""
    gate = asyncio.Semaphore(concurrency)

    async def answer(request: GenerationRequest) -> tuple[float, tuple[int, ...]]:
        async with gate:
            asked, first = time.perf_counter(), 0.0
            tokens: list[int] = []
            async for event in backend.astream(request):
                if event.token_ids and not tokens:
                    first = time.perf_counter() - asked
                tokens += event.token_ids
            return first, tuple(tokens)

    return await asyncio.gather(*(answer(request) for request in requests))


def _warm_up(backend: Backend, shape: Shape) -> None:
    """What is allocated or compiled once is not measured."""
    run(backend, replace(shape, requests=min(2, shape.requests)))


# -- cache on and off ------------------------------------------------------------------------------------------------


def _compare(model: str, shape: Shape, options: dict[str, Any]) -> tuple[Table, str]:
    from rich.table import Table

    from radixbackend.backend import get_backend

    runs: dict[str, Run] = {}
    for name, cache in (("on", True), ("off", False)):
        with get_backend(model, **{**options, "prefix_cache": cache}) as backend:
            _warm_up(backend, shape)
            runs[name] = run(backend, shape)
    table = Table(
        title=f"{model}: {shape.requests} requests of {shape.shared} shared and {shape.own} own tokens, "
        f"{shape.output} out, {shape.concurrency} at a time"
    )
    columns = ("cache", "tok/s", "first token p50 / p95, ms", "prompt tokens computed", "from the cache", "seconds")
    for column in columns:
        table.add_column(column, justify="right")
    for name, found in runs.items():
        table.add_row(
            name,
            f"{found.speed:,.0f}",
            f"{1000 * found.first_token(0.5):,.0f} / {1000 * found.first_token(0.95):,.0f}",
            f"{found.prefilled_tokens:,}",
            f"{found.cached_tokens:,}",
            f"{found.seconds:.2f}",
        )
    return table, f"The cache makes it {runs['off'].seconds / runs['on'].seconds:.1f} times as fast."


# -- where a step's time goes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """One batch size: decode steps of all its sequences, with timers and without, and runs without."""

    shape: Shape
    timed: tuple[TimedStep, ...]
    plain: tuple[TimedStep, ...]
    runs: tuple[Run, ...]
    timers: float  # in a step
    text: float  # seconds per step

    def parts(self) -> dict[str, float]:
        """Mean seconds of each part over the middle half of the steps."""
        steps = middle(self.timed)
        return {part: statistics.fmean(step.parts[part] for step in steps) for part in PARTS}


def _profile(model: str, shapes: Sequence[Shape], options: dict[str, Any]) -> tuple[Table, str]:
    from radixbackend.backend import get_backend

    watch = StepProfile()
    # A replayed graph is one call: nothing in it could be timed.
    with get_backend(model, plugins=[watch], **{**options, "cuda_graphs": False, "overlap": False}) as backend:
        _warm_up(backend, shapes[0])
        profiles = [_measure(backend, watch, shape) for shape in shapes]
    return _profile_table(model, profiles), "\n".join(map(_cost, profiles))


def _measure(backend: Backend, watch: StepProfile, shape: Shape) -> Profile:
    timed: list[TimedStep] = []
    plain: list[TimedStep] = []
    runs: list[Run] = []
    timers = steps = 0
    for _ in range(ROUNDS):
        watch.steps.clear()
        runs.append(run(backend, shape))
        plain += _decodes(watch.steps, shape.requests)
        watch.steps.clear()
        with watch.timing():
            run(backend, shape)
        timed += _decodes(watch.steps, shape.requests)
        timers, steps = timers + watch.num_timers, steps + len(watch.steps)
    if not timed or not plain or not all(step.parts for step in timed):
        raise ConfigError(
            f"no step computed one token for each of {shape.requests} sequences; raise --max-tokens or kv_cache_tokens"
        )
    return Profile(shape, tuple(timed), tuple(plain), tuple(runs), timers / steps, _text_seconds(backend, runs[-1]))


def _decodes(steps: Sequence[TimedStep], sequences: int) -> list[TimedStep]:
    """Those that computed one token for each sequence and nothing else."""
    return [step for step in steps if step.record.decode_tokens == sequences and not step.record.prefill_tokens]


def _text_seconds(backend: Backend, found: Run) -> float:
    """What the callers' threads take to turn the tokens of a step into text."""
    from radixbackend.tokenizer import TextStream

    assert backend.tokenizer is not None
    spent = 0.0
    for answer in found.answers:
        stream = TextStream(backend.tokenizer)
        started = time.perf_counter()
        for token in answer:
            stream.feed((token,))
        spent += time.perf_counter() - started
    return spent / len(found.answers[0])


def _profile_table(model: str, profiles: Sequence[Profile]) -> Table:
    from rich.table import Table

    table = Table(title=f"{model}: where a step's time goes")
    table.add_column("")
    for profile in profiles:
        table.add_column(f"batch {profile.shape.requests}, µs", justify="right")
        table.add_column("%", justify="right")
    found = [profile.parts() for profile in profiles]
    wholes = [sum(parts.values()) for parts in found]
    for part in PARTS:
        cells = [(seconds[part], whole) for seconds, whole in zip(found, wholes, strict=True)]
        table.add_row(part, *(cell for value, whole in cells for cell in _cells(value, whole)))
    table.add_section()
    table.add_row("step", *(cell for whole in wholes for cell in _cells(whole, whole)))
    table.add_row("text, in the callers' threads", *(c for p in profiles for c in (f"{1e6 * p.text:,.0f}", "")))
    table.add_section()
    best = [max(profile.runs, key=lambda found: found.speed) for profile in profiles]
    table.add_row("tokens per second", *(cell for found in best for cell in (f"{found.speed:,.0f}", "")))
    table.add_row("prompt tokens computed", *(cell for found in best for cell in (f"{found.prefilled_tokens:,}", "")))
    table.add_row("from the cache", *(cell for found in best for cell in (f"{found.cached_tokens:,}", "")))
    return table


def _cells(seconds: float, whole: float) -> tuple[str, str]:
    return f"{1e6 * seconds:,.0f}", f"{seconds / whole:.0%}"


def _cost(profile: Profile) -> str:
    with_timers, without = (
        statistics.fmean(step.seconds for step in middle(steps)) for steps in (profile.timed, profile.plain)
    )
    return (
        f"Batch {profile.shape.requests}: {profile.timers:.0f} timers, and layers one by one; without, a step takes "
        f"{1e6 * without:,.0f} µs instead of {1e6 * with_timers:,.0f}."
    )

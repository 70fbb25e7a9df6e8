"""``radix generate``: one prompt, answered."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from radixbackend.cli.options import (
    Choice,
    EngineOptions,
    Grammar,
    JsonObject,
    JsonSchema,
    Model,
    Regex,
    Seed,
    TopP,
    constraint,
    engine_options,
)
from radixbackend.types import GenerationRequest, SamplingParams, Usage


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads stdin.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the output; repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="Number of answers.")] = 1,
    json_schema: JsonSchema = None,
    json_object: JsonObject = False,
    regex: Regex = None,
    choice: Choice = None,
    grammar: Grammar = None,
    option: EngineOptions = None,
) -> None:
    """Answer one prompt, streaming to stdout."""
    wanted = constraint(json_schema, json_object, regex, choice, grammar)
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()), n=n
    )
    options = engine_options(option)
    if prompt == "-":
        prompt = sys.stdin.read()
    from radixbackend.backend import get_backend

    with get_backend(model, **options) as backend:
        texts, usages, complete = [""] * n, [], True
        started = time.monotonic()
        for event in backend.stream(GenerationRequest(prompt, sampling, wanted)):
            texts[event.index] += event.text
            if n == 1:  # several answers grow at once, so they are printed when all are there
                print(event.text, end="", flush=True)
            if event.usage:
                usages.append(event.usage)
                complete = complete and event.complete
        seconds = time.monotonic() - started
    print("\n\n".join(texts) if n > 1 else "")
    print(_summary(usages, seconds), file=sys.stderr)
    if not complete:
        print("radix: cut by --max-tokens before the answer was complete", file=sys.stderr)
        raise typer.Exit(1)


def _summary(usages: Sequence[Usage], seconds: float) -> str:
    generated = sum(usage.completion_tokens for usage in usages)
    first = usages[0] if usages else Usage()
    speed = generated / max(seconds, 1e-9)
    return (
        f"{first.prompt_tokens} prompt tokens ({first.cached_tokens} cached), {generated} generated, {speed:.1f} tok/s"
    )

"""POST /v1/completions: the engine's own results and events in OpenAI's shape for text completions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from radixbackend.openai_api.faces import Face
from radixbackend.openai_api.protocol import CompletionRequest, prompt_list
from radixbackend.openai_api.served import Served
from radixbackend.openai_api.wire import DONE, CompletionLogprobs, new_id, now, sse, usage
from radixbackend.types import Choice, GenerationRequest, GenerationResult, TokenLogprob, Usage

Answer = dict[str, Any] | AsyncGenerator[bytes]


async def create(asked: CompletionRequest, served: Served, face: Face) -> Answer:
    prompts = await face.call(lambda: _prompts(asked, served))
    requests = asked.requests(prompts)
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": now(),
        "model": asked.model or served.name,
    }
    if asked.stream:
        return _stream(requests, asked, served, face, head)
    results = await face.generate(requests)
    n = asked.n or 1
    return {
        **head,
        "choices": [
            _choice(choice, i * n + choice.index, requests[i], result, asked, served)
            for i, result in enumerate(results)
            for choice in result.choices
        ],
        "usage": usage(total([result.usage for result in results])),
    }


def _prompts(asked: CompletionRequest, served: Served) -> list[str | tuple[int, ...]]:
    """As token ids, except texts for the engine to tokenize where nobody needs to know their tokens."""
    know = asked.echo and asked.logprobs is not None
    bare = asked.add_special_tokens is False
    prompts = prompt_list(asked.prompt)
    if asked.suffix:
        prompts = [served.around_gap(prompt, asked.suffix) for prompt in prompts]
    return [
        prompt
        if isinstance(prompt, str) and not know and not bare
        else served.encode(prompt, add_special_tokens=not bare)
        for prompt in prompts
    ]


def total(usages: Sequence[Usage]) -> Usage:
    """Of several requests together."""
    sums = Usage()
    for used in usages:
        sums = replace(
            sums,
            prompt_tokens=sums.prompt_tokens + used.prompt_tokens,
            completion_tokens=sums.completion_tokens + used.completion_tokens,
            cached_tokens=sums.cached_tokens + used.cached_tokens,
            forced_tokens=sums.forced_tokens + used.forced_tokens,
        )
    return sums


def _choice(
    choice: Choice,
    index: int,
    request: GenerationRequest,
    result: GenerationResult,
    asked: CompletionRequest,
    served: Served,
) -> dict[str, Any]:
    prompt = _prompt_text(request, served) if asked.echo else ""
    logprobs = None
    if choice.logprobs is not None:
        shown = request.prompt if asked.echo else ()
        before = (result.prompt_logprobs or [None] * len(shown)) if asked.echo else ()
        tokens = (*shown, *choice.token_ids)
        logprobs = CompletionLogprobs(served.texts).of(tokens, (*before, *choice.logprobs))
    return {
        "index": index,
        "text": prompt + choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


def _echo(
    index: int,
    request: GenerationRequest,
    scored: Sequence[TokenLogprob | None] | None,
    offsets: dict[int, CompletionLogprobs],
    served: Served,
) -> dict[str, Any]:
    """The first piece of a streamed choice: its prompt."""
    logprobs = None
    if request.sampling.logprobs is not None:
        entries = scored or [None] * len(request.prompt)
        tokens = [token for token in request.prompt if isinstance(token, int)]  # which it is, see `_prompts`
        logprobs = offsets.setdefault(index, CompletionLogprobs(served.texts)).of(tokens, entries)
    return {"index": index, "text": _prompt_text(request, served), "logprobs": logprobs, "finish_reason": None}


def _prompt_text(request: GenerationRequest, served: Served) -> str:
    return request.prompt if isinstance(request.prompt, str) else served.tokenizer.decode(request.prompt)


async def _stream(
    requests: Sequence[GenerationRequest],
    asked: CompletionRequest,
    served: Served,
    face: Face,
    head: dict[str, Any],
) -> AsyncGenerator[bytes]:
    n = asked.n or 1
    prompts: dict[int, Usage] = {}
    answers: list[Usage] = []
    offsets: dict[int, CompletionLogprobs] = {}
    echoed: set[int] = set()
    scored: dict[int, Sequence[TokenLogprob | None]] = {}  # the prompts' tokens, which the first event of each has
    async with contextlib.aclosing(face.stream(requests)) as events:
        async for request, event in events:
            index = request * n + event.index
            if event.prompt_logprobs is not None:
                scored[request] = event.prompt_logprobs
            if asked.echo and index not in echoed:
                echoed.add(index)
                yield sse({**head, "choices": [_echo(index, requests[request], scored.get(request), offsets, served)]})
            if event.usage is not None:
                prompts.setdefault(request, replace(event.usage, completion_tokens=0, forced_tokens=0))
                answers.append(replace(event.usage, prompt_tokens=0, cached_tokens=0))
            if not event.text and not event.logprobs and event.finish_reason is None:
                continue
            logprobs = None
            if asked.logprobs is not None:
                counted = offsets.setdefault(index, CompletionLogprobs(served.texts))
                logprobs = counted.of(event.token_ids[: len(event.logprobs)], event.logprobs)
            choice = {
                "index": index,
                "text": event.text,
                "logprobs": logprobs,
                "finish_reason": event.finish_reason,
            }
            if event.finish_reason is not None:
                choice["stop_reason"] = event.stop_reason
            yield sse({**head, "choices": [choice]})
    if asked.include_usage:
        yield sse({**head, "choices": [], "usage": usage(total([*prompts.values(), *answers]))})
    yield DONE

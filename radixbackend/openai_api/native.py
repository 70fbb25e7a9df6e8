"""POST /generate and its neighbours, as SGLang has them: an sglang frontend program drives this server unchanged.

Rules. ``text`` in a stream is all of the text so far, not what is new. A request of several prompts, or of several
samples, is answered by a list. What SGLang calls otherwise is renamed here and nowhere else.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from radixbackend.openai_api.faces import Face
from radixbackend.openai_api.faults import ApiError
from radixbackend.openai_api.protocol import (
    MOST_CHOICES,
    MOST_LOGPROBS,
    Json,
    Many,
    Penalty,
    RepetitionPenalty,
    Tokens,
    Wire,
    checked_bias,
    checked_stops,
    one_constraint,
    prompt_list,
    refuse_stop_regex,
)
from radixbackend.openai_api.served import Served
from radixbackend.openai_api.wire import DONE, finite, new_id, sse
from radixbackend.types import (
    Constraint,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    TokenLogprob,
    Usage,
)

Answer = dict[str, Any] | list[dict[str, Any]] | AsyncGenerator[bytes]

NEW_TOKENS = 128
"""SGLang's default of ``max_new_tokens``."""

_RENAMED = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "no_stop_trim": "include_stop",
    "sampling_seed": "seed",
}


class NativeSampling(Wire):
    """SGLang's ``sampling_params``."""

    max_new_tokens: Annotated[int, Field(ge=0)] | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: float | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Json | None = None
    seed: int | None = None
    sampling_seed: int | None = None
    stop: str | Many[str] | None = None
    stop_token_ids: Many[int] | None = None
    stop_regex: str | Many[str] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    json_schema: str | Json | bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | Json | None = None

    def sampling(self, **reports: Any) -> SamplingParams:
        """Raises `InvalidRequestError` or `ApiError`."""
        refuse_stop_regex(self.stop_regex)
        constraints = {"json_schema", "regex", "ebnf", "structural_tag", "stop_regex"}
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in constraints}
        given["stop"] = checked_stops(self.stop)
        given["logit_bias"] = checked_bias(self.logit_bias)
        given["top_k"] = None if self.top_k is None else max(self.top_k, 0)
        given["max_new_tokens"] = NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        given["seed"] = self.seed if self.sampling_seed is None else self.sampling_seed
        del given["sampling_seed"]
        return SamplingParams(
            **{_RENAMED.get(name, name): value for name, value in given.items() if value is not None}, **reports
        )

    def constraint(self) -> Constraint | None:
        return one_constraint(
            {
                "json_schema": None if self.json_schema is None else Constraint.json_schema(self.json_schema),
                "regex": None if self.regex is None else Constraint.regex(self.regex),
                "ebnf": None if self.ebnf is None else Constraint.grammar(self.ebnf),
                "structural_tag": None
                if self.structural_tag is None
                else Constraint.structural_tag(self.structural_tag),
            }
        )

    @property
    def constraint_field(self) -> str:
        names = ("json_schema", "regex", "ebnf", "structural_tag")
        return next((name for name in names if getattr(self, name) is not None), "sampling_params")


class GenerateRequest(Wire):
    """POST /generate."""

    text: str | Many[str] | None = None
    input_ids: Tokens | Many[Tokens] | None = None
    sampling_params: NativeSampling | Many[NativeSampling] | None = None
    return_logprob: bool | Many[bool] | None = None
    logprob_start_len: int | Many[int] | None = None
    top_logprobs_num: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | Many[int] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    rid: str | Many[str] | None = None
    image_data: Any = None
    priority: int | None = None
    extra_key: str | None = None

    def prompts(self) -> list[str | list[int]]:
        if (self.text is None) == (self.input_ids is None):
            raise ApiError(400, "Give one of 'text' and 'input_ids'.", code="invalid_value", param="text")
        if self.image_data:
            message = "'image_data' is not served here; send images to /v1/chat/completions."
            raise ApiError(400, message, code="unsupported_parameter", param="image_data")
        prompts = prompt_list(self.text if self.text is not None else self.input_ids or [])
        for name in ("sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "rid"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != len(prompts):
                raise ApiError(
                    400,
                    f"'{name}' is a list of {len(value)}, and there are {len(prompts)} prompts.",
                    code="invalid_value",
                    param=name,
                )
        return prompts

    def of(self, name: str, index: int) -> Any:
        """A field's value for one prompt."""
        value = getattr(self, name)
        return value[index] if isinstance(value, list) else value

    @property
    def single(self) -> bool:
        """Whether the answer is no list."""
        text, ids = self.text, self.input_ids
        if not (isinstance(text, str) or (ids is not None and not (ids and isinstance(ids[0], list)))):
            return False
        return isinstance(self.sampling_params, list) or ((self.sampling_params or NativeSampling()).n or 1) == 1

    @property
    def params(self) -> dict[str, str]:
        given = self.sampling_params
        first = next(iter(given), None) if isinstance(given, list) else given
        names = {ours: theirs for theirs, ours in _RENAMED.items() if ours != "seed"}
        return {"prompt": "text", "constraint": (first or NativeSampling()).constraint_field, **names}


async def create(asked: GenerateRequest, served: Served, face: Face) -> Answer:
    prompts = asked.prompts()
    requests = await face.call(lambda: [_request(asked, served, i, prompt) for i, prompt in enumerate(prompts)])
    if asked.stream:
        return _stream(requests, asked, served, face)
    bodies = []
    for i, result in enumerate(await face.generate(requests)):
        bodies += _bodies(result, requests[i], asked, served, i)
    return bodies[0] if asked.single else bodies


def _request(asked: GenerateRequest, served: Served, index: int, prompt: str | list[int]) -> GenerationRequest:
    sampling: NativeSampling = asked.of("sampling_params", index) or NativeSampling()
    reports: dict[str, int | None] = {}
    tokens: str | tuple[int, ...] = prompt if isinstance(prompt, str) else served.encode(prompt)
    if asked.of("return_logprob", index):
        tokens = served.encode(prompt)
        top = asked.of("top_logprobs_num", index) or 0
        reports = {"logprobs": top, "prompt_logprobs": top if _start(asked, index) is not None else None}
    return GenerationRequest(
        tokens, sampling.sampling(**reports), sampling.constraint(), asked.priority or 0, asked.extra_key
    )


def _start(asked: GenerateRequest, index: int) -> int | None:
    """From which token of the prompt on log-probabilities are reported; None for none.

    By default there are none, except where nothing is generated either.
    """
    start = asked.of("logprob_start_len", index)
    if start is None or start < 0:
        sampling: NativeSampling = asked.of("sampling_params", index) or NativeSampling()
        return 0 if sampling.max_new_tokens == 0 else None
    return int(start)


@dataclass
class _Sample:
    """What a stream has said of one sample so far."""

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    id: str = field(default_factory=lambda: new_id("gen"))


def _bodies(
    result: GenerationResult, request: GenerationRequest, asked: GenerateRequest, served: Served, index: int
) -> list[dict[str, Any]]:
    bodies = []
    rid = asked.of("rid", index) or new_id("gen")
    for choice in result.choices:
        meta = _meta(rid, result.usage, choice.finish_reason, choice.stop_reason, len(choice.token_ids))
        if request.sampling.logprobs is not None:
            entries = result.prompt_logprobs or ()
            meta |= _input_logprobs(entries, request, asked, served, index)
            meta |= _output_logprobs(choice.logprobs or (), asked, served, index)
        bodies.append({"text": choice.text, "output_ids": list(choice.token_ids), "meta_info": meta})
    return bodies


def _meta(rid: str, used: Usage, reason: FinishReason | None, stop: int | str | None, tokens: int) -> dict[str, Any]:
    finish: dict[str, Any] | None = None
    if reason == "length":
        finish = {"type": "length", "length": tokens}
    elif reason is not None:
        finish = {"type": "stop"} if stop is None else {"type": "stop", "matched": stop}
    return {
        "id": rid,
        "finish_reason": finish,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": tokens,
        "cached_tokens": used.cached_tokens,
    }


def _input_logprobs(
    entries: Sequence[TokenLogprob | None],
    request: GenerationRequest,
    asked: GenerateRequest,
    served: Served,
    index: int,
) -> dict[str, Any]:
    start = _start(asked, index)
    assert not isinstance(request.prompt, str)
    pairs = [] if start is None else list(zip(request.prompt, entries, strict=True))[start:]
    return _lists("input", pairs, asked, served, index)


def _output_logprobs(
    entries: Sequence[TokenLogprob], asked: GenerateRequest, served: Served, index: int
) -> dict[str, Any]:
    return _lists("output", [(entry.token_id, entry) for entry in entries], asked, served, index)


def _lists(
    kind: str,
    pairs: Sequence[tuple[int, TokenLogprob | None]],
    asked: GenerateRequest,
    served: Served,
    index: int,
) -> dict[str, Any]:
    """``[log-probability, token, text]`` each; the first token of a prompt has no log-probability."""

    def triple(logprob: float | None, token: int) -> list[Any]:
        text = served.texts.text(token) if asked.return_text_in_logprobs else None
        return [None if logprob is None else finite(logprob), token, text]

    lists: dict[str, Any] = {
        f"{kind}_token_logprobs": [triple(None if entry is None else entry.logprob, token) for token, entry in pairs]
    }
    if asked.of("top_logprobs_num", index):
        lists[f"{kind}_top_logprobs"] = [
            None if entry is None else [triple(logprob, token) for token, logprob in entry.top] for _, entry in pairs
        ]
    return lists


async def _stream(
    requests: Sequence[GenerationRequest], asked: GenerateRequest, served: Served, face: Face
) -> AsyncGenerator[bytes]:
    samples: dict[int, _Sample] = {}
    inputs: dict[int, dict[str, Any]] = {}
    offsets = [0, *itertools.accumulate(request.sampling.n for request in requests)]
    async with contextlib.aclosing(face.stream(requests)) as events:
        async for which, event in events:
            index, request = offsets[which] + event.index, requests[which]
            sample = samples.setdefault(index, _Sample(id=asked.of("rid", which) or new_id("gen")))
            sample.text += event.text
            sample.tokens += len(event.token_ids)
            sample.logprobs += event.logprobs
            if event.prompt_logprobs is not None:
                inputs[which] = _input_logprobs(event.prompt_logprobs, request, asked, served, which)
            used = event.usage or Usage()
            meta = _meta(sample.id, used, event.finish_reason, event.stop_reason, sample.tokens)
            if event.usage is None:  # not known before the end
                del meta["prompt_tokens"], meta["cached_tokens"]
            if request.sampling.logprobs is not None:
                meta |= inputs.get(which, {}) | _output_logprobs(sample.logprobs, asked, served, which)
            body: dict[str, Any] = {"text": sample.text, "meta_info": meta}
            yield sse(body if asked.single else {**body, "index": index})
    yield DONE

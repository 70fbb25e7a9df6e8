"""The front door: from what a caller asks to what the scheduler can serve, or a clear refusal.

Rules. Runs in the caller's thread, before anything is queued; whatever is wrong with a request is said here, with
what to do about it, and costs nobody else anything. Tokenizing and schema checks happen here, grammars start to
compile here. It does not know when or how a request will run.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from radixbackend.engine.grammar.base import Grammar
from radixbackend.engine.plan import PromptImages
from radixbackend.engine.request import Request, Update
from radixbackend.errors import ConstraintError, ContextLengthError, InvalidRequestError
from radixbackend.tokenizer import TextStream, Tokenizer
from radixbackend.types import Constraint, GenerationRequest, RequestId, SamplingParams

if TYPE_CHECKING:
    from radixbackend.engine.grammar.service import GrammarService
    from radixbackend.engine.images import ImageDesk
    from radixbackend.structured import FrontDoor


@dataclass(frozen=True)
class Intake:
    """A request that was let in, and what its caller needs to read the answer.

    Attributes:
        texts: one per choice, to turn its tokens into text; None without a tokenizer.
        validate: raises `OutputValidationError` for a finished text that breaks the constraint.
    """

    request: Request
    texts: tuple[TextStream, ...] | None
    validate: Callable[[str], None] | None


@dataclass(frozen=True)
class ModelLimits:
    """What a request must respect."""

    vocab_size: int
    max_context: int
    pool_tokens: int

    @property
    def longest(self) -> int:
        return min(self.max_context, self.pool_tokens)


class _StopStrings:
    """`StopCheck` by text, for one choice."""

    def __init__(self, text: TextStream) -> None:
        self._text = text

    def feed(self, token: int) -> bool:
        return self._text.feed((token,)).stop is not None


_NOTHING = SamplingParams(max_tokens=0)


class FrontDesk:
    """Checks and translates requests; safe to call from many threads at once."""

    def __init__(
        self,
        limits: ModelLimits,
        tokenizer: Tokenizer | None,
        front_door: FrontDoor,
        grammars: GrammarService | None,
        grammar: str,
        end_tokens: tuple[int, ...] = (),
        images: ImageDesk | None = None,
        no_images: str = "it has no vision",
    ) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._front_door = front_door
        self._grammars = grammars
        self._grammar = grammar
        self._end_tokens = end_tokens
        self._images = images
        self._no_images = no_images
        self._ids = itertools.count()

    def admit(
        self, asked: GenerationRequest, sink: Callable[[Update], None], *, stream: bool = True, pin: bool = False
    ) -> Intake:
        """Raises `InvalidRequestError` or one of its kinds; then nothing was queued. See `Request` for the flags."""
        params = asked.sampling
        self._check_params(params)
        prompt, images = self._read(asked) if asked.images else (self._encode(asked.prompt), None)
        max_length = self._max_length(len(prompt), params)
        grammar, validate = None, None
        if asked.constraint is not None and max_length > len(prompt):
            grammar, validate = self._constrain(asked.constraint)
        texts, stop_checks = None, None
        if self._tokenizer is not None:
            texts = tuple(self._text(params, prompt) for _ in range(params.n))
            if params.stop:
                stop_checks = tuple(_StopStrings(self._text(params, prompt)) for _ in range(params.n))
        request = Request(
            id=RequestId(next(self._ids)),
            prompt=np.asarray(prompt, np.int32),
            params=params,
            max_length=max_length,
            seeds=_seeds(params),
            sink=sink,
            namespace=asked.cache_salt,
            priority=asked.priority,
            grammar=grammar,
            stop_checks=stop_checks,
            images=images,
            stream=stream,
            pin=pin,
            submitted=time.monotonic(),
        )
        return Intake(request, texts, validate)

    def encode(self, prompt: str | tuple[int, ...]) -> list[int]:
        """A prompt's tokens, which fit the context. Raises `InvalidRequestError`."""
        tokens = self._encode(prompt)
        self._max_length(len(tokens), _NOTHING)
        return tokens

    def _text(self, params: SamplingParams, prompt: list[int]) -> TextStream:
        assert self._tokenizer is not None
        return TextStream(
            self._tokenizer,
            prompt_tail=prompt[-8:],
            stops=params.stop,
            include_stop=params.include_stop,
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            # What ends an output is not part of its text, whether special tokens are shown or not.
            hidden_tokens=params.stop_token_ids + (() if params.ignore_eos else self._end_tokens),
        )

    def _encode(self, prompt: str | tuple[int, ...]) -> list[int]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise InvalidRequestError("this checkpoint has no tokenizer; pass token ids", param="prompt")
            prompt = tuple(self._tokenizer.encode(prompt))
        if not len(prompt):
            raise InvalidRequestError("the prompt is empty; pass at least one token", param="prompt")
        self._check_tokens("prompt", prompt)
        return list(prompt)

    def _read(self, asked: GenerationRequest) -> tuple[list[int], PromptImages]:
        if self._images is None:
            raise InvalidRequestError(f"this model takes no images: {self._no_images}", param="images")
        if not isinstance(asked.prompt, str):
            self._check_tokens("prompt", asked.prompt)
        prompt, images = self._images.read(asked.prompt, asked.images, asked.cache_salt)
        self._check_tokens("prompt", tuple(prompt))
        return prompt, images

    def _check_tokens(self, param: str, tokens: tuple[int, ...]) -> None:
        size = self._limits.vocab_size
        if set(map(type, tokens)) == {int} and min(tokens) >= 0 and max(tokens) < size:
            return  # nearly always, and prompts are long
        for token in tokens:
            if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < size:
                raise InvalidRequestError(
                    f"{param} has {token!r}; token ids are integers from 0 to {size - 1}", param=param
                )

    def _check_params(self, params: SamplingParams) -> None:
        self._check_tokens("logit_bias", tuple(params.logit_bias))
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        if params.stop and self._tokenizer is None:
            raise InvalidRequestError("this checkpoint has no tokenizer; use stop_token_ids", param="stop")
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(params, name) or 0) > self._limits.vocab_size:
                raise InvalidRequestError(f"{name} exceeds the vocabulary of {self._limits.vocab_size}", param=name)

    def _max_length(self, prompt: int, params: SamplingParams) -> int:
        longest = self._limits.longest
        if prompt + (params.max_tokens != 0) > longest:
            bound = (
                f"the model's context of {longest} tokens"
                if longest == self._limits.max_context
                else f"the KV pool of {longest} tokens (raise kv_cache_tokens)"
            )
            room = "" if params.max_tokens == 0 else " and one more to generate"
            raise ContextLengthError(
                f"the prompt's {prompt} tokens{room} do not fit {bound}", prompt_tokens=prompt, max_tokens=longest
            )
        return longest if params.max_tokens is None else min(longest, prompt + params.max_tokens)

    def _constrain(self, constraint: Constraint) -> tuple[Future[Grammar], Callable[[str], None]]:
        if self._grammars is None:
            raise ConstraintError("this checkpoint has no tokenizer, so nothing can be constrained")
        checked = self._front_door.check(constraint, prefer=self._grammar)
        return self._grammars.submit(checked.route, checked.constraint), checked.validate


def _seeds(params: SamplingParams) -> tuple[int, ...]:
    """One per choice; the first choice has the caller's own."""
    seed = secrets.randbits(63) if params.seed is None else params.seed
    return tuple((seed + 0x9E3779B97F4A7C15 * i) % 2**63 for i in range(params.n))

"""The frozen values that cross the package's borders.

Everything here can be built, compared and printed without torch. Validation happens at construction, so a value
that exists is a value the engine can serve (what depends on the model, such as its context, is checked by
`Engine.submit`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NewType

from radixbackend.errors import ConstraintError, InvalidRequestError

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    Image = bytes | os.PathLike[str] | PILImage
    """A picture: an encoded file (PNG, JPEG, WebP, GIF or BMP), the path of one, or a Pillow image."""

RequestId = NewType("RequestId", int)
"""One `GenerationRequest`, unique within an engine."""

FinishReason = Literal["stop", "length"]
"""``stop``: an end token, a stop string or a completed grammar. ``length``: out of budget or context."""

OnUnsupported = Literal["fallback", "warn", "error"]
"""What to do with a schema keyword that no grammar backend enforces while generating."""

Prompt = str | Sequence[int]
"""Text for the model's tokenizer, or token ids as they are."""


def _integer(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InvalidRequestError(f"{name} takes an integer of at least {low}, not {value!r}", param=name)


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < low or value > high or (open_low and value == low):
        raise InvalidRequestError(
            f"{name} takes a number {'above' if open_low else 'from'} {low:g}"
            f"{'' if math.isinf(high) else f' to {high:g}'}, not {value!r}",
            param=name,
        )


def _logit_bias(bias: Any) -> dict[int, float]:
    try:
        clean = {int(token): float(amount) for token, amount in dict(bias or {}).items()}
    except (TypeError, ValueError) as fault:
        raise InvalidRequestError(f"logit_bias maps token ids to numbers: {fault}", param="logit_bias") from fault
    for token, amount in clean.items():
        if token < 0 or not math.isfinite(amount):
            raise InvalidRequestError(f"logit_bias has {token}: {amount}", param="logit_bias")
    return clean


def _dump(value: Any, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as fault:
        raise ConstraintError(f"the {what} is not JSON: {fault}") from fault


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens, when to stop and what to report.

    A token's draw depends on the logits, these parameters, the seed and the token's position alone, so the same
    seed gives the same tokens whatever else is in the batch. Without a seed each request draws its own.

    Attributes:
        max_tokens: tokens to generate at most; 0 computes (and caches) the prompt only; None means as far as
            the context allows.
        min_tokens: end tokens, stop tokens and stop strings are suppressed before this many.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probabilities reach this.
        min_p: drop tokens less likely than this share of the likeliest.
        frequency_penalty: subtracted per occurrence in the generated tokens.
        presence_penalty: subtracted once for tokens generated before.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output.
        logit_bias: token id → amount added to its logit.
        seed: None draws a fresh one.
        stop: strings that end the output; they are not part of it (unless ``include_stop``).
        stop_token_ids: further end tokens.
        ignore_eos: go on past the model's end tokens.
        n: independent continuations of one prompt; the prompt is computed once.
        logprobs: None reports none; k reports the chosen token and the k likeliest, of the model's own
            distribution (before temperature, penalties and masks).
        prompt_logprobs: the same for each prompt token but the first; the cached prefix is recomputed for it.
        skip_special_tokens: leave special tokens out of the text.
        include_stop: keep the matched stop string in the text.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop: bool = False

    def __post_init__(self) -> None:
        stop: Any = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 0)
        _integer("min_tokens", self.min_tokens, 0)
        _integer("top_k", self.top_k, 0)
        _integer("n", self.n, 1)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        _number("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63))
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"stop takes non-empty strings, not {text!r}", param="stop")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}", param="min_tokens"
            )

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with these fields changed, validated again."""
        return replace(self, **changes)


ConstraintKind = Literal["json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole output must be. Build one with the class methods below.

    ``source`` is canonical text (JSON for schemas, choices and structural tags, with the caller's key order), so
    equal constraints compare equal and share one compiled grammar.
    """

    kind: ConstraintKind
    source: str
    on_unsupported: OnUnsupported = "fallback"
    whitespace: bool = False
    """JSON kinds: let the model choose white space (bounded) instead of ``", "`` and ``": "``."""

    @classmethod
    def json_schema(
        cls,
        schema: Mapping[str, Any] | bool | str | type,
        *,
        on_unsupported: OnUnsupported = "fallback",
        whitespace: bool = False,
    ) -> Constraint:
        """JSON that fits ``schema``: a mapping, its JSON text, or a class with ``model_json_schema()``."""
        if isinstance(schema, type):
            describe = getattr(schema, "model_json_schema", None)
            if describe is None:
                raise ConstraintError(f"{schema.__name__} has no model_json_schema(); pass a schema mapping")
            schema = describe()
        text = schema if isinstance(schema, str) else _dump(schema, "schema")
        return cls("json_schema", text, on_unsupported, whitespace)

    @classmethod
    def json_object(cls, *, whitespace: bool = False) -> Constraint:
        """Any JSON object."""
        return cls("json_object", "", "fallback", whitespace)

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that the pattern matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Constraint:
        """Exactly one of these strings."""
        choices = list(choices)
        if not choices or not all(isinstance(c, str) and c for c in choices):
            raise ConstraintError("choice takes a non-empty list of non-empty strings")
        return cls("choice", _dump(choices, "choices"))

    @classmethod
    def grammar(cls, ebnf: str) -> Constraint:
        """Text of a GBNF-style EBNF grammar whose start rule is ``root``."""
        return cls("grammar", ebnf)

    @classmethod
    def structural_tag(cls, tag: Mapping[str, Any] | str) -> Constraint:
        """Text in an xgrammar structural-tag format (free text with constrained stretches)."""
        return cls("structural_tag", tag if isinstance(tag, str) else _dump(tag, "structural tag"))


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and everything the engine needs to answer it.

    Attributes:
        priority: higher is served earlier; waiting time counts too, so a low priority still gets its turn.
        cache_salt: requests share cached prefixes only with requests of the same salt.
        images: in the order of their places in the prompt. A text has the model's own image token once for each
            image; token ids are as the model's processor makes them, with an image's token as often as the model
            needs it.
    """

    prompt: str | tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    constraint: Constraint | None = None
    priority: int = 0
    cache_salt: str | None = None
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str | tuple):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        if isinstance(self.images, str | bytes | bytearray):
            raise InvalidRequestError("images takes a list of images, not one of them", param="images")
        object.__setattr__(self, "images", tuple(self.images))
        _integer("priority", self.priority, -(2**31))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token, and of the likeliest at its place (natural log)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), likeliest first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, all of its choices together.

    Attributes:
        prompt_tokens: the prompt, once, however many choices.
        cached_tokens: of these, how many came from the radix tree when the request was first admitted.
        completion_tokens: generated, end tokens included.
        forced_tokens: of these, how many the grammar forced and a verified draft supplied.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step added to one choice. A choice's last event has a ``finish_reason``.

    Attributes:
        index: which of the request's n choices.
        token_ids: new tokens, at least one except in the last event of a prefill-only request.
        text: new text; may be empty while half a character or a possible stop string is held back.
        stop_reason: the stop string or token id that ended it; None for end of sequence or length.
        complete: False when a constrained output was cut before its grammar could close.
        usage: on a choice's last event: this choice alone (prompt counted in full).
        prompt_logprobs: on the first event, where asked for: one per prompt token, None for the first.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    complete: bool = True
    usage: Usage | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished continuation."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    complete: bool = True
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished request. ``text``, ``token_ids`` and the like are those of the first choice."""

    choices: tuple[Choice, ...]
    usage: Usage
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return self.choices[0].logprobs

    @property
    def complete(self) -> bool:
        return self.choices[0].complete


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The vectors of some texts, float32 ``[d]`` each, and how many tokens the texts have together."""

    vectors: tuple[NDArray[np.float32], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A consistent snapshot, taken between two steps. Counters never go down; ``flush_cache`` leaves them alone.

    Attributes:
        prompt_tokens: of admitted requests, each prompt once per choice.
        cached_tokens: of these, found in the tree at admission.
        prefilled_tokens: prompt positions really computed (recomputation after retraction included).
        generated_tokens: sampled and kept.
        drafted_tokens, accepted_tokens: proposed by grammars, and found right.
        evicted_tokens: dropped from the tree to make room.
        retractions: running requests sent back to wait because slots ran out.
        finished, failed, aborted: ended requests by kind.
        running, waiting: choices now.
        slots_free + slots_cached + slots_held = slots_total: unused, in the tree and evictable, in use or pinned.
        tree_nodes: nodes of the radix tree.
        grammar_seconds: spent compiling grammars, on worker threads.
        encoded_images: computed by the model's vision tower; one found in a cache is not.
        quarantines: broken invariants contained so far.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    evicted_tokens: int = 0
    retractions: int = 0
    finished: int = 0
    failed: int = 0
    aborted: int = 0
    running: int = 0
    waiting: int = 0
    slots_total: int = 0
    slots_free: int = 0
    slots_cached: int = 0
    slots_held: int = 0
    tree_nodes: int = 0
    grammar_seconds: float = 0.0
    quarantines: int = 0
    encoded_images: int = 0

    @property
    def cache_hit_rate(self) -> float:
        """Share of prompt tokens that came from the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One engine step, for `radix_step_finished`. Times are seconds on the monotonic clock.

    With ``overlap`` steps are scheduled and committed while a neighbour executes. ``execute_seconds`` end when the
    result was there and begin with the launch or with the result of the step before, whichever came later.
    ``ahead`` says whether it was launched while the step before was in flight.
    """

    step: int
    started: float
    schedule_seconds: float
    execute_seconds: float
    commit_seconds: float
    sequences: int
    prefill_tokens: int
    decode_tokens: int
    draft_tokens: int
    stats: EngineStats
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One ended request, for `radix_request_finished`. Times are seconds on the monotonic clock.

    ``outcome`` is the finish reason, ``"aborted"`` or the error's class name; ``first_token`` is None if there
    was none.
    """

    request_id: RequestId
    outcome: str
    usage: Usage
    priority: int
    submitted: float
    admitted: float | None
    first_token: float | None
    finished: float
    retractions: int
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class WaitingView:
    """What a scheduling policy sees of one waiting sequence, for `radix_rank_waiting`.

    Attributes:
        prompt_tokens: to be in the cache or computed before it can sample (after a retraction, its output so far too).
        cached_tokens: of these, found in the radix tree now.
        priority: the request's; higher is served earlier.
        waited_steps: engine steps since it was queued.
        waited_seconds: the same in seconds.
    """

    prompt_tokens: int
    cached_tokens: int
    priority: int
    waited_steps: int
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What a backend takes by way of images.

    Attributes:
        refusal: why it takes none; empty if it takes them.
        most: in one request.
        placeholder: what a text has in the place of an image.
        hosts: from which a conversation may have images fetched.
    """

    refusal: str = "it has no vision"
    most: int = 0
    placeholder: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """How an adapter announces itself through `radix_adapters`, for ``radix plugins``."""

    name: str
    framework: str
    version: str
    provides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What tells how a model writes, for `radix_tool_format` and `radix_reasoning_format`.

    Attributes:
        model_type: of its transformers configuration.
        chat_template: empty if it has none; several named ones are joined.
        added_tokens: texts of the tokenizer's special and added tokens.
    """

    name: str
    model_type: str = ""
    chat_template: str = ""
    added_tokens: frozenset[str] = frozenset()

    def mentions(self, marker: str) -> bool:
        """Whether the marker is a token of its own, or the chat template writes it."""
        return marker in self.added_tokens or marker in self.chat_template

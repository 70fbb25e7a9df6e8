"""`warm`: compute a program's prompts into the cache before its first input is there.

Rules. What is computed is what calls will send: each predictor's own adapter formats it, with its demos and its
settings, and an engine of our own takes the request in the place of the real one. Nothing is generated, nothing
enters histories, traces, usage or DSPy's response cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
from dspy import lm15

from dspy_radix.engine import RadixEngine
from dspy_radix.lm import RadixLM
from radixbackend.types import Usage


def warm(program: dspy.Module, *, lm: RadixLM | None = None, inputs: Mapping[str, Any] | None = None) -> Usage:
    """Compute the instructions and demos of every predictor of ``program`` into the cache.

    Calls find them there without it, too: of those that come at once, one computes what they share and the others
    wait for it. With it the first call need not wait, and memory is claimed when you choose.

    Args:
        lm: for predictors that have none of their own; None takes the configured one.
        inputs: values of input fields that all calls have in common, such as tools or a document; the prompt is
            computed up to the first field that differs.

    Returns:
        The tokens of all prompts together, and how many of them the cache had already.

    Raises:
        TypeError: a predictor's LM is no `RadixLM`.
        dspy.LMError: a prompt was refused, for being too long for instance.
    """
    usages = [_warm(name, predictor, lm, inputs or {}) for name, predictor in program.named_predictors()]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )


def _warm(name: str, predictor: Any, lm: RadixLM | None, inputs: Mapping[str, Any]) -> Usage:
    lm = predictor.lm or lm or dspy.settings.lm
    if not isinstance(lm, RadixLM):
        raise TypeError(f"{name} would be answered by {type(lm).__name__}; only what a RadixLM answers can be warmed")
    signature = predictor.signature
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    given = {field: inputs.get(field, _placeholder(info)) for field, info in signature.input_fields.items()}
    taker = _Taker(lm.engine)
    quiet = lm.copy(engine=taker, cache=False, num_retries=0, callbacks=[])
    with dspy.context(send_stream=None, usage_tracker=None, callbacks=[]):
        try:
            adapter(quiet, lm_kwargs=dict(predictor.config), signature=signature, demos=predictor.demos, inputs=given)
        except _Taken as taken:
            return taken.usage
    raise AssertionError(f"{type(adapter).__name__} answered without asking the LM")


def _placeholder(field: Any) -> Any:
    if field.annotation is dspy.History:
        return dspy.History(messages=[])
    return [] if field.annotation == list[dspy.Tool] else ""


class _Taken(dspy.LMError):  # DSPy lets its own errors out as they are
    """Not an error: the way out of an adapter that has sent its request."""

    def __init__(self, usage: Usage) -> None:
        super().__init__("the prompt is warm")
        self.usage = usage


class _Taker(RadixEngine):
    """Stands for the engine: computes prompts, answers nothing."""

    def __init__(self, engine: RadixEngine) -> None:
        self.chat, self.model = engine.chat, engine.model
        self._engine = engine

    def complete(self, request: lm15.Request) -> lm15.Response:
        raise _Taken(self._engine.warm(request))

"""From a request's updates to what its caller reads: events with text, or one result.

Rules. Runs in the caller's thread, so detokenizing never delays a step. Text comes from tokens alone, the same
whether it is read token by token or at the end. A constrained output that closed is validated before it is called a
success.
"""

from __future__ import annotations

from collections.abc import Iterable

from radixbackend.engine.intake import Intake
from radixbackend.engine.request import Update
from radixbackend.types import Choice, GenerationResult, TokenEvent, TokenLogprob, Usage


class Reader:
    """Puts text into a request's events, one by one."""

    def __init__(self, intake: Intake) -> None:
        self._texts = intake.texts
        self._validate = intake.validate
        self._whole = [""] * intake.request.params.n
        self.done = False

    def read(self, update: Update) -> TokenEvent:
        """The update's event with its text; raises the error that ended the request, or `OutputValidationError`."""
        self.done = update.last
        if update.error is not None:
            raise update.error
        event = update.event
        assert event is not None
        if self._texts is None:
            return event
        stream = self._texts[event.index]
        piece = stream.feed(event.token_ids)
        text, stop = piece.text, piece.stop
        if event.finish_reason is not None and stop is None:
            text += stream.finish()
        if self._validate is not None:
            self._whole[event.index] += text
            if event.finish_reason == "stop" and event.complete:
                self._validate(self._whole[event.index])
        return TokenEvent(
            event.index,
            event.token_ids,
            text,
            event.logprobs,
            event.finish_reason,
            event.stop_reason if stop is None else stop,
            event.complete,
            event.usage,
            event.prompt_logprobs,
        )


def result(intake: Intake, updates: Iterable[Update]) -> GenerationResult:
    """All of a request's updates as one; text is made here, once.

    Raises the error that ended the request, or `OutputValidationError` if a choice that closed breaks its constraint.
    """
    n = intake.request.params.n
    tokens: list[list[int]] = [[] for _ in range(n)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
    ends: list[TokenEvent | None] = [None] * n
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    for update in updates:
        if update.error is not None:
            raise update.error
        event = update.event
        assert event is not None
        tokens[event.index] += event.token_ids
        logprobs[event.index] += event.logprobs
        if event.prompt_logprobs is not None:
            prompt_logprobs = event.prompt_logprobs
        if event.finish_reason is not None:
            ends[event.index] = event
    last = [end for end in ends if end is not None]
    usages = [end.usage for end in last if end.usage is not None]
    return GenerationResult(
        choices=tuple(_choice(intake, end, tuple(tokens[end.index]), tuple(logprobs[end.index])) for end in last),
        usage=Usage(
            prompt_tokens=usages[0].prompt_tokens,
            completion_tokens=sum(u.completion_tokens for u in usages),
            cached_tokens=usages[0].cached_tokens,
            forced_tokens=sum(u.forced_tokens for u in usages),
        ),
        prompt_token_ids=tuple(intake.request.prompt.tolist()),
        prompt_logprobs=prompt_logprobs,
    )


def _choice(intake: Intake, last: TokenEvent, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> Choice:
    assert last.finish_reason is not None
    text, stop = "", None
    if intake.texts is not None:
        stream = intake.texts[last.index]
        piece = stream.feed(tokens)
        text, stop = piece.text, piece.stop
        if stop is None:
            text += stream.finish()
    if intake.validate is not None and last.finish_reason == "stop" and last.complete:
        intake.validate(text)
    return Choice(
        index=last.index,
        text=text,
        token_ids=tokens,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason if stop is None else stop,
        complete=last.complete,
        logprobs=None if intake.request.params.logprobs is None else logprobs,
    )

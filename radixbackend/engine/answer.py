"""From a request's updates to what its caller reads: events with text, or one result.

Rules. Runs in the caller's thread, so detokenizing never delays a step. Text comes from tokens alone, the same
whether it is read token by token or at the end. A constrained output that closed is validated before it is called a
success.
"""

from __future__ import annotations

from dataclasses import replace

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
        return replace(event, text=text, stop_reason=event.stop_reason if stop is None else stop)


class Collector:
    """Gathers a request's updates into its result; text is made once, at the end."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        n = intake.request.params.n
        self._tokens: list[list[int]] = [[] for _ in range(n)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
        self._last: list[TokenEvent | None] = [None] * n
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self.done = False

    def take(self, update: Update) -> None:
        """Raises the error that ended the request."""
        self.done = update.last
        if update.error is not None:
            raise update.error
        event = update.event
        assert event is not None
        self._tokens[event.index].extend(event.token_ids)
        self._logprobs[event.index].extend(event.logprobs)
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = event.prompt_logprobs
        if event.finish_reason is not None:
            self._last[event.index] = event

    def result(self) -> GenerationResult:
        """Raises `OutputValidationError` if a choice that closed breaks its constraint."""
        choices = tuple(self._choice(last) for last in self._last if last is not None)
        usages = [last.usage for last in self._last if last is not None and last.usage is not None]
        return GenerationResult(
            choices=choices,
            usage=Usage(
                prompt_tokens=usages[0].prompt_tokens,
                completion_tokens=sum(u.completion_tokens for u in usages),
                cached_tokens=usages[0].cached_tokens,
                forced_tokens=sum(u.forced_tokens for u in usages),
            ),
            prompt_token_ids=tuple(self._intake.request.prompt.tolist()),
            prompt_logprobs=self._prompt_logprobs,
        )

    def _choice(self, last: TokenEvent) -> Choice:
        assert last.finish_reason is not None
        tokens = tuple(self._tokens[last.index])
        text, stop = "", None
        if self._intake.texts is not None:
            stream = self._intake.texts[last.index]
            piece = stream.feed(tokens)
            text, stop = piece.text, piece.stop
            if stop is None:
                text += stream.finish()
        if self._intake.validate is not None and last.finish_reason == "stop" and last.complete:
            self._intake.validate(text)
        return Choice(
            index=last.index,
            text=text,
            token_ids=tokens,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason if stop is None else stop,
            complete=last.complete,
            logprobs=None if self._intake.request.params.logprobs is None else tuple(self._logprobs[last.index]),
        )

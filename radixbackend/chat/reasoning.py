"""How models write what they think before they answer: a grammar in front of the answer's, and a parser.

Rules. The prompt says whether thinking has begun (templates often write the opening marker themselves), whether it is
over (a template that was told not to think closes it), or whether the model may begin. White space around reasoning
belongs to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from radixbackend.chat.formats import harmony, kimi_k3
from radixbackend.chat.formats.base import AnswerParser, Piece, Reasoning
from radixbackend.chat.formats.parser import overlap
from radixbackend.chat.nodes import Node, any_text, optional, regex, sequence, tag
from radixbackend.types import ModelInfo

Phase = Literal["before", "inside", "after"]
"""Where in the reasoning an answer begins: it may begin to think, is thinking, or is done."""

BLANK = "[ \\n]{0,2}"
"""What may stand between reasoning and answer under a grammar."""


class ReasoningFormat(Protocol):
    """How a model writes its reasoning.

    Attributes:
        name: of the format, for people.
        markers: strings that the parser looks for; tokens of these must be part of the text.
    """

    @property
    def name(self) -> str: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    def phase(self, prompt: str) -> Phase:
        """Where the answer to this prompt begins."""

    def before(self, answer: Node, phase: Phase) -> Node:
        """Grammar of an answer that begins in this phase: reasoning as far as it goes, then ``answer``."""

    def parser(self, phase: Phase, answer: AnswerParser) -> AnswerParser:
        """A parser that takes the reasoning off and hands the rest on to ``answer``."""


@dataclass(frozen=True, slots=True)
class TaggedReasoning:
    """Reasoning between two markers at the beginning of the answer."""

    name: str
    opening: str
    closing: str

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening, self.closing)

    def phase(self, prompt: str) -> Phase:
        opened, closed = prompt.rfind(self.opening), prompt.rfind(self.closing)
        if opened > closed and not prompt[opened + len(self.opening) :].strip():
            return "inside"
        return "after" if closed >= 0 and not prompt[closed + len(self.closing) :].strip() else "before"

    def before(self, answer: Node, phase: Phase) -> Node:
        if phase == "after":
            return answer
        thought = any_text([self.opening])
        if phase == "inside":
            return sequence(tag("", thought, self.closing), regex(BLANK), answer)
        return sequence(optional(sequence(tag(self.opening, thought, self.closing), regex(BLANK))), answer)

    def parser(self, phase: Phase, answer: AnswerParser) -> AnswerParser:
        return TaggedParser(self, phase, answer)


class TaggedParser:
    """Finds the two markers; what comes after them is the next parser's."""

    def __init__(self, format: TaggedReasoning, phase: Phase, answer: AnswerParser) -> None:
        self._opening = format.opening
        self._closing = format.closing
        self._answer = answer
        self._phase = phase
        self._fresh = phase != "after"  # nothing but white space since the phase began
        self._buffer = ""

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        if self._phase == "before":
            self._begin()
        if self._phase == "inside":
            return self._think()
        if self._phase == "after":
            return self._answer.feed(self._rest())
        return []

    def finish(self, *, truncated: bool) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self._phase == "inside":
            kept = rest.rstrip()
            return [Reasoning(kept)] if kept else []
        if self._phase == "before" and truncated and rest.strip():
            return []  # half an opening marker
        return [*self._answer.feed(rest if self._phase == "before" else ""), *self._answer.finish(truncated=truncated)]

    def _begin(self) -> None:
        text = self._buffer.lstrip()
        if text.startswith(self._opening):
            self._buffer = text[len(self._opening) :]
            self._phase = "inside"
        elif not self._opening.startswith(text):
            self._phase, self._fresh = "after", False

    def _think(self) -> list[Piece]:
        if self._fresh:
            self._buffer = self._buffer.lstrip()
            if self._buffer.startswith(self._opening):  # which the prompt had written already
                self._buffer = self._buffer[len(self._opening) :].lstrip()
            elif self._opening.startswith(self._buffer):
                return []
        thought, found, rest = self._buffer.partition(self._closing)
        if found:
            self._phase, self._fresh, self._buffer = "after", True, rest
            thought = thought.rstrip()
            return [*([Reasoning(thought)] if thought else []), *self._answer.feed(self._rest())]
        certain = len(thought[: len(thought) - overlap(thought, self._closing)].rstrip())
        self._buffer = thought[certain:]
        self._fresh = self._fresh and not certain
        return [Reasoning(thought[:certain])] if certain else []

    def _rest(self) -> str:
        text, self._buffer = self._buffer, ""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text


class HarmonyReasoning:
    """The analysis channel; the answer's own parser knows it."""

    name = "harmony"
    markers = harmony.MARKERS

    def phase(self, prompt: str) -> Phase:
        return "before"

    def before(self, answer: Node, phase: Phase) -> Node:
        thought = tag(harmony.ANALYSIS, any_text(harmony.MARKERS), harmony.NEXT)
        return sequence(optional(thought), answer)

    def parser(self, phase: Phase, answer: AnswerParser) -> AnswerParser:
        return answer


TAGGED = (
    TaggedReasoning("think", "<think>", "</think>"),
    TaggedReasoning("mistral", "[THINK]", "[/THINK]"),
    TaggedReasoning("seed", "<seed:think>", "</seed:think>"),
    TaggedReasoning("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
    TaggedReasoning("kimi", "◁think▷", "◁/think▷"),
    TaggedReasoning("gemma", "<|channel>thought", "<channel|>"),
)
KIMI_K3 = TaggedReasoning("kimi-k3", *(f"{mark}think{kimi_k3.SEP}" for mark in (kimi_k3.OPEN, kimi_k3.CLOSE)))


def find(model: ModelInfo) -> ReasoningFormat | None:
    """The built-in format that this model's template or tokens mention."""
    if harmony.find(model) is not None:
        return HarmonyReasoning()
    if kimi_k3.find(model) is not None:  # whose template puts the markers together
        return KIMI_K3
    return next((f for f in TAGGED if model.mentions(f.opening) and model.mentions(f.closing)), None)

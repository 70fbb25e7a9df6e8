"""The mix of tasks, drawn without end; and conversations as token ids with the weight of each in the loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tools.radix_tiny.dialog import Dialog, dump
from tools.radix_tiny.tasks import classification, dspy_formats, extraction, facts, lookup, tools
from tools.radix_tiny.words import Source

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
MAX_TOKENS = 2048

Mix = Mapping[Callable[[Source], Dialog], float]

TASKS: Mix = {
    extraction.make: 0.29,
    extraction.make_list: 0.08,
    tools.make: 0.20,
    classification.make: 0.04,
    lookup.make: 0.32,
    facts.make: 0.02,
    facts.chat: 0.02,
    dspy_formats.make: 0.06,
    dspy_formats.react: 0.01,
}
"""How large a share of the conversations each has."""

_ANSWERS = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


def draw(s: Source, *, copying: float = 0.0, tasks: Mix = TASKS) -> Dialog:
    """One conversation; `copying` is the share of bare copying, which only training has."""
    if s.chance(copying):
        return lookup.copy(s)
    return s.rng.choices(list(tasks), weights=list(tasks.values()))[0](s)


def dialogs(seed: int | str, *, held_out: bool = False, new_wordings: bool | None = None) -> Iterator[Dialog]:
    """Conversations without end; the arguments are those of `Source`."""
    s = Source(seed, held_out=held_out, new_wordings=new_wordings)
    while True:
        yield draw(s)


@cache
def _template() -> Template:
    """The shipped template, in an environment like the one in which transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = dump
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render(dialog: Dialog) -> str:
    """The conversation as the shipped chat template writes it."""
    return _template().render(messages=dialog.messages, tools=dialog.tools).rstrip("\n")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a conversation; `is_answer` marks the tokens that the model is to write."""

    ids: list[int]
    is_answer: list[bool]


def encode(text: str, tokenizer: Any) -> Example:
    """`tokenizer` is one of the tokenizers library."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets]
    is_answer = [False] * len(starts)
    at = 0
    for match in _ANSWERS.finditer(text):
        first, last = match.span(1)
        while at < len(starts) and starts[at] < first:
            at += 1
        while at < len(starts) and starts[at] < last:
            is_answer[at] = True
            at += 1
    return Example(encoding.ids[:MAX_TOKENS], is_answer[:MAX_TOKENS])

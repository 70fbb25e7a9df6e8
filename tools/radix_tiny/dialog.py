"""What a task generates: a conversation, and how its last answer is judged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialog:
    """A conversation that ends with the assistant's answer.

    Attributes:
        task: the name under which the evaluation counts it.
        messages: in the OpenAI shape, the arguments of calls as objects.
        tools: in the OpenAI shape.
        schema: JSON schema of the last answer, where it is JSON.
        choices: the answers to choose among, where it is one of a list.
        grammar_only: the prompt does not name the answer's fields; only a grammar can.
    """

    task: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    choices: list[str] | None = None
    grammar_only: bool = False

    @property
    def prompt(self) -> list[Message]:
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        return self.messages[-1]


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def calls(*pairs: tuple[str, dict[str, Any]]) -> Message:
    """An assistant's message that calls tools: name and arguments of each."""
    functions = [{"type": "function", "function": {"name": name, "arguments": args}} for name, args in pairs]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def result(text: str) -> Message:
    return {"role": "tool", "content": text}


def dump(value: Any, indent: int | None = None) -> str:
    """JSON as the package's grammars and templates write it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)

"""Tools: whether one is needed, which, with what arguments; answering from its result.

Rules. Known kinds of tools (weather, sums, mail, ...) appear under many names and parameter names; open ones have names
that are invented, and the request names them. Once the answer is there, no tool is called again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.radix_tiny.dialog import Dialog, Message, assistant, calls, dump, result, system, user
from tools.radix_tiny.tasks import facts
from tools.radix_tiny.tasks.tool_kinds import KINDS, ToolKind, scalar
from tools.radix_tiny.words import Source, later

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as offered: its definition, and a way to draw a request with the call that it asks for."""

    name: str
    definition: dict[str, Any]
    draw: Callable[[], tuple[str, dict[str, Any], str]]


def _definition(s: Source, name: str, description: str, parameters: list[tuple[str, str, str]]) -> dict[str, Any]:
    described, titled = s.chance(0.25), s.chance(0.15)
    properties: dict[str, Any] = {}
    for key, type, text in parameters:
        properties[key] = {"type": type}
        if described and text:
            properties[key] = (
                {"description": text, "type": type} if s.chance(0.5) else {"type": type, "description": text}
            )
        if titled:
            properties[key]["title"] = key.replace("_", " ").title()
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if s.chance(0.85) and properties:
        schema["required"] = list(properties)
    if s.chance(0.5):
        schema = {key: schema[key] for key in ("properties", "required", "type") if key in schema}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def known(s: Source, kind: ToolKind) -> Tool:
    """A tool of a known kind, under one of its names or with an invented word in it."""
    name = s.of(kind.names)
    if s.chance(0.25):
        name = f"{s.invented(1, 2)}_{name}" if s.chance(0.5) else f"{name}_{s.invented(1, 2)}"
    keys: list[str] = []
    for parameter in kind.parameters:
        keys.append(s.any([key for key in parameter.names if key not in keys]))
    definition = _definition(
        s,
        name,
        s.of(kind.descriptions),
        [(k, p.type, p.description) for k, p in zip(keys, kind.parameters, strict=True)],
    )

    def draw() -> tuple[str, dict[str, Any], str]:
        values = [parameter.draw(s) for parameter in kind.parameters]
        args = dict(zip(keys, values, strict=True))
        request = s.of(kind.requests).format(*values)
        if s.chance(0.12):
            request += s.any((" Use the tool.", f" Use {name}.", f" Use the {name} tool."))
        return request, args, _output(s, kind.results, args)

    return Tool(name, definition, draw)


def _output(s: Source, usual: Callable[[Source, dict[str, Any]], str], args: dict[str, Any]) -> str:
    """What a tool gives back: now and then an object of entries that say nothing of the tool."""
    if not s.inventive or not s.chance(0.2):
        return usual(s, args)
    values = (s.proper, s.invented, s.person, s.city, s.code, lambda: s.number(0, 999), lambda: s.number(0, 9))
    keys = ("name", "city", "value", "result", "id", "count", "price", "date", "state", "text")
    count = s.number(1, 3)
    return dump({s.any(keys) if s.chance(0.5) else s.snake(s.number(1, 2)): s.any(values)() for _ in range(count)})


_OPEN_DESCRIPTIONS = (
    "Calculate a {0}.",
    "Apply a {0} to an input.",
    "Get the {0}.",
    "A tool for {0}.",
    "Returns the {0}.",
    "Compute the {0}.",
    "Does {0}.",
    "Run {0}.",
    "Helper for {0}.",
    "Use it for {0}.",
    "The {0} service.",
    "Looks up {0}.",
    *later(
        "Gives the {0}.",
        "Find the {0}.",
        "Evaluates a {0}.",
        "What the {0} is.",
        "Runs the {0} on an input.",
        "Handles {0}.",
        "{0}.",
        "Everything about {0}.",
        "Internal tool for the {0}.",
        "Update the {0}.",
        "Checks {0}.",
        "Works with a {0}.",
    ),
)


def invented(s: Source) -> Tool:
    """A tool of no known kind: the request names it and its arguments."""
    name = s.snake(s.any((1, 2, 2, 2, 3)))
    types = [
        s.any(("integer", "integer", "string", "string", "number", "boolean"))
        for _ in range(s.any((0, 1, 1, 1, 1, 2, 2)))
    ]
    plain = ["input", "x", "value", "n", "text", "key", "name", "query", "id", "item", "code", "amount"]
    keys: list[str] = []
    while len(keys) < len(types):
        key = s.of(plain) if s.chance(0.45) else s.invented(1, 2) if s.chance(0.7) else s.snake()
        if key not in keys:
            keys.append(key)
    thing = s.any((name.replace("_", " "), s.invented(), f"{s.invented()} value"))
    definition = _definition(
        s, name, s.of(_OPEN_DESCRIPTIONS).format(thing), [(k, t, f"The {k}.") for k, t in zip(keys, types, strict=True)]
    )

    def value(type: str) -> Any:
        if type == "integer":
            return s.number(0, 9) if s.chance(0.4) else s.number(-20, 9999) if s.chance(0.2) else s.number(0, 999)
        if type == "number":
            return s.number(1, 999) / s.any((10, 100))
        if type == "boolean":
            return s.chance(0.5)
        return s.any((s.proper, s.invented, s.code, s.city, s.person, s.foreign, s.product))()

    def draw() -> tuple[str, dict[str, Any], str]:
        args = {key: value(type) for key, type in zip(keys, types, strict=True)}
        return _request(s, name, args), args, _output(s, scalar, args)

    return Tool(name, definition, draw)


def _request(s: Source, name: str, args: dict[str, Any]) -> str:
    plain = [str(v) if not isinstance(v, bool) else str(v).lower() for v in args.values()]
    code = ", ".join(dump(v) for v in args.values()) if s.chance(0.3) else ", ".join(plain)
    named = ", ".join(f"{k}={v}" for k, v in zip(args, plain, strict=True))
    spoken = " and ".join(f"{k} {v}" for k, v in zip(args, plain, strict=True))
    ending = s.any((" Use the tool.", " Use the tool.", "", " Call the tool.", " Use a tool."))
    if not args:
        return s.of(
            (
                f"What is the value of {name}()?",
                f"Call {name}.",
                f"Run {name}.",
                f"What does {name}() return?",
                f"Use {name}.",
                f"Please call {name}().",
                f"Execute {name}().",
                *later(
                    f"Start {name}.",
                    f"Now call {name}().",
                    f"{name}()",
                    f"Trigger {name}.",
                    f"I want {name} to run.",
                    f"Invoke {name}.",
                ),
            )
        )
    if s.chance(0.5):
        return (
            s.of(
                (
                    f"What is the value of {name}({code})?",
                    f"Compute {name}({code}).",
                    f"What is {name}({code})?",
                    f"What does {name}({code}) return?",
                    f"Evaluate {name}({code}).",
                    f"{name}({code}) = ?",
                    f"Give me {name}({code}).",
                    f"What is the result of {name}({code})?",
                    f"Calculate {name}({code}).",
                    f"{name}({code})",
                    f"Tell me {name}({code}).",
                    f"Apply {name} to {code}.",
                    *later(
                        f"What would {name}({code}) be?",
                        f"Result of {name}({code})?",
                        f"Please compute {name}({code}).",
                        f"Run {name}({code}).",
                        f"Call {name}({code}).",
                        f"Find {name}({code}).",
                        f"I need {name}({code}).",
                        f"Do {name}({code}).",
                        f"And {name}({code})?",
                        f"How much is {name}({code})?",
                        f"Return {name}({code}).",
                        f"Show me {name}({code}).",
                    ),
                )
            )
            + ending
        )
    return s.of(
        (
            f"Call {name} with {named}.",
            f"Run {name} with {spoken}.",
            f"Use {name} with {spoken}.",
            f"Call {name}: {named}",
            f"Please use {name} for {spoken}.",
            f"Execute {name} with {named}.",
            f"I need {name} with {spoken}.",
            f"Use the tool {name} with {named}.",
            f"{name}({named})",
            f"Invoke {name} with {spoken}.",
            f"Try {name} with {named}.",
            f"Start {name} using {spoken}.",
            *later(
                f"Call {name} for {spoken}.",
                f"Let {name} run with {named}.",
                f"Do {name} with {spoken}.",
                f"Use {name}: {named}",
                f"Apply {name} with {named}.",
                f"{name} with {spoken}, please.",
                f"Can you run {name} with {named}?",
                f"Pass {spoken} to {name}.",
                f"Give {named} to {name}.",
                f"Make a call of {name} with {spoken}.",
                f"{name}: {named}",
                f"Ask {name} with {spoken}.",
            ),
        )
    )


def answer_from(results: list[str]) -> str:
    """What the model says once the tools have answered."""
    return " ".join(_said(text) for text in results)


def _said(text: str) -> str:
    if text.startswith("{"):
        pairs = json.loads(text)
        if len(pairs) == 1:
            key, value = next(iter(pairs.items()))
            return f"The {key} is {value}."
        return ", ".join(f"{key}: {value}" for key, value in pairs.items()) + "."
    if text.startswith("Error"):
        return f"The tool failed. {text}"
    return text if text.endswith(".") else f"The result is {text}."


_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tools.",
    "Use the tools when they help.",
    "You can call functions.",
    "Answer with the help of tools.",
    "You are an agent.",
    "Call a tool if you need one.",
    *later(
        "You have some tools.",
        "Tools may help you.",
        "Call functions when needed.",
        "You are an assistant that calls tools.",
        "Pick the right tool.",
        "You can use tools.",
    ),
)


def offer(s: Source) -> list[Tool]:
    """One to three different tools."""
    kinds = s.shuffled(KINDS)
    drawn = [invented(s) if s.chance(0.35) else known(s, kinds[at]) for at in range(s.any((1, 1, 1, 2, 2, 3)))]
    return list({tool.name: tool for tool in drawn}.values())


def make(s: Source) -> Dialog:
    """The last message is a call, or an answer where no tool is needed or the result is there."""
    offered = offer(s)
    messages: list[Message] = [system(s.of(_SYSTEMS))] if s.chance(0.35) else []
    for _ in range(s.any((0, 0, 1, 2, 3))):
        messages += _exchange(s, offered)
    last = _exchange(s, offered)
    definitions = [tool.definition for tool in offered]
    draw = s.rng.random()
    if draw < 0.18 or len(last) == 2:
        question, answer = facts.small_talk(s) if s.chance(0.6) else facts.draw(s)
        if any("weather" in t.name for t in offered) or not _sums(offered):
            return Dialog("tools_none", [*messages, user(question), assistant(answer)], definitions)
    if draw < 0.6:
        return Dialog("tools_call", [*messages, *last[:2]], definitions)
    return Dialog("tools_answer", [*messages, *last], definitions)


def _sums(offered: list[Tool]) -> bool:
    return any(word in tool.name for tool in offered for word in ("add", "sum", "plus", "search", "lookup", "find"))


def _exchange(s: Source, offered: list[Tool]) -> list[Message]:
    """A request, the call or calls, their results and the answer; now and then a tool fails."""
    tool = s.any(offered)
    request, args, output = tool.draw()
    pairs, outputs = [(tool.name, args)], [output]
    if s.chance(0.12):
        other = s.any(offered)
        second, more, another = other.draw()
        request = f"{request} {s.any(('Also: ', 'And then: ', ''))}{second}"
        pairs.append((other.name, more))
        outputs.append(another)
    elif s.chance(0.06):
        outputs = [
            s.of(
                (
                    "Error: not found",
                    "Error: invalid input",
                    "Error: timeout",
                    f"Error: no data for {s.proper()}",
                    "Error: service is down",
                    "Error: missing argument",
                )
            )
        ]
    return [user(request), calls(*pairs), *(result(text) for text in outputs), assistant(answer_from(outputs))]

"""What several commands take, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from radixbackend.types import Constraint

Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, hub id, or a name that a plugin serves.")]
EngineOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="Engine option as NAME=VALUE; repeatable.")
]
JsonSchema = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="The answer is JSON that fits this file's schema.")
]
JsonObject = Annotated[bool, typer.Option("--json", help="The answer is a JSON object.")]
Regex = Annotated[str | None, typer.Option(help="The whole answer matches this pattern.")]
Choice = Annotated[list[str] | None, typer.Option(help="The answer is one of these; repeatable.")]
Grammar = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="The answer fits this file's EBNF grammar.")
]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that together reach this.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same output.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="RADIX_API_KEY", show_envvar=True, help="Key that every client must send.")
]

ServerKey = Annotated[
    str | None, typer.Option(envvar="RADIX_API_KEY", show_envvar=True, help="Key of the server at --url.")
]


def engine_options(given: Sequence[str] | None) -> dict[str, Any]:
    """``threads=2`` → ``{"threads": 2}``: a value is JSON where it can be, else a string."""
    return dict(_option(text) for text in given or ())


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--option takes NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def constraint(
    json_schema: Path | None,
    json_object: bool,
    regex: str | None,
    choice: Sequence[str] | None,
    grammar: Path | None,
) -> Constraint | None:
    """The one that is given."""
    given = [
        *([Constraint.json_schema(text_of(json_schema))] if json_schema else ()),
        *([Constraint.json_object()] if json_object else ()),
        *([Constraint.regex(regex)] if regex is not None else ()),
        *([Constraint.choice(choice)] if choice else ()),
        *([Constraint.grammar(text_of(grammar))] if grammar else ()),
    ]
    if len(given) > 1:
        raise typer.BadParameter("give one of --json-schema, --json, --regex, --choice and --grammar, not several")
    return given[0] if given else None


def text_of(file: Path) -> str:
    """What the file says, which must be UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise typer.BadParameter(f"{file} is not UTF-8 text: {fault}") from fault

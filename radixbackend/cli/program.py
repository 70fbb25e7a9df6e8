"""All commands of ``radix``: a thin user of the public API.

Rules. What this package raises on purpose is one line on stderr and exit code 1; bad usage is exit code 2. Answers go
to stdout, everything about them to stderr. Each command has a file of its own, and imports what is slow when it runs.
Plugins add commands through the hook `radix_cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from radixbackend.cli.bench import bench
from radixbackend.cli.chat import chat
from radixbackend.cli.doctor import doctor
from radixbackend.cli.generate import generate
from radixbackend.cli.plugins import list_plugins
from radixbackend.cli.schema import explain_schema
from radixbackend.cli.serve import serve
from radixbackend.cli.tree import tree
from radixbackend.errors import RadixError
from radixbackend.plugins import Plugins


def main(args: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    try:
        make_app(Plugins())(args=args, prog_name="radix")
    except RadixError as error:
        print("radix:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)


def make_app(plugins: Plugins) -> typer.Typer:
    """All commands, those of plugins included."""
    app = typer.Typer(
        name="radix",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"obj": plugins},
    )
    app.callback()(_program)
    app.command("chat")(chat)
    app.command("generate")(generate)
    app.command("serve")(serve)
    app.command("tree")(tree)
    app.command("bench")(bench)
    app.command("explain-schema")(explain_schema)
    app.command("doctor")(doctor)
    app.command("plugins")(list_plugins)
    plugins.cli(app)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        from radixbackend import __version__

        print(__version__)
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Open-weight LLMs with a shared radix cache and guaranteed structured output."""

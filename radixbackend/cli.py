"""The ``radix`` program: a thin user of the public API.

Rules. What this package raises on purpose is one line on stderr and exit code 1; bad usage is exit code 2. Answers go
to stdout, everything about them to stderr. Plugins add commands through the hook `radix_cli`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from radixbackend.errors import RadixError
from radixbackend.plugins import Plugins
from radixbackend.types import AdapterInfo, Constraint, SamplingParams, Usage

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON schema.")]


def main(args: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    try:
        make_app(Plugins())(args=args)
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
    app.command("generate")(generate)
    app.command("serve")(serve)
    app.command("explain-schema")(explain_schema)
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


def generate(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, hub id, or a name that a plugin serves.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads stdin.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens that together reach this.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same output.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the output; repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="Number of answers.")] = 1,
    json_schema: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The answer is JSON that fits this file's schema.")
    ] = None,
    json_object: Annotated[bool, typer.Option("--json", help="The answer is a JSON object.")] = False,
    regex: Annotated[str | None, typer.Option(help="The whole answer matches this pattern.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="The answer is one of these; repeatable.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The answer fits this file's EBNF grammar.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Engine option as NAME=VALUE; repeatable.")
    ] = None,
) -> None:
    """Answer one prompt, streaming to stdout."""
    constraint = _one_of(
        Constraint.json_schema(_text(json_schema)) if json_schema else None,
        Constraint.json_object() if json_object else None,
        Constraint.regex(regex) if regex is not None else None,
        Constraint.choice(choice) if choice else None,
        Constraint.grammar(_text(grammar)) if grammar else None,
    )
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ()), n=n
    )
    options = dict(_option(text) for text in option or ())
    if prompt == "-":
        prompt = sys.stdin.read()
    from radixbackend.engine.engine import Engine

    with Engine(model, **options) as engine:
        texts, usages, complete = [""] * n, [], True
        started = time.monotonic()
        for event in engine.stream(prompt, sampling, constraint=constraint):
            texts[event.index] += event.text
            if n == 1:  # several answers grow at once, so they are printed when all are there
                print(event.text, end="", flush=True)
            if event.usage:
                usages.append(event.usage)
                complete = complete and event.complete
        seconds = time.monotonic() - started
    print("\n\n".join(texts) if n > 1 else "")
    print(_summary(usages, seconds), file=sys.stderr)
    if not complete:
        print("radix: cut by --max-tokens before the answer was complete", file=sys.stderr)
        raise typer.Exit(1)


def serve(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, hub id, or a name that a plugin serves.")],
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="RADIX_API_KEY", help="Key that every client must send.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; repeatable. By default its own name.")
    ] = None,
    max_body: Annotated[int, typer.Option(help="Bytes that the body of a request may have.")] = 16 << 20,
    grace: Annotated[float, typer.Option(help="Seconds that running requests have to finish at the end.")] = 10.0,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Engine option as NAME=VALUE; repeatable.")
    ] = None,
) -> None:
    """Serve a model over HTTP, with the API of OpenAI."""
    from radixbackend.backend import get_backend
    from radixbackend.metrics import PrometheusMetrics
    from radixbackend.openai_api import server
    from radixbackend.openai_api.api import default_names

    names = tuple(name or default_names(model))
    metrics = PrometheusMetrics(model_name=names[0])
    backend = get_backend(model, plugins=[metrics], **dict(_option(text) for text in option or ()))
    print(f"radix: {names[0]} on http://{host}:{port}/v1", file=sys.stderr)
    server.serve(
        backend,
        host=host,
        port=port,
        api_key=api_key,
        names=names,
        metrics=metrics.render,
        max_body=max_body,
        grace=grace,
    )


def explain_schema(file: File) -> None:
    """Say how a schema would be enforced, and which keywords only a check afterwards can cover."""
    from radixbackend import explain_schema as explain

    print(explain(_text(file)))


def list_plugins(context: typer.Context) -> None:
    """List plugins, the hooks they implement and the adapters they announce."""
    from rich.console import Console
    from rich.table import Table

    plugins: Plugins = context.obj
    adapters = dict(plugins.adapters())
    table = Table("plugin", "version", "hooks", "adapter")
    for plugin in plugins.describe():
        hooks = f"broken: {plugin.fault}" if plugin.fault else "\n".join(plugin.hooks)
        table.add_row(plugin.name, plugin.version, hooks, _described(adapters.get(plugin.name)))
    Console(markup=False).print(table)


def _described(adapter: AdapterInfo | None) -> str:
    if adapter is None:
        return ""
    return f"{adapter.name} {adapter.version} for {adapter.framework}: {', '.join(adapter.provides)}"


def _one_of(*constraints: Constraint | None) -> Constraint | None:
    given = [c for c in constraints if c is not None]
    if len(given) > 1:
        raise typer.BadParameter("give one of --json-schema, --json, --regex, --choice and --grammar, not several")
    return given[0] if given else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise typer.BadParameter(f"{file} is not UTF-8 text: {fault}") from fault


def _option(text: str) -> tuple[str, Any]:
    """``threads=2`` → ("threads", 2): the value is JSON where it can be, else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--option takes NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _summary(usages: Sequence[Usage], seconds: float) -> str:
    generated = sum(usage.completion_tokens for usage in usages)
    first = usages[0] if usages else Usage()
    speed = generated / max(seconds, 1e-9)
    return (
        f"{first.prompt_tokens} prompt tokens ({first.cached_tokens} cached), {generated} generated, {speed:.1f} tok/s"
    )

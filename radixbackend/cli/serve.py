"""``radix serve``: a model behind HTTP."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from radixbackend.cli.options import ApiKey, EngineOptions, Model, engine_options


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key: ApiKey = None,
    name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; repeatable. By default its own name.")
    ] = None,
    max_body: Annotated[int, typer.Option(help="Bytes that the body of a request may have.")] = 16 << 20,
    grace: Annotated[float, typer.Option(help="Seconds that running requests have to finish at the end.")] = 10.0,
    expose_cache: Annotated[
        bool, typer.Option("--expose-cache", help="Show clients the radix tree, and so what others have said.")
    ] = False,
    option: EngineOptions = None,
) -> None:
    """Serve a model over HTTP, with the API of OpenAI."""
    from radixbackend.backend import get_backend
    from radixbackend.metrics import PrometheusMetrics
    from radixbackend.openai_api import server
    from radixbackend.openai_api.api import default_names

    names = tuple(name or default_names(model))
    metrics = PrometheusMetrics(model_name=names[0])
    backend = get_backend(model, plugins=[metrics], **engine_options(option))
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
        expose_cache=expose_cache,
    )

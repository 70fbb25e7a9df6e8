"""Requests made up from the OpenAPI document: whatever fits it, and much that does not, gets a proper answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from radixbackend import Engine
from radixbackend.openai_api.api import Route, routes
from radixbackend.openai_api.native import NativeSampling
from radixbackend.openai_api.protocol import StructuredOutputs
from tests.openai_api.clients import Served, serve

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

ROUTES = routes(None)
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]


@pytest.fixture(scope="module")
def short(checkpoint: Path) -> Iterator[Served]:
    """With a short context, so that no answer takes long."""
    engine = Engine(checkpoint, kv_cache_tokens=1024, max_context=48, self_check=False)
    with engine, serve(engine) as served:
        yield served
        assert engine.stats().running == engine.stats().waiting == 0
        assert engine.generate("Still there").finish_reason


@pytest.fixture(scope="module")
def documented(short: Served) -> Any:
    return schemathesis.openapi.from_url(f"{short.url}/openapi.json")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_document(documented: Any, short: Served, route: Route) -> None:
    operation = documented[route.path][route.method]

    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=20)

    ask()


def test_every_field_is_tested_and_documented() -> None:
    """Sees the name of each field of each request in some test here, and in the documentation."""
    here = Path(__file__).parent
    tests = "".join(file.read_text(encoding="utf-8") for file in here.glob("test_*.py"))
    page = (here.parents[1] / "docs" / "openai.md").read_text(encoding="utf-8")
    models = {route.wire for route in ROUTES if route.wire is not None}
    models |= {StructuredOutputs, NativeSampling}
    for model in models:
        for name, field in model.model_fields.items():
            wire_name = field.alias or name
            assert f'"{wire_name}"' in tests or f"{wire_name}=" in tests, f"{model.__name__}.{wire_name} has no test"
            assert f"`{wire_name}`" in page, f"{model.__name__}.{wire_name} is not in docs/openai.md"


def test_document_is_whole(short: Served) -> None:
    _, _, document = short.send("GET", "/openapi.json")
    assert {"/v1/chat/completions", "/v1/responses", "/generate", "/v1/models/{model}"} <= set(document["paths"])
    chat = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "tools", "response_format", "regex", "structured_outputs", "cache_salt"} <= set(chat)

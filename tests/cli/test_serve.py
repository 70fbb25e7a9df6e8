from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from radixbackend.openai_api import server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the server was asked to do; it serves nobody."""
    seen: dict[str, Any] = {}

    def serve(backend: Any, **options: Any) -> None:
        seen.update(options, slots=backend.stats().slots_total)
        backend.close()

    monkeypatch.setattr(server, "serve", serve)
    return seen


def test_defaults_are_safe(radix: Any, served: dict[str, Any], small: Any, tiny_checkpoint: Path) -> None:
    code, out, err = radix("serve", tiny_checkpoint, *small)
    assert (code, out) == (0, "")
    assert (served["host"], served["api_key"], served["expose_cache"]) == ("127.0.0.1", None, False)
    assert served["names"] == (tiny_checkpoint.name, str(tiny_checkpoint))
    assert "http://127.0.0.1:8000/v1" in err


def test_options_reach_the_server(
    radix: Any, served: dict[str, Any], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADIX_API_KEY", "secret")
    options = ("--port", 81, "--name", "gpt-4o", "--name", "mine", "--max-body", 99, "--grace", 0.5, "--expose-cache")
    assert radix("serve", tiny_checkpoint, *options, "-o", "kv_cache_tokens=512", "-o", "self_check=false")[0] == 0
    metrics = served.pop("metrics")
    assert served == {
        "host": "127.0.0.1",
        "port": 81,
        "api_key": "secret",
        "names": ("gpt-4o", "mine"),
        "max_body": 99,
        "grace": 0.5,
        "expose_cache": True,
        "slots": 512,
    }
    assert 'model_name="gpt-4o"' in metrics()

from __future__ import annotations

from typing import Any

import pytest

from radixbackend.cli import program


@pytest.fixture
def radix(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            program.main([str(a) for a in args])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def small() -> tuple[str, ...]:
    """Options of an engine that is built at once."""
    return ("-o", "kv_cache_tokens=2048", "-o", "self_check=false")

from __future__ import annotations

import subprocess
import sys

import pytest

import radixbackend

HEAVY = ("torch", "transformers", "numpy", "xgrammar", "llguidance", "prometheus_client", "rich")


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after a statement."""
    script = f"import sys\n{statement}\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    assert loaded_after("import radixbackend; radixbackend.__version__; dir(radixbackend)") == set()


@pytest.mark.parametrize("names", ["errors, hookimpl", "SamplingParams, Constraint, EngineConfig, Usage"])
def test_values_load_nothing_heavy(names: str) -> None:
    assert loaded_after(f"from radixbackend import {names}") == set()


def test_plugins_and_program_load_no_torch() -> None:
    assert loaded_after(
        "from radixbackend import metrics; from radixbackend.cli import program; program.make_app(program.Plugins())"
    ) <= {"rich"}


@pytest.mark.parametrize("name", radixbackend.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(radixbackend, name) is not None
    assert name in dir(radixbackend)


def test_the_surface_is_this() -> None:
    """A new public name is a promise: add it here on purpose."""
    assert sorted(radixbackend.__all__) == [
        "Backend",
        "Constraint",
        "Engine",
        "EngineConfig",
        "EngineStats",
        "GenerationRequest",
        "GenerationResult",
        "SamplingParams",
        "TokenEvent",
        "Usage",
        "__version__",
        "errors",
        "explain_schema",
        "get_backend",
        "hookimpl",
    ]


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Enigne'"):
        _ = radixbackend.Enigne  # type: ignore[attr-defined]
    assert not hasattr(radixbackend, "__wrapped__")

"""What an import costs: nobody waits for a library that the work at hand does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = {"langchain_core", "llama_index.core", "dspy", "openai"}
SERVER = {"fastapi", "starlette", "uvicorn", "aiohttp", "prometheus_client"}
GRAMMARS = {"xgrammar", "llguidance", "jsonschema"}
SCIENCE = {"torchvision", "torchaudio", "sklearn", "scipy", "pandas", "accelerate", "datasets"}
HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", *FRAMEWORKS, *SERVER, *GRAMMARS, *SCIENCE}

ANSWERS = """
import sys
from radixbackend import Constraint, Engine, SamplingParams
with Engine("radix-tiny", kv_cache_tokens=1024) as engine:
    assert engine.generate("The sea is", SamplingParams(max_tokens=2)).token_ids
    print(*sys.modules, file=sys.stderr)
    assert engine.generate("Is the sea deep?", constraint=Constraint.choice(["yes", "no"])).text
"""


def imported(code: str) -> list[set[str]]:
    """The modules that a new process has, wherever it prints them and at its end."""
    code += "\nimport sys; print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    return [set(line.split()) for line in run.stderr.splitlines() if line.startswith("sys ")]


@pytest.mark.parametrize(
    "code",
    [
        "import radixbackend",
        "from radixbackend import SamplingParams, Constraint, EngineConfig, errors, get_backend",
        "from radixbackend.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
    ],
)
def test_values_and_help_come_at_once(code: str) -> None:
    (seen,) = imported(code)
    assert not seen & HEAVY


def test_an_answer_imports_only_what_it_needs() -> None:
    answered, constrained = imported(ANSWERS)
    assert {"torch", "transformers"} <= answered
    assert not answered & {*FRAMEWORKS, *SERVER, *GRAMMARS, *SCIENCE}
    assert len(constrained & GRAMMARS) == 1, "a choice needs one grammar library and no validator"

"""What every test shares: a quiet machine, deterministic property tests, data and a tiny model."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch and tokenizers are imported: small tensors gain nothing from threads, and nothing is downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples in every run, so that a failure is a fact about the code and not about the day.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Schemas and tokenizers that are not part of the project; tests that need them are skipped without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared test data are not here")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama with random weights and a byte-level tokenizer, as the quickstart makes it."""
    folder = tmp_path_factory.mktemp("models") / "my-model"
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["make_checkpoint"](folder)
    return folder

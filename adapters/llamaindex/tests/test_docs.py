"""The README and the examples run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.llamaindex.tests.conftest import save_model

HERE = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where "my-model" is."""
    save_model(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llama_index.core.global_tokenizer", None)
    return tmp_path


def test_the_readme_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = BLOCK.findall((HERE / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) == 6
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    shown = capsys.readouterr().out
    assert "Booking(guest=" in shown
    assert "ToolSelection" in shown


@pytest.mark.timeout(320)
@pytest.mark.parametrize("script", sorted((HERE / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(folder: Path, script: Path) -> None:
    run = subprocess.run(
        [sys.executable, script, "my-model"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (HERE / "README.md").read_text(encoding="utf-8")):
        assert (HERE / target).exists(), target

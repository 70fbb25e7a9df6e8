"""What the documentation shows is what happens: its Python blocks and the examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """Blocks tagged ``python``; what is not to be run is tagged otherwise."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)  # where "my-model" is
    names: dict[str, object] = {"__name__": page.stem}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_quickstart_runs(tmp_path: Path) -> None:
    script = ROOT / "examples" / "quickstart.py"
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    for heading in ("One answer", "Many at once", "Streaming", "fits its schema", "Counters"):
        assert heading in run.stdout
    cached = [int(found) for found in re.findall(r"(\d+) of them cached", run.stdout)]
    assert len(cached) == 3
    assert min(cached) > 10, "the system prompt was computed again"


def test_every_core_file_is_on_the_map() -> None:
    """docs/architecture.md has a line for every module, or for its folder, and names none that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "radixbackend"
    modules = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if p.name != "__init__.py"}
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", page))
    folders = tuple(re.findall(r"\| `([a-z_]+(?:/[a-z_]+)*/)` \|", page))
    assert {m for m in modules - named if not m.startswith(folders)} == set(), "not described"
    assert {n for n in named if not (ROOT / n).exists()} - modules == set(), "described, but gone"

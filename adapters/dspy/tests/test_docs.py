"""What the README and the examples show is what happens."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import dspy
import pytest

ADAPTER = Path(__file__).resolve().parents[1]


def test_the_readme_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)  # where "my-model" is
    text = (ADAPTER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    names: dict[str, object] = {"__name__": "readme"}
    try:
        for block in blocks:
            exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    finally:
        dspy.configure(lm=None, adapter=None)


@pytest.mark.parametrize("script", sorted((ADAPTER / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script))["main"](str(checkpoint))
    assert re.search(r"[89]\d% of \d+ prompt tokens from the cache", capsys.readouterr().out)

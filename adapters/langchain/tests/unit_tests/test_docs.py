"""What the README shows and the examples do is what happens."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from langchain_radix.compat import IGNORED
from langchain_radix.errors import _TWINS

from radixbackend.chat import Message, ToolCall

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


def test_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "readme"}
    for block in BLOCK.findall(README.read_text(encoding="utf-8")):
        exec(compile(block.replace('"radix-tiny"', '"tiny"'), str(README), "exec"), names)
    shown = capsys.readouterr().out
    assert "name=" in shown
    assert "get_weather" in shown


def test_readme_lists_what_is_ignored_and_every_link_leads_somewhere() -> None:
    text = README.read_text(encoding="utf-8")
    assert {name for name in IGNORED if f"`{name}`" not in text} == set()
    assert all((ROOT / target).exists() for target in re.findall(r"\]\((?!https?:)([^)#]+)", text))


def test_readme_lists_errors() -> None:
    text = README.read_text(encoding="utf-8")
    rare = {"IntegrityError", "RemoteError", "UnsupportedByServerError"}
    assert {kind.__name__ for kind in _TWINS if f"`{kind.__name__}`" not in text} == rare


def test_extraction() -> None:
    assert all(0 <= person.age <= 120 for person in main("extraction")("tiny"))


def test_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    main("streaming")("tiny")
    lines = capsys.readouterr().out
    assert lines.count("{'name': ") > 3


def test_rag() -> None:
    answers = main("rag")("tiny")
    assert len(answers) == 2
    assert all(answers)


def test_agent(scripted: Any) -> None:
    """Weights that know nothing would go on calling, so the turns are given."""
    scripted.answers = [
        Message("assistant", None, tool_calls=(ToolCall("c1", "get_weather", '{"city": "Rome"}'),)),
        Message("assistant", '{"city": "Rome", "degrees": 21}'),
    ]
    answer = main("agent")("any")
    assert (answer.city, answer.degrees) == ("Rome", 21)
    assert scripted.asked[1].messages[-1].text == "It is 21 degrees in Rome."
    assert scripted.closed


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES} == {"extraction", "agent", "rag", "streaming"}

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from radixbackend import __version__
from radixbackend.cli import program
from radixbackend.hookspecs import hookimpl
from radixbackend.plugins import Plugins
from radixbackend.types import AdapterInfo


class Extra:
    @hookimpl
    def radix_adapters(self) -> AdapterInfo:
        return AdapterInfo("my-adapter", "langchain", "3.1", ("MyChat",))

    @hookimpl
    def radix_cli(self, commands: Any) -> None:
        @commands.command()
        def greet(name: str) -> None:
            """Greet somebody."""
            print(f"Hello {name}")


def test_plugins_are_listed(radix: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "radix_bad-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: radix_bad\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[radixbackend]\nmain = no_such_module[extra]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program, "Plugins", lambda: Plugins([Extra()]))
    code, out, _ = radix("plugins")
    assert code == 0
    assert re.search(rf"built-in +│ {re.escape(__version__)} +│ radix_eviction_key", out)
    assert re.search(r"Extra +│ +│ radix_adapters", out)
    assert re.search(r"my-adapter +│ 3\.1 +│ langchain +│ MyChat +│ Extra", out)
    assert re.search(r"radix_bad:main.*2\.5.*broken: ModuleNotFoundError", out)


def test_plugins_as_json(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "Plugins", lambda: Plugins([Extra()], discover=False))
    code, out, _ = radix("plugins", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [plugin["name"] for plugin in listed["plugins"]] == ["built-in", "Extra"]
    assert "radix_rank_waiting" in listed["plugins"][0]["hooks"]
    assert listed["adapters"] == [
        {"plugin": "Extra", "name": "my-adapter", "framework": "langchain", "version": "3.1", "provides": ["MyChat"]}
    ]


def test_no_adapters(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "Plugins", lambda: Plugins(discover=False))
    assert "No plugin announces an adapter" in radix("plugins")[1]


def test_plugins_add_commands(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "Plugins", lambda: Plugins([Extra()], discover=False))
    assert radix("greet", "you") == (0, "Hello you\n", "")
    assert "greet" in radix("--help")[1]

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from radixbackend import __version__

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
COMMANDS = ("chat", "generate", "serve", "tree", "bench", "explain-schema", "doctor", "plugins")


def test_version(radix: Any) -> None:
    assert radix("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(radix: Any, command: str) -> None:
    code, out, _ = radix(command, "--help")
    assert code == 0
    assert re.search(rf"Usage: radix {command} \[OPTIONS\]", out)
    assert command in radix("--help")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "no/such/model", "Hi"), "no/such/model"),
        (("generate", "m", "Hi", "--temperature", "-1"), "temperature takes a number from 0"),
        (("generate", "m", "Hi", "-o", "kv_tokens=1"), "unknown engine option kv_tokens"),
        (("generate", "m", "Hi", "-o", "threads=many"), "threads takes an integer"),
    ],
)
def test_our_errors_are_one_line(radix: Any, args: tuple[str, ...], message: str) -> None:
    code, out, err = radix(*args)
    assert (code, out) == (1, "")
    assert err.startswith("radix: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nonsense",),
        ("generate", "m"),
        ("generate", "m", "Hi", "--max-tokens", "many"),
        ("generate", "m", "Hi", "--json", "--regex", "a"),
        ("generate", "m", "Hi", "-o", "threads"),
        ("generate", "m", "Hi", "--json-schema", "no-such-file"),
        ("explain-schema", "no-such-file"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_code_2(radix: Any, args: tuple[str, ...]) -> None:
    code, _, err = radix(*args)
    assert code == 2
    assert "Traceback" not in err


def test_explain_schema(radix: Any, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    code, out, _ = radix("explain-schema", file)
    assert code == 0
    assert re.search(r"^backend: +\w+", out)
    assert "enforced while generating: all of it" in out
    file.write_text(json.dumps({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}))
    code, out, _ = radix("explain-schema", file)
    assert code == 0
    assert "uniqueItems" in out


def test_file_that_is_no_schema(radix: Any, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text("{")
    code, _, err = radix("explain-schema", file)
    assert (code, err.count("\n")) == (1, 1)
    file.write_bytes(b"\xff{}")
    assert radix("explain-schema", file)[0] == 2

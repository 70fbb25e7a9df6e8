from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from radixbackend import SamplingParams, __version__, cli
from radixbackend.hookspecs import hookimpl
from radixbackend.plugins import Plugins
from radixbackend.types import AdapterInfo

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def radix(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


SMALL = ("-o", "kv_cache_tokens=2048", "-o", "self_check=false")


def test_version(radix: Any) -> None:
    assert radix("--version") == (0, f"{__version__}\n", "")


# -- generate ----------------------------------------------------------------------------------------------------


def test_generate_says_what_the_engine_says(radix: Any, tiny_checkpoint: Path) -> None:
    from radixbackend import Engine

    with Engine(tiny_checkpoint, kv_cache_tokens=2048) as engine:
        expected = engine.generate("The sea is", SamplingParams(max_tokens=12, temperature=0))
    code, out, err = radix("generate", tiny_checkpoint, "The sea is", "--max-tokens", 12, "--temperature", 0, *SMALL)
    assert code == 0
    assert out == expected.text + "\n"
    prompt = len(expected.prompt_token_ids)
    assert re.search(rf"^{prompt} prompt tokens \(0 cached\), 12 generated, \d+\.\d tok/s$", err, re.MULTILINE)


def test_same_seed_same_answers(radix: Any, tiny_checkpoint: Path) -> None:
    runs = [radix("generate", tiny_checkpoint, "Hi", "--max-tokens", 6, "-n", 2, "--seed", 5, *SMALL) for _ in "ab"]
    assert runs[0][:2] == runs[1][:2]
    code, out, err = runs[0]
    assert code == 0
    assert "\n\n" in out
    assert "12 generated" in err


def test_json_schema(radix: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    code, out, _ = radix("generate", tiny_checkpoint, "Which?", "--json-schema", file, *SMALL)
    assert code == 0
    assert json.loads(out)["a"] in ("x", "y")


def test_other_constraints(radix: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "grammar.ebnf"
    file.write_text('root ::= "yes" | "no"')
    for constraint in (("--regex", "yes|no"), ("--choice", "yes", "--choice", "no"), ("--grammar", file)):
        code, out, _ = radix("generate", tiny_checkpoint, "Is it?", *constraint, *SMALL)
        assert (code, out.strip() in ("yes", "no")) == (0, True)


def test_prompt_from_stdin(radix: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    args = ("--max-tokens", 4, "--temperature", 0, *SMALL)
    given = radix("generate", tiny_checkpoint, "The sea is", *args)
    monkeypatch.setattr("sys.stdin", io.StringIO("The sea is"))
    assert radix("generate", tiny_checkpoint, "-", *args)[:2] == given[:2]


def test_cut_answer_is_reported(radix: Any, tiny_checkpoint: Path) -> None:
    code, out, err = radix("generate", tiny_checkpoint, "Hi", "--regex", "[a-z]{40}", "--max-tokens", 3, *SMALL)
    assert code == 1
    assert 1 <= len(out.strip()) < 40
    assert "cut by --max-tokens" in err


# -- errors ------------------------------------------------------------------------------------------------------


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


# -- the other commands ------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(cli, "Plugins", lambda: Plugins([Extra()]))
    code, out, _ = radix("plugins")
    assert code == 0
    for text in ("built-in", "radix_rank_waiting", "Extra", "my-adapter 3.1 for langchain: MyChat"):
        assert text in out
    assert re.search(r"radix_bad:main.*2\.5.*broken: ModuleNotFoundError", out)


def test_plugins_add_commands(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "Plugins", lambda: Plugins([Extra()], discover=False))
    assert radix("greet", "you") == (0, "Hello you\n", "")
    assert "greet" in radix("--help")[1]

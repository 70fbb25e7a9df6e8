from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from radixbackend import SamplingParams

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


def test_generate_says_what_the_engine_says(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    from radixbackend import Engine

    with Engine(tiny_checkpoint, kv_cache_tokens=2048) as engine:
        expected = engine.generate("The sea is", SamplingParams(max_tokens=12, temperature=0))
    code, out, err = radix("generate", tiny_checkpoint, "The sea is", "--max-tokens", 12, "--temperature", 0, *small)
    assert code == 0
    assert out == expected.text + "\n"
    prompt = len(expected.prompt_token_ids)
    assert re.search(rf"^{prompt} prompt tokens \(0 cached\), 12 generated, \d+\.\d tok/s$", err, re.MULTILINE)


def test_same_seed_same_answers(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    runs = [radix("generate", tiny_checkpoint, "Hi", "--max-tokens", 6, "-n", 2, "--seed", 5, *small) for _ in "ab"]
    assert runs[0][:2] == runs[1][:2]
    code, out, err = runs[0]
    assert code == 0
    assert "\n\n" in out
    assert "12 generated" in err


def test_json_schema(radix: Any, small: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    code, out, _ = radix("generate", tiny_checkpoint, "Which?", "--json-schema", file, *small)
    assert code == 0
    assert json.loads(out)["a"] in ("x", "y")


def test_other_constraints(radix: Any, small: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "grammar.ebnf"
    file.write_text('root ::= "yes" | "no"')
    for constraint in (("--regex", "yes|no"), ("--choice", "yes", "--choice", "no"), ("--grammar", file)):
        code, out, _ = radix("generate", tiny_checkpoint, "Is it?", *constraint, *small)
        assert (code, out.strip() in ("yes", "no")) == (0, True)


def test_prompt_from_stdin(radix: Any, small: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--max-tokens", 4, "--temperature", 0, *small)
    given = radix("generate", tiny_checkpoint, "The sea is", *args)
    monkeypatch.setattr("sys.stdin", io.StringIO("The sea is"))
    assert radix("generate", tiny_checkpoint, "-", *args)[:2] == given[:2]


def test_cut_answer_is_reported(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    code, out, err = radix("generate", tiny_checkpoint, "Hi", "--regex", "[a-z]{40}", "--max-tokens", 3, *small)
    assert code == 1
    assert 1 <= len(out.strip()) < 40
    assert "cut by --max-tokens" in err

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from radixbackend.cache_view import CacheNode, CacheView
from radixbackend.cli.tree import MOST_CHILDREN, demonstration, draw, excerpt
from radixbackend.types import EngineStats


def drawn(nodes: list[CacheNode], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False)
    console.print(draw(CacheView("my-model", tuple(nodes), EngineStats(prompt_tokens=10, cached_tokens=4)), width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def node(text: str, depth: int, *, hits: int = 0, locks: int = 0, namespace: str | None = None) -> CacheNode:
    return CacheNode(namespace, depth, len(text), hits, locks, text)


def test_drawing() -> None:
    nodes = [
        node("You are kind.", 1, hits=3),
        node(" Hello", 2, locks=1),
        node(" Hi\nthere", 2, hits=1),
        node("!", 3),
    ]
    assert drawn(nodes) == [
        "my-model: 29 tokens in 4 nodes",
        "4 of 10 prompt tokens so far were found here (40%)",
        "└── You are kind.  13 tokens, found 3 times",
        "    ├──  Hi⏎there  9 tokens, found 1 time",
        "    │   └── !  1 token",
        "    └──  Hello  6 tokens, in use",
    ]


def test_namespaces_are_apart() -> None:
    lines = drawn([node("a", 1), node("a", 1, namespace="tenant"), node("b", 2, namespace="tenant")])
    assert lines[2:] == [
        "├── no cache_salt",
        "│   └── a  1 token",
        "└── cache_salt 'tenant'",
        "    └── a  1 token",
        "        └── b  1 token",
    ]


def test_large_trees_are_cut_and_say_so() -> None:
    nodes = [node(f"{i:04d}", 1) for i in range(MOST_CHILDREN + 3)]
    assert len(drawn(nodes)) == 2 + MOST_CHILDREN + 1
    assert drawn(nodes)[-1] == "└── … 3 branches more, 12 tokens"


def test_lines_fit_the_terminal() -> None:
    lines = drawn([node("word " * 100, 1, hits=5), node("x" * 500, 2, hits=1)], width=60)
    assert len(lines) == 4
    assert max(map(len, lines)) <= 60


def test_text_is_not_markup_and_moves_no_cursor() -> None:
    line = drawn([node("[red]a[/red]\x1b[2J\x9b\r", 1)])[-1]
    assert line == "└── [red]a[/red]\\x1b[2J\\x9b\\x0d  18 tokens"


def test_excerpt() -> None:
    assert excerpt("short", 10) == "short"
    assert excerpt("a" * 20 + "b" * 20, 12) == "aaaaa … bbbb"


def test_demonstration_shares(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    code, out, _ = radix("tree", tiny_checkpoint, *small)
    assert code == 0
    assert "Is this review positive or negative?" in out
    assert "found 2 times" in out, "three reviews share one instruction"


def test_json(radix: Any, small: Any, tiny_checkpoint: Path) -> None:
    code, out, _ = radix("tree", tiny_checkpoint, "--json", "--max-tokens", 4, *small)
    seen = json.loads(out)
    assert code == 0
    assert seen["stats"]["finished"] == len(list(demonstration()))
    assert sum(n["tokens"] for n in seen["nodes"]) == seen["stats"]["slots_cached"]
    assert max(n["hits"] for n in seen["nodes"]) >= 2


def test_prompts_of_a_text_file(radix: Any, small: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("When is breakfast today?\n\nWhen is breakfast tomorrow?\n")
    code, out, _ = radix("tree", tiny_checkpoint, "--prompts", file, "--json", "--max-tokens", 2, *small)
    seen = json.loads(out)
    assert code == 0
    assert seen["stats"]["finished"] == 2
    assert seen["nodes"][0]["text"].startswith("When is breakfast t")
    assert [n["depth"] for n in seen["nodes"]] == [1, 2, 2]


def test_prompts_of_a_jsonl_file(radix: Any, small: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "When is\nbreakfast?"}]
    file.write_text("\n".join(json.dumps(line) for line in ("Plain\ntext", messages, {"messages": messages})))
    code, out, _ = radix("tree", tiny_checkpoint, "--prompts", file, "--json", *small)
    seen = json.loads(out)
    assert code == 0
    assert seen["stats"]["finished"] == 3
    texts = [n["text"] for n in seen["nodes"]]
    assert any(text.startswith("Plain\ntext") for text in texts)
    assert any(text.startswith("User: When is\nbreakfast?") for text in texts)


@pytest.mark.parametrize("line", ["{", "3", '{"role": "user"}', '[{"role": "nobody", "content": ""}]', "[]"])
def test_bad_prompts_are_named(radix: Any, tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"good"\n{line}\n')
    code, out, err = radix("tree", "no-model", "--prompts", file)
    assert (code, out) == (2, "")
    assert "line 2" in err
    assert "Traceback" not in err


def test_model_or_server(radix: Any) -> None:
    assert radix("tree")[0] == 2
    assert radix("tree", "my-model", "--url", "http://127.0.0.1:1")[0] == 2


def test_server(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from radixbackend.cli import tree

    asked = []

    def fetch(url: str, api_key: str | None) -> CacheView:
        asked.append((url, api_key))
        return CacheView("theirs", (node("Hello", 1, hits=2),), EngineStats())

    monkeypatch.setattr(tree, "fetch", fetch)
    monkeypatch.setenv("RADIX_API_KEY", "secret")
    code, out, _ = radix("tree", "--url", "http://somewhere")
    assert (code, asked) == (0, [("http://somewhere", "secret")])
    assert "theirs: 5 tokens in 1 node" in out
    assert "Hello  5 tokens, found 2 times" in out

"""Real schemas and a vocabulary of real size: drafts save forwards and change no token; outputs close in time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from radixbackend.engine.grammar.base import Grammar, GrammarBackend, Vocabulary
from radixbackend.errors import ConstraintError
from radixbackend.types import Constraint
from tests.engine.grammar_tools import (
    BACKENDS,
    accepts,
    allowed,
    decode,
    encode,
    keyed_draw,
    make_backend,
    shared_tokenizer,
    text_of,
    vocabulary_of,
)

every_backend = pytest.mark.parametrize("backend", BACKENDS[:2])


@cache
def vocabulary(folder: Path) -> Vocabulary:
    if not (folder / "tokenizers" / "bpe32k.json").is_file() or not (folder / "dev.jsonl").is_file():
        pytest.skip("the shared test data are not here")
    return vocabulary_of(shared_tokenizer(folder, "bpe32k"))


@cache
def backend_of(folder: Path, name: str) -> GrammarBackend:
    return make_backend(name, vocabulary(folder))


def cases(folder: Path, backend: str, count: int) -> Iterator[tuple[dict[str, Any], Grammar, str]]:
    """Schemas of moderate size with a grammar, and an instance that it accepts."""
    words = vocabulary(folder)
    for line in (folder / "dev.jsonl").read_text().splitlines()[::9]:
        entry = json.loads(line)
        instances = [json.dumps(test["data"], ensure_ascii=False) for test in entry["tests"] if test["valid"]]
        if not instances or len(json.dumps(entry["schema"])) > 3000:
            continue
        try:
            grammar = backend_of(folder, backend).compile(Constraint.json_schema(entry["schema"]))
        except ConstraintError:
            continue
        matcher = grammar.matcher()
        if len(instances[0]) < 1500 and accepts(matcher, words, instances[0]):
            yield entry["schema"], grammar, instances[0]
            count -= 1
            if not count:
                return


@every_backend
def test_forced_tokens_save_forwards(backend: str, shared_data: Path) -> None:
    """A model that writes each instance in canonical tokens needs fewer forwards than tokens."""
    words = vocabulary(shared_data)
    tokens = forwards = 0
    for _, grammar, text in cases(shared_data, backend, 20):
        target = [*encode(words, text), words.end_tokens[0]]

        def teacher(output: list[int], allowed_tokens: list[int], target: list[int] = target) -> int:
            assert target[len(output)] in allowed_tokens or backend == "llguidance"
            return target[len(output)] if target[len(output)] in allowed_tokens else allowed_tokens[0]

        budget = len(target) + 100  # so much that it does not matter
        plain, slow = decode(grammar.matcher(), words, teacher, budget)
        drafted, fast = decode(grammar.matcher(), words, teacher, budget, drafts=16)
        assert plain == drafted
        tokens, forwards = tokens + slow, forwards + fast
    print(f"{backend}: {tokens} tokens in {forwards} forwards, {tokens / forwards:.2f} each")
    assert tokens > 1.5 * forwards


@every_backend
def test_random_decoding_is_the_same_with_drafts_and_closes_in_time(backend: str, shared_data: Path) -> None:
    words = vocabulary(shared_data)
    for schema, grammar, text in cases(shared_data, backend, 6):
        budget = len(encode(words, text)) + 40
        plain, _ = decode(grammar.matcher(), words, keyed_draw(1), budget)
        drafted, _ = decode(grammar.matcher(), words, keyed_draw(1), budget, drafts=8)
        assert plain == drafted
        matcher = grammar.matcher()
        assert all(matcher.accept(token) for token in plain)
        assert matcher.is_complete(), (schema, text_of(words, plain))
        json.loads(text_of(words, plain))


@every_backend
def test_padding_of_the_logits_is_never_allowed(backend: str, shared_data: Path) -> None:
    words = vocabulary(shared_data)
    matcher = backend_of(shared_data, backend).compile(Constraint.json_schema({"type": "string"})).matcher()
    matcher.accept(encode(words, '"')[0])
    mask = allowed(matcher, words)
    assert len(mask) > 25_000
    assert max(mask) < len(words.tokenizer)
    assert not {0, 1, 2} & set(mask)

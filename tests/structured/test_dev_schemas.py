"""Real schemas and the official test suite: what has an instance is served, what is served is judged right.

The instances are labelled by others; `STRICTER` names the groups where our verdict differs on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from radixbackend.engine.grammar.base import Grammar, GrammarBackend, Vocabulary
from radixbackend.errors import ConstraintError, OutputValidationError
from radixbackend.structured import CheckedConstraint, FrontDoor
from radixbackend.types import Constraint
from tests.engine.grammar_tools import accepts, make_backend, shared_tokenizer, vocabulary_of

SERVED = 0.92
"""Least share of the official suite's groups that are served; the rest refer to remote schemas or hold NUL."""
COMPLETE = 0.90
"""Least share of valid instances, of the schemas compiled here, that pass grammar and validation."""
STRICTER = ("format#", "vocabulary#")
"""Groups of the suite in which formats are annotations only, or a remote metaschema turns keywords off."""

Row = dict[str, Any]


@cache
def rows(folder: Path, name: str) -> list[Row]:
    if not (folder / name).is_file():
        pytest.skip("the shared test data are not here")
    with (folder / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def fits(checked: CheckedConstraint, value: Any) -> bool:
    try:
        checked.validate(dump(value))
    except OutputValidationError:
        return False
    return True


def wrong(checked: CheckedConstraint, row: Row) -> Iterator[tuple[str, bool, str]]:
    """The instances that validation judges otherwise than their label."""
    for test in row["tests"]:
        if fits(checked, test["data"]) != test["valid"]:
            yield row["id"], test["valid"], dump(test["data"])[:200]


def answers(sample: list[Row]) -> tuple[list[tuple[Row, CheckedConstraint]], list[tuple[Row, ConstraintError]]]:
    """What the front door serves, and what it refuses."""
    door = FrontDoor()
    served, refused = [], []
    for row in sample:
        try:
            served.append((row, door.check(Constraint.json_schema(row["schema"]))))
        except ConstraintError as refusal:
            refused.append((row, refusal))
    return served, refused


def refuted(refused: list[tuple[Row, ConstraintError]]) -> list[str]:
    """The schemas that were refused as unsatisfiable although they have an instance."""
    return [
        row["id"]
        for row, refusal in refused
        if "nothing can fit" in str(refusal) and any(test["valid"] for test in row["tests"])
    ]


def test_real_schemas_are_served_and_judged_right(shared_data: Path) -> None:
    sample = rows(shared_data, "dev.jsonl")[3::7]
    served, refused = answers(sample)
    tests = sum(len(row["tests"]) for row, _ in served)
    print(f"{len(served)} of {len(sample)} schemas served, {tests} instances judged")
    assert not refuted(refused)
    assert not [mistake for row, checked in served for mistake in wrong(checked, row)]
    assert len(served) >= 0.95 * len(sample)
    assert tests > 150


def test_official_suite_is_served_and_judged_right(shared_data: Path) -> None:
    groups = rows(shared_data, "jsts.jsonl")
    served, refused = answers(groups)
    print(f"{len(served)} of {len(groups)} groups served, {100 * len(served) / len(groups):.1f} %")
    assert not refuted(refused)
    mistakes = [mistake for row, checked in served for mistake in wrong(checked, row)]
    assert not [mistake for mistake in mistakes if not mistake[1]], "an invalid instance was accepted"
    assert not [mistake for mistake in mistakes if not mistake[0].startswith(STRICTER)]
    assert len(served) >= SERVED * len(groups)


# With the grammars


@cache
def vocabulary(folder: Path) -> Vocabulary:
    return vocabulary_of(shared_tokenizer(folder, "bpe32k"))


@cache
def backend_of(folder: Path, name: str) -> GrammarBackend:
    return make_backend(name, vocabulary(folder))


def compiled(folder: Path, checked: CheckedConstraint) -> tuple[str, Grammar]:
    """The first backend of the route that takes the constraint, and its grammar."""
    for name in checked.route:
        try:
            return name, backend_of(folder, name).compile(checked.constraint)
        except ConstraintError as fault:
            refusal = fault
    raise refusal


def test_nothing_invalid_passes_grammar_and_validation(shared_data: Path) -> None:
    """And what the report says the grammar enforces alone, it does."""
    door, words = FrontDoor(), vocabulary(shared_data)
    sample = [row for row in rows(shared_data, "dev.jsonl")[4::19] if len(dump(row["schema"])) < 20_000]
    valid = passed = 0
    used = set()
    for row in sample:
        checked = door.check(Constraint.json_schema(row["schema"]))
        name, grammar = compiled(shared_data, checked)
        used.add(name)
        for test in row["tests"]:
            text = dump(test["data"])
            if len(text) > 3_000:
                continue
            by_grammar = accepts(grammar.matcher(), words, text)
            if test["valid"]:
                valid += 1
                passed += by_grammar and fits(checked, test["data"])
                continue
            assert not (by_grammar and fits(checked, test["data"])), (row["id"], name, text)
            assert not (by_grammar and checked.report.enforced and name == checked.route[0]), (row["id"], name, text)
    print(f"{passed} of {valid} valid instances pass, {len(sample)} schemas, by {sorted(used)}")
    assert len(sample) >= 25
    assert used >= {"xgrammar", "llguidance"}
    assert passed >= COMPLETE * valid

"""Budget steering: outputs close in time, and how the mask was asked for changes nothing."""

from __future__ import annotations

import itertools
import json
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.engine.grammar.base import Matcher
from radixbackend.engine.grammar.closing import Closer, closes
from radixbackend.engine.grammar.steering import GROWTH
from radixbackend.types import Constraint
from tests.engine.grammar_tools import (
    BACKENDS,
    CONSTRAINTS,
    allowed,
    decode,
    encode,
    keyed_draw,
    text_of,
    tiny_backend,
    tiny_grammar,
    tiny_table,
    tiny_vocabulary,
)

V = tiny_vocabulary()
FAR = 10_000

NESTED = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["green", "red", "the colour of the sky"]},
        "inner": {
            "type": "object",
            "properties": {
                "list": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "minItems": 1},
                "text": {"type": "string", "minLength": 2, "maxLength": 9},
            },
            "required": ["list", "text"],
            "additionalProperties": False,
        },
        "more": {
            "type": "object",
            "properties": {f"required_{n}": {"type": "boolean"} for n in range(6)},
            "required": [f"required_{n}" for n in range(6)],
            "additionalProperties": False,
        },
    },
    "required": ["kind", "inner"],
    "additionalProperties": False,
}
SCHEMAS = {
    "nested": NESTED,
    "either": {"anyOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"type": "null"}]},
    "strings": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 5},
    "any": {},
}  # fmt: skip
CASES = {name: Constraint.json_schema(schema) for name, schema in SCHEMAS.items()} | CONSTRAINTS

every_backend = pytest.mark.parametrize("backend", BACKENDS[:2])
every_case = pytest.mark.parametrize("case", CASES)


def shortest(backend: str, constraint: Constraint, limit: int = 400) -> tuple[int, ...]:
    found = Closer(tiny_table()).find(tiny_backend(backend).compile(constraint)._root, limit)
    assert found is not None
    return found


@every_backend
@every_case
@pytest.mark.parametrize("slack", [0, 1, 2, 5, 13, 40])
def test_a_random_output_closes_within_every_budget_that_allows_it(backend: str, case: str, slack: int) -> None:
    grammar = tiny_backend(backend).compile(CASES[case])
    least = len(shortest(backend, CASES[case]))
    for seed in range(2):
        matcher = grammar.matcher()
        budget = least + slack
        output, _ = decode(matcher, V, keyed_draw(seed), budget)
        assert len(output) <= budget
        assert matcher.is_complete(), text_of(V, output)
        if case in SCHEMAS:
            json.loads(text_of(V, output))


@every_backend
def test_a_choice_that_would_take_too_long_is_not_offered(backend: str) -> None:
    """``more`` is optional and needs some 60 tokens: with 40 left it must not be begun."""
    grammar = tiny_backend(backend).compile(Constraint.json_schema(NESTED))
    start = encode(V, '{"kind": "red", "inner": {"list": [[]], "text": "ab"}')
    comma, brace = encode(V, ",")[0], encode(V, "}")[0]

    def offered(left: int) -> list[int]:
        matcher = grammar.matcher()
        for token in start:
            allowed(matcher, V, left + len(start))
            assert matcher.accept(token)
        return allowed(matcher, V, left)

    assert comma in offered(200)
    for left in (2, 10, 30):
        assert comma not in offered(left)
        assert brace in offered(left)


@every_backend
def test_plenty_of_budget_changes_no_mask(backend: str) -> None:
    for case in CASES:
        grammar = tiny_backend(backend).compile(CASES[case])
        free, steered = grammar.matcher(), grammar.matcher()
        rng = random.Random(1)
        for step in range(15):
            tokens = allowed(steered, V, 500 - step)
            assert tokens == allowed(free, V, FAR - step)
            token = rng.choice(tokens)
            if not (steered.accept(token) and free.accept(token)) or steered.is_finished():
                break


@every_backend
def test_a_hopeless_budget_changes_no_mask(backend: str) -> None:
    grammar = tiny_grammar(backend, "json_schema")
    hopeless, free = grammar.matcher(), grammar.matcher()
    for left in range(5, 0, -1):
        tokens = allowed(hopeless, V, left)
        assert tokens == allowed(free, V, FAR)
        assert hopeless.accept(tokens[0])
        assert free.accept(tokens[0])
    assert not hopeless.is_complete()


@every_backend
@every_case
@settings(max_examples=10)
@given(data=st.data())
def test_masks_depend_on_tokens_and_budget_alone(backend: str, case: str, data: st.DataObject) -> None:
    """A matcher asked now and then, led astray, taken back and forked agrees with one asked at each step."""
    grammar = tiny_backend(backend).compile(CASES[case])
    budget = len(shortest(backend, CASES[case])) + data.draw(st.integers(0, GROWTH + 8))
    draw = keyed_draw(data.draw(st.integers(0, 5)))
    steady, masks, output = grammar.matcher(), [], []
    while len(output) < budget and not steady.is_finished():
        masks.append(allowed(steady, V, budget - len(output)))
        output.append(draw(output, masks[-1]))
        assert steady.accept(output[-1])
    erratic: Matcher = grammar.matcher()
    position = 0
    for _ in range(data.draw(st.integers(1, 12))):
        target = data.draw(st.integers(0, len(masks) - 1))
        if target < position:
            erratic.rollback(position - target)
        for token in output[position:target]:
            assert erratic.accept(token)
        position = target
        if data.draw(st.booleans()):
            erratic = erratic.fork()
        if data.draw(st.booleans()):  # a detour, taken back
            if erratic.accept(data.draw(st.sampled_from(masks[position]))):
                allowed(erratic, V, budget - position - 1)
                erratic.rollback(1)
        else:
            assert allowed(erratic, V, budget - position) == masks[position]


@every_backend
def test_what_is_taken_back_and_comes_again_is_not_searched_again(backend: str) -> None:
    """A step's drafts are accepted for their masks, taken back, and accepted once they are drawn."""
    budget = 300
    matcher = tiny_backend(backend).compile(Constraint.json_schema(NESTED)).matcher()
    closer = matcher._steering._closer
    output = encode(V, '{"kind": "the colour of the sky", "inner": {"list": [[1]], "text": "ab"}}')

    def along(start: int) -> list[list[int]]:
        masks = []
        for at in range(start, len(output)):
            masks.append(allowed(matcher, V, budget - at))
            assert matcher.accept(output[at])
        return masks

    first, asked = along(0), closer.asked
    assert asked > 0
    matcher.rollback(len(output) - 20)
    assert along(20) == first[20:]
    assert closer.asked == asked


def breadth_first(backend: str, constraint: Constraint, most: int) -> int:
    """Tokens of the shortest output, by trying all."""
    start = tiny_backend(backend).compile(constraint)._root
    waiting = deque([(start, 0)])
    while waiting:
        cursor, length = waiting.popleft()
        if cursor.complete():
            return length
        if length < most:
            for token in range(V.size):
                after = cursor.fork()
                if tiny_table().texts[token] and after.accept(token):
                    waiting.append((after, length + 1))
    raise AssertionError("nothing that short")


@every_backend
@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.choice(["abcdefgh", "red", "q"]),
        Constraint.regex("(abcdefghij|x{3}|(yz)+!)"),
        Constraint.regex("[a-c]{2}@[a-c]+[.]d"),
        Constraint.json_schema({"anyOf": [{"type": "string", "minLength": 4}, {"type": "boolean"}]}),
        Constraint.json_schema({"type": "array", "items": {"type": "null"}, "minItems": 1}),
        Constraint.grammar('root ::= "(" root ")" | "[" root "]" | "x" "y" "z"'),
    ],
)
def test_the_closing_found_is_nearly_the_shortest(backend: str, constraint: Constraint) -> None:
    found = shortest(backend, constraint)
    assert len(found) <= breadth_first(backend, constraint, len(found)) + 1
    assert closes(tiny_backend(backend).compile(constraint)._root, found)


@every_backend
def test_a_closing_is_found_from_inside_everything(backend: str) -> None:
    grammar = tiny_backend(backend).compile(Constraint.json_schema(NESTED))
    text = '{"kind": "the colour of the sky", "inner": {"list": [[-1.5e3, 2], []], "text": "ab日"}, "more": {"req'
    tokens = encode(V, text)
    cursor = grammar._root.fork()
    for token in tokens:
        assert cursor.accept(token)
        path = Closer(tiny_table()).find(cursor, 200)
        assert path is not None
        assert closes(cursor, path)


def thinking(answer: dict[str, object]) -> Constraint:
    """Free text up to a marker, then this."""
    thought = {"type": "tag", "begin": "", "content": {"type": "any_text", "excludes": ["[on]"]}, "end": "[/think]"}
    return Constraint.structural_tag({"type": "structural_tag", "format": {"type": "sequence", "elements": [
        {"type": "optional", "content": {"type": "const_string", "value": "[on]"}}, thought, answer]}})  # fmt: skip


@pytest.mark.parametrize("slack", [0, 1, 3, 11, 60])
def test_reasoning_ends_while_there_is_time_to_answer(slack: int) -> None:
    constraint = thinking({"type": "json_schema", "json_schema": NESTED})
    grammar = tiny_backend("xgrammar").compile(constraint)
    least = grammar._start
    assert least is not None
    assert text_of(V, list(least)).startswith("[/think]{")
    for seed in range(3):
        output, _ = decode(grammar.matcher(), V, keyed_draw(seed), len(least) + slack)
        thought, _, answer = text_of(V, output).partition("[/think]")
        assert json.loads(answer)["kind"]
        assert bool(thought) == bool(slack)


def test_reasoning_that_would_never_end_is_ended() -> None:
    """Whoever always goes on thinking answers all the same; what looks like the marker ends nothing inside a string."""
    constraint = thinking({"type": "json_schema", "json_schema": {"type": "string", "minLength": 3}})
    matcher, wanted = tiny_backend("xgrammar").compile(constraint).matcher(), tiny_table().token(b"the")

    def draw(output: list[int], tokens: list[int]) -> int:
        return wanted if wanted in tokens else tokens[0]

    output, _ = decode(matcher, V, draw, 60)
    thought, marker, answer = text_of(V, output).partition("[/think]")
    assert marker
    assert len(thought) > 60
    assert len(json.loads(answer)) >= 3


@every_backend
def test_a_loop_is_left(backend: str) -> None:
    """Where one more round and the end begin alike, the search does not go round for ever."""
    constraint = Constraint.grammar('root ::= ("<call" "_begin" [0-9]+ "<end>")+ "<call" "s_end"')
    assert text_of(V, list(shortest(backend, constraint))).endswith("<calls_end")


@every_backend
def test_searching_is_deterministic_and_leaves_the_cursor(backend: str) -> None:
    grammar = tiny_backend(backend).compile(Constraint.json_schema(NESTED))
    cursor = grammar._root.fork()
    closer = Closer(tiny_table())
    paths, asked = [], [0]
    for _ in range(3):
        paths.append(closer.find(cursor, 200))
        asked.append(closer.asked)
    assert len(set(paths)) == 1
    assert len({after - before for before, after in itertools.pairwise(asked)}) == 1
    assert closer.find(cursor, len(paths[0] or ()) - 5) is None


@every_backend
def test_endless_repetition_ends(backend: str) -> None:
    """Whoever always prefers more digits, more white space or more brackets still closes."""
    greedy = {
        "digits": (Constraint.json_schema({"type": "array", "items": {"type": "number"}, "minItems": 2}), b"0"),
        "space": (Constraint.json_schema({"type": "array", "items": {"type": "null"}}, whitespace=True), b" "),
        "brackets": (Constraint.json_schema({}), b"["),
        "text": (Constraint.json_schema({"type": "string"}), b"the"),
    }  # fmt: skip
    for constraint, wish in greedy.values():
        matcher = tiny_backend(backend).compile(constraint).matcher()
        wanted = tiny_table().token(wish)

        def draw(output: list[int], tokens: list[int], wanted: int | None = wanted) -> int:
            return wanted if wanted in tokens else tokens[0]

        output, _ = decode(matcher, V, draw, 70)
        assert matcher.is_complete(), text_of(V, output)
        json.loads(text_of(V, output))

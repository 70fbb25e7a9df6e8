"""What `base.Matcher` promises, asked of every backend for every kind of constraint."""

from __future__ import annotations

import json
import random
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.engine.grammar.base import Matcher
from radixbackend.engine.grammar.tokens import TokenTable
from radixbackend.errors import ConstraintError
from radixbackend.types import Constraint
from tests.engine.grammar_tools import (
    BACKENDS,
    CONSTRAINTS,
    ENDLESS,
    TAIL,
    accepts,
    allowed,
    decode,
    encode,
    keyed_draw,
    text_of,
    tiny_backend,
    tiny_grammar,
    tiny_vocabulary,
)

V = tiny_vocabulary()
ENDS = set(V.end_tokens)
START = V.tokenizer.convert_tokens_to_ids("<|start|>")
FAR = 10_000  # tokens left: too many for the budget to matter

every_backend = pytest.mark.parametrize("backend", BACKENDS[:2])  # the third is the second with one option
all_three = pytest.mark.parametrize("backend", BACKENDS)
every_kind = pytest.mark.parametrize("kind", CONSTRAINTS)


def walk(matcher: Matcher, seed: int, length: int) -> list[int]:
    """Random allowed tokens, accepted."""
    rng, taken = random.Random(seed), []
    while len(taken) < length and not matcher.is_finished():
        taken.append(rng.choice(allowed(matcher, V)))
        assert matcher.accept(taken[-1])
    return taken


@every_backend
@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_the_mask_is_what_accept_accepts(backend: str, kind: str, seed: int) -> None:
    matcher = tiny_grammar(backend, kind).matcher()
    rng = random.Random(seed)
    for _ in range(25):
        mask = set(allowed(matcher, V))
        accepted = set()
        for token in range(-2, V.size + 40):
            if matcher.accept(token):
                accepted.add(token)
                matcher.rollback(1)
        forced = matcher.forced_tokens(1)
        # Where the next text is forced, llguidance allows its canonical spelling alone.
        assert mask == accepted or (backend.startswith("llguidance") and forced and mask < accepted)
        assert mask
        if not matcher.accept(rng.choice(sorted(mask))) or matcher.is_finished():
            break


@every_backend
@every_kind
@settings(max_examples=20)
@given(data=st.data())
def test_rollback_and_fork_lead_to_the_state_of_a_replay(backend: str, kind: str, data: st.DataObject) -> None:
    """Any course of accepts, rejections, rollbacks and forks equals a fresh matcher fed the tokens that remain."""
    grammar = tiny_grammar(backend, kind)
    matchers: list[tuple[Matcher, list[int]]] = [(grammar.matcher(), [])]
    for _ in range(data.draw(st.integers(1, 25))):
        matcher, tokens = data.draw(st.sampled_from(matchers))
        action = data.draw(st.sampled_from(("accept", "accept", "accept", "reject", "back", "fork", "ask")))
        if action == "accept":
            token = data.draw(st.sampled_from(allowed(matcher, V)))
            if not tokens or tokens[-1] not in ENDS:
                assert matcher.accept(token)
                tokens.append(token)
        elif action == "reject":
            wrong = sorted(set(range(V.size)) - set(allowed(matcher, V)))
            for token in data.draw(st.lists(st.sampled_from(wrong), max_size=3)):
                if matcher.accept(token):  # another spelling of forced text
                    matcher.rollback(1)
        elif action == "back":
            count = data.draw(st.integers(0, len(tokens)))
            matcher.rollback(count)
            del tokens[len(tokens) - count :]
        elif action == "fork" and len(matchers) < 4:
            matchers.append((matcher.fork(), list(tokens)))
        else:
            matcher.forced_tokens(8)
            matcher.is_finished()
    for matcher, tokens in matchers:
        fresh = grammar.matcher()
        assert all(fresh.accept(token) for token in tokens)
        assert allowed(matcher, V) == allowed(fresh, V)
        assert matcher.is_complete() == fresh.is_complete()
        assert matcher.is_finished() == fresh.is_finished()
        assert matcher.forced_tokens(8) == fresh.forced_tokens(8)


@every_backend
@every_kind
def test_specials_ends_and_the_tail_never_stand_in_text(backend: str, kind: str) -> None:
    tail = set(range(V.size - TAIL, V.size))
    for seed in range(5):
        matcher = tiny_grammar(backend, kind).matcher()
        for _ in range(30):
            mask = set(allowed(matcher, V))
            assert not mask & tail
            assert START not in mask
            assert (mask & ENDS) == (ENDS if matcher.is_complete() else set())
            if not matcher.accept(random.Random(seed).choice(sorted(mask))) or matcher.is_finished():
                break


@every_backend
@every_kind
def test_every_end_token_ends(backend: str, kind: str) -> None:
    matcher = tiny_grammar(backend, kind).matcher()
    for token in ENDS:
        assert not matcher.accept(token)
    assert not matcher.is_complete()
    for left in range(40, 0, -1):  # steering closes it in time
        if not matcher.is_complete():
            assert matcher.accept(min(allowed(matcher, V, remaining=left)))
    assert matcher.is_complete()
    state = allowed(matcher, V)
    for token in sorted(ENDS):
        assert matcher.accept(token)
        assert matcher.is_complete()
        assert matcher.is_finished()
        assert set(allowed(matcher, V)) == ENDS
        assert matcher.forced_tokens(8) == ()
        assert not any(matcher.accept(other) for other in range(V.size))
        matcher.rollback(1)
        assert allowed(matcher, V) == state


@every_backend
def test_finished_means_that_nothing_but_an_end_may_follow(backend: str) -> None:
    closed = tiny_grammar(backend, "json_schema").matcher()
    for token in encode(V, '{"name": "x", "age": 1, "tags": []}'):
        assert not closed.is_finished()
        assert closed.accept(token)
    assert closed.is_finished()
    open_end = tiny_grammar(backend, "grammar").matcher()
    assert open_end.accept(encode(V, "1")[0])
    assert open_end.is_complete()
    assert not open_end.is_finished()


@every_backend
@every_kind
@pytest.mark.parametrize("seed", range(4))
def test_forced_tokens_are_accepted_in_order_and_leave_the_state(backend: str, kind: str, seed: int) -> None:
    matcher = tiny_grammar(backend, kind).matcher()
    rng = random.Random(seed)
    for _ in range(25):
        before = allowed(matcher, V)
        forced = matcher.forced_tokens(6)
        assert len(forced) <= 6
        assert forced[:2] == matcher.forced_tokens(2)
        assert allowed(matcher, V) == before
        fork = matcher.fork()
        for token in forced:
            assert token in allowed(fork, V)
            assert fork.accept(token)
        if not matcher.accept(rng.choice(before)) or matcher.is_finished():
            break


@every_backend
def test_forced_text_is_covered_whole(backend: str) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"const": "red é日"}, "age": {"const": 10}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    matcher = tiny_backend(backend).compile(Constraint.json_schema(schema)).matcher()
    forced = list(matcher.forced_tokens(100))
    assert text_of(V, forced) == '{"name": "red é日", "age": 10}'
    assert forced == encode(V, text_of(V, forced))
    assert all(matcher.accept(token) for token in forced)
    assert matcher.is_finished()
    assert matcher.forced_tokens(100) == ()


@every_backend
def test_forced_text_may_end_inside_a_character(backend: str) -> None:
    """日 and 時 share their first byte, 日 and 日 both whole."""
    for words in (["日本", "時本"], ["日本", "日曜"]):
        matcher = tiny_backend(backend).compile(Constraint.json_schema({"enum": words})).matcher()
        assert accepts(matcher, V, f'"{words[0]}"')
        forced = matcher.forced_tokens(20)
        assert forced
        assert all(matcher.accept(token) for token in forced)
        assert allowed(matcher, V)


@all_three
def test_separators_are_one_space_and_nothing_else(backend: str) -> None:
    good = {"name": "a b", "age": -5, "tags": ["red", "green"], "home": {"zip": "12345", "no": None}}
    matcher = tiny_grammar(backend, "json_schema").matcher()
    assert accepts(matcher, V, json.dumps(good))
    for other in (json.dumps(good, separators=(",", ":")), json.dumps(good, indent=1), " " + json.dumps(good)):
        assert not accepts(matcher, V, other)
    loose = tiny_grammar(backend, "whitespace").matcher()
    for other in (json.dumps(good), json.dumps(good, separators=(",", ":")), json.dumps(good, indent=2)):
        assert accepts(loose, V, other)
    assert not accepts(loose, V, json.dumps(good).replace(" ", " " * 40))


@all_three
def test_keys_keep_the_order_of_the_schema(backend: str) -> None:
    matcher = tiny_grammar(backend, "json_schema").matcher()
    assert not accepts(matcher, V, '{"age": 1, "name": "x", "tags": []}')


@all_three
@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (CONSTRAINTS["json_object"], ['{}', '{"a": [1, {"b": null}]}'], ["[]", '"a"', "{", '{"a": 1,}']),
        (CONSTRAINTS["regex"], ["123-abc", "123-f;", "000-a.x"], ["12-a", "123-", "123-g", "123-a;;"]),
        (Constraint.regex("^ab|the$"), ["ab", "the"], ["abthe", "a"]),
        (Constraint.regex(r"[\d_]+\s\w"), ["1_ a"], ["٣ a", "1"]),
        (CONSTRAINTS["choice"], ["red", "reddish", 'a "quoted" \\ é\n'], ["redd", "", "blue"]),
        (CONSTRAINTS["grammar"], ["1", "1+(2+3)", "((1))"], ["1+", "(1", ""]),
        (Constraint.json_schema(True), ["1", '{"a": []}', '"x"'], ["", "{"]),
        (Constraint.json_schema({"type": "string", "maxLength": 3}), ['"abc"', '""'], ['"abcd"', '"\t"']),
        (Constraint.json_schema({"enum": ["é", 1, None]}), ['"é"', "1", "null"], ['"e"', "2"]),
    ],
)  # fmt: skip
def test_each_kind_generates_its_language(
    backend: str, constraint: Constraint, good: list[str], bad: list[str]
) -> None:
    matcher = tiny_backend(backend).compile(constraint).matcher()
    assert [text for text in good if not accepts(matcher, V, text)] == []
    assert [text for text in bad if accepts(matcher, V, text)] == []


def test_structural_tags_are_xgrammars_alone() -> None:
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": ["<tool>"],
            "tags": [
                {
                    "type": "tag",
                    "begin": "<tool>",
                    "content": {"type": "json_schema", "json_schema": {
                        "type": "object", "properties": {"s": {"type": "string", "maxLength": 9}}, "required": ["s"]}},
                    "end": "</tool>",
                }
            ],
        },
    }  # fmt: skip
    constraint = Constraint.structural_tag(tag)
    matcher = tiny_backend("xgrammar").compile(constraint).matcher()
    assert accepts(matcher, V, "any text")
    assert accepts(matcher, V, 'before <tool>{"s": "x"}</tool> after')
    assert not accepts(matcher, V, 'before <tool>{"s": 1}</tool>')
    assert not accepts(matcher, V, 'before <tool>{"s": "\t"}</tool>')
    assert not accepts(matcher, V, 'before <tool>{"s":"x"}</tool>')  # the separators are fixed here too
    for token in encode(V, "<tool>"):
        assert matcher.accept(token)
    assert text_of(V, list(matcher.forced_tokens(20))).startswith('{"s": "')
    for name in ("llguidance", "llguidance-lenient"):
        with pytest.raises(ConstraintError, match="xgrammar"):
            tiny_backend(name).compile(constraint)


def test_a_structural_tag_gets_the_special_tokens_that_it_names() -> None:
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "tag",
            "begin": {"type": "token", "token": "<|start|>"},
            "content": {"type": "regex", "pattern": "[a-c]+"},
            "end": ".",
        },
    }
    matcher = tiny_backend("xgrammar").compile(Constraint.structural_tag(tag)).matcher()
    assert allowed(matcher, V) == [START]
    assert matcher.accept(START)
    assert START not in allowed(matcher, V)
    assert START not in allowed(tiny_grammar("xgrammar", "json_object").matcher(), V)


@every_backend
@every_kind
def test_drafts_change_nothing_but_the_number_of_forwards(backend: str, kind: str) -> None:
    grammar = tiny_grammar(backend, kind)
    for seed in range(2):
        for budget in (7, 30):
            plain, steps = decode(grammar.matcher(), V, keyed_draw(seed), budget)
            drafted, fewer = decode(grammar.matcher(), V, keyed_draw(seed), budget, drafts=8)
            assert drafted == plain
            assert fewer <= steps == len(plain)


@every_backend
def test_two_matchers_of_a_grammar_do_not_disturb_each_other(backend: str) -> None:
    grammar = tiny_grammar(backend, "json_schema")
    one, other = grammar.matcher(), grammar.matcher()
    start = allowed(other, V)
    walk(one, 1, 20)
    assert allowed(other, V) == start


@every_backend
def test_rolling_back_too_far_raises_and_changes_nothing(backend: str) -> None:
    matcher = tiny_grammar(backend, "json_schema").matcher()
    walk(matcher, 2, 5)
    before = allowed(matcher, V)
    with pytest.raises(ValueError, match="take back 6 of 5"):
        matcher.rollback(6)
    assert allowed(matcher, V) == before


@every_backend
@pytest.mark.parametrize(
    ("constraint", "pointer"),
    [
        (Constraint.json_schema("{not json"), ""),
        (Constraint.json_schema(False), ""),
        (Constraint.json_schema({"type": "integer", "minimum": 5, "maximum": 4}), ""),
        (Constraint.json_schema({"$ref": "#/$defs/missing"}), ""),
        (Constraint.json_schema({"const": "a\0b"}), ""),
        (Constraint.regex("[a-"), None),
        (Constraint.regex("a\0"), ""),
        (Constraint.regex("(" * 200_000 + "a" + ")" * 200_000), ""),
        (Constraint.regex("(a{1000}b?){1000}"), ""),
        (Constraint.json_schema(ENDLESS), ""),
        (Constraint.grammar('root ::= "a" root'), ""),
        (Constraint.grammar('root ::= "b" | a\na ::= "a" a'), ""),
        (
            Constraint.grammar(
                "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} r{n + 1}\n" for n in range(20)) + 'r20 ::= "x"'
            ),
            "",
        ),
        (Constraint.grammar("root ::= missing"), "@9"),
        (Constraint.grammar('start ::= "a"'), None),
        (Constraint.grammar("root ::= root"), ""),
        (Constraint.grammar('root ::= "a'), None),
        (Constraint.grammar("root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000), ""),
        (Constraint.json_schema('{"items":' * 50_000 + "{}" + "}" * 50_000), ""),
        (Constraint.json_schema({"description": "x" * 2_000_000}), ""),
    ],
)
def test_what_cannot_be_compiled_is_refused(backend: str, constraint: Constraint, pointer: str | None) -> None:
    with pytest.raises(ConstraintError) as refused:
        tiny_backend(backend).compile(constraint)
    assert len(str(refused.value)) < 700
    assert "/project/" not in str(refused.value)
    if pointer is not None:
        assert refused.value.pointer == pointer


def test_unsupported_names_what_is_not_enforced() -> None:
    schema = {
        "type": "object",
        "properties": {"not": {"type": "string"}, "a/b": {"not": {"const": 1}}},
        "if": {"required": ["a"]},
        "default": {"not": 1},
    }
    constraint = Constraint.json_schema(schema)
    assert set(tiny_backend("xgrammar").unsupported(constraint)) == {"/properties/a~1b/not", "/if"}
    assert set(tiny_backend("llguidance-lenient").unsupported(constraint)) == {"/properties/a~1b/not", "/if"}
    assert tiny_backend("llguidance").unsupported(constraint) == ()
    with pytest.raises(ConstraintError) as refused:
        tiny_backend("llguidance").compile(constraint)
    assert refused.value.pointer in ("/properties/a~1b/not", "/if")
    assert tiny_backend("llguidance-lenient").compile(constraint).nbytes > 0


def test_a_table_reads_byte_level_and_byte_fallback_vocabularies() -> None:
    class Fallback:
        all_special_ids = (0,)
        added_tokens_decoder: ClassVar = {}

        def get_vocab(self) -> dict[str, int]:
            return {"<s>": 0, "<0x41>": 1, "A": 2, "▁the": 3, "é": 4}

    vocabulary = type(V)(Fallback(), 6, (0,), "x")
    table = TokenTable.of(vocabulary)
    assert table.texts == (b"", b"A", b"A", b" the", "é".encode(), b"")
    assert table.token(b"A") == 2
    assert table.spell(b"A the") == (2, 3)
    assert table.spell(b"B") is None
    level = TokenTable.of(V)
    assert all(level.token(bytes([byte])) is not None for byte in range(256))
    assert level.texts[encode(V, "日")[0]] == "日".encode()
    assert level.texts[START] == b""
    assert level.with_specials({START}).texts[START] == b"<|start|>"

"""The conversion of EBNF for llguidance: the same language, checked against xgrammar, which takes it natively."""

from __future__ import annotations

import itertools

import pytest

from radixbackend.engine.grammar.ebnf import to_lark
from radixbackend.errors import ConstraintError
from radixbackend.types import Constraint
from tests.engine.grammar_tools import accepts, tiny_backend, tiny_vocabulary

V = tiny_vocabulary()
DOUBLING = "root ::= r0\n" + "".join(f"r{n} ::= (r{n + 1} r{n + 1})?\n" for n in range(24)) + 'r24 ::= "x"\n'


@pytest.mark.parametrize(
    ("ebnf", "texts"),
    [
        ('root ::= "a" | "b"\n', ["a", "b", "c", ""]),
        ('root ::= [a-z]* "abc"\n', ["abc", "xabc", "abcabc", "xab"]),
        ('root ::= list\nlist ::= [a-z]* "abc" | "(" list ")"\n', ["abc", "xabc", "(abcabc)", "(xab)"]),
        ('root ::= "\\u00e9" [\\u00e8-\\u00ea]+ "\\x41"\n', ["éèêA", "éA", "eA"]),
        ('root ::= [^"\\\\]* "\\""\n', ['abc"', 'a"b', '\n"']),
        ('root ::= foo-bar\nfoo-bar ::= "x" FooBar\nFooBar ::= [0-9]{2,3}\n', ["x12", "x123", "x1", "x1234"]),
        ('root ::= x1 | X1\nx1 ::= "p"\nX1 ::= "q"\n', ["p", "q", "r"]),
        ('root ::= ("a" "b")? "c" # comment\n# another\n', ["abc", "c", "ab"]),
        ('root ::= (\n "a" |\n "b"\n)\n', ["a", "b"]),
        ('root ::= "a" root "b" | ""\n', ["", "ab", "aabb", "aab", "b"]),
        ('root ::= root "a" | "b"\n', ["b", "baa", "a"]),
        ("root ::= [\\]a-]+\n", ["]a-", "b"]),
        ('root ::= "日" [一-龥]?\n', ["日", "日本", "日a"]),
        ('root ::= "a"{3} "b"{0,2} "c"{1,}\n', ["aaac", "aaabbcc", "aac", "aaabbbc"]),
        ('root ::= "/" [/.*]+ "\\\\d"\n', ["/.*\\d", "/5", "/a"]),
        ('root ::= e\ne ::= t (("+" | "-") t)*\nt ::= [0-9]+ | "(" e ")"\n', ["1+(2-34)", "1+", "()"]),
        ('root ::= "if" " " id\nid ::= [a-z]+\n', ["if if", "if ", "ifx"]),
        ('root ::= stmt+\nstmt ::= "if" stmt | [a-z] ";"\n', ["ifa;", "i;f;", "ifif", "ifi;"]),
    ],
)  # fmt: skip
def test_both_backends_take_the_same_texts(ebnf: str, texts: list[str]) -> None:
    native = tiny_backend("xgrammar").compile(Constraint.grammar(ebnf)).matcher()
    converted = tiny_backend("llguidance").compile(Constraint.grammar(ebnf)).matcher()
    verdicts = [accepts(native, V, text) for text in texts]
    assert True in verdicts
    assert [accepts(converted, V, text) for text in texts] == verdicts


@pytest.mark.parametrize(
    "ebnf",
    [
        'root ::= a b\na ::= "x" a | ""\nb ::= "x" b "y" | "y"\n',
        'root ::= "x" root "y" | [xy] | "yx"\n',
        'root ::= ("x" | "xy")* "y"{2}\n',
    ],
)
def test_every_short_text_gets_the_same_verdict(ebnf: str) -> None:
    native = tiny_backend("xgrammar").compile(Constraint.grammar(ebnf)).matcher()
    converted = tiny_backend("llguidance").compile(Constraint.grammar(ebnf)).matcher()
    for length in range(7):
        for letters in itertools.product("xy", repeat=length):
            text = "".join(letters)
            assert accepts(native, V, text) == accepts(converted, V, text), text


def test_a_grammar_without_recursion_is_one_expression() -> None:
    assert to_lark('root ::= a+ "z"\na ::= [a-c] | "é"\n') == "start: /(?:(?:(?:[a-c]|(?:[\\x{e9}]))){1,}(?:[z]))/\n"


@pytest.mark.parametrize(
    ("ebnf", "pointer", "message"),
    [
        ("root ::= other", "@9", "no rule other"),
        ('start ::= "a"', "", "no rule root"),
        ('root = "a"', "@5", "'::=' is missing"),
        ('root ::= "a', "@11", "not closed"),
        ("root ::= [z-a]", "@13", "range"),
        ('root ::= ("a"', "@13", "')' is missing"),
        ('root ::= "a"{3,2}', "@17", "at least"),
        (DOUBLING, "", "unfolds"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(ebnf: str, pointer: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message.replace("(", r"\(").replace(")", r"\)")) as refused:
        to_lark(ebnf)
    assert refused.value.pointer == pointer

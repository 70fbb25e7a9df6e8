"""What the grammar tests share: vocabularies, constraints of every kind, and a decoder that needs no model."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radixbackend.engine.grammar.base import Grammar, GrammarBackend, Matcher, Vocabulary
from radixbackend.engine.grammar.llguidance import LLGuidanceBackend
from radixbackend.engine.grammar.tokens import TokenTable, tokens_in
from radixbackend.engine.grammar.xgrammar import XGrammarBackend
from radixbackend.types import Constraint

BACKENDS = ("xgrammar", "llguidance", "llguidance-lenient")
WORDS = (
    '{"', '":', ' "', '",', '"}', '""', "[]", "{}", '"]', "}}", "name", "age", "tags", "red", "green", "null", "true",
    "10", "ab", "the", " the", "é", "日", "<tool>", "\n", "  ", "\\n",
)  # fmt: skip
TAIL = 13  # logits behind the last entry of the tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}},
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "no": {"type": ["integer", "null"]}},
            "required": ["zip", "no"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}

ENDLESS = {
    "$ref": "#/$defs/a",
    "$defs": {
        "a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
        "b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]},
    },
}

CONSTRAINTS = {
    "json_schema": Constraint.json_schema(PERSON),
    "whitespace": Constraint.json_schema(PERSON, whitespace=True),
    "max_length": Constraint.json_schema(
        {"type": "object", "properties": {"s": {"type": "string", "maxLength": 6}}, "required": ["s"]}
    ),
    "json_object": Constraint.json_object(),
    "regex": Constraint.regex(r"\d{3}-[a-f]+(;|\.x)?"),
    "choice": Constraint.choice(["red", "green", "reddish", 'a "quoted" \\ é\n']),
    "grammar": Constraint.grammar('root ::= sum\nsum ::= term ("+" term)*\nterm ::= [0-9]+ | "(" sum ")"\n'),
}


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """All bytes, a few words of JSON, and three special tokens of which two end the output."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in WORDS:
        piece = "".join(part for part, _ in level.pre_tokenize_str(word))
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut])
            if pair[0] + pair[1] not in vocabulary:
                vocabulary[pair[0] + pair[1]] = len(vocabulary)
                merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|start|>", "<|end|>", "<|eot|>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def shared_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizers" / f"{name}.json"), eos_token="<|im_end|>")


def vocabulary_of(tokenizer: PreTrainedTokenizerFast, *more_ends: str) -> Vocabulary:
    ends = (tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(end) for end in more_ends))
    return Vocabulary(tokenizer, len(tokenizer) + TAIL, ends, "test")


@functools.cache
def tiny_vocabulary() -> Vocabulary:
    return vocabulary_of(byte_level_tokenizer(), "<|eot|>")


@functools.cache
def tiny_table() -> TokenTable:
    return TokenTable.of(tiny_vocabulary())


def make_backend(name: str, vocabulary: Vocabulary) -> GrammarBackend:
    if name == "xgrammar":
        return XGrammarBackend(vocabulary)
    return LLGuidanceBackend(vocabulary, lenient=name == "llguidance-lenient")


@functools.cache
def tiny_backend(name: str) -> GrammarBackend:
    return make_backend(name, tiny_vocabulary())


@functools.cache
def tiny_grammar(name: str, kind: str) -> Grammar:
    return tiny_backend(name).compile(CONSTRAINTS[kind])


def allowed(matcher: Matcher, vocabulary: Vocabulary, remaining: int = 10_000) -> list[int]:
    """The tokens of the mask; asks for a middle row, and that its neighbours are left alone."""
    mask = np.full((3, -(-vocabulary.size // 32)), 7, dtype=np.int32)
    assert matcher.fill_mask(mask, 1, remaining)
    assert (mask[[0, 2]] == 7).all()
    tokens: list[int] = tokens_in(mask[1]).tolist()
    return tokens


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return str(vocabulary.tokenizer.decode(tokens, skip_special_tokens=True))


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    return list(vocabulary.tokenizer.encode(text, add_special_tokens=False))


def accepts(matcher: Matcher, vocabulary: Vocabulary, text: str) -> bool:
    """Whether ``text`` is a whole output; leaves the matcher as it was."""
    fork = matcher.fork()
    return all(fork.accept(token) for token in encode(vocabulary, text)) and fork.is_complete()


Draw = Callable[[list[int], list[int]], int]
"""Chooses among the allowed tokens, given the output so far."""


def keyed_draw(seed: int) -> Draw:
    """Depends on the seed, the position and the output so far alone, as the engine's sampler does."""

    def draw(output: list[int], tokens: list[int]) -> int:
        return random.Random(f"{seed} {len(output)} {output[-3:]}").choice(tokens)

    return draw


def decode(matcher: Matcher, vocabulary: Vocabulary, draw: Draw, budget: int, drafts: int = 0) -> tuple[list[int], int]:
    """Tokens of one output and the forwards it took, as the engine makes them."""
    output: list[int] = []
    forwards = 0
    while len(output) < budget and not matcher.is_finished():
        proposed = matcher.forced_tokens(min(drafts, budget - len(output) - 1))
        forwards += 1
        new: list[int] = []
        for draft in (*proposed, None):
            token = draw(output + new, allowed(matcher, vocabulary, budget - len(output) - len(new)))
            new.append(token)
            if token != draft or len(output) + len(new) == budget:
                break
            assert matcher.accept(token)
        matcher.rollback(len(new) - 1)
        for token in new:
            assert matcher.accept(token), text_of(vocabulary, [*output, token])
            output.append(token)
            if matcher.is_finished():
                break
    return output, forwards

"""The tokenizer: byte-level BPE, trained on the generated text.

Rules. What is copied must fall into the same pieces wherever it stands: merges are learned on text without its spaces,
and a piece that often follows a space has a twin that includes it, made last of all. So a name's next token tells
whether the name goes on (`" Koç"`) or ends (`" is"`), and a name in quotes differs from the one in a sentence in its
first token alone. Digits and punctuation stand alone, except for what opens a JSON value: a quote that closes one is
always a token of its own, for whether a text ends must not depend on what comes after it.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

from tools.radix_tiny.corpus import TASKS, draw, render
from tools.radix_tiny.words import Source

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
VOCABULARY = 2048
TWINS = 750
SHARES = (0.25, 0.03, 0.22, 0.11, 0.23, 0.06, 0.03, 0.06, 0.01)
"""Of each task in what it is learned from: not those of training, which may change from one run to the next while a
checkpoint keeps its tokenizer."""
_SPACE = "Ġ"  # how byte-level BPE writes it
_OPENING = r'":(?: ?[{\[]?"?)|{space}[{\[]"|'
_PIECES = _OPENING + r"{space}[\p{L}\p{M}]+|{space}\p{N}|{space}[^\s\p{L}\p{M}\p{N}]|\n+ *| +|\s"


def train_tokenizer(seed: int = 0, conversations: int = 6000) -> Any:
    """A tokenizer of the `tokenizers` library with `VOCABULARY` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    source, mix = Source(f"tokenizer/{seed}", inventive=False), dict(zip(TASKS, SHARES, strict=True))
    texts = [_without_marks(render(draw(source, copying=0.05, tasks=mix))) for _ in range(conversations)]
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = _pieces(space="")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - TWINS - len(MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    learned = json.loads(bare.to_str())["model"]
    vocabulary, merges = learned["vocab"], [tuple(pair) for pair in learned["merges"]]
    for token in _after_spaces(bare, texts):
        vocabulary[_SPACE + token] = len(vocabulary)
        merges.append((_SPACE, token))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _pieces(space=" ?")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_added(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([_added(text, special=False) for text in MARKERS])
    return tokenizer


def twins(tokenizer: Any) -> dict[int, int]:
    """The id of each token that begins with a space, and of the same without it."""
    ids = tokenizer.get_vocab()
    return {ids[token]: ids[token[1:]] for token in ids if token[0] == _SPACE and token[1:].strip(_SPACE) in ids}


def letters(tokenizer: Any) -> list[str]:
    """The pieces of words that a tokenizer has, in lower case."""
    pieces = {tokenizer.decode([token]).strip() for token in range(tokenizer.get_vocab_size())}
    return sorted(piece.lower() for piece in pieces if piece.isalpha())


def _pieces(space: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES.replace("{space}", space)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _after_spaces(bare: Any, texts: list[str]) -> list[str]:
    """The tokens that stand after a space most often."""
    counts: Counter[str] = Counter()
    for text in texts:
        tokens = bare.encode(text).tokens
        counts.update(after for space, after in pairwise(tokens) if space == _SPACE and after[0] not in "ĠĊ")
    return [token for token, _ in counts.most_common(TWINS)]


def _added(text: str, *, special: bool) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, normalized=False, special=special)


def _without_marks(text: str) -> str:
    for mark in (*SPECIAL, *MARKERS):
        text = text.replace(mark, "")
    return text

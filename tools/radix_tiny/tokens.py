"""The tokenizer: byte-level BPE, trained on the generated text.

Rules. What is copied must look the same wherever it stands, so a space never belongs to the word after it and digits
and punctuation stand alone; only a mark that ends a phrase takes the space that follows.
"""

from __future__ import annotations

from typing import Any

from tools.radix_tiny.corpus import draw, render
from tools.radix_tiny.words import Source

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
VOCABULARY = 2048
_PIECES = r"\p{N}|[\p{L}\p{M}]+|[,.:;!?] ?|\n+ *| +|[^\s\p{L}\p{M}\p{N}]|\s"


def train_tokenizer(seed: int = 0, conversations: int = 6000) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    source = Source(f"tokenizer/{seed}")
    texts = (_without_marks(render(draw(source, copying=0.05))) for _ in range(conversations))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([_marker(text) for text in MARKERS])
    return tokenizer


def _marker(text: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, normalized=False, special=False)


def _without_marks(text: str) -> str:
    for mark in (*SPECIAL, *MARKERS):
        text = text.replace(mark, "")
    return text

"""Text from tokens: incremental decoding against plain decoding, stop strings against a plain search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from radixbackend.errors import InvalidRequestError
from radixbackend.tokenizer import REPLACEMENT, IncrementalDecoder, TextStream, Tokenizer

# Letters that a linter takes for others are what these tests are about.
# ruff: noqa: RUF001
TEXT = (
    "The quick brown fox jumps over the lazy dog, isn't it? Pijamalı hasta yağız şoföre çabucak güvendi. "
    "敏捷的棕色狐狸跳过懒狗。你好，世界！ Smile 😀🎉👩‍👩‍👧 and wave 👋🏽.\n\n  def f(x):\n\treturn x  # déjà vu\n"
)


def _wrap(library: Library, **options: Any) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=library, **options))


def _with_start(library: Library) -> Library:
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
    )
    return library


def byte_level() -> Tokenizer:
    """Few merges, so that most characters beyond ASCII are spread over tokens; an added token that is text."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([TEXT] * 3, trainer)
    library.add_tokens([AddedToken("<tool>", special=False)])
    return _wrap(_with_start(library), bos_token="<s>", eos_token="</s>")


GAP = 1000


@cache
def with_gap() -> Tokenizer:
    """Single bytes, a letter with the beginning of the next, and ids that no token has."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE({**vocabulary, "aå": GAP + 1}, []))
    library.decoder = decoders.ByteLevel()
    return _wrap(library)


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: "▁" for spaces, bytes for what the vocabulary lacks, a first space dropped."""
    words = [
        "▁",
        "▁▁",
        "▁the",
        "▁qu",
        "ick",
        "▁f",
        "ox",
        "你",
        "ş",
        "ğ",
        *sorted(set("abcdefghijklmnopqrstuvwxyz,.?!\n")),
    ]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(word, -5.0 - 1 / len(word)) for word in words]
    library = Library(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(_with_start(library), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace() -> Tokenizer:
    library = Library(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.train_from_iterator(
        [TEXT] * 3, trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"], unk_token="<unk>")
    )
    return _wrap(_with_start(library), bos_token="<s>", unk_token="<unk>")


def wordpiece() -> Tokenizer:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.train_from_iterator(
        [TEXT] * 3, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"])
    )
    return _wrap(library, unk_token="[UNK]", sep_token="[SEP]")


def word_level() -> Tokenizer:
    """No decoder at all: tokens are joined by spaces."""
    words = ["<unk>", "<s>", *sorted(set(TEXT.split()))]
    library = Library(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(library, bos_token="<s>", unk_token="<unk>")


def suffixed() -> Tokenizer:
    """Words that end in "</w>", as GPT-1 has them."""
    library = Library(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    library.train_from_iterator([TEXT] * 3, trainer)
    return _wrap(library, unk_token="<unk>")


def pure_python() -> Tokenizer:
    """A token for each byte, decoded in Python; it leaves out half characters without a trace."""
    return Tokenizer(ByT5Tokenizer())


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make for make in (byte_level, byte_fallback, metaspace, wordpiece, word_level, suffixed, pure_python)
}
every_tokenizer = pytest.mark.parametrize("name", MAKERS)


@cache
def make(name: str) -> Tokenizer:
    return MAKERS[name]()


@cache
def size(name: str) -> int:
    return 1 + max(make(name).inner.get_vocab().values())


some_text = st.text(
    st.sampled_from("abc tHe  ,.!?\nşğıİçö你好世界狐😀🎉👩\u200d👧🏽é\u0301\ufffd\x00") | st.characters(codec="utf-8")
)


@st.composite
def splits(draw: st.DrawFn, tokens: Sequence[int]) -> list[list[int]]:
    """The tokens in feeds of any length, some empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    return [list(tokens[a:b]) for a, b in itertools.pairwise([0, *cuts, len(tokens)])]


def feed(tokenizer: Tokenizer, context: Sequence[int], feeds: Sequence[Sequence[int]], **options: Any) -> list[str]:
    """Every piece, and what `finish` gives as the last."""
    decoder = IncrementalDecoder(tokenizer, context, **options)
    pieces = [decoder.feed(tokens) for tokens in feeds]
    return [*pieces, decoder.finish()]


def after(tokenizer: Tokenizer, context: Sequence[int], tokens: Sequence[int], **options: Any) -> str | None:
    """What plain decoding says after the context; None if that is not told by their texts."""
    before, whole = (tokenizer.decode(t, **options) if t else "" for t in (context, [*context, *tokens]))
    return whole[len(before) :] if whole.startswith(before) else None


# -- decoding --------------------------------------------------------------------------------------------------------


@every_tokenizer
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_in_any_split_are_what_decoding_says(name, data, skip):
    tokenizer = make(name)
    ids = st.integers(0, size(name) + 2)
    context, tokens = data.draw(st.lists(ids, max_size=8)), data.draw(st.lists(ids, max_size=30))
    text = "".join(feed(tokenizer, context, data.draw(splits(tokens)), skip_special_tokens=skip))
    assert text == "".join(feed(tokenizer, context, [[t] for t in tokens], skip_special_tokens=skip))
    expected = after(tokenizer, context, tokens, skip_special_tokens=skip)
    if expected is not None and not (name == "byte_fallback" and REPLACEMENT in expected):
        assert text == expected


@every_tokenizer
@given(data=st.data())
def test_text_comes_in_whole_characters_and_as_soon_as_it_is_certain(name, data):
    tokenizer = make(name)
    prompt, answer = data.draw(some_text), data.draw(some_text)
    context, tokens = tokenizer.encode(prompt), tokenizer.encode(answer, add_special_tokens=False)
    feeds = data.draw(splits(tokens))
    pieces = feed(tokenizer, context[-8:], feeds)
    expected = after(tokenizer, context, tokens)
    if expected is None:  # the spelling of the prompt's end depends on what follows
        return
    assert "".join(pieces) == expected
    if name == "byte_level":
        assert expected == answer
    if REPLACEMENT in expected:
        return
    assert not any(REPLACEMENT in piece for piece in pieces)
    for count in range(len(feeds) + 1):
        said = after(tokenizer, context, [t for part in feeds[:count] for t in part])
        if name == "byte_level" or (name == "byte_fallback" and REPLACEMENT not in said):
            assert "".join(pieces[:count]) == said.rstrip(REPLACEMENT)


@given(st.data(), st.lists(st.integers(3, 258), max_size=12))
def test_a_broken_run_of_byte_tokens_takes_back_nothing(data, run):
    tokenizer = make("byte_fallback")
    text = "".join(feed(tokenizer, [262], data.draw(splits(run))))
    assert text == "".join(feed(tokenizer, [262], [[t] for t in run]))
    raw = bytes(token - 3 for token in run)
    if REPLACEMENT not in raw.decode(errors="replace"):
        assert text == raw.decode()


@given(st.data(), st.lists(st.sampled_from(["ä", "å", "½", "ł", "¥", "ð", "Ł", "Ģ", "a", "aå", None]), max_size=120))
def test_broken_characters_are_what_decoding_says(data, pieces):
    tokenizer = with_gap()
    vocabulary = tokenizer.inner.get_vocab()
    tokens = [GAP if piece is None else vocabulary[piece] for piece in pieces]
    context = [vocabulary["a"]]
    assert "".join(feed(tokenizer, context, data.draw(splits(tokens)))) == after(tokenizer, context, tokens)


def test_a_character_after_any_number_of_broken_ones_is_whole():
    tokenizer = with_gap()
    vocabulary = tokenizer.inner.get_vocab()
    character = [vocabulary["å"], GAP, vocabulary["¥"], GAP, vocabulary["½"]]
    for count in range(80):
        tokens = [vocabulary["Ģ"]] * count + character
        assert "".join(feed(tokenizer, [vocabulary["a"]], [tokens])) == count * REPLACEMENT + "好"


def test_what_a_broken_run_said_before_stays():
    tokenizer = make("byte_fallback")
    run = [3 + byte for byte in "好".encode()]
    letter = tokenizer.inner.convert_tokens_to_ids("a")
    cut = [*run, run[0]]
    assert tokenizer.decode([letter, *cut]) == "a" + 4 * REPLACEMENT
    assert feed(tokenizer, [letter], [[t] for t in cut]) == ["", "", "好", "", REPLACEMENT]
    assert feed(tokenizer, [letter], [[*cut, letter]]) == ["好" + REPLACEMENT + "a", ""]
    assert feed(tokenizer, [letter], [[*run, *run]]) == ["好好", ""]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_character_that_the_prompt_began_is_completed(name):
    tokenizer = make(name)
    tokens = [t for t in tokenizer.encode("好好", add_special_tokens=False) if tokenizer.decode([t])]
    word = tokenizer.encode("a", add_special_tokens=False)[-1:]
    half = len(tokens) - 1
    assert tokenizer.decode(tokens[:half]).endswith(REPLACEMENT)
    assert "".join(feed(tokenizer, tokens[:half], [tokens[half:], tokens, word])) == "好好好a"
    assert "".join(feed(tokenizer, tokens[:half], [word])) == "a"


def test_a_prompt_cut_inside_a_run_of_byte_tokens_spoils_nothing():
    tokenizer = make("byte_fallback")
    run = [3 + byte for byte in "好世界".encode()]
    assert feed(tokenizer, run[-8:], [run[:3], run[3:]]) == ["好", "世界", ""]


def test_tokens_without_text_and_garbage_keep_the_window_short():
    class Watched(Tokenizer):
        longest = 0

        def join(self, visible: list[int]) -> str:
            self.longest = max(self.longest, len(visible))
            return super().join(visible)

    for name in ("byte_level", "byte_fallback"):
        tokenizer = Watched(make(name).inner)
        vocabulary = tokenizer.inner.get_vocab()
        piece = "Ģ" if name == "byte_level" else "<0x80>"
        for token in (vocabulary[piece], size(name) + 5, vocabulary.get("▁", 0)):
            decoder = IncrementalDecoder(tokenizer, [vocabulary["a"]])
            text = decoder.feed([token] * 200)
            tokenizer.longest = 0
            text += "".join(decoder.feed([token]) for _ in range(100))
            assert tokenizer.longest < 40
            assert text + decoder.finish() == after(tokenizer, [vocabulary["a"]], [token] * 300)


class Counted(Tokenizer):
    """Counts how often the library decodes."""

    decoded = 0

    def join(self, visible: list[int]) -> str:
        self.decoded += 1
        return super().join(visible)


@every_tokenizer
def test_a_token_that_is_always_spelled_alike_is_decoded_once(name):
    tokenizer = Counted(make(name).inner)
    tokens = tokenizer.encode("the quick fox, the quick fox", add_special_tokens=False)
    texts = []
    for _ in range(2):
        decoder = IncrementalDecoder(tokenizer, tokens[:4])
        tokenizer.decoded = 0
        texts.append("".join(decoder.feed([token]) for token in tokens))
    assert (tokenizer.decoded == 0) == (name in ("byte_level", "byte_fallback"))
    assert texts[0] == texts[1] == after(tokenizer, tokens[:4], tokens)


@pytest.mark.parametrize(
    ("steps", "local"),
    [
        ([decoders.ByteLevel()], True),
        ([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()], True),
        ([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)], True),
        ([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 0, 1)], False),
        ([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("ab", "c")], False),
        ([decoders.ByteLevel(), decoders.Replace("ab", "c")], False),
        ([decoders.Metaspace()], False),
        ([decoders.CTC()], False),
    ],
)
def test_which_decoders_spell_tokens_one_by_one(steps, local):
    library = Library(models.WordLevel({"word": 0, "other": 1}, unk_token="word"))
    library.decoder = steps[0] if len(steps) == 1 else decoders.Sequence(steps)
    assert (_wrap(library).spelling(1) is not None) == local


def test_a_whole_answer_is_decoded_in_one_call_if_no_character_is_broken():
    tokenizer = Counted(make("wordpiece").inner)
    tokens = tokenizer.encode("the quick brown fox jumps over the lazy dog")
    stream = TextStream(tokenizer, prompt_tail=tokens[:2])
    tokenizer.decoded = 0
    text = stream.feed(tokens).text + stream.finish()
    assert tokenizer.decoded < 5
    assert text == after(tokenizer, tokens[:2], tokens)


def test_special_tokens_are_left_out_or_shown():
    tokenizer = make("byte_level")
    ids = tokenizer.encode("a<|end|>b<tool></s>")
    start, end = ids[0], ids[-1]
    assert {start, end} < tokenizer.special_tokens
    assert tokenizer.inner.convert_tokens_to_ids("<tool>") not in tokenizer.special_tokens
    assert tokenizer.decode(ids) == "".join(feed(tokenizer, (), [ids])) == "ab<tool>"
    shown = "<s>a<|end|>b<tool></s>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == shown
    assert "".join(feed(tokenizer, (), [ids], skip_special_tokens=False)) == shown


def test_ids_beyond_the_vocabulary_have_no_text():
    for name in MAKERS:
        tokenizer = make(name)
        ids = tokenizer.encode("the quick fox", add_special_tokens=False)
        padded = [t for token in ids for t in (token, size(name) + 7, 2**31 - 1)]
        assert tokenizer.decode(padded) == tokenizer.decode(ids)
        assert "".join(feed(tokenizer, (), [padded])) == tokenizer.decode(ids)


@pytest.mark.parametrize("file", ["bpe32k.json", "bpe128k.json"])
def test_large_vocabularies(shared_data: Path, file: str):
    inner = PreTrainedTokenizerFast(tokenizer_file=str(shared_data / "tokenizers" / file), eos_token="<|im_end|>")
    tokenizer = Tokenizer(inner)

    @settings(max_examples=60)
    @given(st.data(), some_text, st.lists(st.integers(0, len(inner) - 1), max_size=30))
    def check(data, text, ids):
        context = tokenizer.encode("Prompt: ")
        for tokens in (tokenizer.encode(text), ids):
            pieces = feed(tokenizer, context[-8:], data.draw(splits(tokens)))
            assert "".join(pieces) == after(tokenizer, context, tokens)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()


# -- stop strings ----------------------------------------------------------------------------------------------------


def search(texts: Sequence[str], stops: Sequence[str], include: bool, unwatched: int) -> tuple[str, str | None, int]:
    """Text, stop string and tokens consumed, given what each token adds to the text."""
    whole = ""
    begin = len("".join(texts[:unwatched]))
    for count, text in enumerate(texts, 1):
        whole += text
        ends = [(at + len(s), -len(s), s) for s in stops if (at := whole.find(s, begin)) >= 0]
        if ends and count > unwatched:
            end, _, stop = min(ends)
            return whole[: end if include else end - len(stop)], stop, count
    return whole, None, len(texts)


def possible_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    return max((n for s in stops for n in range(len(s)) if n <= len(text) and text.endswith(s[:n])), default=0)


def read(stream: TextStream, feeds: Sequence[Sequence[int]]) -> tuple[str, str | None, int]:
    text, consumed = "", 0
    for tokens in feeds:
        piece = stream.feed(tokens)
        text, consumed = text + piece.text, consumed + piece.consumed
        if piece.stop is not None:
            return text, piece.stop, consumed
        assert piece.consumed == len(tokens)
    return text + stream.finish(), None, consumed


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "wordpiece"])
@given(data=st.data(), include=st.booleans(), unwatched=st.integers(0, 5))
def test_stop_strings_are_what_a_plain_search_finds(name, data, include, unwatched):
    tokenizer = make(name)
    hidden = tokenizer.encode("the", add_special_tokens=False)[:1]
    alphabet = st.sampled_from(["ab", "a", "b", " ", "the", "你", "好", "😀", "aab"])
    tokens = tokenizer.encode("".join(data.draw(st.lists(alphabet, max_size=12))), add_special_tokens=False)
    tokens = [t for token in tokens for t in ([token, hidden[0]] if data.draw(st.integers(0, 9)) == 0 else [token])]
    context = tokenizer.encode("a b")
    decoder = IncrementalDecoder(tokenizer, context)
    texts = ["" if token in hidden else decoder.feed([token]) for token in tokens]
    whole = "".join(texts)
    inside = st.tuples(st.integers(0, len(whole)), st.integers(1, 5)).map(lambda p: whole[p[0] : p[0] + p[1]])
    stops = tuple(
        data.draw(st.lists((inside | st.sampled_from(["ab", "b ", "你好", "aaab"])).filter(bool), max_size=3))
    )
    options = {"stops": stops, "include_stop": include, "min_tokens": unwatched, "hidden_tokens": hidden}

    def stream() -> TextStream:
        return TextStream(tokenizer, prompt_tail=context, **options)

    expected = search([*texts], stops, include, unwatched)
    result = read(stream(), data.draw(splits(tokens)))
    assert result == (expected[0] + ("" if expected[1] else decoder.finish()), *expected[1:])
    live, said = stream(), ""
    for count, token in enumerate(tokens[: expected[2] - (expected[1] is not None)], 1):
        said += live.feed([token]).text
        so_far = "".join(texts[:count])
        watched = so_far[len("".join(texts[:unwatched])) :]
        assert said == so_far[: len(so_far) - possible_stop(watched, stops)]


def test_the_first_completed_stop_wins_and_the_longest_of_those():
    tokenizer = make("byte_level")
    tokens = tokenizer.encode("xabcdef", add_special_tokens=False)

    def text(*stops: str, **options: Any) -> tuple[str, str | None]:
        return read(TextStream(tokenizer, stops=stops, **options), [tokens])[:2]

    assert text("def", "abc") == ("x", "abc")
    assert text("c", "bc", "abc", "abcd") == ("x", "abc")
    assert text("abcdef", "cd") == ("xab", "cd")
    assert text("abcdef", "cd", include_stop=True) == ("xabcd", "cd")
    assert text("abcdeg") == ("xabcdef", None)


def test_a_stop_string_may_be_a_shown_special_token():
    tokenizer = make("byte_level")
    tokens = tokenizer.encode("ab<|end|>cd", add_special_tokens=False)
    assert read(TextStream(tokenizer, stops=["<|end|>"], skip_special_tokens=False), [tokens])[:2] == ("ab", "<|end|>")
    assert read(TextStream(tokenizer, stops=["<|end|>"]), [tokens])[:2] == ("abcd", None)


# -- the tokenizer ---------------------------------------------------------------------------------------------------


def test_encode_adds_what_the_model_expects_only_if_asked():
    tokenizer = make("byte_level")
    assert tokenizer.encode("ab") == [0, *tokenizer.encode("ab", add_special_tokens=False)]
    assert tokenizer.encode("", add_special_tokens=False) == []


@every_tokenizer
def test_text_that_is_no_unicode_is_refused(name):
    with pytest.raises(InvalidRequestError, match=r"'\\ud83d' at position 2"):
        make(name).encode("ab\ud83dcd")


def test_special_tokens_that_the_vocabulary_lacks_do_no_harm():
    class Lacking(PreTrainedTokenizerFast):
        all_special_ids = (None, 0)

    tokenizer = Tokenizer(Lacking(tokenizer_object=make("word_level").inner.backend_tokenizer))
    assert None not in tokenizer.special_tokens
    assert tokenizer.fingerprint


def test_fingerprints_tell_vocabularies_apart():
    assert byte_level().fingerprint == byte_level().fingerprint
    assert len({make(name).fingerprint for name in MAKERS}) == len(MAKERS)
    grown = byte_level()
    grown.inner.add_tokens(["<new>"])
    assert Tokenizer(grown.inner).fingerprint != byte_level().fingerprint
    library = make("word_level").inner.backend_tokenizer
    assert _wrap(library, eos_token="fox").fingerprint != make("word_level").fingerprint


def test_a_checkpoints_truncation_and_padding_are_off(tmp_path):
    tokenizer = _truncating(tmp_path)
    library = tokenizer.inner.backend_tokenizer
    assert library.truncation is library.padding is None  # before anything is encoded
    assert len(tokenizer.encode(TEXT)) > 100
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_many_threads_encode_and_decode_at_once(tmp_path):
    tokenizer = _truncating(tmp_path)
    texts = [TEXT[i:] + TEXT[:i] for i in range(0, len(TEXT), 5)]

    def work(text: str) -> bool:
        tokens = tokenizer.encode(text)
        streamed = "".join(feed(tokenizer, tokens[:1], [[t] for t in tokens[1:]]))
        return tokenizer.decode(tokens) == streamed == text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, texts * 3))


def _truncating(folder: Path) -> Tokenizer:
    """A fresh tokenizer whose file switches truncation and padding on."""
    library = Library.from_str(make("byte_level").inner.backend_tokenizer.to_str())
    library.enable_truncation(8)
    library.enable_padding(length=16)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>"))

"""radix-tiny: what generates its text, and the checkpoint that ships."""

# ruff: noqa: RUF001 -- Turkish has an i without a dot.

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import radixbackend
from radixbackend import Engine
from radixbackend.chat.service import ChatService
from tools.radix_tiny import evaluate
from tools.radix_tiny.corpus import dialogs, encode, render
from tools.radix_tiny.dialog import Dialog
from tools.radix_tiny.model import Shape, TinyLlama
from tools.radix_tiny.muon import Muon
from tools.radix_tiny.tasks import facts, records, tools
from tools.radix_tiny.tasks.facts import CAPITALS
from tools.radix_tiny.tokens import train_tokenizer, twins
from tools.radix_tiny.words import CITIES, FIRST_NAMES, LAST_NAMES, Later, Source, later, part

FOLDER = Path(radixbackend.__file__).parent / "models" / "radix_tiny"
CASES = 12
LEAST_RIGHT = {
    "extraction": 10,
    "extraction_tr": 9,
    "classification": 10,
    "lookup": 9,
    "tools_call": 10,
    "tools_answer": 10,
    "tools_none": 10,
    "facts": 10,
    "chat": 10,
}
"""Of so many cases each, with new names: below the model card's figures, well above what a broken path reaches."""


NAMES = (FIRST_NAMES, LAST_NAMES, CITIES)
KNOWN_BY_HEART = {*CAPITALS.values(), "Delhi", "Can", "Nice", "Park", "Price", "Ben"}
"""Names that wordings share: capitals, and names that are ordinary words too."""


def draw(count: int, seed: int = 1, *, held_out: bool = False, new_wordings: bool | None = None) -> list[Dialog]:
    return list(islice(dialogs(seed, held_out=held_out, new_wordings=new_wordings), count))


def words(drawn: list[Dialog]) -> set[str]:
    return {word for dialog in drawn for word in re.findall(r"\w+", render(dialog))}


def test_one_seed_gives_one_text() -> None:
    assert [render(dialog) for dialog in draw(50)] == [render(dialog) for dialog in draw(50)]
    assert render(draw(1)[0]) != render(draw(1, seed=2)[0])


@pytest.mark.parametrize("make", [Source.invented, Source.proper, Source.code, Source.foreign, Source.snake])
def test_held_out_words_are_never_trained_on(make: object) -> None:
    assert callable(make)
    trained, held_out = Source(3), Source(3, held_out=True, new_wordings=False)
    shown = {make(trained).lower() for _ in range(3000)}
    assert not shown & {make(held_out).lower() for _ in range(3000)}


def test_an_invented_word_belongs_to_one_world_however_it_is_made() -> None:
    """A syllable that is held out as a lower-case word is not shown in training as a Turkish name, nor listed."""
    trained, held_out = Source(3), Source(3, held_out=True)
    shown = {trained.proper() for _ in range(20_000)}
    new = {held_out.invented().capitalize() for _ in range(5000)}
    assert not new & shown
    assert not new & {name for names in NAMES for name in names}


def test_invented_words_are_made_of_a_tokenizers_pieces_too() -> None:
    """But not into a word that training is not to see."""
    source = Source("pieces", pieces=["pen", "ital", "dig", "ol"])
    made = {source.invented() for _ in range(3000)}
    assert {"digpen", "italol", "olital"} <= made
    assert made.isdisjoint({"pen", "digital"})


def test_texts_state_what_every_answer_must_have() -> None:
    for text in records.TURKISH_TEXTS:
        assert {"{name}", "{age}"} <= set(re.findall(r"{\w+}", text)), text
    for text in records.ADDRESS_TEXTS:
        parts = ("name", "number", "street", "city", "zip", "country")
        assert sorted(re.findall(r"{(\w+)}", text)) == sorted(parts), text


def test_no_wording_is_in_both_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wording that stands twice in a list could be held out in one place and shown in the other."""
    lists: set[tuple[str, ...]] = set()
    choose = Source.of

    def noting(self: Source, options: tuple[str, ...]) -> str:
        if any(isinstance(option, Later) for option in options):
            lists.add(tuple(options))
        return choose(self, options)

    monkeypatch.setattr(Source, "of", noting)
    draw(1500)
    assert len(lists) > 100
    assert not [options for options in lists if len(set(options)) < len(options)]


def test_wordings_that_came_later_are_not_in_the_tokenizers_text() -> None:
    wordings = ("is {}", "is at {}", *later("will be {}", "was {}", "has {}", "new: {}", "had {}"))
    for draw_one in (Source.any, Source.of):
        first, all_of_them = Source(3, inventive=False), Source(3)
        assert {draw_one(first, wordings) for _ in range(300)} == {"is {}", "is at {}"}
        drawn = {draw_one(all_of_them, wordings) for _ in range(300)}
        assert drawn == set(wordings if draw_one is Source.any else part(wordings, held_out=False))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_a_word_has_the_same_pieces_behind_a_space_and_behind_a_quote(tokenizer: Tokenizer) -> None:
    source, twin = Source(5, held_out=True), twins(tokenizer)
    for word in (source.proper() for _ in range(300)):
        spaced, quoted = tokenizer.encode(f" {word}").ids, tokenizer.encode(f'{{"{word}"').ids
        assert quoted[0] == tokenizer.token_to_id('{"')
        assert quoted[-1] == tokenizer.token_to_id('"')
        bare = quoted[1:-1]
        assert spaced[1:] == bare[1:] or spaced[1:] == bare  # few pieces have no twin: their space is a token
        assert twin.get(spaced[0], tokenizer.token_to_id("Ġ")) in (bare[0], tokenizer.token_to_id("Ġ"))


def test_what_closes_a_text_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    for after in ('"', '", "b": 1}', '"}', '"]'):
        tokens = tokenizer.encode(f'{{"a": "Koç{after}').tokens
        assert tokens[tokens.index("Ã§") + 1] == '"'


def test_every_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in (*map(render, draw(100)), "a  b\n\n  c\t東京 \U0001f600 ,x", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_tokenizer_is_what_the_script_makes(tokenizer: Tokenizer) -> None:
    made = train_tokenizer()
    assert made.get_vocab_size() == tokenizer.get_vocab_size() == Shape().vocabulary
    assert json.loads(made.to_str())["model"] == json.loads(tokenizer.to_str())["model"]


@pytest.mark.parametrize("options", NAMES)
def test_lists_are_split(options: list[str]) -> None:
    trained, held_out = set(part(options, held_out=False)), set(part(options, held_out=True))
    assert held_out
    assert not trained & held_out
    assert trained | held_out == set(options)
    for new_wordings in (False, True):
        source = Source(0, held_out=True, new_wordings=new_wordings)
        assert {source.word_of(options) for _ in range(500)} == held_out


@pytest.mark.parametrize("new_wordings", [False, True])
def test_the_worlds_texts_share_no_name(new_wordings: bool) -> None:
    trained, held_out = words(draw(1500)), words(draw(1500, held_out=True, new_wordings=new_wordings))
    for names in NAMES:
        assert trained & set(part(names, held_out=False)) - KNOWN_BY_HEART
        assert not trained & set(part(names, held_out=True)) - KNOWN_BY_HEART
        assert not held_out & set(part(names, held_out=False)) - KNOWN_BY_HEART


def test_wordings_are_trained_on_unless_they_are_to_be_new() -> None:
    def told(drawn: list[Dialog]) -> set[str]:
        return {d.messages[0]["content"] for d in drawn if d.task == "facts" and d.messages[0]["role"] == "system"}

    def described(drawn: list[Dialog]) -> set[str]:
        texts = {tool["function"]["description"] for dialog in drawn for tool in dialog.tools}
        return {text for text in texts if "weather" in text}

    def drawn(count: int, **world: bool) -> list[Dialog]:
        source = Source(1, **world)
        return [make(source) for make in (facts.make, tools.make) for _ in range(count)]

    trained = drawn(1500)
    same, new = (drawn(500, held_out=True, new_wordings=new_wordings) for new_wordings in (False, True))
    for wordings in (told, described):
        assert wordings(same)
        assert wordings(same) <= wordings(trained)
        assert wordings(new)
        assert not wordings(new) & wordings(trained)


@pytest.mark.parametrize("new_wordings", [False, True])
def test_held_out_conversations_are_new(new_wordings: bool) -> None:
    by_heart = {"facts", "tools_none"} if new_wordings else {"facts", "tools_none", "classification", "dspy"}
    held_out = draw(400, held_out=True, new_wordings=new_wordings)
    shown = {render(dialog) for dialog in draw(1500)}
    assert not shown & {render(dialog) for dialog in held_out if dialog.task not in by_heart}


def test_every_conversation_can_be_sent_and_its_answer_is_right() -> None:
    """Whatever the evaluation asks is a valid request, and what it expects passes its own judgement."""
    for dialog in draw(300, held_out=True):
        request = evaluate.request_of(dialog, grammar=True)
        assert request.messages
        if dialog.schema is not None:
            assert json.loads(dialog.answer["content"]).keys() == dialog.schema["properties"].keys()


def test_the_evaluation_measures_both_kinds_of_new() -> None:
    for kind, new_wordings in evaluate.KINDS.items():
        drawn = list(evaluate.cases(3, ["extraction", "facts"], new_wordings=new_wordings))
        assert [dialog.task for dialog in drawn].count("extraction") == 3 == len(drawn) / 2, kind
        assert drawn != list(evaluate.cases(3, ["extraction", "facts"], new_wordings=not new_wordings))


def test_a_card_has_the_figures_of_the_program() -> None:
    columns = {
        (kind, grammar): {"facts": evaluate.Score(cases=4, right=1 + grammar + 2 * new)}
        for kind, new in evaluate.KINDS.items()
        for grammar in (False, True)
    }
    figures = evaluate.report(columns, 4)
    assert "| capitals and small sums (`facts`) | 4 | 25.0% | 50.0% | 75.0% | 100.0% |" in figures
    assert "new names: free | new names: grammar | new wordings: free | new wordings: grammar" in figures
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    filled = evaluate.fill(card, figures)
    assert figures in filled
    assert evaluate.fill(filled, "other") == evaluate.fill(card, "other")
    with pytest.raises(ValueError, match="0 times"):
        evaluate.fill("a card without marks", figures)


@pytest.mark.parametrize(
    "text",
    [
        "Ahmet 35 yaşında bir mühendistir.",
        "İstanbul'da ığdır çöğür",
        "你好啊集团",
        "株式会社 こんにちは",
        "naïve café — “quoted”",
        "🙂👩‍🚀\n\tx",
        "a  b\n\n c",
    ],
)
def test_the_tokenizer_loses_nothing(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_only_answers_are_trained_on(tokenizer: Tokenizer) -> None:
    dialog = next(dialog for dialog in draw(50) if dialog.task == "tools_answer")
    example = encode(render(dialog), tokenizer)
    answers = tokenizer.decode(
        [token for token, counts in zip(example.ids, example.is_answer, strict=True) if counts],
        skip_special_tokens=False,
    )
    spoken = [message for message in dialog.messages if message["role"] == "assistant"]
    assert answers.count("<|im_end|>") == len(spoken)
    assert answers.endswith(f"{dialog.answer['content']}<|im_end|>")


def test_training_computes_what_transformers_computes() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = Shape(vocabulary=64, hidden=32, layers=2, heads=2, kv_heads=1, feed_forward=48, context=64)
    torch.manual_seed(0)
    ours = TinyLlama(shape)
    theirs = LlamaForCausalLM(LlamaConfig(**{**shape.config(), "dtype": "float32"}))
    assert not theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys
    theirs.tie_weights()
    ids = torch.randint(0, 64, (2, 20))
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        assert torch.allclose(ours.logits(ours.hidden(ids, torch.float32)), expected, atol=1e-4)


def test_a_grown_model_computes_what_the_smaller_one_does() -> None:
    small = TinyLlama(Shape(vocabulary=64, hidden=32, layers=2, heads=2, kv_heads=1, feed_forward=48))
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.arange(40).view(2, 20)
    expected = small.logits(small.hidden(tokens, torch.float32))
    for layers in (2, 3, 5):
        grown = TinyLlama(dataclasses.replace(small.shape, layers=layers))
        grown.grow(small.state_dict())
        torch.testing.assert_close(grown.logits(grown.hidden(tokens, torch.float32)), expected)
        idle = [name for name, weight in grown.named_parameters() if not weight.any()]
        assert len(idle) == 2 * (layers - 2)  # what leaves a new layer, and nothing else
    with pytest.raises(ValueError, match="a model of 2 layers does not fit into 1"):
        TinyLlama(dataclasses.replace(small.shape, layers=1)).grow(small.state_dict())


def test_matrices_are_updated_as_by_torchs_own_optimizer() -> None:
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
        optimizers = (
            Muon([ours], lr=0.01, weight_decay=0.1),
            torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        )
        for _ in range(3):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        moved = theirs - torch.ones(shape)
        assert (ours - theirs).norm() < 0.02 * moved.norm()  # theirs rounds on its way


def test_the_folder_is_small_and_plain() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    needed = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "MODEL_CARD.md",
    }
    assert needed <= files.keys()
    assert sum(files.values()) < 12_000_000


def test_it_ships_the_template_that_it_was_trained_with() -> None:
    from tools.radix_tiny.corpus import TEMPLATE

    assert (FOLDER / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def service() -> Iterator[ChatService]:
    with Engine("radix-tiny", kv_cache_tokens=8192) as engine:
        yield ChatService(engine)


def test_its_tools_are_found_to_be_hermes(service: ChatService) -> None:
    assert service.backend.tool_format is not None
    assert service.backend.tool_format.name == "hermes"


def test_the_engine_sees_the_prompt_that_training_saw(service: ChatService) -> None:
    for dialog in draw(40, held_out=True):
        prompt = service.tokenize(evaluate.request_of(dialog, grammar=False))
        tokens = service.backend.tokenizer
        assert tokens is not None
        assert tuple(tokens.encode(render(dialog), add_special_tokens=False))[: len(prompt)] == prompt


@pytest.mark.parametrize("task", LEAST_RIGHT)
def test_it_can_do_what_its_card_says(service: ChatService, task: str) -> None:
    score = evaluate.evaluate(service, list(evaluate.cases(CASES, [task], new_wordings=False)), grammar=True)[task]
    assert score.right >= LEAST_RIGHT[task], [(dialog.answer, given) for dialog, given in score.wrong]

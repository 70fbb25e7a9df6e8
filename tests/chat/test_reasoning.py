"""Reasoning comes off the front of an answer, wherever the prompt left off."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.chat.formats import hermes, kimi_k3
from radixbackend.chat.reasoning import TAGGED, Phase, TaggedReasoning, find
from radixbackend.types import ModelInfo
from tests.chat.families import TOOLS, Read, join

THINK = TaggedReasoning("think", "<think>", "</think>")
CALL = '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>'


def read(text: str, phase: Phase, cuts: list[int] | None = None, *, truncated: bool = False) -> Read:
    parser, pieces, at, step = THINK.parser(phase, hermes.HERMES.parser(TOOLS)), [], 0, 0
    while at < len(text):
        length = cuts[step % len(cuts)] if cuts else len(text)
        pieces += parser.feed(text[at : at + length])
        at, step = at + length, step + 1
    return join(pieces + parser.finish(truncated=truncated))


@pytest.mark.parametrize(
    ("prompt", "phase"),
    [
        ("<|im_start|>assistant\n", "before"),
        ("<|im_start|>assistant\n<think>\n", "inside"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "after"),
        ("</think>", "after"),
        ("<think>old</think>yes<|im_end|><|im_start|>assistant\n", "before"),
        ("What does <think> mean?<|im_end|><|im_start|>assistant\n", "before"),
        ("<think>old</think>yes<|im_start|>assistant\n<think>\n", "inside"),
        ("", "before"),
    ],
)
def test_the_prompt_tells_the_phase(prompt: str, phase: Phase) -> None:
    assert THINK.phase(prompt) == phase


@pytest.mark.parametrize(
    ("text", "phase", "reasoning", "content", "calls"),
    [
        ("<think>\nhm\n\nso\n</think>\n\nYes.", "before", "hm\n\nso", "Yes.", 0),
        ("hm </think> Yes.", "inside", "hm", "Yes.", 0),
        ("<think>hm</think>Yes.", "inside", "hm", "Yes.", 0),
        ("Yes.", "before", "", "Yes.", 0),
        (" Yes <think>", "before", "", " Yes <think>", 0),
        ("<b>Yes</b>", "before", "", "<b>Yes</b>", 0),
        ("Yes </think> no", "after", "", "Yes </think> no", 0),
        ("<think></think>Yes", "before", "", "Yes", 0),
        ("<think>hm < 3 </thin</think>Yes", "before", "hm < 3 </thin", "Yes", 0),
        (f"<think>use <tool_call></think>\n\n{CALL}", "before", "use <tool_call>", "", 1),
        (f"hm</think>Look: {CALL}", "inside", "hm", "Look:", 1),
        ("<think>never ends", "before", "never ends", "", 0),
        ("", "inside", "", "", 0),
    ],
)
@pytest.mark.parametrize("cuts", [[1], [3, 1, 7], [1000]])
def test_splitting(text: str, phase: Phase, reasoning: str, content: str, calls: int, cuts: list[int]) -> None:
    found = read(text, phase, cuts)
    assert (found.reasoning, found.content, found.ended) == (reasoning, content, calls)


@settings(max_examples=60)
@given(
    text=st.lists(
        st.sampled_from(["<think>", "</think>", "<thi", "</", "\n", " ", "a", "ü", "<tool_call>", CALL]), max_size=8
    ).map("".join),
    phase=st.sampled_from(["before", "inside", "after"]),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    truncated=st.booleans(),
)
def test_cuts_change_nothing(text: str, phase: Phase, cuts: list[int], truncated: bool) -> None:
    assert read(text, phase, cuts, truncated=truncated) == read(text, phase, truncated=truncated)


def test_half_an_opening_marker_of_a_cut_answer_is_nobodys() -> None:
    assert read("<thi", "before", truncated=True).content == ""
    assert read("<thi", "before").content == "<thi"


@pytest.mark.parametrize("format", TAGGED, ids=lambda format: format.name)
def test_formats_are_told_by_the_template(format: TaggedReasoning) -> None:
    assert find(ModelInfo("m", chat_template=f"{format.opening} … {format.closing}")) is format
    assert find(ModelInfo("m", added_tokens=frozenset((format.opening, format.closing)))) is format


def test_kimi_k3_is_told_by_its_tokens() -> None:
    """Its template puts the markers together, so that it mentions none of them."""
    found = find(ModelInfo("m", added_tokens=frozenset((kimi_k3.OPEN, kimi_k3.CLOSE, kimi_k3.SEP))))
    assert isinstance(found, TaggedReasoning)
    assert found.phase('<|open|>message role="assistant"<|sep|><|open|>think<|sep|>') == "inside"
    parser = found.parser("inside", kimi_k3.KIMI_K3.parser(TOOLS))
    text = "Hm.<|close|>think<|sep|><|open|>response<|sep|>Well. <|close|>response<|sep|><|close|>message<|sep|>"
    read = join([piece for char in text for piece in parser.feed(char)] + parser.finish(truncated=False))
    assert (read.reasoning, read.content.strip()) == ("Hm.", "Well.")


def test_others_do_not_think() -> None:
    assert find(ModelInfo("m", chat_template="<think> alone")) is None
    harmony = find(ModelInfo("m", "gpt_oss"))
    assert harmony is not None
    assert harmony.name == "harmony"

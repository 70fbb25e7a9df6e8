"""Text completions through every face."""

from __future__ import annotations

import itertools
import re
from typing import Any

import openai
import pytest

from radixbackend import Engine, SamplingParams
from tests.openai_api.clients import Client, Recorder

GREEDY: Any = {"temperature": 0, "max_tokens": 8}


def test_prompts_of_every_kind(client: Client, engine: Engine) -> None:
    ids = [5, 300, 40]
    params = SamplingParams(max_tokens=8, temperature=0)
    text = engine.generate("The weather", params)
    tokens = engine.generate(ids, params)
    for prompt, expected in (
        ("The weather", [text]),
        (ids, [tokens]),
        (["The weather", "The weather"], [text, text]),
        ([ids, ids], [tokens, tokens]),
    ):
        answer = client.call("completions.create", prompt=prompt, **GREEDY)
        assert [c.text for c in answer.choices] == [e.text for e in expected]
        assert [c.index for c in answer.choices] == list(range(len(expected)))
        assert answer.usage.prompt_tokens == sum(e.usage.prompt_tokens for e in expected)
        assert answer.usage.completion_tokens == 8 * len(expected)
    assert answer.object == "text_completion"


def test_default_length(client: Client) -> None:
    answer = client.call("completions.create", prompt="The", temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_several_answers_to_several_prompts(client: Client, engine: Engine) -> None:
    answer = client.call("completions.create", prompt=["A", "B"], n=2, seed=3, temperature=1.2, max_tokens=6)
    expected = engine.generate(["A", "B"], SamplingParams(n=2, seed=3, temperature=1.2, max_tokens=6))
    assert [c.text for c in answer.choices] == [c.text for e in expected for c in e.choices]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]


def test_streams(lenient: Client) -> None:
    client = lenient
    arguments: Any = {"prompt": ["A", "Once upon"], "n": 2, "seed": 3, "temperature": 1.2, "max_tokens": 6}
    whole = client.call("completions.create", **arguments)
    texts, reasons, usages = [""] * 4, [None] * 4, []
    for chunk in client.stream("completions.create", **arguments, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        if chunk.usage:
            usages.append(chunk.usage)
    assert texts == [c.text for c in whole.choices]
    assert reasons == [c.finish_reason for c in whole.choices]
    assert len(usages) == 1
    assert usages[0].prompt_tokens == whole.usage.prompt_tokens
    assert usages[0].completion_tokens == whole.usage.completion_tokens


def test_logprobs(lenient: Client, engine: Engine) -> None:
    client = lenient
    expected = engine.generate("The weather", SamplingParams(max_tokens=8, temperature=0, logprobs=2)).logprobs or ()
    whole = client.call("completions.create", prompt="The weather", logprobs=2, **GREEDY).choices[0]
    assert whole.logprobs.token_logprobs == pytest.approx([e.logprob for e in expected])
    assert [len(top) for top in whole.logprobs.top_logprobs] == [2] * 8
    offsets = whole.logprobs.text_offset
    assert offsets[0] == 0
    assert [b - a for a, b in itertools.pairwise(offsets)] == [len(t) for t in whole.logprobs.tokens[:-1]]
    pieces = [
        c.choices[0].logprobs
        for c in client.stream("completions.create", prompt="The weather", logprobs=2, **GREEDY)
        if c.choices and c.choices[0].logprobs
    ]
    assert [t for p in pieces for t in p.tokens] == whole.logprobs.tokens
    assert [o for p in pieces for o in p.text_offset] == offsets


def test_echo(lenient: Client, engine: Engine) -> None:
    client = lenient
    plain = client.call("completions.create", prompt="The weather", **GREEDY).choices[0].text
    echoed = client.call("completions.create", prompt="The weather", echo=True, **GREEDY).choices[0]
    assert echoed.text == "The weather" + plain
    tokens = engine.tokenizer.encode("The weather")  # type: ignore[union-attr]
    scored = client.call("completions.create", prompt="The weather", echo=True, logprobs=1, temperature=0, max_tokens=0)
    logprobs = scored.choices[0].logprobs
    assert scored.choices[0].text == "The weather"
    assert len(logprobs.tokens) == len(tokens)
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    one = client.call("completions.create", prompt=[7], echo=True, logprobs=0, **GREEDY).choices[0]
    assert len(one.logprobs.tokens) == 9


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_echo_streams(lenient: Client, logprobs: int | None, max_tokens: int) -> None:
    """Every choice's prompt first, then its answer; joined it is what comes at once."""
    client = lenient
    arguments: Any = {"prompt": ["The weather", "Once"], "n": 2, "seed": 3, "max_tokens": max_tokens, "echo": True}
    arguments |= {"logprobs": logprobs} if logprobs else {}
    whole = client.call("completions.create", **arguments)
    texts, tokens, offsets = [""] * 4, [[] for _ in range(4)], [[] for _ in range(4)]  # type: ignore[var-annotated]
    for chunk in client.stream("completions.create", **arguments):
        for choice in chunk.choices:
            if not texts[choice.index]:
                assert choice.text == ("The weather", "Once")[choice.index // 2]
            texts[choice.index] += choice.text
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens
                offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in whole.choices]
    if logprobs:
        assert tokens == [choice.logprobs.tokens for choice in whole.choices]
        assert offsets == [choice.logprobs.text_offset for choice in whole.choices]


def test_a_gap_is_filled_by_models_that_know_how(
    client: Client, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(openai.BadRequestError, match="no tokens to fill a gap"):
        client.call("completions.create", prompt="def f(", suffix="return 1", max_tokens=1)
    inner = recorder.tokenizer.inner
    known = {**inner.get_vocab(), "<|fim_prefix|>": 1, "<|fim_suffix|>": 2, "<|fim_middle|>": 3}
    monkeypatch.setattr(inner, "get_vocab", lambda: known)
    client.call("completions.create", prompt="def f(", suffix="return 1", max_tokens=1)
    assert recorder.asked[-1].prompt == "<|fim_prefix|>def f(<|fim_suffix|>return 1<|fim_middle|>"
    with pytest.raises(openai.BadRequestError, match="does not go with 'suffix'"):
        client.call("completions.create", prompt="def f(", suffix="return 1", max_tokens=1, echo=True)
    with pytest.raises(openai.BadRequestError, match="prompt of text"):
        client.call("completions.create", prompt=[1, 2], suffix="return 1", max_tokens=1)


def test_constraint(client: Client) -> None:
    answer = client.call("completions.create", prompt="x", max_tokens=20, extra_body={"regex": "[ab]{4}"})
    assert re.fullmatch("[ab]{4}", answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def test_special_tokens_of_the_prompt(client: Client, recorder: Recorder) -> None:
    client.call("completions.create", prompt="a b", max_tokens=1, extra_body={"add_special_tokens": False})
    assert recorder.asked[-1].prompt == tuple(recorder.tokenizer.encode("a b", add_special_tokens=False))

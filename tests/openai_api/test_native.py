"""SGLang's own endpoints, asked as its frontend asks them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from radixbackend import Engine, SamplingParams
from tests.openai_api.clients import Recorder, Served


def generate(served: Served, **body: Any) -> Any:
    return served.post("/generate", body)


def test_text(served: Served, engine: Engine) -> None:
    answer = generate(served, text="The weather", sampling_params={"max_new_tokens": 6, "temperature": 0})
    expected = engine.generate("The weather", SamplingParams(max_tokens=6, temperature=0))
    assert answer["text"] == expected.text
    assert answer["output_ids"] == list(expected.token_ids)
    meta = answer["meta_info"]
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(expected.prompt_token_ids), 6)
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert meta["cached_tokens"] >= 0


def test_lists(served: Served, engine: Engine) -> None:
    params = SamplingParams(max_tokens=4, temperature=0)
    answers = generate(served, text=["A", "B b"], sampling_params={"max_new_tokens": 4, "temperature": 0})
    assert [a["text"] for a in answers] == [engine.generate(t, params).text for t in ("A", "B b")]
    each = generate(served, text=["A", "B b"], sampling_params=[{"max_new_tokens": 1}, {"max_new_tokens": 3}])
    assert [a["meta_info"]["completion_tokens"] for a in each] == [1, 3]
    ids = generate(served, input_ids=[5, 6, 7], sampling_params={"max_new_tokens": 4, "temperature": 0})
    assert ids["text"] == engine.generate([5, 6, 7], params).text
    assert len(generate(served, input_ids=[[5, 6], [7]], sampling_params={"max_new_tokens": 1})) == 2
    assert len(generate(served, text="A", sampling_params={"max_new_tokens": 1, "n": 3})) == 3


@pytest.mark.parametrize(
    ("sampling", "ours"),
    [
        ({"temperature": 1.5, "seed": 4}, {"temperature": 1.5, "seed": 4}),
        ({"temperature": 1.5, "sampling_seed": 4}, {"temperature": 1.5, "seed": 4}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.01}, {"top_k": 3, "top_p": 0.9, "min_p": 0.01}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"frequency_penalty": 1.0, "presence_penalty": 0.5}, {"frequency_penalty": 1.0, "presence_penalty": 0.5}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"stop": ["x", "y"], "no_stop_trim": True}, {"stop": ("x", "y"), "include_stop": True}),
        ({"stop": [], "stop_regex": []}, {"stop": ()}),
        ({"stop_token_ids": [7], "ignore_eos": True}, {"stop_token_ids": (7,), "ignore_eos": True}),
        ({"min_new_tokens": 2}, {"min_tokens": 2}),
        ({"skip_special_tokens": False}, {"skip_special_tokens": False}),
        ({"logit_bias": {"5": 2.0}}, {"logit_bias": {5: 2.0}}),
        ({"spaces_between_special_tokens": True}, {}),
    ],
    ids=str,
)
def test_sampling(served: Served, recorder: Recorder, sampling: Any, ours: Any) -> None:
    generate(served, text="A", sampling_params={"max_new_tokens": 5, **sampling})
    assert recorder.asked[-1].sampling == SamplingParams(max_tokens=5, **ours)


def test_default_length(served: Served, recorder: Recorder) -> None:
    generate(served, text="A")
    assert recorder.asked[-1].sampling.max_tokens == 128


@pytest.mark.parametrize(
    ("constraint", "good"),
    [
        ({"regex": "[ab]{2}"}, lambda t: len(t) == 2 and set(t) <= {"a", "b"}),
        ({"ebnf": 'root ::= "yes" | "no"'}, lambda t: t in ("yes", "no")),
        ({"json_schema": '{"enum": ["x", "y"]}'}, lambda t: json.loads(t) in ("x", "y")),
    ],
)
def test_constraints(served: Served, constraint: Any, good: Any) -> None:
    answer = generate(served, text="A", sampling_params={"max_new_tokens": 20, **constraint})
    assert good(answer["text"])
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_stream_is_cumulative(served: Served) -> None:
    body: Any = {"text": "The weather", "sampling_params": {"max_new_tokens": 6, "temperature": 0}}
    events = served.events("/generate", body)
    assert events[-1] == "[DONE]"
    texts = [event["text"] for event in events[:-1]]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    whole = generate(served, **body)
    assert texts[-1] == whole["text"]
    assert len(texts) > 3
    assert events[-2]["meta_info"]["finish_reason"] == {"type": "length", "length": 6}
    assert events[-2]["meta_info"]["prompt_tokens"] == whole["meta_info"]["prompt_tokens"]
    several = served.events("/generate", {**body, "text": ["A", "B"]})
    assert {event["index"] for event in several[:-1]} == {0, 1}


def test_logprobs(served: Served, engine: Engine) -> None:
    tokenizer: Any = engine.tokenizer
    prompt = tokenizer.encode("The weather in Rome")
    body: Any = {
        "text": "The weather in Rome",
        "sampling_params": {"max_new_tokens": 3, "temperature": 0},
        "return_logprob": True,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
    }
    meta = generate(served, **body)["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert len(meta["output_token_logprobs"]) == 3
    logprob, token, text = meta["output_token_logprobs"][0]
    assert logprob < 0
    assert text == tokenizer.decode([token])
    assert [len(top) for top in meta["output_top_logprobs"]] == [2, 2, 2]
    all_of_them = generate(served, **body, logprob_start_len=0)["meta_info"]["input_token_logprobs"]
    assert [entry[1] for entry in all_of_them] == prompt
    assert all_of_them[0][0] is None
    assert all(entry[0] < 0 for entry in all_of_them[1:])
    tail = generate(served, **body, logprob_start_len=2)["meta_info"]["input_token_logprobs"]
    assert tail == [[pytest.approx(lp), t, s] for lp, t, s in all_of_them[2:]]
    streamed = served.events("/generate", {**body, "logprob_start_len": 2})[-2]["meta_info"]
    assert len(streamed["output_token_logprobs"]) == 3
    assert [entry[1] for entry in streamed["input_token_logprobs"]] == prompt[2:]


def test_select_as_the_frontend_does_it(served: Served, engine: Engine) -> None:
    """Choices scored by their log-probabilities: prefill only, several texts, healed tokens, then their own odds."""
    text = "The weather in Rome is"
    first = generate(served, text=text, sampling_params={"max_new_tokens": 0})
    assert first["text"] == ""
    length = first["meta_info"]["prompt_tokens"]
    scored = generate(
        served,
        text=[text + choice for choice in (" fine", " qqq")],
        sampling_params={"max_new_tokens": 0, "temperature": 0},
        return_logprob=True,
        return_text_in_logprobs=True,
        logprob_start_len=max(length - 2, 0),
    )
    inputs = [answer["meta_info"]["input_token_logprobs"] for answer in scored]
    assert all(answer["meta_info"]["output_token_logprobs"] == [] for answer in scored)
    assert all(text.endswith(entries[0][-1]) or entries[0][-1] for entries in inputs)
    alone = generate(
        served,
        input_ids=[[entry[1] for entry in entries] for entries in inputs],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
    )
    for entries, answer in zip(inputs, alone, strict=True):
        assert [e[1] for e in answer["meta_info"]["input_token_logprobs"]] == [e[1] for e in entries]


def test_names_and_places(served: Served, recorder: Recorder) -> None:
    body: Any = {"sampling_params": {"max_new_tokens": 1}, "priority": 3, "extra_key": "mine"}
    assert generate(served, text="A", rid="r1", **body)["meta_info"]["id"] == "r1"
    assert (recorder.asked[-1].priority, recorder.asked[-1].cache_salt) == (3, "mine")
    named = generate(served, text=["A", "B"], rid=["r1", "r2"], **body)
    assert [answer["meta_info"]["id"] for answer in named] == ["r1", "r2"]
    tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": "[pq]{3}"}}
    shaped = generate(served, text="A", sampling_params={"max_new_tokens": 9, "structural_tag": tag})
    assert set(shaped["text"]) <= {"p", "q"}


def test_infos(served: Served) -> None:
    for path in ("/get_model_info", "/model_info"):
        assert served.send("GET", path)[2]["model_path"] == "tiny"
    for path in ("/server_info", "/get_server_info"):
        info = served.send("GET", path)[2]
        assert info["max_total_num_tokens"] == 16384
        assert info["internal_states"][0]["slots_total"] == 16384
    assert served.send("POST", "/flush_cache", {"empty_cache": True})[0] == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": []}, "sampling_params"),
        ({"text": "a", "image_data": "x"}, "image_data"),
        ({"text": "a", "sampling_params": {"stop_regex": "x"}}, "stop_regex"),
        ({"text": "a", "sampling_params": {"regex": "(["}}, "regex"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
        ({"text": "a" * 9000}, "text"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_errors(served: Served, body: Any, param: str) -> None:
    status, _, answer = served.send("POST", "/generate", body)
    assert status == 400
    assert answer["error"]["param"] == param

"""DSPy's modules and optimizers over RadixLM and RadixAdapter, on a model whose words mean nothing."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Literal

import dspy
import pytest
from dspy_radix import RadixAdapter, RadixLM


class Sentiment(dspy.Signature):
    """How does the guest feel?"""

    review: str = dspy.InputField()
    mood: Literal["happy", "angry", "neither"] = dspy.OutputField()
    stars: int = dspy.OutputField(ge=1, le=5)


EXAMPLES = [
    dspy.Example(review=f"Guest {index} stayed for {index % 3 + 1} nights.", mood="happy", stars=4).with_inputs(
        "review"
    )
    for index in range(12)
]


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.mood in ("happy", "angry", "neither") and 1 <= prediction.stars <= 5)


def lucky(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(prediction.stars) / 5


def add(left: int, right: int) -> int:
    """Add two numbers."""
    return left + right


def test_predict_and_chain_of_thought(radix: RadixLM) -> None:
    assert right(None, dspy.Predict(Sentiment)(review="Lovely."))
    thought = dspy.ChainOfThought(Sentiment)(review="Lovely.")
    assert isinstance(thought.reasoning, str)
    assert right(None, thought)
    assert len(radix.history) == 2


def test_n_completions(radix: RadixLM) -> None:
    prediction = dspy.Predict(Sentiment, n=3)(review="Lovely.")
    assert len(prediction.completions.mood) == 3


def test_history_in_the_prompt_is_found_in_the_cache(radix: RadixLM) -> None:
    made = Sentiment.prepend("history", dspy.InputField(), type_=dspy.History)
    predict, history = dspy.Predict(made), dspy.History(messages=[])
    for review in ("Lovely.", "Loud.", "Cold."):
        prediction = predict(review=review, history=history)
        history.messages.append({"review": review, **prediction})
    usage = radix.history[-1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.6 * usage["prompt_tokens"]


def test_react(radix: RadixLM) -> None:
    prediction = dspy.ReAct("question -> total: int", tools=[add], max_iters=3)(question="What is 2 + 2?")
    assert isinstance(prediction.total, int)
    assert prediction.trajectory["tool_name_0"] in ("add", "finish")


def test_react_shortens_what_grew_too_long(radix: RadixLM, caplog: pytest.LogCaptureFixture) -> None:
    """The engine's refusal is the one that ReAct knows how to take."""

    def read() -> str:
        """Read the book."""
        return "word " * 1500

    agent = dspy.ReAct("question -> answer", tools=[read], max_iters=3)
    for seed in range(20):
        agent.set_lm(radix.copy(seed=seed))
        assert isinstance(agent(question="Who?").answer, str)
        if "truncating the oldest tool call" in caplog.text:
            return
    pytest.fail("no trajectory grew too long")


@pytest.mark.filterwarnings("ignore")
def test_react_with_native_calls(radix: RadixLM) -> None:
    prediction = dspy.ReActV2("question -> total: int", tools=[add], max_iters=2)(question="What is 2 + 2?")
    assert prediction.termination_reason in ("submit", "forced_submit")
    assert isinstance(prediction.total, int)


def test_best_of_n_and_refine(radix: RadixLM) -> None:
    def reward(arguments: Any, prediction: Any) -> float:
        return lucky(None, prediction)

    before = radix.stats()
    best = dspy.BestOfN(dspy.Predict(Sentiment), N=4, reward_fn=reward, threshold=2.0)(review="Lovely.")
    after = radix.stats()
    assert right(None, best)
    prompts = after.prompt_tokens - before.prompt_tokens
    assert after.cached_tokens - before.cached_tokens == (prompts // 4 - 1) * 3, "the last three cost a token each"
    refined = dspy.Refine(dspy.Predict(Sentiment), N=2, reward_fn=reward, threshold=2.0)(review="Lovely.")
    assert right(None, refined)


def test_parallel_and_evaluate(radix: RadixLM) -> None:
    predict = dspy.Predict(Sentiment)
    answers = dspy.Parallel(num_threads=8, disable_progress_bar=True)([(predict, example) for example in EXAMPLES])
    assert all(right(None, answer) for answer in answers)
    evaluate = dspy.Evaluate(devset=EXAMPLES, metric=right, num_threads=16, display_progress=False)
    assert evaluate(predict).score == 100.0


def test_bootstrap_with_random_search(radix: RadixLM) -> None:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=right,
        max_bootstrapped_demos=2,
        max_labeled_demos=2,
        num_candidate_programs=2,
        num_threads=8,
    )
    program = optimizer.compile(dspy.ChainOfThought(Sentiment), trainset=EXAMPLES[:6], valset=EXAMPLES[6:])
    assert right(None, program(review="Lovely."))
    assert len(program.candidate_programs) == 5


@pytest.mark.filterwarnings("ignore")
def test_mipro(radix: RadixLM) -> None:
    pytest.importorskip("optuna")
    random.seed(0)
    optimizer = dspy.MIPROv2(
        metric=lucky, auto=None, num_candidates=2, max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=8
    )
    program = optimizer.compile(
        dspy.Predict(Sentiment), trainset=EXAMPLES[:6], valset=EXAMPLES[6:], num_trials=2, minibatch=False
    )
    assert right(None, program(review="Lovely."))


# -- streaming -----------------------------------------------------------------------------------------------------


async def pieces_of(program: Any, **inputs: Any) -> tuple[list[Any], Any]:
    values = [value async for value in program(**inputs)]
    assert isinstance(values[-1], dspy.Prediction)
    return values[:-1], values[-1]


class Long(dspy.Signature):
    """What is there to see?"""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField(min_length=40, max_length=60, pattern="^[a-z ]*$")
    comment: str = dspy.OutputField(min_length=40, max_length=60, pattern="^[a-z ]*$")


@pytest.mark.parametrize("is_async", [False, True])
def test_streamify_with_listeners(radix: RadixLM, is_async: bool) -> None:
    listeners = [dspy.streaming.StreamListener(name) for name in ("answer", "comment")]
    program = dspy.streamify(dspy.Predict(Long), stream_listeners=listeners, is_async_program=is_async)
    pieces, prediction = asyncio.run(pieces_of(program, question="What is there to see?"))
    for name in ("answer", "comment"):
        heard = "".join(piece.chunk for piece in pieces if piece.signature_field_name == name)
        assert prediction[name] in heard
    assert len(pieces) > 10


def test_streamify_with_dspys_chat_adapter(radix: RadixLM) -> None:
    """Text is streamed under any adapter; here the grammar writes ChatAdapter's markers."""
    layout = r"\[\[ ## answer ## \]\]\n[a-z ]{40,60}\n\n\[\[ ## completed ## \]\]"
    predict = dspy.Predict("question -> answer", regex=layout)
    program = dspy.streamify(predict, stream_listeners=[dspy.streaming.StreamListener("answer")])
    with dspy.context(adapter=dspy.ChatAdapter()):
        pieces, prediction = asyncio.run(pieces_of(program, question="What is there to see?"))
    assert "".join(piece.chunk for piece in pieces).strip() == prediction.answer.strip()


def test_streamify_without_listeners_gives_the_engines_chunks(radix: RadixLM) -> None:
    chunks, prediction = asyncio.run(pieces_of(dspy.streamify(dspy.Predict(Sentiment)), review="Lovely."))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert RadixAdapter().parse(Sentiment, text) == {"mood": prediction.mood, "stars": prediction.stars}


def test_usage_of_a_program_is_tracked(radix: RadixLM) -> None:
    with dspy.context(track_usage=True):
        prediction = dspy.ChainOfThought(Sentiment)(review="Lovely.")
    usage = prediction.get_lm_usage()[radix.model]
    assert usage["prompt_tokens"] > 100
    assert usage["completion_tokens"] > 0

"""A few-shot program over many inputs: the demos are computed once, and every answer has the types it should have.

python few_shot.py MODEL        # a folder in transformers' format, or a hub id
"""

from __future__ import annotations

import sys
from typing import Literal

import dspy
from dspy_radix import RadixAdapter, RadixLM, warm


class Triage(dspy.Signature):
    """Where does a guest's message go, and how soon must somebody see it?"""

    message: str = dspy.InputField()
    desk: Literal["reception", "kitchen", "housekeeping"] = dspy.OutputField()
    urgency: int = dspy.OutputField(ge=0, le=3)


DEMOS = (
    ("The shower in 12 is cold.", "housekeeping", 2),
    ("May we have breakfast at six?", "kitchen", 1),
    ("Somebody is in our room!", "reception", 3),
    ("Thank you for the flowers.", "reception", 0),
)


def main(model: str) -> None:
    lm = RadixLM(model, max_tokens=60, temperature=0, kv_cache_tokens=32_768)
    triage = dspy.Predict(Triage)
    triage.demos = [dspy.Example(message=m, desk=d, urgency=u) for m, d, u in DEMOS]
    inputs = [dspy.Example(message=f"A word from room {n}: no towels.").with_inputs("message") for n in range(1, 21)]
    with lm, dspy.context(lm=lm, adapter=RadixAdapter()):
        print("instructions and demos:", warm(triage).prompt_tokens, "tokens")
        answers = dspy.Parallel(num_threads=16, disable_progress_bar=True)([(triage, each) for each in inputs])
        for each, answer in zip(inputs[:3], answers, strict=False):
            print(f"{each.message!r} -> {answer.desk}, {answer.urgency}")
        stats = lm.stats()
        print(f"{stats.cached_tokens / stats.prompt_tokens:.0%} of {stats.prompt_tokens} prompt tokens from the cache")


if __name__ == "__main__":
    main(sys.argv[1])

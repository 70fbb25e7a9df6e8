"""The engine by itself, on the small model that ships: answers, sharing, streaming, schemas, counters."""

from __future__ import annotations

import json

from radixbackend import Constraint, Engine, SamplingParams

SYSTEM = "<|im_start|>system\nYou are the desk clerk of a small hotel by the sea.<|im_end|>\n"
QUESTIONS = ("What is the capital of France?", "Hello!", "What is 12 + 7?")
SCHEMA = {
    "type": "object",
    "properties": {
        "room": {"type": "integer", "minimum": 1, "maximum": 40},
        "view": {"enum": ["sea", "garden"]},
        "breakfast": {"type": "boolean"},
    },
    "required": ["room", "view", "breakfast"],
    "additionalProperties": False,
}


def prompt(question: str) -> str:
    """As the model's chat template writes it; the chat layer and the adapters do this for you."""
    return f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def show(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=16, temperature=0)

    print("== One answer")
    result = engine.generate(prompt(QUESTIONS[0]), sampling)
    print(f"{result.text!r}\n{result.usage}")

    print("\n== Many at once: the system prompt is in the cache")
    for answer in engine.generate([prompt(question) for question in QUESTIONS], sampling):
        usage = answer.usage
        print(f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached: {answer.text!r}")

    print("\n== Streaming")
    for event in engine.stream(prompt("My name is Ferdinand."), sampling):
        print(repr(event.text), end=" ", flush=True)
    print()

    print("\n== An answer that fits its schema")
    booking = engine.generate(
        prompt("Book room 12 with a view of the sea and breakfast."),
        SamplingParams(max_tokens=64, temperature=0),
        constraint=Constraint.json_schema(SCHEMA),
    )
    print(json.loads(booking.text), f"({booking.usage.forced_tokens} tokens forced)")

    print("\n== Counters")
    stats = engine.stats()
    print(f"{stats.cache_hit_rate:.0%} of {stats.prompt_tokens} prompt tokens came from the cache")
    print(stats)


def main() -> None:
    with Engine("radix-tiny", kv_cache_tokens=4096) as engine:
        show(engine)


if __name__ == "__main__":
    main()

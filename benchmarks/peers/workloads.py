"""What is asked of every engine: fixed token ids, fixed lengths, greedy, end tokens ignored.

Rules. Standard library alone, because each engine runs in a virtual environment of its own. A workload is values; how
to drive it is `benchmarks.peers.drive`'s to know.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

FIRST_TOKEN = 300
"""Below it a tokenizer may keep its special tokens and single bytes."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer_name": {"type": "string", "minLength": 8, "maxLength": 8},
        "order_reference": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{6}$"},
        "payment_status": {"enum": ["payment_received", "payment_outstanding"]},
        "delivery_address": {
            "type": "object",
            "properties": {
                "street_and_number": {"type": "string", "minLength": 8, "maxLength": 8},
                "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
                "country_code": {"enum": ["DE", "FR", "TR"]},
            },
            "required": ["street_and_number", "postal_code", "country_code"],
            "additionalProperties": False,
        },
        "is_first_order": {"type": "boolean"},
    },
    "required": ["customer_name", "order_reference", "payment_status", "delivery_address", "is_first_order"],
    "additionalProperties": False,
}
"""An order as an application would extract it: long names and few values, so much of the text is forced."""


@dataclass(frozen=True)
class Turn:
    """What the user adds to a conversation, and how many tokens come back."""

    tokens: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Workload:
    """Conversations, ``concurrency`` of them at a time; those of one turn are plain requests.

    Attributes:
        ideal_prefill: prompt tokens that must be computed when every shared token is computed once.
        warm: a prompt that was seen before the clock starts, if any.
        schema: the JSON schema that every answer fits; it then ends by itself.
    """

    name: str
    title: str
    conversations: tuple[tuple[Turn, ...], ...]
    concurrency: int
    ideal_prefill: int
    warm: tuple[int, ...] = ()
    schema: dict[str, Any] | None = None


def workloads(
    vocabulary: int, names: Sequence[str] = (), scale: float = 1.0, repeat: int = 0, requests: int | None = None
) -> list[Workload]:
    """All of them, or those whose names begin so.

    No two share a prompt, nor do two repeats: not every engine can be told to forget what it has cached.

    Args:
        scale: shortens every prompt and answer (for trying things out).
        repeat: each number has token ids of its own.
        requests: conversations of a workload at most (for trying things out).
    """

    def size(count: int) -> int:
        return max(1, round(count * scale))

    def many(count: int) -> int:
        return min(count, requests or count)

    def tokens(of: str, part: str, count: int) -> tuple[int, ...]:
        rng = random.Random(f"{repeat}:{of}:{part}")
        return tuple(rng.randrange(FIRST_TOKEN, vocabulary) for _ in range(size(count)))

    def independent(name: str, title: str, concurrency: int, prompt: int) -> Workload:
        asked = tuple((Turn(tokens(name, f"{i}", prompt), size(64)),) for i in range(many(16)))
        return Workload(name, title, asked, concurrency, len(asked) * size(prompt))

    def few_shot(name: str, title: str, *, warm: bool) -> Workload:
        examples = tokens(name, "examples", 1000)
        asked = tuple((Turn(examples + tokens(name, f"{i}", 50), size(16)),) for i in range(many(32)))
        own = len(asked) * size(50)
        return Workload(name, title, asked, 8, own if warm else size(1000) + own, examples if warm else ())

    def agents(name: str, title: str) -> Workload:
        system = tokens(name, "system", 1000)
        asked = tuple(
            tuple(Turn((() if turn else system) + tokens(name, f"{i}:{turn}", 80), size(32)) for turn in range(4))
            for i in range(many(8))
        )
        # What a turn computes: its own tokens, and the last token of the answer before it, which was never run.
        return Workload(name, title, asked, 8, size(1000) + len(asked) * (4 * size(80) + 3))

    def branches(name: str, title: str) -> Workload:
        asked = ((Turn(tokens(name, "prompt", 600), size(32)),),) * many(16)
        return Workload(name, title, asked, 16, size(600) + len(asked) - 1)

    found = [
        independent("W1-c1", "16 x 128 in, 64 out, one at a time", 1, 128),
        independent("W1-c16", "16 x 128 in, 64 out, all at once", 16, 128),
        few_shot("W2-cold", "few-shot, cold", warm=False),
        few_shot("W2-warm", "few-shot, prefix seen once", warm=True),
        agents("W3", "agents, 4 turns"),
        branches("W4", "16 branches of one prompt"),
        independent("W5-plain", "16 x 200 in, 64 out", 16, 200),
        replace(independent("W5-json", "the same under a JSON schema", 16, 200), schema=SCHEMA),
    ]
    return [workload for workload in found if not names or any(workload.name.startswith(name) for name in names)]

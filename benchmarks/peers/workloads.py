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


def workloads(vocabulary: int, names: Sequence[str] = (), scale: float = 1.0, repeat: int = 0) -> list[Workload]:
    """All of them, or those whose names begin so.

    Args:
        scale: shortens every prompt and answer (for trying things out).
        repeat: each number has token ids of its own, so that a second run finds nothing of the first in a cache.
    """

    def tokens(seed: int, count: int) -> tuple[int, ...]:
        rng = random.Random(f"{repeat}:{seed}")
        return tuple(rng.randrange(FIRST_TOKEN, vocabulary) for _ in range(size(count)))

    def size(count: int) -> int:
        return max(1, round(count * scale))

    def plain(prompts: Sequence[tuple[int, ...]], output: int) -> tuple[tuple[Turn, ...], ...]:
        return tuple((Turn(prompt, size(output)),) for prompt in prompts)

    single = plain([tokens(i, 128) for i in range(16)], 64)
    system = tokens(1_000, 1000)
    few_shot = plain([system + tokens(2_000 + i, 50) for i in range(32)], 16)
    agent = tuple(
        tuple(Turn((() if turn else system) + tokens(3_000 + 10 * i + turn, 80), size(32)) for turn in range(4))
        for i in range(8)
    )
    branches = plain([tokens(4_000, 600)] * 16, 32)
    orders = plain([tokens(5_000 + i, 200) for i in range(16)], 64)
    own = 32 * size(50)
    w2 = Workload("W2-cold", "few-shot, cold", few_shot, 8, size(1000) + own)
    # What a turn computes: its own tokens, and the last token of the answer before it, which was never run.
    turns = 8 * (4 * size(80) + 3)
    w5 = Workload("W5-plain", "16 x 200 in, 64 out", orders, 16, 16 * size(200))
    found = [
        Workload("W1-c1", "16 x 128 in, 64 out, one at a time", single, 1, 16 * size(128)),
        Workload("W1-c16", "16 x 128 in, 64 out, all at once", single, 16, 16 * size(128)),
        w2,
        replace(w2, name="W2-warm", title="few-shot, prefix seen once", warm=system, ideal_prefill=own),
        Workload("W3", "agents, 4 turns", agent, 8, size(1000) + turns),
        Workload("W4", "16 branches of one prompt", branches, 16, size(600) + 15),
        w5,
        replace(w5, name="W5-json", title="the same under a JSON schema", schema=SCHEMA),
    ]
    return [workload for workload in found if not names or any(workload.name.startswith(name) for name in names)]

"""Two thousand random requests on a tiny pool: nothing leaks, nothing hangs, each ends exactly once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from radixbackend import Constraint, Engine, SamplingParams, errors, hookimpl

REQUESTS = 2000
THREADS = 8
SLOTS = 220


class Ledger:
    """Counts how often each request ends; and fails now and then, as observers do."""

    def __init__(self) -> None:
        self.ends: Counter[int] = Counter()
        self.outcomes: Counter[str] = Counter()

    @hookimpl
    def radix_request_finished(self, record) -> None:
        self.ends[record.request_id] += 1
        self.outcomes[record.outcome] += 1
        if record.request_id % 50 == 0:
            raise RuntimeError("an observer's own trouble")


class Caller:
    """One thread's share of the traffic."""

    def __init__(self, engine: Engine, seed: int, expected: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        self.engine, self.rng, self.expected = engine, random.Random(seed), expected
        self.refused = self.ended = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        kinds = [self.greedy, self.sampled, self.drop, self.cancel, self.late, self.bad, self.choices]
        for _ in range(REQUESTS // THREADS):
            try:
                self.rng.choice(kinds)()
                self.ended += 1
            except errors.InvalidRequestError:
                self.refused += 1
            except errors.RequestError:
                self.ended += 1
            except Exception as fault:
                self.wrong.append(fault)

    def greedy(self) -> None:
        prompt = self.rng.choice(list(self.expected))
        expected = self.expected[prompt]
        count = self.rng.randrange(1, len(expected) + 1)
        result = self.engine.generate(prompt, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True))
        if result.token_ids != expected[:count]:
            self.wrong.append((prompt, result.token_ids, expected[:count]))

    def prompt(self) -> list[int]:
        shared = list(self.rng.choice(list(self.expected)))[: self.rng.randrange(30)]
        return shared + [self.rng.randrange(5, 200) for _ in range(self.rng.randrange(1, 20))]

    def params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.rng.randrange(0, 30),
            temperature=self.rng.choice([0.0, 0.7, 2.0]),
            top_p=self.rng.choice([1.0, 0.8]),
            frequency_penalty=self.rng.choice([0.0, 0.0, 0.5]),
            stop=self.rng.choice([(), ("e",), ("th", "a b")]),
            logprobs=self.rng.choice([None, None, 2]),
            prompt_logprobs=self.rng.choice([None, None, None, 1]),
        )

    def sampled(self) -> None:
        kept = Constraint.choice(["yes", "no", "maybe"]), Constraint.regex("[ab]{3,9}")
        constraint = self.rng.choice([None, None, *kept])
        result = self.engine.generate(
            self.prompt(), self.params(), constraint=constraint, priority=self.rng.randrange(3)
        )
        if result.usage.completion_tokens != len(result.token_ids):
            self.wrong.append(result)

    def choices(self) -> None:
        result = self.engine.generate(self.prompt(), self.params().replace(n=self.rng.randrange(1, 5)))
        if [c.index for c in result.choices] != list(range(len(result.choices))):
            self.wrong.append(result)

    def drop(self) -> None:
        stream = self.engine.stream(self.prompt(), self.params())
        for _ in range(self.rng.randrange(5)):
            next(stream, None)
        stream.close()

    def cancel(self) -> None:
        async def go() -> None:
            task = asyncio.create_task(self.engine.agenerate(self.prompt(), self.params()))
            await asyncio.sleep(self.rng.random() / 100)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(go())

    def late(self) -> None:
        self.engine.generate(self.prompt(), self.params(), timeout=self.rng.random() / 50)

    def bad(self) -> None:
        options: dict = self.rng.choice(
            [
                {"prompt": []},
                {"prompt": [10**7]},
                {"prompt": [5] * (SLOTS + 1)},
                {"prompt": [5], "sampling": {"logit_bias": {10**7: 1}}},
                {"prompt": [5], "sampling": {"temperature": float("nan")}},
                {"prompt": [5], "constraint": "regex"},
                {"prompt": [5], "constraint": "schema"},
            ]
        )
        constraint = options.get("constraint")
        self.engine.generate(
            options["prompt"],
            SamplingParams(**options.get("sampling", {})),
            constraint=None
            if constraint is None
            else Constraint.regex("(((")
            if constraint == "regex"
            else Constraint.json_schema({"type": "nonsense"}),
        )
        self.wrong.append(f"accepted: {options}")


@pytest.mark.timeout(240)
def test_soak(tiny_checkpoint: Path) -> None:
    rng = random.Random(1)
    prompts = [tuple(rng.randrange(5, 200) for _ in range(rng.randrange(5, 60))) for _ in range(12)]
    with Engine(tiny_checkpoint) as calm:
        answers = calm.generate(prompts, SamplingParams(max_tokens=25, temperature=0, ignore_eos=True))
    expected = {p: a.token_ids for p, a in zip(prompts, answers, strict=True)}
    ledger = Ledger()
    with Engine(tiny_checkpoint, kv_cache_tokens=SLOTS, max_running=6, max_step_tokens=32, plugins=[ledger]) as engine:
        callers = [Caller(engine, seed, expected) for seed in range(THREADS)]
        threads = [threading.Thread(target=caller.run, daemon=True) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
            assert not thread.is_alive(), f"hung: {engine.stats()}"
        assert not [w for caller in callers for w in caller.wrong]
        end = time.monotonic() + 10
        while (stats := engine.stats()).running or stats.waiting:
            assert time.monotonic() < end, stats
            time.sleep(0.01)
        engine._parts.loop.call(engine._parts.cache.check).result()
        stats = engine.stats()
        assert stats.slots_held == 0
        assert stats.quarantines == 0
        assert stats.retractions > 0
        assert set(ledger.ends.values()) == {1}
        assert len(ledger.ends) == stats.finished + stats.failed + stats.aborted
        assert sum(c.ended + c.refused for c in callers) == REQUESTS
        assert set(ledger.outcomes) <= {"stop", "length", "aborted", "OutputValidationError"}
        assert ledger.outcomes["aborted"] > 100
        assert engine.flush_cache() >= 0
        assert engine.stats().slots_free == SLOTS

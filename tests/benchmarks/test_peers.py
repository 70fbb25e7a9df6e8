"""The harness around the engines: what they are asked, what is measured; and llama.cpp's runner over a fake of it."""

from __future__ import annotations

import asyncio
import importlib
import io
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import record
from benchmarks.peers import drive
from benchmarks.peers.drive import Ask, speeds
from benchmarks.peers.stepped import News, Stepped
from benchmarks.peers.workloads import Turn, Workload, workloads
from tests.engine.fake import VOCAB, next_token, plain

# -- what is asked ---------------------------------------------------------------------------------------------------


def prompts(workload: Workload) -> list[tuple[int, ...]]:
    return [conversation[0].tokens for conversation in workload.conversations]


def test_no_two_workloads_begin_alike() -> None:
    """An engine that cannot be told to forget finds nothing of one workload, or of one repeat, in another."""
    beginnings = [
        {prompt[:8] for prompt in prompts(workload)} for repeat in (0, 1) for workload in workloads(8000, repeat=repeat)
    ]
    assert len(beginnings) == 16
    for one, other in itertools.combinations(beginnings, 2):
        assert not one & other


def test_what_is_shared_is_shared() -> None:
    found = {workload.name: workload for workload in workloads(8000)}
    assert {
        name: len({p[:600] for p in prompts(w)}) for name, w in found.items() if name in ("W2-cold", "W3", "W4")
    } == {
        "W2-cold": 1,
        "W3": 1,
        "W4": 1,
    }
    assert found["W2-warm"].warm == prompts(found["W2-warm"])[0][:1000]
    assert [len(w.conversations) for w in found.values()] == [16, 16, 32, 32, 8, 16, 16, 16]
    assert found["W2-cold"].ideal_prefill == 1000 + 32 * 50
    assert found["W2-warm"].ideal_prefill == 32 * 50
    assert found["W4"].ideal_prefill == 600 + 15


def test_few_and_short_requests() -> None:
    found = workloads(8000, scale=0.05, requests=2)
    assert all(len(workload.conversations) == 2 for workload in found)
    assert [max(map(len, prompts(workload))) for workload in found] == [6, 6, 52, 52, 54, 30, 10, 10]
    assert [workload.ideal_prefill for workload in found] == [12, 12, 54, 4, 88, 31, 20, 20]


# -- what is measured ------------------------------------------------------------------------------------------------


class Slow:
    """Takes 20 ms of the event loop for each step and answers one request in it; its first news are empty."""

    def __init__(self) -> None:
        self.waiting: list[int] = []

    def add(self, request: int, ask: Ask) -> None:
        self.waiting.append(request)

    def step(self) -> Iterator[News]:
        import time

        time.sleep(0.02)
        first, *others = self.waiting
        yield from (News(other, [], False) for other in others)
        yield News(first, [7], True)
        self.waiting = others


class SlowPeer(Stepped):
    def prefilled(self) -> None:
        return None

    async def forget(self) -> None:
        pass


def test_clocks_start_when_callers_ask() -> None:
    """Though the engine blocks the loop, those served last have waited for all steps before theirs."""
    workload = Workload("w", "", tuple((Turn((1,), 1),) for _ in range(4)), 4, 0)
    found = asyncio.run(drive.run(SlowPeer(Slow()), workload))
    assert found.answers == [[7]] * 4
    assert [round(first, 2) >= 0.02 * (i + 1) for i, first in enumerate(sorted(found.first_token))] == [True] * 4


def test_first_token_is_one_for_each_request_and_no_empty_news() -> None:
    class Peer(SlowPeer):
        async def stream(self, ask: Ask) -> AsyncIterator[list[int]]:
            yield []
            await asyncio.sleep(0.03)
            yield []
            yield [1, 2]
            yield [3]

    workload = Workload("w", "", ((Turn((1,), 3), Turn((2,), 3)),), 1, 0)
    found = asyncio.run(drive.run(Peer(Slow()), workload))
    assert found.answers == [[1, 2, 3, 1, 2, 3]]
    assert len(found.first_token) == 2
    assert min(found.first_token) >= 0.03


def test_memory_is_that_of_all_processes() -> None:
    before = drive.peak_memory()
    hold = "held = b'1' * (64 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert drive.peak_memory() > before + 64
        child.communicate(b"\n")


def test_a_failing_step_fails_those_who_wait_and_nobody_after() -> None:
    class Broken(Slow):
        broken = True

        def step(self) -> Iterator[News]:
            if self.broken:
                self.waiting.clear()
                raise RuntimeError("out of order")
            return super().step()

    async def ask(peer: Stepped) -> list[int]:
        return [token async for new in peer.stream(Ask((1,), 1)) for token in new]

    async def scenario() -> None:
        engine = Broken()
        peer = SlowPeer(engine)
        assert [str(e) for e in await asyncio.gather(ask(peer), ask(peer), return_exceptions=True)] == [
            "out of order"
        ] * 2
        engine.broken = False
        assert await ask(peer) == [7]

    asyncio.run(scenario())


# -- llama.cpp -------------------------------------------------------------------------------------------------------


@dataclass
class FakeLlama:
    """Sequences of cells as llama.cpp has them: shared by copies, consecutive, of limited number."""

    cells: int = 1000
    sequences: dict[int, list[tuple[int, object]]] = field(default_factory=dict)
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)

    def module(self) -> ModuleType:
        functions = {
            "backend_init": lambda: None,
            "log_callback": lambda function: function,
            "log_set": lambda function, data: None,
            "model_default_params": lambda: None,
            "model_load_from_file": lambda path, params: "model",
            "context_default_params": SimpleNamespace,
            "init_from_model": lambda model, params: "context",
            "model_get_vocab": lambda model: "vocab",
            "vocab_n_tokens": lambda vocab: VOCAB,
            "vocab_is_eog": lambda vocab, token: token == 0,
            "get_memory": lambda context: "memory",
            "batch_init": self.batch,
            "decode": self.decode,
            "get_logits_ith": lambda context, row: self.logits[row],
            "memory_clear": lambda memory, data: self.sequences.clear(),
            "memory_seq_rm": self.remove,
            "memory_seq_cp": self.copy,
        }
        made = ModuleType("llama_cpp")
        made.__file__ = "nowhere/__init__.py"
        for name, function in functions.items():
            setattr(made, f"llama_{name}", function)
        return made

    @staticmethod
    def batch(rows: int, embedding: int, sequences: int) -> SimpleNamespace:
        columns = {name: [0] * rows for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[0] * sequences for _ in range(rows)], **columns)

    def decode(self, context: str, batch: SimpleNamespace) -> int:
        used = {id(cell) for sequence in self.sequences.values() for _, cell in sequence}
        if len(used) + batch.n_tokens > self.cells:
            return 1
        self.batches.append(batch.n_tokens)
        self.logits.clear()
        for row in range(batch.n_tokens):
            sequence = self.sequences.setdefault(batch.seq_id[row][0], [])
            assert batch.pos[row] == len(sequence), "positions are consecutive"
            sequence.append((batch.token[row], object()))
            if batch.logits[row]:
                values = np.zeros(VOCAB, np.float32)
                values[next_token(token for token, _ in sequence)] = 1
                self.logits[row] = values
        return 0

    def remove(self, memory: str, sequence: int, start: int, stop: int) -> bool:
        assert stop == -1
        del self.sequences.setdefault(sequence, [])[max(start, 0) :]
        return True

    def copy(self, memory: str, source: int, target: int, start: int, stop: int) -> None:
        assert start == 0
        assert not self.sequences.get(target)
        self.sequences[target] = self.sequences[source][:stop]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLlama:
    fake = FakeLlama()
    grammars = ModuleType("llama_cpp.llama_grammar")
    grammars.json_schema_to_gbnf = str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", fake.module())
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_grammar", grammars)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.peer_llamacpp", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return fake


async def answers(peer: Stepped, asked: list[tuple[list[int], int]]) -> list[list[int]]:
    async def one(prompt: list[int], output: int) -> list[int]:
        return [token async for new in peer.stream(Ask(tuple(prompt), output)) for token in new]

    return await asyncio.gather(*(one(*a) for a in asked))


def llama() -> Any:
    module = importlib.import_module("benchmarks.peers.peer_llamacpp")
    return asyncio.run(module.start(Path("nowhere")))


def prompt(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB, count).tolist()


def test_llamacpp_answers_as_if_alone(fake: FakeLlama) -> None:
    """More requests than slots, of different lengths, some with a prefix in common."""
    peer = llama()
    shared = prompt(0, 20)
    asked = [((shared if i % 2 else []) + prompt(i + 1, 3 + i), 2 + i % 5) for i in range(40)]
    assert asyncio.run(answers(peer, asked)) == [plain(p, n) for p, n in asked]
    assert max(fake.batches) > 100, "prompts are computed together"


def test_llamacpp_takes_the_longest_prefix_that_a_slot_holds(fake: FakeLlama) -> None:
    peer = llama()
    shared, tails = prompt(0, 100), [prompt(i + 1, 10) for i in range(3)]

    async def scenario() -> list[int]:
        counts = []
        for asked in ([(shared + tails[0], 4)], [(shared + tails[1], 4), (shared + tails[2], 4)]):
            before = peer.prefilled()
            assert await answers(peer, asked) == [plain(p, n) for p, n in asked]
            counts.append(peer.prefilled() - before)
        history = shared + tails[0] + plain(shared + tails[0], 4)
        before = peer.prefilled()
        assert await answers(peer, [(history + tails[2], 4)]) == [plain(history + tails[2], 4)]
        counts.append(peer.prefilled() - before)
        await peer.forget()
        before = peer.prefilled()
        await answers(peer, [(shared, 1)])
        return [*counts, peer.prefilled() - before]

    # A conversation goes on behind its answer, whose last token was never computed.
    assert asyncio.run(scenario()) == [110, 20, 11, 100]


def test_llamacpp_makes_room_by_dropping_what_idle_slots_hold(fake: FakeLlama) -> None:
    fake.cells = 150
    peer = llama()

    async def scenario() -> None:
        for seed in range(4):
            asked = [(prompt(seed, 100), 4)]
            assert await answers(peer, asked) == [plain(p, n) for p, n in asked]
        with pytest.raises(RuntimeError, match="too small"):
            await answers(peer, [(prompt(9, 151), 1)])

    asyncio.run(scenario())


# -- what is kept and shown ------------------------------------------------------------------------------------------


def measured(peer: str, seconds: float) -> dict[str, Any]:
    runs = [
        {
            "workload": workload,
            "seconds": seconds * repeat,
            "output_tokens": 100,
            "first_token": [0.1 * repeat, 0.2 * repeat],
            "prefilled": 50 if peer == "radix" else None,
            "ideal_prefill": 40,
            "peak_memory": 1.0,
            "answers": [[1, 2], [3, 4 if peer == "radix" else 5]],
        }
        for repeat in (1, 2, 4)
        for workload in ("W1", "W2")
    ]
    return {"peer": peer, "versions": {peer: "1"}, "load_seconds": 1.0, "first_token_seconds": 2.0, "runs": runs}


RESULTS = [measured("radix", 1.0), measured("other", 2.0)]


def test_speeds() -> None:
    assert speeds(RESULTS[0]["runs"][::2]) == [100.0, 50.0, 25.0]


def test_each_run_has_a_file_with_its_machine(tmp_path: Path) -> None:
    file = record.keep("peers-60m", {"shape": "60m"}, tmp_path / "results")
    kept = json.loads(file.read_text())
    assert kept["shape"] == "60m"
    assert kept["date"][:10] in file.name
    assert kept["machine"]["cores"] >= 1
    assert set(kept["machine"]) == {"cpu", "cores", "memory_gib", "load", "system", "python"}


def test_table() -> None:
    from rich.console import Console

    from benchmarks.peers.compare import table

    drawn = io.StringIO()
    Console(file=drawn, width=130).print(table(RESULTS, ["W1", "W2", "W3"], "title"))
    rows = [line.split("│")[1:-1] for line in drawn.getvalue().splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["W1", "radix", "50.0", "150%", "400 / 800", "50", "40", "6/6", "1.00x"]
    assert cells[1] == ["W1", "other", "25.0", "150%", "400 / 800", "", "40", "3/6", "0.50x"]
    assert [row[0] for row in cells] == ["W1", "W1", "W2", "W2"]


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.peers.plots import Bar, first_token_bars, main, speed_bars

    kept = {"shape": "60m", "threads": 2, "results": RESULTS}
    assert speed_bars(kept, "W1") == [Bar("radix", 50.0, 25.0, 100.0), Bar("other", 25.0, 12.5, 50.0)]
    assert first_token_bars(kept, "W1")[0] == Bar("radix", pytest.approx(300), pytest.approx(300), pytest.approx(800))
    file = record.keep("peers", kept, tmp_path)
    main([str(file), "--out", str(tmp_path / "charts")])
    assert sorted(f.name for f in (tmp_path / "charts").iterdir()) == ["W1.svg", "W2.svg", "peers.svg"]

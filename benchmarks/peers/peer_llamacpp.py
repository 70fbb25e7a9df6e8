"""llama.cpp in this process, through the functions that ``llama-cpp-python`` binds.

``Llama.generate`` serves one sequence at a time, so this drives ``llama_decode`` as llama.cpp's own server does: a
fixed number of slots, each a sequence of the KV cache; a step computes one token for every slot that writes an answer,
then prompts, up to the batch that llama.cpp's server has. What a slot held stays there, so its cache is one prefix for
each slot. What the API allows beyond that is used, too: a request takes the longest prefix that any slot holds, a busy
one included, and not only that of the slot which it gets; ``llama_memory_seq_cp`` lets slots share these cells without
copying. It is looked for once, when the request gets its slot: requests that come together compute what they share
once for each. A schema becomes a grammar by llama-cpp-python's converter; the likeliest token is tried first, and
the whole vocabulary only where the grammar refuses that, as the server does.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

from benchmarks.peers.drive import Ask
from benchmarks.peers.stepped import News, Stepped
from benchmarks.peers.workloads import Workload

PACKAGES = ("llama-cpp-python",)
SLOTS = 16
"""As many as the workloads ask for at once."""

CELLS = 24_000
BATCH = 2048


@dataclass(eq=False)
class Slot:
    """A sequence of the KV cache: the tokens in it, and the request that uses it."""

    number: int
    tokens: list[int] = field(default_factory=list)
    used: int = 0  # when it got its last request
    request: int | None = None
    todo: list[int] = field(default_factory=list)  # tokens of the request to compute next
    remaining: int = 0
    grammar: Any = None


class LlamaCpp:
    """See `Steps`."""

    def __init__(self, file: Path) -> None:
        _load_processors()
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # must live as long as the model
        llama_cpp.llama_log_set(self._quiet, None)
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_seq_max = CELLS, BATCH, SLOTS
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not take {file}")
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._width = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._slots = [Slot(number) for number in range(SLOTS)]
        self._waiting: deque[tuple[int, Ask]] = deque()
        self._clock = 0
        self.prefilled = 0

    def add(self, request: int, ask: Ask) -> None:
        self._waiting.append((request, ask))

    def step(self) -> Iterator[News]:
        while self._waiting and (idle := [slot for slot in self._slots if slot.request is None]):
            self._start(*self._waiting.popleft(), idle)
        rows = self._fill()
        self._decode()
        for slot, row in rows:
            yield self._advance(slot, row)

    def forget(self) -> None:
        """Drop every prefix; nothing may be running."""
        llama_cpp.llama_memory_clear(self._memory, False)
        for slot in self._slots:
            slot.tokens.clear()

    # -- a request gets a slot -----------------------------------------------------------------------------------

    def _start(self, request: int, ask: Ask, idle: list[Slot]) -> None:
        prompt = list(ask.prompt)
        donor = max(self._slots, key=lambda slot: _common(slot.tokens, prompt))
        shared = min(_common(donor.tokens, prompt), len(prompt) - 1)  # the last one is computed, for its logits
        # Whoever goes on where a slot ended gets that slot; others leave it as it is, for the sake of the next.
        goes_on = donor in idle and shared == len(donor.tokens)
        slot = donor if goes_on else min(idle, key=lambda slot: (bool(slot.tokens), slot.used))
        if slot is donor:
            llama_cpp.llama_memory_seq_rm(self._memory, slot.number, shared, -1)
        else:
            llama_cpp.llama_memory_seq_rm(self._memory, slot.number, -1, -1)
            if shared:
                llama_cpp.llama_memory_seq_cp(self._memory, donor.number, slot.number, 0, shared)
        self._clock += 1
        slot.tokens, slot.todo, slot.request, slot.used = prompt[:shared], prompt[shared:], request, self._clock
        slot.remaining, slot.grammar = ask.output, self._grammar(ask.schema) if ask.schema else None
        self.prefilled += len(slot.todo)

    def _grammar(self, schema: dict[str, Any]) -> Any:
        grammar = llama_cpp.llama_sampler_init_grammar(
            self._vocabulary, json_schema_to_gbnf(json.dumps(schema)).encode(), b"root"
        )
        if not grammar:
            raise ValueError("llama.cpp does not take the grammar of this schema")
        return grammar

    # -- a step --------------------------------------------------------------------------------------------------

    def _fill(self) -> list[tuple[Slot, int]]:
        """Put single tokens, then prompts into the batch; returns the slots that get a token, each with its row."""
        batch, rows = self._batch, []
        batch.n_tokens = 0
        busy = [slot for slot in self._slots if slot.request is not None]
        for slot in sorted(busy, key=lambda slot: (len(slot.todo) > 1, slot.used)):
            chunk = slot.todo[: BATCH - batch.n_tokens]
            for i, token in enumerate(chunk):
                row = batch.n_tokens
                batch.token[row], batch.pos[row] = token, len(slot.tokens) + i
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot.number
                batch.logits[row] = last = i + 1 == len(slot.todo)
                batch.n_tokens = row + 1
                if last:
                    rows.append((slot, row))
            slot.tokens += chunk
            del slot.todo[: len(chunk)]
        return rows

    def _decode(self) -> None:
        """Compute the batch, dropping what idle slots hold where there is no room for it."""
        while (code := llama_cpp.llama_decode(self._context, self._batch)) == 1:
            kept = [slot for slot in self._slots if slot.request is None and slot.tokens]
            if not kept:
                raise RuntimeError("the KV cache of llama.cpp is too small for these requests")
            oldest = min(kept, key=lambda slot: slot.used)
            llama_cpp.llama_memory_seq_rm(self._memory, oldest.number, -1, -1)
            oldest.tokens.clear()
        if code:
            raise RuntimeError(f"llama_decode failed with {code}")

    def _advance(self, slot: Slot, row: int) -> News:
        """The next token of a slot, and whether it was the last."""
        request = slot.request
        assert request is not None
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        token = self._choose(np.ctypeslib.as_array(pointer, (self._width,)), slot.grammar)
        slot.remaining -= 1
        ends = slot.grammar is not None and llama_cpp.llama_vocab_is_eog(self._vocabulary, token)
        if ends or not slot.remaining:
            slot.request = None
            if slot.grammar is not None:
                llama_cpp.llama_sampler_free(slot.grammar)
        else:
            slot.todo = [token]
        return News(request, [token], slot.request is None)

    def _choose(self, logits: np.ndarray, grammar: Any) -> int:
        token = int(logits.argmax())
        if grammar is None:
            return token
        if not _allowed(grammar, [token], logits)[0]:
            candidates = np.arange(self._width)
            token = int(np.where(_allowed(grammar, candidates, logits), logits, -np.inf).argmax())
        llama_cpp.llama_sampler_accept(grammar, token)
        return token


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the prefix that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _allowed(grammar: Any, tokens: Sequence[int] | np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Which of these tokens may come next."""
    entries = np.zeros(len(tokens), np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
    entries["id"], entries["logit"] = tokens, logits[tokens]
    data = entries.ctypes.data_as(llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(data=data, size=len(entries), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(grammar, ctypes.byref(array))
    return np.isfinite(entries["logit"])


def _load_processors() -> None:
    """A library that was built for many processors loads the part for this one, where it is asked to."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    if any(folder.glob("libggml-cpu-*")):
        ctypes.CDLL(str(folder / "libggml.so")).ggml_backend_load_all_from_path(str(folder).encode())


class Peer(Stepped):
    """See `drive.Peer`."""

    def __init__(self, engine: LlamaCpp) -> None:
        super().__init__(engine)
        self._llama = engine

    def serves(self, workload: Workload) -> bool:
        return True

    def prefilled(self) -> int:
        return self._llama.prefilled

    async def forget(self) -> None:
        self._llama.forget()

    async def close(self) -> None:
        """Nothing runs any more; the process ends."""


async def start(checkpoint: Path) -> Peer:
    return Peer(LlamaCpp(checkpoint / "model.gguf"))

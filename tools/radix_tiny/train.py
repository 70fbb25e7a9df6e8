"""Trains the model: ``python -m tools.radix_tiny.train --out DIR``, resumed by the same command.

Rules. On a CPU two processes of one thread each draw their own text and share only the gradients: on few cores that
other work wants too, this is faster than two threads in each operation. A GPU has one process. A step is a number of
tokens; who is faster takes more of it. Progress is the share of the budget spent (tokens or minutes, whichever is
further), and learning rate, batch and mix follow it. A run that was stopped, or whose budget is raised, goes on from
its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tools.radix_tiny.corpus import Example, draw, encode, render
from tools.radix_tiny.export import export
from tools.radix_tiny.model import Shape, TinyLlama
from tools.radix_tiny.muon import Muon
from tools.radix_tiny.tokens import letters, train_tokenizer, twins
from tools.radix_tiny.words import Source

ROUND = 32
"""Lengths are padded to a multiple of this."""
MICRO_TOKENS = {"cpu": 1536, "cuda": 65_536}
"""Of a batch that goes through the model at once."""
WARM_UP_STEPS = 40
DECAY_FROM = 0.3
MATRIX_RATE = 3e-3
VECTOR_RATE = 2e-3
WEIGHT_DECAY = 0.02
QUICK_CHECK, FINAL_CHECK = 100, 600
"""Held-out conversations that are checked on the way, and at the end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What holds at one point of the training."""

    step_tokens: int
    longest: int
    copying: float
    prompt_weight: float


def plan_at(progress: float) -> Plan:
    """Short texts and bare copying first, then everything; small steps first, then larger."""
    if progress < 0.05:
        return Plan(6_000, 128, 0.7, 0.1)
    if progress < 0.15:
        return Plan(6_000, 256, 0.3, 0.1)
    if progress < 0.4:
        return Plan(10_000, 768, 0.06, 0.0)
    if progress < 0.75:
        return Plan(12_000, 2048, 0.06, 0.0)
    return Plan(16_000, 2048, 0.06, 0.0)


def rate_at(step: int, progress: float, decay_from: float = DECAY_FROM) -> float:
    """The learning rate's factor: warm up, stay, fall to a hundredth."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (1.0 if progress < decay_from else max(0.01, (1.0 - progress) / (1.0 - decay_from)))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of like length: `ids`, the `targets` one further, and the `weights` of each target in the loss."""

    ids: Tensor
    targets: Tensor
    weights: Tensor

    @staticmethod
    def of(examples: Sequence[Example], prompt_weight: float) -> Batch:
        width = -(-(max(len(example.ids) for example in examples) - 1) // ROUND) * ROUND
        ids = torch.zeros(len(examples), width + 1, dtype=torch.long)
        weights = torch.zeros(len(examples), width + 1)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            weights[row, : len(example.ids)] = torch.tensor(_weights(example.is_answer, prompt_weight))
        return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])

    def to(self, device: torch.device) -> Batch:
        return Batch(*(x.to(device, non_blocking=True) for x in (self.ids, self.targets, self.weights)))


def _weights(is_answer: Sequence[bool], prompt_weight: float) -> list[float]:
    """An answer weighs as the root of its length: a label of one token is as much of a decision as a long record."""
    weights: list[float] = []
    for marked, run in groupby(is_answer):
        length = len(list(run))
        weights += [length**-0.5 if marked else prompt_weight] * length
    return weights


def batches(seed: str, tokenizer: Any, plan: Callable[[], Plan], most: int) -> Iterator[Batch]:
    """Batches of at most so many tokens, without end, their rows of like length: little padding, few shapes."""
    source = Source(seed, pieces=letters(tokenizer))
    rows: dict[int, list[Example]] = defaultdict(list)
    while True:
        now = plan()
        example = encode(render(draw(source, copying=now.copying)), tokenizer)
        width = -(-(len(example.ids) - 1) // ROUND) * ROUND
        if len(example.ids) > now.longest:
            continue
        rows[width].append(example)
        if (len(rows[width]) + 1) * width > most:
            yield Batch.of(rows.pop(width), now.prompt_weight)


def loss_sum(model: TinyLlama, batch: Batch) -> Tensor:
    """Weighted sum of the cross-entropy over the batch's targets."""
    hidden = model.hidden(batch.ids)
    counted = batch.weights > 0
    logits = model.logits(hidden[counted])
    losses = F.cross_entropy(logits, batch.targets[counted], reduction="none")
    return (losses * batch.weights[counted]).sum()


@torch.no_grad()
def check(model: TinyLlama, tokenizer: Any, *, count: int, new_wordings: bool) -> dict[str, float]:
    """Share of held-out conversations, per task, whose last answer greedy decoding would get right to the letter."""
    source = Source("check", held_out=True, new_wordings=new_wordings)
    right: dict[str, list[bool]] = defaultdict(list)
    for _ in range(count):
        dialog = draw(source)
        if dialog.grammar_only:
            continue
        example = encode(render(dialog), tokenizer)
        batch = Batch.of([example], 0.0).to(model.cos.device)
        marks = example.is_answer
        first = len(marks)
        while first > 0 and marks[first - 1]:
            first -= 1
        window = slice(first - 1, len(marks) - 1)
        guesses = model.logits(model.hidden(batch.ids)[0, window]).argmax(-1)
        right[dialog.task].append(bool((guesses == batch.targets[0, window]).all()))
    shares = {task: sum(marks) / len(marks) for task, marks in sorted(right.items())}
    return {**shares, "all": sum(map(sum, right.values())) / sum(map(len, right.values()))}


class Trainer:
    """One of the processes. All hold the same weights; each updates its share of the matrices and hands them round."""

    def __init__(self, rank: int, options: argparse.Namespace, taken: Any) -> None:
        self.rank, self.world, self.options = rank, dist.get_world_size(), options
        self.taken = taken  # tokens that any process has taken up, a number shared by all
        self.folder = Path(options.out)
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.model = TinyLlama(Shape(layers=options.layers))
        self.tokenizer = _tokenizer(self.folder / "tokenizer.json")
        if options.start:
            self.model.grow(load_file(Path(options.start) / "model.safetensors"))
        else:
            self.model.liken(twins(self.tokenizer))
        self.model.to(self.device)
        body = self.model.model
        self.matrices = [p for p in body.layers.parameters() if p.ndim == 2]
        self.vectors = [p for p in body.parameters() if p.ndim == 1] + [body.embed_tokens.weight]
        own = self.matrices[rank :: self.world]
        self.optimizers = [
            Muon(own, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY),
            torch.optim.AdamW(self.vectors, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [MATRIX_RATE, VECTOR_RATE]
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._resume()

    @property
    def progress(self) -> float:
        return max(self.tokens / self.options.tokens, self.seconds / 60 / self.options.minutes)

    @property
    def plan(self) -> Plan:
        """A model that has learned to copy is spared the beginning."""
        plan = plan_at(max(self.progress, 0.15) if self.options.start else self.progress)
        return plan if self.options.step_tokens is None else replace(plan, step_tokens=self.options.step_tokens)

    @property
    def rate(self) -> float:
        """The learning rate's factor now; it falls from the beginning for a model that has been trained before."""
        return self.options.rate * rate_at(self.step, self.progress, 0.0 if self.options.start else DECAY_FROM)

    def run(self) -> None:
        seed = f"{self.options.seed}/{self.rank}/{self.step}"
        stream = batches(seed, self.tokenizer, lambda: self.plan, MICRO_TOKENS[self.device.type])
        checked = saved = logged = self._agreed(time.monotonic())
        recent: list[float] = []
        while self.progress < 1.0:
            if not self._agreed(_is_wanted()):
                return  # unsaved: another run may be at work in this folder by now
            began = time.monotonic()
            recent.append(self._step(stream))
            self.seconds += self._agreed(time.monotonic() - began)
            now = self._agreed(time.monotonic())
            if now - logged > 30:
                self._log(loss=sum(recent) / len(recent), rate=self.rate)
                recent, logged = [], now
            if now - checked > self.options.check_every:
                self._check(QUICK_CHECK)
                checked = now
            if now - saved > self.options.save_every:
                self.save()
                saved = now
        self.save()
        self._check(FINAL_CHECK)

    def _step(self, stream: Iterator[Batch]) -> float:
        """Gradients of this process's part of a step, summed over all processes; then the update. Gives the loss."""
        factor = self.rate
        goal = self.tokens + self.plan.step_tokens
        sums = torch.zeros(3, device=self.device)  # loss, weight, tokens
        while self.taken.value < goal:
            batch = next(stream)
            with self.taken.get_lock():
                self.taken.value += batch.ids.numel()
            batch = batch.to(self.device)
            loss = loss_sum(self.model, batch)
            loss.backward()
            sums += torch.stack((loss.detach(), batch.weights.sum(), loss.new_tensor(batch.ids.numel())))
        parameters = [*self.matrices, *self.vectors]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([sums, *(parameter.grad.flatten() for parameter in parameters)])
        if self.world > 1:
            dist.all_reduce(flat)
        loss, weight, tokens = flat[:3].tolist()
        at = 3
        for parameter in parameters:
            parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter) / weight)
            at += parameter.numel()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        self.model.zero_grad()
        self._hand_round()
        self.step += 1
        self.tokens += int(tokens)
        return loss / weight

    def _hand_round(self) -> None:
        """Each matrix from the process that updated it to all others."""
        for owner in range(self.world if self.world > 1 else 0):
            own = self.matrices[owner :: self.world]
            flat = torch.cat([p.detach().flatten() for p in own])
            dist.broadcast(flat, owner)
            if owner != self.rank:
                for parameter, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
                    parameter.data.copy_(part.view_as(parameter))

    def _agreed(self, value: float) -> float:
        """The first process's value, so that all take the same turns."""
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def _check(self, count: int) -> None:
        if self.rank == 0:
            for kind, new_wordings in (("new_names", False), ("new_wordings", True)):
                self._log(**{kind: check(self.model, self.tokenizer, count=count, new_wordings=new_wordings)})
        dist.barrier()

    def _log(self, **figures: Any) -> None:
        if self.rank == 0:
            line = {"step": self.step, "minutes": round(self.seconds / 60, 1), "tokens": self.tokens, **figures}
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

    def save(self) -> None:
        """State for a later resumption, and from the first process the model in the format that ships."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "at": (self.step, self.tokens, self.seconds),
        }
        path = self.folder / f"state-{self.rank}.pt"
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        if self.rank == 0:
            export(self.model, self.folder / "tokenizer.json", self.folder / "model")
        dist.barrier()

    def _resume(self) -> None:
        path = self.folder / f"state-{self.rank}.pt"
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=self.device)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.tokens, self.seconds = state["at"]
            self.taken.value = self.tokens


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _is_wanted() -> bool:
    """Whether the process that started this one is there."""
    parent = parent_process()
    return parent is None or parent.is_alive()


def _work(rank: int, options: argparse.Namespace, taken: Any) -> None:
    torch.set_num_threads(options.threads)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port)}
    dist.init_process_group("gloo", rank=rank, world_size=options.processes)
    Trainer(rank, options, taken).run()
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train radix-tiny on generated text.")
    parser.add_argument("--out", required=True, help="folder for checkpoints, the log and the finished model")
    parser.add_argument("--start", help="folder of a model to start from, of as many layers or fewer")
    parser.add_argument("--layers", type=int, default=Shape().layers)
    parser.add_argument("--tokens", type=float, default=100e6, help="budget of training tokens")
    parser.add_argument("--minutes", type=float, default=170, help="budget of time spent in steps")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates: less for a short run")
    parser.add_argument("--step-tokens", type=int, help="tokens of every step: fewer for a short run")
    parser.add_argument("--device", choices=list(MICRO_TOKENS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="2 on a CPU, 1 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--check-every", type=float, default=300, help="seconds between checks on held-out text")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=29571)
    options = parser.parse_args(arguments)
    if options.processes is None:
        options.processes = 1 if options.device == "cuda" else 2
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    if options.start and not (folder / "tokenizer.json").exists():
        shutil.copy(Path(options.start) / "tokenizer.json", folder)
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(options.seed).save(str(folder / "tokenizer.json"))
    taken = torch.multiprocessing.get_context("spawn").Value("q", 0)
    torch.multiprocessing.spawn(_work, (options, taken), nprocs=options.processes)


if __name__ == "__main__":
    main()

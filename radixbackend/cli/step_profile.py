"""Where a step's time goes, measured from outside: a plugin that sees the engine being built and times its parts.

Rules. Nothing of the engine knows of it. What a step reports anyway is taken from its record; inside of a step, the
model's forward, its linear layers and the attention kernel are timed by functions put in front of theirs while `timing`
is entered, and taken away after; layers that are otherwise one call are computed one by one then. All of it happens on
the engine's thread, whose steps end with the record.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radixbackend import hookimpl
from radixbackend.types import StepRecord

if TYPE_CHECKING:
    from radixbackend.engine.attention.base import AttentionBackend
    from radixbackend.engine.model_loader import LoadedModel

PARTS = ("schedule", "build of the plan", "attention", "linears", "rest of the forward", "logits", "sample", "commit")
"""Of a step, in order. ``logits`` is the product with the vocabulary; ``sample`` includes the copy to float32."""


@dataclass(frozen=True, slots=True)
class TimedStep:
    """Seconds of one step; ``parts`` has an entry for each of `PARTS` if it ran while the parts were timed."""

    record: StepRecord
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        record = self.record
        return record.schedule_seconds + record.execute_seconds + record.commit_seconds


class StepProfile:
    """A plugin for one engine. ``steps`` grows with every step until someone clears it."""

    def __init__(self) -> None:
        self.steps: list[TimedStep] = []
        self.num_timers = 0  # that ran since `timing` was entered
        self._loaded: LoadedModel | None = None
        self._kernel: AttentionBackend | None = None
        self._spent: defaultdict[str, float] = defaultdict(float)  # seconds within the step that runs now
        self._forwards: list[tuple[float, float]] = []  # from and to, of this step

    # -- hooks ---------------------------------------------------------------------------------------------------

    @hookimpl(wrapper=True)
    def radix_load_model(self) -> Generator[None, LoadedModel, LoadedModel]:
        self._loaded = yield
        return self._loaded

    @hookimpl(wrapper=True)
    def radix_make_attention(self) -> Generator[None, AttentionBackend, AttentionBackend]:
        self._kernel = yield
        return self._kernel

    @hookimpl
    def radix_step_finished(self, record: StepRecord) -> None:
        parts = self._parts(record) if self._forwards else {}
        self._spent.clear()
        self._forwards.clear()
        self.steps.append(TimedStep(record, parts))

    def _parts(self, record: StepRecord) -> dict[str, float]:
        begun = record.started + record.schedule_seconds
        ended = begun + record.execute_seconds
        forward = sum(stop - start for start, stop in self._forwards)
        sample = ended - self._forwards[-1][1]
        inside = {name: self._spent[name] for name in ("attention", "linears", "logits")}
        seconds = {
            "schedule": record.schedule_seconds,
            "build of the plan": record.execute_seconds - forward - sample,
            "rest of the forward": forward - sum(inside.values()),
            "sample": sample,
            "commit": record.commit_seconds,
            **inside,
        }
        return {name: seconds[name] for name in PARTS}

    # -- timing --------------------------------------------------------------------------------------------------

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the parts of every step meanwhile; enter and leave it while nothing runs."""
        import torch

        assert self._loaded is not None
        model = self._loaded.model
        head = model.get_output_embeddings()
        wait = torch.cuda.synchronize if self._loaded.device.type == "cuda" else None
        linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
        fronts: list[tuple[Any, str, Callable[..., Any]]] = [(model, "forward", self._forward(model.forward, wait))]
        fronts += [(linear, "forward", self._timed("linears", linear.forward, wait)) for linear in linears]
        if head is not None:
            fronts.append((head, "forward", self._timed("logits", head.forward, wait)))
        if self._kernel is not None:
            fronts.append((self._kernel, "attend", self._timed("attention", self._kernel.attend, wait)))
        if hasattr(self._kernel, "places"):  # a stack's one call would leave nothing to time
            fronts.append((self._kernel, "places", lambda layers: None))
        before = [(owner, name, vars(owner).get(name)) for owner, name, _ in fronts]
        self.num_timers = 0
        for owner, name, front in fronts:
            setattr(owner, name, front)
        try:
            yield
        finally:
            for owner, name, own in before:
                if own is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, own)

    def _forward(self, function: Callable[..., Any], wait: Callable[[], None] | None) -> Callable[..., Any]:
        """On the clock of the records, because what comes before and after is theirs."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            result = function(*args, **kwargs)
            if wait is not None:
                wait()
            self._forwards.append((started, time.monotonic()))
            self.num_timers += 1
            return result

        return run

    def _timed(self, part: str, function: Callable[..., Any], wait: Callable[[], None] | None) -> Callable[..., Any]:
        spent, clock = self._spent, time.perf_counter

        def run(*args: Any, **kwargs: Any) -> Any:
            if wait is not None:
                wait()
            started = clock()
            result = function(*args, **kwargs)
            if wait is not None:
                wait()
            spent[part] += clock() - started
            self.num_timers += 1
            return result

        return run


def middle(steps: Sequence[TimedStep]) -> list[TimedStep]:
    """The middle half by duration: without the steps that something else on the machine made long."""
    ordered = sorted(steps, key=lambda step: step.seconds)
    return ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]

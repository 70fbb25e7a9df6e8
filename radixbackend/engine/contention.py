"""Keeps the threads of a forward on a CPU from spinning while others want its cores.

Rules. Threads of an OpenMP team wait for one another hundreds of times in a forward, and GNU's spin for milliseconds
before they sleep. On cores of their own that is right: sleeping and waking each time costs a small model a quarter of
its speed. As soon as anyone else wants a core it is ruinous: who spins uses up the time in which the one it waits for
could have run, and a forward takes ten times as long, where two thirds of two cores should make it half again as long.

The library cannot be told to wait otherwise once it is loaded. But it spins for microseconds only while there are more
threads than processors, so that is what we make: a team of idle threads, which exists for as long as it is needed.
That somebody wants the cores shows in the share of the forward's time in which its thread ran, for while it spins it
never sleeps. That nobody does any more shows in how seldom the process is put off a core, for threads that sleep when
they wait are only put off by others.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from ctypes import c_int
from types import TracebackType

import torch

from radixbackend.engine.native.build import load_kernels
from radixbackend.errors import MissingDependencyError

log = logging.getLogger(__name__)

CROWDED = 0.85
"""Share of a forward's time in which its thread runs, below which somebody else wants its core; alone it is near 1."""

QUIET = 300.0
"""Times a second that a process whose threads sleep is put off a core, below which nobody wants them: alone it is 10 to
60, beside one busy process on two cores 2,000 to 8,000."""

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Of the environment, by which people decide how threads wait."""

LOOK_SECONDS = 0.1
"""Of forwards between two looks."""

STAY_SECONDS = 1.0
"""Of forwards in which threads sleep, at least."""


class Contention:
    """Entered around each forward, by its thread. Raises `MissingDependencyError` where there is no compiler."""

    def __init__(self, threads: int) -> None:
        kernels = load_kernels("team")
        self._team = kernels.radix_team
        self._team.argtypes, self._team.restype = (c_int,), None
        # The forward's own threads exist; one more than there are processors makes them too many.
        self._size = max(2, int(kernels.radix_processors()) - threads + 2)
        self._ended: threading.Event | None = None  # of the idle team, while there is one
        self._said = False
        self._began = self._ran = 0.0
        self._forget()

    @property
    def crowded(self) -> bool:
        """Whether threads sleep while they wait."""
        return self._ended is not None

    def __enter__(self) -> None:
        self._began, self._ran = time.perf_counter(), time.thread_time()

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._wall += time.perf_counter() - self._began
        self._cpu += time.thread_time() - self._ran
        if self._wall < (STAY_SECONDS if self.crowded else LOOK_SECONDS):
            return
        if not self.crowded and self._cpu < CROWDED * self._wall:
            self._share()
        elif self.crowded and _put_off() - self._put_off < QUIET * self._wall:
            self.close()
        self._forget()

    def close(self) -> None:
        """Have threads spin again; safe to call twice."""
        if self._ended is not None:
            self._ended.set()
            self._ended = None

    def _forget(self) -> None:
        self._wall = self._cpu = 0.0
        self._put_off = _put_off()

    def _share(self) -> None:
        level = logging.DEBUG if self._said else logging.INFO
        log.log(level, "other work wants the cores of this forward, whose threads sleep now while they wait for others")
        self._said = True
        ended = self._ended = threading.Event()

        def idle() -> None:
            self._team(self._size)
            ended.wait()

        threading.Thread(target=idle, name="radix-idle-team", daemon=True).start()


def watch_contention(device: torch.device, threads: int) -> Contention | None:
    """For a forward by several threads of a CPU, where it can be had and nobody has said how they are to wait."""
    if device.type != "cpu" or threads < 2 or any(name in os.environ for name in SETTINGS):
        return None
    try:
        return Contention(threads)
    except MissingDependencyError as fault:
        log.info("threads spin while they wait, whoever else wants the cores: %s", fault)
        return None


def _put_off() -> int:
    """How often this process was put off a core that it would have gone on using."""
    import resource  # not on Windows, where there are no kernels either

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

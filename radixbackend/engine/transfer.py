"""Small tensors between host and device, without waiting for what the device is computing.

Rules. On CUDA every copy goes through pinned memory of its own, which the allocator does not hand out again before the
copy is done, and is ordered among the kernels launched before and after it. Elsewhere these are ordinary copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from radixbackend.engine.plan import StepPlan
from radixbackend.errors import IntegrityError


def send(values: NDArray[np.generic] | Sequence[float], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the device. The caller does not wait for the copy, only what it launches next does."""
    array = np.asarray(values)
    if device.type != "cuda":
        return torch.from_numpy(array).to(device, dtype)
    host = torch.empty(array.shape, dtype=dtype, pin_memory=True)
    host.copy_(torch.from_numpy(array))
    return host.to(device, non_blocking=True)


class Fetch:
    """Tensors of one shape on their way to the host, in one copy: as float32, where they are not there anyway."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors, self._done = tensors, None
        self._packed: torch.Tensor | None = None
        device = tensors[0].device
        if device.type == "cpu":
            return
        self._packed = packed = torch.stack([tensor.float() for tensor in tensors])
        if device.type == "cuda":
            self._packed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(device))

    def wait(self) -> tuple[torch.Tensor, ...]:
        """The tensors on the host, once the device has got that far; what was launched later is not waited for."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors if self._packed is None else self._packed.cpu().unbind()


class Staging:
    """Entered while someone else copies to the device from host memory that it fills again every time (FlashInfer's
    plans): not before the device has read what was there, which may be behind a step in flight."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        if self._read is not None:
            self._read.synchronize()

    def __exit__(self, *_: object) -> None:
        if self._read is not None:
            self._read.record(torch.cuda.current_stream(self._device))


def fill_in(ids: torch.Tensor, plan: StepPlan, drawn: torch.Tensor | None) -> None:
    """Where a sequence goes on with a token that the step before drew, put it into the packed ``ids [T]``."""
    starts = itertools.accumulate((len(s.tokens) for s in plan.sequences), initial=0)
    places = [(start, s.ahead) for start, s in zip(starts, plan.sequences, strict=False) if s.ahead is not None]
    if not places:
        return
    if drawn is None:
        raise IntegrityError("a step goes on with tokens that no step before it draws")
    at, rows = send(np.array(places).T.copy(), ids.device, torch.long)
    ids.index_copy_(0, at, drawn.index_select(0, rows))

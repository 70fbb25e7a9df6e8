"""Each layer by the first kernel that takes it.

Rules. All kernels keep the same contract over the same store, so a model may use several: which one a layer gets is
settled when layers are bound and said once in the log. It computes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch

from radixbackend.engine.attention.base import (
    AttentionBackend,
    AttentionBatch,
    AttentionLayer,
    Capturable,
    Places,
    refusal,
)
from radixbackend.engine.kv_store import KVStore

log = logging.getLogger(__name__)


class FirstThatServes:
    """See `AttentionBackend`. ``kernels`` in order of preference; the name is of those in use."""

    converts = True  # if one of them does

    def __init__(self, kernels: Sequence[AttentionBackend]) -> None:
        self._kernels = tuple(kernels)
        self._used = self._kernels[:1]
        self.name = self._used[0].name
        self._by_layer: dict[int, AttentionBackend] = {}
        self.captures = False
        self.head_major = all(getattr(kernel, "head_major", False) for kernel in kernels)

    def refuses(self, layer: AttentionLayer) -> str | None:
        reasons = [(kernel.name, refusal(kernel, layer)) for kernel in self._kernels]
        if any(reason is None for _, reason in reasons):
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in reasons)

    def bind(self, layers: tuple[AttentionLayer, ...], store: KVStore) -> None:
        self._by_layer = {layer.index: self._first(layer) for layer in layers}
        self._used = tuple(k for k in self._kernels if k in self._by_layer.values())
        for kernel in self._used:
            kernel.bind(tuple(x for x in layers if self._by_layer[x.index] is kernel), store)
        for better in self._kernels[: self._kernels.index(self._used[-1])]:
            refused = {reason: layer.index for layer in reversed(layers) if (reason := refusal(better, layer))}
            for reason, index in refused.items():
                log.info("attention: %s does not serve layer %d: %s", better.name, index, reason)
        self.name = "+".join(kernel.name for kernel in self._used)
        self.captures = all(getattr(kernel, "captures", False) for kernel in self._used)
        log.info("attention: %s", self.name)

    def _first(self, layer: AttentionLayer) -> AttentionBackend:
        return next(kernel for kernel in self._kernels if refusal(kernel, layer) is None)

    def begin(self, batch: AttentionBatch) -> None:
        for kernel in self._used:
            kernel.begin(batch)

    def reserve(self, rows: int, longest: int, slots: int) -> list[Any]:
        """See `Capturable`, which it is where all kernels in use are."""
        return [kernel.reserve(rows, longest, slots) for kernel in self._capturable()]

    def begin_reserved(self, batch: AttentionBatch, reserved: list[Any]) -> None:
        for kernel, its in zip(self._capturable(), reserved, strict=True):
            kernel.begin_reserved(batch, its)

    def _capturable(self) -> Sequence[Capturable]:
        assert self.captures
        return cast(Sequence[Capturable], self._used)

    def places(self, layers: Sequence[AttentionLayer]) -> Places | None:
        """See `AttentionBackend`."""
        find = getattr(self._used[0], "places", None)
        return None if find is None or len(self._used) > 1 else find(layers)

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        return self._by_layer[layer.index].attend(layer, query, key, value, sinks)

    def end(self) -> None:
        for kernel in self._used:
            kernel.end()

"""A transformers model over the paged pool: `StepPlan` in, logits out.

Rules. The modeling code runs unchanged over one packed row of tokens, ``[1, T]``, with explicit positions and no
cache of its own. The runner registers one attention function with transformers, under a name of its own and without
a mask builder, so no masks are made; what a step needs to know reaches it as the runner's own state, set around the
forward, never through a global. Steps of single tokens go by CUDA graph where `capture_decodes` made some, every
other one launches its kernels as it goes. No queues, no sampling, no decision about slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from radixbackend.engine.attention.base import AttentionBackend, AttentionBatch, Capturable, Places, refusal
from radixbackend.engine.cuda_graphs import Capture, CudaCapture, DecodeGraphs
from radixbackend.engine.kv_store import KVShape, KVStore, bytes_per_slot
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.plan import ExecutorTraits, IntArray, SequenceId, StepPlan
from radixbackend.engine.probe import (
    AttentionProbe,
    probe_tokens,
    register_attention,
    takes_index,
    text_part,
    unregister_attention,
)
from radixbackend.engine.runner import Logits, wanted_rows
from radixbackend.engine.transfer import Staging, fill_in, send
from radixbackend.engine.vision import Vision
from radixbackend.errors import IntegrityError, UnsupportedModelError


class PagedAttention:
    """The function registered with transformers, and the same for those who have packed rows already.

    Args:
        packed: takes the attention module, queries, keys and values ``[T, heads, dim]`` and what else was told.
        places: takes all attention modules; the `Places` of their calls where `Stack` may make these, else None.
    """

    def __init__(
        self, packed: Callable[..., torch.Tensor], places: Callable[[Sequence[nn.Module]], Places | None]
    ) -> None:
        self.packed, self.places = packed, places

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **told: Any,
    ) -> tuple[torch.Tensor, None]:
        """``[1, heads, T, dim]`` in, ``[1, T, heads, dim]`` out."""
        return self.packed(module, *(x[0].transpose(0, 1) for x in (query, key, value)), told)[None], None


class ModelRunner:
    """See `Runner`. Construction probes the model; raises `UnsupportedModelError` where paging cannot be exact.

    Keys and values are kept in the type that they are computed in, or in ``stored``.
    """

    traits = ExecutorTraits()

    def __init__(self, loaded: LoadedModel, attention: AttentionBackend, stored: torch.dtype | None = None) -> None:
        self.model: Any = loaded.model
        self.device = loaded.device
        self.attention = attention
        self.name = f"radixbackend_{id(self):x}"
        self._original_attention = text_part(self.model).config._attn_implementation
        self.vision = None if loaded.processor is None else Vision(loaded)
        self._takes_index = takes_index(self.model)
        self._store: KVStore | None = None
        self._graphs: DecodeGraphs | None = None
        self._staging = Staging(self.device)
        self._call = 0
        self._sees = False  # whether parts of images are in this step
        try:
            calls = AttentionProbe().run(self.model, self.name, probe_tokens(loaded.config, loaded.vocab_size))
            layers = tuple(replace(layer, stored=stored) for layer in calls.layers)
            for layer in layers:
                if reason := refusal(attention, layer):
                    raise UnsupportedModelError(f"attention {attention.name!r} cannot serve it: {reason}")
        except BaseException:
            self.close()
            raise
        self.stored = stored
        self.layers, self._modules = layers, calls.modules
        self._shapes = [KVShape(x.kv_heads, x.key_dim, x.value_dim, stored or x.dtype) for x in layers if x.writes]
        self.bytes_per_slot = bytes_per_slot(self._shapes)
        register_attention(self.name, PagedAttention(self._attend, self._places))

    @property
    def capacity(self) -> int:
        return 0 if self._store is None else self._store.capacity

    @property
    def encoded_images(self) -> int:
        return 0 if self.vision is None else self.vision.encoded

    def allocate(self, capacity: int) -> None:
        self._drop_graphs()
        if self._store is not None:
            self._store.close()
        head_major = getattr(self.attention, "head_major", False)
        self._store = KVStore(self._shapes, capacity, self.device, head_major=head_major)
        self.attention.bind(self.layers, self._store)

    def capture_decodes(self, rows: int, context: int, capture: Capture | None = None) -> None:
        """See `Runner`. ``capture`` takes the place of CUDA's own."""
        self._drop_graphs()
        if capture is None and self.device.type == "cuda":
            capture = CudaCapture(self.device)
        if capture is None or not getattr(self.attention, "captures", False):
            return
        self._graphs = DecodeGraphs(
            self._forward,
            self._plain,
            cast(Capturable, self.attention),
            max_rows=rows,
            max_context=context,
            slots=self.capacity,
            device=self.device,
            capture=capture,
        )
        self._graphs.warm_up()

    def run(self, plan: StepPlan, drawn: torch.Tensor | None = None) -> Logits:
        if self._store is None:
            raise IntegrityError("the runner has no slots: allocate() comes first")
        wanted, offsets = wanted_rows(plan)
        replayed = None if self._graphs is None else self._graphs.run(plan, drawn)
        # A graph's own rows are the next replay's, too.
        rows = self._compute(plan, wanted, drawn) if replayed is None else replayed.clone()
        return Logits(rows, offsets)

    def _plain(self, plan: StepPlan, drawn: torch.Tensor | None) -> torch.Tensor:
        """What a graph is compared with."""
        return self._compute(plan, wanted_rows(plan)[0], drawn)

    def _compute(self, plan: StepPlan, wanted: IntArray, drawn: torch.Tensor | None) -> torch.Tensor:
        """Logits of these rows, without a graph."""
        ids = self._row([s.tokens for s in plan.sequences])
        fill_in(ids[0], plan, drawn)
        shown: AbstractContextManager[None] = nullcontext()
        self._sees = any(s.sees for s in plan.sequences)
        if self.vision is not None and any(s.images for s in plan.sequences):
            positions, shown = self.vision.positions(plan), self.vision.shown(plan)
        else:
            positions = self._row([np.arange(s.start, s.context, dtype=np.int32) for s in plan.sequences])
        rows = send(wanted, self.device, torch.long)
        with self._staging:
            self.attention.begin(AttentionBatch.of(plan))
        try:
            with torch.inference_mode(), shown:
                return self._forward(ids, positions, rows)
        finally:
            self.attention.end()

    def _row(self, parts: list[IntArray]) -> torch.Tensor:
        """``[1, T]`` on the device."""
        return send(np.concatenate(parts), self.device, torch.long)[None]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of these rows, or of all."""
        arguments: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
        if rows is not None and self._takes_index:
            # A step of prompt chunks alone wants no logits; one row keeps every model's head away from empty tensors.
            arguments["logits_to_keep"] = rows if len(rows) else rows.new_zeros(1)
        self._call = 0
        logits: torch.Tensor = self.model(**arguments).logits[0]
        if self._call != len(self.layers):
            raise IntegrityError(f"{self._call} attention calls in a forward, not {len(self.layers)}")
        if rows is None:
            return logits
        return logits[: len(rows)] if self._takes_index else logits.index_select(0, rows)

    def _attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, told: dict[str, Any]
    ) -> torch.Tensor:
        """``[T, heads, dim]`` in and out."""
        call = self._call
        if call >= len(self.layers) or self._modules[call] is not module:
            raise IntegrityError(f"unexpected attention call {call} by {type(module).__name__}")
        self._call = call + 1
        layer = self.layers[call]
        return self.attention.attend(layer, query, key, value, told["s_aux"] if layer.sinks else None)

    def _places(self, modules: Sequence[nn.Module]) -> Places | None:
        """For all calls of a forward at once; not with images, which a model may put between its layers."""
        find = getattr(self.attention, "places", None)
        if find is None or self._sees or self._call or tuple(modules) != tuple(self._modules):
            return None
        places: Places | None = find(self.layers)
        if places is not None:
            self._call = len(self.layers)
        return places

    def forget(self, sequence_id: SequenceId) -> None:
        """Nothing is kept beyond the slots."""

    def _drop_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()
            self._graphs = None

    def close(self) -> None:
        self._drop_graphs()
        if (part := text_part(self.model)).config._attn_implementation == self.name:
            part.set_attn_implementation(self._original_attention)
        unregister_attention(self.name)
        if self.vision is not None:
            self.vision.clear()
        if self._store is not None:
            self._store.close()
            self._store = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # for whoever else is in this process

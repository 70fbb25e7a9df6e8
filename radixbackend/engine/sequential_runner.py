"""The slow, exact path: one transformers cache per sequence, each sequence forwarded on its own.

For models whose attention ignores transformers' attention interface, and for recurrent and hybrid ones whose state
cannot be split into slots. Rules. A sequence's cache lives here from its first token (``start == 0`` begins anew) to
`forget`; slots are counted by the scheduler but hold nothing. A step that starts before the end of a cache (rejected
drafts, a step repeated after a failure) rewinds it: cropped where that is exact, else computed again.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.plan import ExecutorTraits, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.probe import probe_tokens
from radixbackend.engine.runner import Logits, num_wanted
from radixbackend.errors import IntegrityError, UnsupportedModelError

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What models call their cache, as argument and in their output; since transformers 5.24 the first."""

STATE_SHARE = 256
"""A state of fixed size is charged to a sequence's first so many tokens."""


@dataclass(slots=True)
class _State:
    """A sequence's cache and the tokens it has seen; without a cache it must be computed again."""

    tokens: list[int] = field(default_factory=list)
    cache: Any = None


class SequentialRunner:
    """See `Runner`. ``chunks`` says whether a prompt may be continued by several tokens at once, which some recurrent
    models of transformers get wrong; the self-check finds out."""

    def __init__(self, loaded: LoadedModel, *, chunks: bool = True) -> None:
        self.model: Any = loaded.model
        self.device = loaded.device
        accepted = inspect.signature(self.model.forward).parameters
        names = [name for name in CACHE_NAMES if name in accepted]
        if not names:
            raise UnsupportedModelError("its forward takes no cache")
        self._cache_name = names[0]
        self._takes_positions = "position_ids" in accepted
        self._takes_index = "logits_to_keep" in accepted
        self._states: dict[SequenceId, _State] = {}
        short, long = (self._cache_bytes(loaded, length) for length in (2, 10))
        growth = max(0, long - short) // 8
        self.bytes_per_slot = max(1, growth + max(0, short - 2 * growth) // STATE_SHARE)
        self.traits = ExecutorTraits(
            shares_prefixes=False, chunks=chunks, drafts=chunks and self._croppable, ahead=False
        )

    @property
    def encoded_images(self) -> int:
        return 0

    def allocate(self, capacity: int) -> None:
        """Slots only count tokens here; what was kept is dropped."""
        self._states.clear()

    def capture_decodes(self, rows: int, context: int) -> None:
        """Nothing: each sequence has its own cache, which grows."""

    def run(self, plan: StepPlan, drawn: torch.Tensor | None = None) -> Logits:
        rows: list[torch.Tensor] = []
        offsets = [0]
        with torch.inference_mode():
            for sequence in plan.sequences:
                rows.append(self._advance(sequence))
                offsets.append(offsets[-1] + len(rows[-1]))
        return Logits(torch.cat(rows), tuple(offsets))

    def forget(self, sequence_id: SequenceId) -> None:
        self._states.pop(sequence_id, None)

    def close(self) -> None:
        self._states.clear()

    def _advance(self, sequence: SequencePlan) -> torch.Tensor:
        if sequence.start == 0:
            self._states[sequence.sequence_id] = _State()
        state = self._states.get(sequence.sequence_id)
        if state is None or len(state.tokens) < sequence.start:
            held = 0 if state is None else len(state.tokens)
            raise IntegrityError(f"sequence {sequence.sequence_id} goes on at {sequence.start} after {held} tokens")
        if sequence.start and (state.cache is None or len(state.tokens) > sequence.start):
            self._rewind(state, sequence.start)
        return self._forward(state, sequence.tokens.tolist(), num_wanted(sequence))

    def _rewind(self, state: _State, length: int) -> None:
        kept = state.tokens[:length]
        if state.cache is not None and self._croppable:
            for layer in state.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
            state.tokens = kept
            return
        state.tokens, state.cache = [], None
        self._forward(state, kept, 1)

    def _forward(self, state: _State, tokens: list[int], wanted: int) -> torch.Tensor:
        """Feed tokens to a sequence and return the logits of the last ``wanted`` of them, ``[wanted, vocab]``."""
        start, end = len(state.tokens), len(state.tokens) + len(tokens)
        arguments: dict[str, Any] = {self._cache_name: state.cache, "use_cache": True}
        if self._takes_positions:
            arguments["position_ids"] = torch.arange(start, end, device=self.device)[None]
        if self._takes_index:
            arguments["logits_to_keep"] = max(1, wanted)
        # Until the forward is through, the cache is neither what it was nor what it will be.
        state.cache = None
        output = self.model(input_ids=torch.tensor([tokens], device=self.device), **arguments)
        state.cache = getattr(output, self._cache_name, None)
        state.tokens.extend(tokens)
        logits: torch.Tensor = output.logits[0]
        return logits[len(logits) - wanted :]

    def _cache_bytes(self, loaded: LoadedModel, length: int) -> int:
        state = _State()
        tokens = probe_tokens(loaded.config, loaded.vocab_size)
        with torch.inference_mode():
            self._forward(state, [tokens[i % len(tokens)] for i in range(length)], 1)
        if state.cache is None:
            raise UnsupportedModelError("its forward returns no cache")
        # Only caches that hold every position as it is can be cut; a window or a state has forgotten.
        layers = getattr(state.cache, "layers", None) or [state.cache]
        self._croppable = all(type(layer).__name__ == "DynamicLayer" for layer in layers)
        return sum(tensor.nbytes for tensor in _tensors(state.cache, set()))


def _tensors(holder: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor within a cache, whatever its shape."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, torch.Tensor):
        yield holder
        return
    parts = holder.values() if isinstance(holder, dict) else holder if isinstance(holder, list | tuple) else ()
    parts = vars(holder).values() if hasattr(holder, "__dict__") and not isinstance(holder, type) else parts
    for part in parts:
        yield from _tensors(part, seen)

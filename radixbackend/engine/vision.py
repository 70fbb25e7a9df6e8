"""What a model's decoder is fed in the place of images, and in which positions.

Rules. transformers' own forward computes it, up to the decoder and no further: an image's stretch of the prompt goes in
with its tensors, and what would reach the decoder is kept, row by row of its placeholders. In a step these rows replace
what the model embeds there, so chunks may begin and end anywhere, and an image that several requests or steps need is
computed once. Works on the engine's thread; knows no files, no processors and no slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.plan import ImageInput, SequencePlan, StepPlan
from radixbackend.errors import IntegrityError

KEPT_BYTES = 256 << 20
"""Features kept for steps to come, those of the last used images; what one step needs is always kept."""

DEEP = "deepstack_visual_embeds"
"""What decoders call features for their first layers, one tensor per layer, and below it the rows they belong to."""

DEEP_ROWS = "visual_pos_masks"


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Of one image: ``rows`` is ``[placeholders, hidden]``, ``deep`` the same for each of the first layers."""

    rows: torch.Tensor
    deep: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.rows, *self.deep))

    def cut(self, which: slice) -> Features:
        return Features(self.rows[which], tuple(tensor[which] for tensor in self.deep))


class _Reached(Exception):
    """The forward has come to the decoder."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


class Vision:
    """The images of a model's steps."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._decoder: nn.Module = loaded.model.get_decoder()
        self._device = loaded.device
        self._dtype = loaded.dtype
        self._features: OrderedDict[int, Features] = OrderedDict()
        self._kept = 0
        self.encoded = 0

    def positions(self, plan: StepPlan) -> torch.Tensor:
        """``[1, T]``, or ``[3, 1, T]`` where some sequence's positions have three dimensions."""
        rows = [_positions(sequence) for sequence in plan.sequences]
        if any(len(row) > 1 for row in rows):
            rows = [np.broadcast_to(row, (3, row.shape[1])) for row in rows]
        packed = torch.from_numpy(np.concatenate(rows, 1)).to(self._device, torch.long)
        return packed if len(packed) == 1 else packed[:, None]

    @contextmanager
    def shown(self, plan: StepPlan) -> Iterator[None]:
        """Within, a forward over the packed tokens of ``plan`` sees the images among them."""
        places, parts = self._collect(plan)
        if not parts:
            yield
            return
        at = torch.from_numpy(np.concatenate(places)).to(self._device, torch.long)
        rows = torch.cat([part.rows for part in parts])
        deep = [torch.cat(layer) for layer in zip(*(part.deep for part in parts), strict=True)]

        def place(_: nn.Module, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            embeds = named["inputs_embeds"].clone()
            embeds[0, at] = rows.to(embeds.dtype)
            named = {**named, "inputs_embeds": embeds}
            if deep:
                mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
                mask[0, at] = True
                named |= {DEEP: deep, DEEP_ROWS: mask}
            return positional, named

        handle = self._decoder.register_forward_pre_hook(place, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def clear(self) -> None:
        """As it was when made."""
        self._features.clear()
        self._kept = self.encoded = 0

    def _collect(self, plan: StepPlan) -> tuple[list[np.ndarray[Any, Any]], list[Features]]:
        """Where in the packed row placeholders are, in order, and the features that belong there."""
        places, parts, offset = [], [], 0
        used = set()
        for sequence in plan.sequences:
            for image in () if sequence.images is None else sequence.images.images:
                positions = image.positions
                first, last = np.searchsorted(positions, (sequence.start, sequence.context))
                if first < last:
                    places.append(positions[first:last] - sequence.start + offset)
                    used.add(image.key)
                    parts.append(self._features_of(image).cut(slice(int(first), int(last))))
            offset += len(sequence.tokens)
        self._forget(used)
        return places, parts

    def _features_of(self, image: ImageInput) -> Features:
        if (known := self._features.get(image.key)) is None:
            known = self._features[image.key] = self._encode(image)
            self._kept += known.nbytes
            self.encoded += 1
        self._features.move_to_end(image.key)
        return known

    def _forget(self, used: set[int]) -> None:
        """Make room, oldest first."""
        while self._kept > KEPT_BYTES and (oldest := next(iter(self._features))) not in used:
            self._kept -= self._features.pop(oldest).nbytes

    def _encode(self, image: ImageInput) -> Features:
        """One image through the model's tower."""
        tokens = torch.from_numpy(image.tokens.astype(np.int64)).to(self._device)[None]
        tensors = {name: self._tensor(value) for name, value in image.tensors.items()}
        positions = torch.arange(tokens.shape[1], device=self._device)[None]

        def stop(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
            raise _Reached(named)

        handle = self._decoder.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.inference_mode():
                self._model(input_ids=tokens, position_ids=positions, use_cache=False, **tensors)
        except _Reached as reached:
            fed = reached.arguments
        else:
            raise IntegrityError("the model computed an image without its decoder")
        finally:
            handle.remove()
        rows = torch.from_numpy(image.rows.astype(np.int64)).to(self._device)
        deep = tuple(fed.get(DEEP) or ())
        return Features(fed["inputs_embeds"][0, rows], deep)

    def _tensor(self, value: np.ndarray[Any, Any]) -> torch.Tensor:
        tensor = torch.from_numpy(value).to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _positions(sequence: SequencePlan) -> np.ndarray[Any, np.dtype[np.int32]]:
    """``[1, q]`` or ``[3, q]``."""
    images = sequence.images
    shift = 0 if images is None else images.shift
    plain = np.arange(sequence.start, sequence.context, dtype=np.int32)[None] + np.int32(shift)
    if images is None or images.grid is None or sequence.start >= images.grid.shape[1]:
        return plain
    prompt = images.grid[:, sequence.start : sequence.context]
    generated = plain[:, prompt.shape[1] :]
    return np.concatenate((prompt, np.broadcast_to(generated, (len(prompt), generated.shape[1]))), 1)

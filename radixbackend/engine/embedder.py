"""Texts to vectors: a plain forward of the loaded model, its hidden states pooled.

Rules. Runs on the engine's thread between two steps, one text at a time and without padding, with the attention
that transformers itself chose for the model, so a vector is what a plain forward gives whatever else is served. No
slots, no cache. How to pool is said by the files that sentence-transformers writes beside a checkpoint; without
them a vector is the final hidden state of the last token, normalized.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.probe import text_part
from radixbackend.errors import InvalidRequestError, UnsupportedModelError

Mode = Literal["lasttoken", "mean", "cls", "weightedmean"]

_FLAGS: dict[str, Mode] = {
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the hidden states of a text become its vector.

    Attributes:
        mode: ``lasttoken`` and ``cls`` take the last and the first token's state; ``mean`` averages over all tokens,
            ``weightedmean`` with weights 1, 2, 3, …
        normalize: to length 1.
    """

    mode: Mode = "lasttoken"
    normalize: bool = True

    @classmethod
    def of(cls, folder: Path | None) -> Pooling:
        """What ``modules.json`` and the pooling module's ``config.json`` say.

        Raises:
            UnsupportedModelError: for modules or modes that are not served.
        """
        if folder is None or not (file := folder / "modules.json").is_file():
            return cls()
        kinds = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in json.loads(file.read_text("utf-8"))}
        if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
            raise UnsupportedModelError(f"its embeddings need the module {unknown[0]}, which is not served")
        mode: Mode = "lasttoken"
        if "Pooling" in kinds:
            mode = _mode(json.loads((folder / kinds["Pooling"] / "config.json").read_text("utf-8")))
        return cls(mode, "Normalize" in kinds)

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """``[T, d]`` → ``[d]``, float32."""
        states = states.float()
        if self.mode == "mean":
            return states.mean(0)
        if self.mode == "weightedmean":
            weights = torch.arange(1, len(states) + 1, device=states.device, dtype=states.dtype)
            return weights @ states / weights.sum()
        return states[-1 if self.mode == "lasttoken" else 0]


def _mode(config: dict[str, Any]) -> Mode:
    """Of a pooling module: one flag per mode, or since version 5 one name."""
    named = config.get("pooling_mode")
    flags = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    names = [named] if isinstance(named, str) else flags
    modes = [mode for flag, mode in _FLAGS.items() if flag in names or mode in names]
    if len(names) != 1 or not modes:
        raise UnsupportedModelError(f"it pools embeddings by {', '.join(names) or 'nothing'}, which is not served")
    return modes[0]


class Embedder:
    """Vectors of one model. ``attention`` is what transformers chose for it before the engine took over."""

    def __init__(self, loaded: LoadedModel, attention: str) -> None:
        self._loaded = loaded
        self._attention = attention
        self._pooling: Pooling | None = None

    def vector(self, tokens: Sequence[int], dimensions: int | None = None) -> NDArray[np.float32]:
        """One text's vector, ``[d]``.

        Args:
            dimensions: keep only the first so many (for models that were trained for it), normalized again.

        Raises:
            UnsupportedModelError, InvalidRequestError
        """
        if self._pooling is None:
            self._pooling = Pooling.of(self._loaded.folder)
        vector = self._pooling.pool(self._states(tokens))
        if dimensions is not None:
            if dimensions > len(vector):
                raise InvalidRequestError(
                    f"dimensions is {dimensions}, and the model's vectors have {len(vector)}", param="dimensions"
                )
            vector = vector[:dimensions]
        if self._pooling.normalize:
            vector = torch.nn.functional.normalize(vector, dim=0)
        found: NDArray[np.float32] = vector.cpu().numpy()
        return found

    @torch.inference_mode()
    def _states(self, tokens: Sequence[int]) -> torch.Tensor:
        """Final hidden states ``[T, d]``."""
        model: Any = self._loaded.model
        ids = torch.tensor([list(tokens)], device=self._loaded.device)
        part = text_part(model)
        paged = part.config._attn_implementation
        switch = paged != self._attention
        if switch:
            part.set_attn_implementation(self._attention)
        try:
            body = model.base_model
            if body is model:  # without a body of its own: the head computes for nothing
                out = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
            else:
                out = body(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            if switch:
                part.set_attn_implementation(paged)
        states: torch.Tensor = out[0]
        return states

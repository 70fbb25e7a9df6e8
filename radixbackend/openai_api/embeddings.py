"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from radixbackend.openai_api.faces import Face
from radixbackend.openai_api.faults import ApiError
from radixbackend.openai_api.protocol import EmbeddingRequest, prompt_list
from radixbackend.openai_api.served import Served

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_INPUTS = 2048
"""OpenAI's bound."""


async def create(asked: EmbeddingRequest, served: Served, face: Face) -> dict[str, Any]:
    inputs = prompt_list(asked.input)
    if len(inputs) > MOST_INPUTS:
        raise ApiError(
            400, f"'input' takes up to {MOST_INPUTS} texts, not {len(inputs)}.", code="invalid_value", param="input"
        )
    for tokens in inputs:
        if not isinstance(tokens, str):
            served.check_length(len(tokens))
    found = await face.embed(inputs, asked.dimensions)
    encode = _base64 if asked.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "model": asked.model or served.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(found.vectors)
        ],
        "usage": {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens},
    }


def _floats(vector: NDArray[np.float32]) -> list[float]:
    values: list[float] = vector.tolist()
    return values


def _base64(vector: NDArray[np.float32]) -> str:
    """Little-endian float32, which is what the SDK asks for and decodes."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()

"""The small endpoints: what is served, how it is doing, tokens and text, the cache."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass
from typing import Any

from radixbackend.cache_view import view_cache
from radixbackend.errors import EngineClosedError
from radixbackend.openai_api.faces import Face
from radixbackend.openai_api.faults import ApiError
from radixbackend.openai_api.protocol import DetokenizeRequest, TokenizeRequest
from radixbackend.openai_api.served import Served


@dataclass(frozen=True)
class Text:
    """An answer that is not JSON."""

    content: str
    content_type: str = "text/plain; charset=utf-8"


Answer = dict[str, Any] | list[dict[str, Any]] | Text | AsyncGenerator[bytes]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def health(_: None, served: Served, face: Face) -> Answer:
    try:
        served.backend.stats()
    except EngineClosedError:
        raise ApiError(503, "The engine is closed.", code="engine_closed") from None
    return {"status": "ok"}


def metrics(render: Callable[[], str] | None) -> Callable[[None, Served, Face], Any]:
    """The endpoint over what renders them."""

    async def answer(_: None, served: Served, face: Face) -> Answer:
        if render is None:
            raise ApiError(404, "Metrics are off; they need the extra 'metrics'.", code="metrics_off")
        return Text(await face.call(render), METRICS_TYPE)

    return answer


async def models(_: None, served: Served, face: Face) -> Answer:
    return {"object": "list", "data": [_card(served)]}


async def model(name: str, served: Served, face: Face) -> Answer:
    served.check_model(name)
    return {**_card(served), "id": name}


def _card(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "radixbackend",
        "max_model_len": served.backend.max_context,
        "reasons": served.backend.reasoning_format is not None,
        "sees": not served.backend.images.refusal,
    }


async def tokenize(asked: TokenizeRequest, served: Served, face: Face) -> Answer:
    if asked.messages is not None:
        tokens = await face.call(lambda: served.chats.tokenize(asked.chat()))
    else:
        special = asked.add_special_tokens is not False
        text = asked.text
        tokens = tuple(await face.call(lambda: served.tokenizer.encode(text, add_special_tokens=special)))
    strings = [served.texts.text(token) for token in tokens] if asked.return_token_strs else None
    longest = served.backend.max_context
    return {"count": len(tokens), "max_model_len": longest, "tokens": list(tokens), "token_strs": strings}


async def detokenize(asked: DetokenizeRequest, served: Served, face: Face) -> Answer:
    skip = bool(asked.skip_special_tokens)
    if bad := [token for token in asked.tokens if not 0 <= token < 2**31]:
        raise ApiError(400, f"'tokens' has {bad[0]}, which is no token.", code="invalid_value", param="tokens")
    text = await face.call(lambda: served.tokenizer.decode(asked.tokens, skip_special_tokens=skip))
    return {"prompt": text, "text": text}


async def flush_cache(_: Any, served: Served, face: Face) -> Answer:
    return {"success": True, "flushed_tokens": await face.call(served.backend.flush_cache)}


async def cache_tree(_: None, served: Served, face: Face) -> Answer:
    """Shows what users have said: only where the server was told to."""
    return asdict(await face.call(lambda: view_cache(served.backend)))


async def model_info(_: None, served: Served, face: Face) -> Answer:
    return {"model_path": served.name, "tokenizer_path": served.name, "is_generation": True}


async def server_info(_: None, served: Served, face: Face) -> Answer:
    from radixbackend import __version__

    stats = asdict(served.backend.stats())
    return {
        "version": __version__,
        "model_path": served.name,
        "served_model_name": served.name,
        "context_length": served.backend.max_context,
        "max_total_num_tokens": stats["slots_total"],
        "internal_states": [stats],
    }

"""What `ChatOpenAI` and `OpenAIEmbeddings` take and a model in this process has no use for.

Rules. Swapping the class name must be enough, so these are accepted; they are dropped with a debug log, and the
README lists them. What an engine takes (`EngineConfig`) may be given by its own name, too.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from radixbackend import EngineConfig

log = logging.getLogger("langchain_radix")

IGNORED = frozenset(
    (
        *("client", "async_client", "root_client", "root_async_client", "http_socket_options", "openai_proxy"),
        *("default_query", "openai_organization", "organization", "tiktoken_model_name"),
        *("include_response_headers", "stream_chunk_timeout"),
        *("use_responses_api", "use_previous_response_id", "context_management", "include", "truncation"),
        *("store", "service_tier", "verbosity", "prompt_cache_options"),
    )
)
"""Of `ChatOpenAI`."""

IGNORED_EMBEDDING = frozenset(
    (
        *("client", "async_client", "openai_proxy", "default_query"),
        *("openai_organization", "organization", "openai_api_type", "openai_api_version", "api_version", "deployment"),
        *("tiktoken_model_name", "tiktoken_enabled", "embedding_ctx_length", "check_embedding_ctx_length"),
        *("chunk_size", "show_progress_bar", "skip_empty", "retry_min_seconds", "retry_max_seconds"),
        *("allowed_special", "disallowed_special", "headers", "model_kwargs"),
    )
)
"""Of `OpenAIEmbeddings`."""

ENGINE_OPTIONS = frozenset(option.name for option in fields(EngineConfig)) - {"model", "grammar"}
"""Engine options that may be given as they are. ``grammar`` is what an answer must fit, so the engine's option of
that name is given in ``engine_options``."""


def sort_arguments(given: Mapping[str, Any], known: Collection[str], ignored: Collection[str]) -> dict[str, Any]:
    """Constructor arguments with engine options in ``engine_options`` and what is ignored left out.

    Raises:
        ValueError: an engine option is given twice.
    """
    sorted_, options = {}, dict(given.get("engine_options") or {})
    for name, value in given.items():
        if name in known:
            sorted_[name] = value
        elif name in ENGINE_OPTIONS:
            if name in options:
                raise ValueError(f"{name} is given twice: as it is, and in engine_options")
            options[name] = value
        elif name in ignored:
            if value is not None:
                log.debug("%s has no meaning for a model in this process and is ignored", name)
        else:
            sorted_[name] = value
    return {**sorted_, "engine_options": options}


def unknown_to_model_kwargs(given: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Move what nobody knows into ``model_kwargs``, with a warning: a later release may know it."""
    extra = dict(given.get("model_kwargs") or {})
    for name in [name for name in given if name not in known]:
        if name in extra:
            raise ValueError(f"{name} is given twice: as it is, and in model_kwargs")
        warnings.warn(
            f"{name} is no parameter of ChatRadix{did_you_mean(name, known)}; it goes to model_kwargs", stacklevel=6
        )
        extra[name] = given.pop(name)
    return {**given, "model_kwargs": extra}


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`` (did you mean …?)``, where something is spelt alike."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""

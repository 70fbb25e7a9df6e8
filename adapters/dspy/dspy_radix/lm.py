"""`RadixLM`: a `dspy.LM` whose model runs in this process.

Rules. A face over the engine pair: no request passes through code of its own. What it adds to `dspy.LM` is how it is
opened, closed, saved and asked about; no deprecated `forward`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

import dspy

from dspy_radix.convert import DOOR, OWN_SETTINGS
from dspy_radix.engine import AsyncRadixEngine, RadixEngine
from radixbackend import EngineConfig, EngineStats

ENGINE_OPTIONS = frozenset(field.name for field in fields(EngineConfig)) - {"model"}
CLIENT_OPTIONS = frozenset(("headers", "max_retries", "http_client", "http_async_client"))


class RadixLM(dspy.LM):
    """Use it wherever DSPy takes an LM: ``dspy.configure(lm=RadixLM("folder-or-hub-id"))``.

    Every LM over the same model and options shares one engine, and so one cache and one batch. Calls may come from
    any thread and any event loop, as many at once as you like: set ``num_threads`` of `dspy.Evaluate` and the
    optimizers to 16 or more.

    Args:
        model: folder of a checkpoint in transformers' format, or a hub id; with ``base_url`` the server's name of it.
        base_url, api_key: of an OpenAI-compatible server, to use instead of an engine in this process.
        timeout: seconds that one request may take.
        plugins: objects with hook implementations, for this engine alone.
        engine: a `RadixEngine` to use instead of opening one (``model`` is then the engine's).
        options: what `dspy.LM` takes (``temperature``, ``max_tokens``, ``cache``, ``prompt_cache``, …); fields of
            `radixbackend.EngineConfig` (``kv_cache_tokens``, ``device``, …); and settings that DSPy has no name for
            (``min_p``, ``repetition_penalty``, ``regex``, ``chat_template_kwargs``, …), which calls take, too.

    Raises:
        ConfigError, ModelError, PluginError: of `radixbackend`; nothing is kept.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        plugins: Sequence[object] = (),
        engine: RadixEngine | None = None,
        **options: Any,
    ) -> None:
        if options.get("model_type", "chat") == "text":
            raise ValueError("RadixLM answers conversations, so model_type is 'chat' or 'responses', not 'text'")
        if engine is None:
            client = ENGINE_OPTIONS if base_url is None else CLIENT_OPTIONS
            opening = {name: options.pop(name) for name in client & options.keys()}
            engine = RadixEngine(model, base_url=base_url, api_key=api_key, timeout=timeout, plugins=plugins, **opening)
        super().__init__(engine.model, engine=engine, async_engine=AsyncRadixEngine(engine), **_through_door(options))

    def __call__(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        return super().__call__(prompt, messages=messages, **_through_door(options, self.kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        return await super().acall(prompt, messages=messages, **_through_door(options, self.kwargs))

    def copy(self, **options: Any) -> Self:
        copied: Self = super().copy(**_through_door(options, self.kwargs))
        return copied

    # -- the cache -----------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters of the engine, everybody's calls together: prompt tokens, those that came from the cache, …"""
        counters: EngineStats = self.engine.stats()
        return counters

    def flush_cache(self) -> int:
        """Drop what is cached and neither in use nor pinned; returns how many tokens that were."""
        dropped: int = self.engine.flush_cache()
        return dropped

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give this LM's share of the engine back, for its copies, too; the engine itself closes with its last share.

        An LM that is dropped with all its copies gives it back by itself.
        """
        super().close()
        self.engine.close()

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- on disk -------------------------------------------------------------------------------------------------

    def dump_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().dump_state()
        state.pop("async_engine", None)  # made from the engine again
        return state


def _through_door(options: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``options`` with the settings that DSPy has no name for put into ``metadata``, where they pass.

    A call's metadata replaces the LM's as a whole, so ``defaults``, the LM's own settings, are put in, too.
    """
    own = {name: options[name] for name in OWN_SETTINGS & options.keys()}
    if not own:
        return options
    metadata = {**((defaults or {}).get("metadata") or {}), **(options.get("metadata") or {})}
    rest = {name: value for name, value in options.items() if name not in own}
    return {**rest, "metadata": {**metadata, DOOR: {**metadata.get(DOOR, {}), **own}}}

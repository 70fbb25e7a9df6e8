"""What LLM and embeddings have in common: where the model is, and the share of it that each instance has.

Rules. The model is had when an instance is made, and given back when it is closed or dropped. Handles are private: in
no representation or serialization, and a copy or an unpickled instance opens a share of its own. The key of a server
is not serialized.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from llama_index.llms.radix.pins import Pins
from pydantic import BaseModel, Field, PrivateAttr

from radixbackend.chat import Chat, open_chat
from radixbackend.types import EngineStats

KEY = "RADIX_API_KEY"
"""The environment's name of the key for a server."""


class Share:
    """An open chat, and the prefixes that it keeps. It is closed when its owner is dropped, if not before."""

    def __init__(self, owner: object, chat: Chat) -> None:
        self.chat = chat
        self.pins = Pins(chat)
        self._finalizer = weakref.finalize(owner, _close, self.pins, chat)

    def close(self) -> None:
        """Safe to call twice."""
        self._finalizer()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # LlamaIndex tries to pickle every attribute; what is unpickled opens a share anew


def _close(pins: Pins, chat: Chat) -> None:
    pins.close()
    chat.close()


class Shared(BaseModel):
    """A pydantic class whose instances each have a share of a model."""

    engine_options: dict[str, Any] = Field(default_factory=dict, description="Fields of EngineConfig.")
    plugins: Sequence[Any] = Field(default=(), exclude=True, repr=False, description="Further plugins of the engine.")
    timeout: float | None = Field(default=None, ge=0, description="Seconds for a whole answer.")
    api_base: str | None = Field(default=None, description="An OpenAI-compatible server instead of this process.")
    api_key: str | None = Field(default=None, exclude=True, repr=False, description="The server's.")
    max_retries: int = Field(default=3, ge=0, description="Of a server's answers.")
    default_headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False, description="For a server.")

    _share: Share = PrivateAttr()

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)  # for type checkers: the next class takes other fields, too

    def _open(self, model: str) -> None:
        """Raise `ConfigError`, `ModelError`, `PluginError` or `MissingDependencyError`, and keep nothing."""
        if self.api_base is None:
            chat = open_chat(model, plugins=self.plugins, **self.engine_options)
        else:
            chat = open_chat(
                model,
                base_url=self.api_base,
                api_key=self.api_key or os.environ.get(KEY),
                timeout=self.timeout,
                max_retries=self.max_retries,
                headers=self.default_headers,
                **self.engine_options,
            )
        self._share = Share(self, chat)

    @classmethod
    def _sorted(cls, options: Mapping[str, Any], unused: frozenset[str]) -> dict[str, Any]:
        """Keywords as fields: what is no field is an option of the engine, unless it has no meaning here."""
        known = {name: value for name, value in options.items() if name in cls.model_fields}
        rest = {name: value for name, value in options.items() if name not in known and name not in unused}
        return {**known, "engine_options": {**(known.get("engine_options") or {}), **rest}}

    @property
    def chat_layer(self) -> Chat:
        """The chat layer's face of the model: prompts' tokens, vectors, the cache."""
        return self._share.chat

    def stats(self) -> EngineStats:
        """The counters of the engine, for everybody who shares it."""
        return self.chat_layer.stats()

    def close(self) -> None:
        """Give the share of the engine back. Safe to call twice; calls after it raise `EngineClosedError`."""
        self._share.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- copies --------------------------------------------------------------------------------------------------

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        fields = copy.deepcopy(self.__dict__, self._common()) if deep else self.__dict__
        return type(self)(**{**fields, **(update or {})})

    def __copy__(self) -> Self:
        return self.model_copy()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy(deep=True)

    def _common(self) -> dict[int, Any]:
        """A memo for `deepcopy`: what copies have in common, for others know it by identity."""
        common = (self.plugins, *(getattr(self, name, None) for name in ("callback_manager", "rate_limiter")))
        return {id(value): value for value in common}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]  # as LlamaIndex does, but what goes wrong is said

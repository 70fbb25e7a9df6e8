"""`RadixEmbeddings`: vectors of texts, from the same engine that chats.

Rules. How hidden states are pooled is what the checkpoint's own files say. A model that chats and embeds is loaded
once: with the same options both share one engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from langchain_core.embeddings import Embeddings
from langchain_core.utils import secret_from_env
from langchain_core.utils.utils import get_pydantic_field_names
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from langchain_radix.compat import IGNORED_EMBEDDING, sort_arguments
from langchain_radix.errors import translated
from langchain_radix.share import Shares, Source
from radixbackend.chat import Chat
from radixbackend.types import Embeddings as Vectors


class RadixEmbeddings(BaseModel, Embeddings):
    """Embeddings by a model in this process, or behind a server.

        embeddings = RadixEmbeddings(model="path-or-hub-id")
        embeddings.embed_query("When is breakfast?")

    It takes what ``OpenAIEmbeddings`` takes, and the engine's options.

    Raises:
        ConfigError, ModelError: the model cannot be had.
    """

    model_config = ConfigDict(populate_by_name=True, extra="forbid", protected_namespaces=())

    model: str = Field(alias="model_name")
    dimensions: int | None = None
    """The first so many numbers of each vector, normalized again."""
    query_prefix: str = ""
    """Put before each query, for models that are trained with one, such as ``"query: "``."""
    document_prefix: str = ""
    """Put before each document."""
    request_timeout: float | None = Field(default=None, alias="timeout")

    engine_options: dict[str, Any] = Field(default_factory=dict)
    plugins: Sequence[Any] = Field(default=(), exclude=True, repr=False)

    openai_api_base: str | None = Field(default=None, alias="base_url")
    openai_api_key: SecretStr | None = Field(
        default_factory=secret_from_env("RADIX_API_KEY", default=None), alias="api_key"
    )
    max_retries: int | None = None
    default_headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    http_client: Any = Field(default=None, exclude=True, repr=False)
    http_async_client: Any = Field(default=None, exclude=True, repr=False)

    _shares: Shares = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _sort_arguments(cls, given: dict[str, Any]) -> dict[str, Any]:
        return sort_arguments(given, get_pydantic_field_names(cls), IGNORED_EMBEDDING)

    def model_post_init(self, context: Any, /) -> None:
        self._shares = Shares(Source.of(self))

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        _ = self.chat  # not in a validator: pydantic would turn an engine's ValueError into one of its own

    @property
    def chat(self) -> Chat:
        """The chat layer's face of the model."""
        return self._shares.chat(self.model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if not texts:
            return []
        with translated:
            return _lists(self.chat.embed(self._documents(texts), **self._options))

    def embed_query(self, text: str) -> list[float]:
        with translated:
            return _lists(self.chat.embed([self.query_prefix + text], **self._options))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        if not texts:
            return []
        with translated:
            chat = await self._shares.achat(self.model)
            return _lists(await chat.aembed(self._documents(texts), **self._options))

    async def aembed_query(self, text: str) -> list[float]:
        with translated:
            chat = await self._shares.achat(self.model)
            return _lists(await chat.aembed([self.query_prefix + text], **self._options))[0]

    def _documents(self, texts: Sequence[str]) -> list[str]:
        return [self.document_prefix + text for text in texts]

    @property
    def _options(self) -> dict[str, Any]:
        return {"dimensions": self.dimensions, "timeout": self.request_timeout}

    def close(self) -> None:
        """Give the model back; an engine closes with its last user. Safe to call twice."""
        self._shares.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lists(vectors: Vectors) -> list[list[float]]:
    return [vector.tolist() for vector in vectors.vectors]

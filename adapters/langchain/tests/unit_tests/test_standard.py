"""LangChain's standard unit tests."""

from __future__ import annotations

import sys
from typing import Any

import langchain_core.load.load  # noqa: F401  # the module, which its package hides behind a function of the name
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_radix import ChatRadix, RadixEmbeddings
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

load = sys.modules["langchain_core.load.load"]

ENVIRONMENT = {"RADIX_API_KEY": "from-the-environment"}


class TestChatRadix(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _params(self, params: dict[str, Any]) -> None:
        self.params = params

    @pytest.fixture(autouse=True)
    def _on_the_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``load(allowed_objects="all")`` of the test means the classes that LangChain lists. It lists none of other
        publishers; they are loaded with ``allowed_objects=[ChatRadix]``, as test_chat_models.py does."""
        path = tuple(ChatRadix.lc_id())
        monkeypatch.setitem(load.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.setattr(load, "_default_class_paths_cache", {})

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatRadix

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.params

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return ENVIRONMENT, self.params, {"openai_api_key": ENVIRONMENT["RADIX_API_KEY"]}


class TestRadixEmbeddings(EmbeddingsUnitTests):
    @pytest.fixture(autouse=True)
    def _params(self, params: dict[str, Any]) -> None:
        self.params = {name: value for name, value in params.items() if name != "temperature"}

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return RadixEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.params

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return ENVIRONMENT, self.params, {"openai_api_key": ENVIRONMENT["RADIX_API_KEY"]}

"""LangChain's standard integration tests: every one, none overridden, none expected to fail.

What grammars guarantee is tested with random weights. The tests of `ABILITY` need a model that does as it is asked:
they run on the one that ships, which `Shipped` has all of the tests on.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_radix import ChatRadix, RadixEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from radixbackend.backend import get_backend

SHIPPED = "radix-tiny"
ABILITY = {
    "test_tool_calling",
    "test_tool_calling_async",
    "test_agent_loop",
    "test_unicode_tool_call_integration",
}


class Chats(ChatModelIntegrationTests):
    """What is the same for both models."""

    override: str

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatRadix

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.override

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatRadix(**self.chat_model_params)
        question = "What is the tallest mountain of the Alps, and who climbed it first? Answer in one sentence."
        model.invoke(question)
        if not stream:
            answer = model.invoke(question)
        else:
            full: AIMessageChunk | None = None
            for chunk in model.stream(question):
                full = chunk if full is None else full + chunk
            assert full is not None
            answer = full
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 10, "the cache was not read"
        return answer


class TestRandomWeights(Chats):
    """All but `ABILITY`, on weights that know nothing."""

    override = "other"

    @pytest.fixture(autouse=True)
    def _params(self, request: pytest.FixtureRequest, params: dict[str, Any], models_folder: Path) -> None:
        if request.function.__name__ in ABILITY:
            pytest.skip("needs a model that does as it is asked: see TestShipped")
        # Weights that know nothing would go on calling.
        self.params = {**params, "max_tokens": 80, "model_kwargs": {"parallel_tool_calls": False}}
        with contextlib.suppress(FileExistsError):
            (models_folder / self.override).symlink_to(models_folder / str(params["model"]))

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.params


def shipped() -> bool:
    """Whether the package has its model."""
    found = importlib.util.find_spec("radixbackend")
    folders = [] if found is None else found.submodule_search_locations or []
    return any((Path(folder) / "models" / "radix_tiny" / "config.json").exists() for folder in folders)


@pytest.mark.skipif(not shipped(), reason="this checkout has no radix-tiny")
class TestShipped(Chats):
    """All of them, on the model that ships."""

    override = SHIPPED

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": SHIPPED, "temperature": 0, "max_tokens": 300}

    @pytest.fixture(autouse=True, scope="class")
    def _keep(self) -> Iterator[None]:
        with get_backend(SHIPPED):
            yield


class TestRadixEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _params(self, params: dict[str, Any]) -> None:
        self.params = {name: value for name, value in params.items() if name != "temperature"}

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return RadixEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.params

"""What endpoints know of the one model that they serve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from radixbackend.chat.service import ChatService
from radixbackend.errors import ConfigError, ContextLengthError, InvalidRequestError
from radixbackend.openai_api.faults import ApiError
from radixbackend.openai_api.wire import TokenTexts, now

if TYPE_CHECKING:
    from radixbackend.backend import Backend
    from radixbackend.tokenizer import Tokenizer


FILL_IN = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001  # DeepSeek-Coder
)
"""Tokens around what comes before and after a gap, by families of models that learnt to fill it."""


@dataclass(frozen=True)
class Served:
    """A backend under the names that clients know it by; the first of them is said in answers.

    ``reveal``: clients are in this process and are told all about faults.
    """

    backend: Backend
    names: tuple[str, ...]
    created: int
    reveal: bool = False

    @classmethod
    def of(cls, backend: Backend, names: tuple[str, ...], reveal: bool) -> Served:
        return cls(backend, tuple(dict.fromkeys(names)), now(), reveal)

    @property
    def name(self) -> str:
        return self.names[0]

    @cached_property
    def chats(self) -> ChatService:
        """Raises `InvalidRequestError` where the checkpoint has no tokenizer."""
        try:
            return ChatService(self.backend)
        except ConfigError as fault:
            raise InvalidRequestError(str(fault), param="messages") from fault

    @cached_property
    def texts(self) -> TokenTexts:
        return TokenTexts(self.backend.tokenizer)

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError` for a model that is not this one; no name means this one."""
        if name is not None and name not in self.names:
            raise ApiError(
                404,
                f"The model '{name}' does not exist here; '{self.name}' does.",
                code="model_not_found",
                param="model",
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises `InvalidRequestError` where the checkpoint has none."""
        tokenizer = self.backend.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this checkpoint has no tokenizer; pass token ids", param="prompt")
        return tokenizer

    def encode(self, prompt: str | list[int], *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """A prompt as token ids that fit the context."""
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        self.check_length(len(prompt))
        return tuple(prompt)

    def around_gap(self, before: str | list[int], after: str) -> str:
        """The prompt for what stands between two texts; raises `ApiError` where the model was not taught that."""
        known = self.tokenizer.inner.get_vocab()
        marks = next((marks for marks in FILL_IN if all(mark in known for mark in marks)), None)
        if marks is None:
            message = (
                "'suffix' is not served, for this model has no tokens to fill a gap; say in 'prompt' what follows."
            )
            raise ApiError(400, message, code="unsupported_by_model", param="suffix")
        if not isinstance(before, str):
            raise ApiError(400, "'suffix' takes a prompt of text.", code="invalid_value", param="suffix")
        return f"{marks[0]}{before}{marks[1]}{after}{marks[2]}"

    def check_length(self, tokens: int) -> None:
        """Raises `ContextLengthError` before anybody looks at the tokens one by one."""
        longest = self.backend.max_context
        if tokens > longest:
            raise ContextLengthError(
                f"the prompt's {tokens} tokens do not fit the model's context of {longest} tokens",
                prompt_tokens=tokens,
                max_tokens=longest,
            )

    def count(self, text: str | None) -> int:
        """Tokens of a text by itself."""
        return len(self.tokenizer.encode(text, add_special_tokens=False)) if text else 0

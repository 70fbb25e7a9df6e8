"""`Radix`: a LlamaIndex LLM over an engine in this process, or over a server.

Rules. Thin: what is asked becomes a request in `request`, what is answered a response in `responses`, objects are the
matter of `structured`. The four ways to ask differ in how they wait and in nothing else: the async ones never block
the event loop and never go through the sync ones, the sync ones start no event loop. Everybody in the process who
names the same model and options shares one engine, its batch and its prefix cache.

What the caller gives is only read. The engine is in no representation, serialization or copy: a copy has a share of
its own, and an instance that is closed or dropped gives its share back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS, DEFAULT_TEMPERATURE
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # it is re-exported
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model, PydanticProgramMode
from llama_index.llms.radix import responses, structured
from llama_index.llms.radix.messages import takes_long, to_chat
from llama_index.llms.radix.request import Call, call_of, choice_of, tool_specs
from llama_index.llms.radix.share import Shared
from pydantic import Field, PrivateAttr

from radixbackend.chat import AsyncDeltas, ChatRequest, Deltas
from radixbackend.types import Usage

dispatcher = get_dispatcher(__name__)

OF_PROGRAMS = frozenset(("tool_choice", "tool_required", "allow_parallel_tool_calls", "parallel_tool_calls"))
"""Parameters of function calling, which objects do not need here."""

UNUSED = frozenset(("reuse_client", "api_version", "modalities"))
"""What OpenAI's class takes and has no meaning here."""


class Radix(Shared, FunctionCallingLLM):
    """A LLM in this process: objects that fit their class, tools, streams, true async, one batch for all callers.

        llm = Radix("path-or-hub-id", temperature=0)
        llm.complete("When is breakfast?")

    It takes what ``llama_index.llms.openai.OpenAI`` takes, by the same names, and further keywords are options of the
    engine (``dtype``, ``kv_cache_tokens``, …; the fields of `radixbackend.EngineConfig`). The model is loaded when the
    first instance is made; others that name the same model and options share it. It is given back by `close`, or when
    the last instance is dropped.

    Raises:
        ConfigError, ModelError, PluginError: the model cannot be had; nothing is kept.
    """

    model: str = Field(description="Folder of a checkpoint, hub id or shipped name; with api_base the server's name.")
    temperature: float = Field(default=DEFAULT_TEMPERATURE, ge=0.0, description="0 is greedy.")
    max_tokens: int | None = Field(default=None, gt=0, description="None is as far as the context allows.")
    logprobs: bool | None = Field(default=None, description="Whether to report log-probabilities.")
    top_logprobs: int = Field(default=0, ge=0, le=20, description="Of how many of the likeliest at each place.")
    reasoning_effort: str | None = Field(default=None, description="For the chat template; none switches it off.")
    additional_kwargs: dict[str, Any] = Field(default_factory=dict, description="Further parameters of each call.")
    context_window: int | None = Field(default=None, gt=0, description="Where it is not what the model says.")
    strict: bool = Field(default=True, description="Refuse classes of which a grammar enforces only a part.")
    schema_in_prompt: bool = Field(default=True, description="Tell the model the schema of the object to make.")
    _targets: structured.Targets = PrivateAttr(default_factory=structured.Targets)

    def __init__(
        self,
        model: str | os.PathLike[str],
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int | None = None,
        additional_kwargs: dict[str, Any] | None = None,
        max_retries: int = 3,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            model=os.fspath(model),
            temperature=temperature,
            max_tokens=max_tokens,
            additional_kwargs=additional_kwargs or {},
            max_retries=max_retries,
            timeout=timeout,
            **self._sorted(options, UNUSED),
        )
        self._open(self.model)

    @classmethod
    def class_name(cls) -> str:
        return "radix_llm"

    @property
    def metadata(self) -> LLMMetadata:
        window = self.context_window or self.chat_layer.max_context or DEFAULT_CONTEXT_WINDOW
        return LLMMetadata(
            context_window=window,
            # What prompts leave room for: all of it would be no answer, and none no prompt.
            num_output=self.max_tokens or min(DEFAULT_NUM_OUTPUTS, window // 4),
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.chat_layer.model_name,
        )

    # -- chats ---------------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call = self._ready(messages, kwargs)
        return responses.whole(self.chat_layer.complete(call.request, timeout=call.timeout), self.chat_layer)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call = await self._aready(messages, kwargs)
        return responses.whole(await self.chat_layer.acomplete(call.request, timeout=call.timeout), self.chat_layer)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        call = self._ready(messages, kwargs)
        return self._responses(self.chat_layer.stream(call.request, timeout=call.timeout))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        call = await self._aready(messages, kwargs)
        return self._aresponses(self.chat_layer.astream(call.request, timeout=call.timeout))

    def _responses(self, deltas: Deltas) -> ChatResponseGen:
        with deltas:
            gathering = responses.Gathering(self.chat_layer)
            for delta in deltas:
                yield gathering.add(delta)

    async def _aresponses(self, deltas: AsyncDeltas) -> ChatResponseAsyncGen:
        async with deltas:
            gathering = responses.Gathering(self.chat_layer)
            async for delta in deltas:
                yield gathering.add(delta)

    def _ready(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Call:
        """The request; what its cache points mark is in the cache."""
        call = call_of(messages, {**self._parameters, **kwargs})
        self._share.pins.keep(messages, call.request)
        return call

    async def _aready(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Call:
        if takes_long(messages):
            return await asyncio.to_thread(self._ready, messages, kwargs)
        return call_of(messages, {**self._parameters, **kwargs})

    @property
    def _parameters(self) -> dict[str, Any]:
        own = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "reasoning_effort": self.reasoning_effort,
            "timeout": self.timeout,
        }
        return {**own, **self.additional_kwargs}

    # -- completions: chats of one message -----------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        call = self._ready(self._prompt(prompt, formatted), kwargs)
        result = self.chat_layer.complete(call.request, timeout=call.timeout)
        return responses.completion(responses.whole(result, self.chat_layer))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        call = await self._aready(self._prompt(prompt, formatted), kwargs)
        result = await self.chat_layer.acomplete(call.request, timeout=call.timeout)
        return responses.completion(responses.whole(result, self.chat_layer))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        call = self._ready(self._prompt(prompt, formatted), kwargs)
        stream = self._responses(self.chat_layer.stream(call.request, timeout=call.timeout))
        return (responses.completion(response) for response in stream)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        call = await self._aready(self._prompt(prompt, formatted), kwargs)
        stream = self._aresponses(self.chat_layer.astream(call.request, timeout=call.timeout))
        return (responses.completion(response) async for response in stream)

    def _prompt(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        text = prompt if formatted or self.completion_to_prompt is None else self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=text)]

    # -- tools ---------------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Parameters of a chat whose grammar lets through these calls alone: exactly one where one is required and
        they are not parallel, one or more where they are.
        """
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        messages = [*(chat_history or []), *([user_msg] if user_msg is not None else [])]
        asked: dict[str, Any] = {}
        if tools:
            asked["tools"] = tool_specs(tools)
            asked["tool_choice"] = choice_of(tool_choice, required=tool_required)
            asked["parallel_tool_calls"] = allow_parallel_tool_calls
        return {"messages": messages, **asked, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """A server may not know of ``parallel_tool_calls``; then the first call counts."""
        if not allow_parallel_tool_calls:
            responses.keep_first_call(response)
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls; of a stream, with what is certain of their arguments so far.

        Raises:
            OutputValidationError: the answer is over and was cut short within a call, which so must not be made.
            ValueError: there is none, and that is an error.
        """
        calls = responses.tool_selections(response)
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the model called no tool; it said {response.message.content!r}")
        return calls

    # -- objects -------------------------------------------------------------------------------------------------

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of ``output_cls``; other program modes than the default are LlamaIndex's own.

        Raises:
            ConstraintError: the class is refused; nothing was generated.
            OutputValidationError: ``max_tokens`` was too little for the object.
            pydantic.ValidationError: a validator of the class itself, which no grammar knows, did not like it.
        """
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made: Model = super().structured_predict(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
            return made
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        target = self._targets.of(output_cls)
        messages, parameters = self._asked_for(target, self._messages(prompt, prompt_args), llm_kwargs)
        result = structured.parse(output_cls, self.chat(messages, **parameters))
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made: Model = await super().astructured_predict(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
            return made
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        target = await self._targets.aof(output_cls)
        messages, parameters = self._asked_for(target, self._messages(prompt, prompt_args), llm_kwargs)
        await asyncio.sleep(0)  # of many that begin at once, none keeps the loop from others for all of it
        result = structured.parse(output_cls, await self.achat(messages, **parameters))
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None, None]:
        """Objects that grow field by field, none of which ever takes anything back, and then the validated one."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            yield from super()._structured_stream_call(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
            return
        target = self._targets.of(output_cls)
        messages, parameters = self._asked_for(target, self._messages(prompt, prompt_args), llm_kwargs)
        partials = structured.Partials(output_cls)
        for response in self.stream_chat(messages, **parameters):
            yield from partials.feed(response.delta or "")
        yield structured.parse(output_cls, response)

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None]:
        """`_structured_stream_call` without blocking the event loop."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super()._structured_astream_call(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
        target = await self._targets.aof(output_cls)
        messages, parameters = self._asked_for(target, self._messages(prompt, prompt_args), llm_kwargs)
        stream = await self.astream_chat(messages, **parameters)

        async def objects() -> AsyncGenerator[Any, None]:
            partials = structured.Partials(output_cls)
            async for response in stream:
                for partial in partials.feed(response.delta or ""):
                    yield partial
            yield structured.parse(output_cls, response)

        return objects()

    def _messages(self, prompt: PromptTemplate, prompt_args: Mapping[str, Any]) -> list[ChatMessage]:
        return self._extend_messages(prompt.format_messages(llm=self, **prompt_args))

    def _asked_for(
        self, target: structured.Target, messages: list[ChatMessage], llm_kwargs: Mapping[str, Any] | None
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """The messages and parameters of the chat whose answer is such an object."""
        parameters = {name: value for name, value in (llm_kwargs or {}).items() if name not in OF_PROGRAMS}
        parameters["response_format"] = target.response_format(strict=self.strict)
        if self.schema_in_prompt:
            messages = structured.with_instruction(messages, target.instruction)
        return messages, parameters

    # -- prompts -------------------------------------------------------------------------------------------------

    def warm(self, messages: Sequence[ChatMessage], tools: Sequence[BaseTool] = ()) -> Usage:
        """Compute these messages into the cache, so that chats that begin with them start at once."""
        tools_given = {"tools": tool_specs(tools)} if tools else {}
        return self.chat_layer.warm(call_of(messages, {**self._parameters, **tools_given}).request)

    def count_tokens(self, messages: Sequence[ChatMessage], tools: Sequence[BaseTool] = ()) -> int:
        """How many tokens the prompt of these messages has."""
        return self.chat_layer.count_tokens(to_chat(messages), tool_specs(tools))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, for ``llama_index.core.set_global_tokenizer``: it then cuts prompts by what fits."""
        framed, frame = (self.chat_layer.tokenize(_said(words)) for words in (text, ""))
        before = next((at for at, pair in enumerate(zip(framed, frame, strict=False)) if len({*pair}) > 1), len(frame))
        return list(framed[before : before + len(framed) - len(frame)])


def _said(text: str) -> ChatRequest:
    return ChatRequest.of([{"role": "user", "content": text}])

"""`ChatRadix`: a LangChain chat model over an engine in this process, or over a server.

Rules. Thin: what is asked becomes a `ChatRequest` in `request`, what is answered becomes messages in `messages`; the
four ways to ask differ in how they wait and in nothing else. All callers of one model, from whatever thread, event
loop or instance, are in one continuous batch over one prefix cache. Engine handles are private: they are in no
representation, trace, serialization or copy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils import secret_from_env
from langchain_core.utils.utils import get_pydantic_field_names
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from langchain_radix import __version__
from langchain_radix.blocks import PROVIDER
from langchain_radix.compat import IGNORED, sort_arguments, unknown_to_model_kwargs
from langchain_radix.errors import translated
from langchain_radix.messages import to_chunks, to_messages, to_result
from langchain_radix.request import Call, to_call
from langchain_radix.schema import response_format as as_response_format
from langchain_radix.share import Shares, Source
from langchain_radix.structured import Method, structured
from langchain_radix.tools import to_tool_choice, to_tools
from radixbackend import EngineConfig
from radixbackend.chat import Chat
from radixbackend.errors import InvalidRequestError
from radixbackend.types import Usage

PROFILE = ModelProfile(
    text_inputs=True,
    text_outputs=True,
    tool_calling=True,
    tool_choice=True,
    tool_call_streaming=True,
    structured_output=True,
)
"""What holds for every model here: a grammar does it."""


class ChatRadix(BaseChatModel):
    """A chat model in this process: tools, guaranteed schemas, native async and streaming, one batch for all callers.

        llm = ChatRadix(model="path-or-hub-id", temperature=0)
        llm.invoke("When is breakfast?")

    It takes what ``ChatOpenAI`` takes, by the same names and aliases, and the engine's options (``dtype``,
    ``kv_cache_tokens``, …). The model loads when the first instance is made; others that name the same model and
    options share it. It is given back by `close`, or when the last of them is dropped.

    Raises:
        ConfigError, ModelError: the model cannot be had; `RadixModelNotFoundError` is LangChain's error, too.
    """

    model_config = ConfigDict(populate_by_name=True, protected_namespaces=())

    model_name: str = Field(alias="model")
    """A folder, a hub id, or the name of a model that ships; with ``base_url``, what the server calls it."""
    temperature: float | None = None
    """0 is greedy; unset is 1."""
    max_tokens: int | None = Field(default=None, alias="max_completion_tokens")
    """Tokens to generate at most; unset is as far as the context allows."""
    top_p: float | None = None
    n: int | None = None
    """Answers to one prompt; `generate` returns all of them."""
    seed: int | None = None
    """The same seed gives the same answer, whatever else runs."""
    stop: list[str] | str | None = Field(default=None, alias="stop_sequences")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    """For the chat template; ``none`` switches thinking off."""
    reasoning: dict[str, Any] | None = None
    """``{"effort": …}`` is ``reasoning_effort``."""
    streaming: bool = False
    stream_usage: bool = True
    """Whether a stream ends with its usage."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of each call."""
    extra_body: Mapping[str, Any] | None = None
    """The same; what is unknown in it is ignored."""
    disabled_params: dict[str, Any] | None = None
    """Parameters that are never sent (None), or not with these values (a list)."""

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    priority: int | None = None
    """Higher is served earlier."""
    regex: str | None = None
    """What every answer must match; so too `grammar` and `choice`."""
    grammar: str | None = None
    """EBNF whose start rule is ``root``."""
    choice: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template, such as ``enable_thinking``."""
    cache_salt: str | None = None
    """Cached prefixes are shared among callers of the same salt alone."""

    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Fields of `EngineConfig`, which may also be given as they are."""
    plugins: Sequence[Any] = Field(default=(), exclude=True, repr=False)
    """Further plugins of the engine; instances with the same ones share."""

    openai_api_base: str | None = Field(default=None, alias="base_url")
    """An OpenAI-compatible server instead of an engine in this process."""
    openai_api_key: SecretStr | None = Field(
        default_factory=secret_from_env("RADIX_API_KEY", default=None), alias="api_key"
    )
    """The server's; in this process there is none."""
    request_timeout: Any = Field(default=None, alias="timeout")
    """Seconds for a whole answer."""
    max_retries: int | None = None
    """Of a server's answers."""
    default_headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    """For a server; never shown or written down, since keys may be in them."""
    http_client: Any = Field(default=None, exclude=True, repr=False)
    """To reach a server with; so too `http_async_client`."""
    http_async_client: Any = Field(default=None, exclude=True, repr=False)

    _shares: Shares = PrivateAttr()

    # -- making one --------------------------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _sort_arguments(cls, given: dict[str, Any]) -> dict[str, Any]:
        known = get_pydantic_field_names(cls)
        return unknown_to_model_kwargs(sort_arguments(given, known, IGNORED), known)

    @model_validator(mode="after")
    def _set_radix_version(self) -> Self:
        self._add_version("langchain-radix", __version__)
        return self

    @model_validator(mode="after")
    def _check_n(self) -> Self:
        if self.streaming and (self.n or 1) > 1:
            raise ValueError("n is 1 when streaming: the chunks of several answers cannot be told apart")
        return self

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._shares = Shares(Source.of(self))

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        chat = self.chat  # not in a validator: pydantic would turn an engine's ValueError into one of its own
        if self.openai_api_base is None:  # a server is not asked before its first call
            self.profile = ModelProfile(reasoning_output=chat.reasons, image_inputs=chat.sees) | (self.profile or {})
            if (limit := chat.max_context) is not None:
                self.profile = ModelProfile(max_input_tokens=limit) | self.profile

    def _resolve_model_profile(self) -> ModelProfile:
        return PROFILE.copy()

    # -- the four ways to ask ----------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated:
            call = self._call(messages, stop, kwargs)
            chat = self._shares.chat(kwargs.get("model") or self.model_name)
            return to_result(chat.complete(call.request, timeout=call.timeout), chat.token_bytes)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated:
            call = self._call(messages, stop, kwargs)
            chat = await self._shares.achat(kwargs.get("model") or self.model_name)
            return to_result(await chat.acomplete(call.request, timeout=call.timeout), chat.token_bytes)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with translated:
            call = self._stream_call(messages, stop, kwargs)
            chat = self._shares.chat(kwargs.get("model") or self.model_name)
            usage = self._reports_usage(kwargs)
            with chat.stream(call.request, timeout=call.timeout) as deltas:
                for delta in deltas:
                    for chunk in to_chunks(delta, chat.model_name, chat.token_bytes, usage=usage):
                        if run_manager:
                            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with translated:
            call = self._stream_call(messages, stop, kwargs)
            chat = await self._shares.achat(kwargs.get("model") or self.model_name)
            usage = self._reports_usage(kwargs)
            async with chat.astream(call.request, timeout=call.timeout) as deltas:
                async for delta in deltas:
                    for chunk in to_chunks(delta, chat.model_name, chat.token_bytes, usage=usage):
                        if run_manager:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    def _call(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> Call:
        said = {"stop": stop, **kwargs} if stop is not None else kwargs
        parameters = {"timeout": self.request_timeout, **self._parameters, **_without_none(said)}
        return to_call(messages, {name: value for name, value in parameters.items() if self._enabled(name, value)})

    def _stream_call(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> Call:
        call = self._call(messages, stop, kwargs)
        if call.request.sampling.n > 1:
            raise InvalidRequestError(
                "n is 1 when streaming: the chunks of several answers cannot be told apart", param="n"
            )
        return call

    def _reports_usage(self, kwargs: Mapping[str, Any]) -> bool:
        asked = kwargs.get("stream_usage", (kwargs.get("stream_options") or {}).get("include_usage"))
        return self.stream_usage if asked is None else bool(asked)

    def _enabled(self, name: str, value: Any) -> bool:
        if name not in (self.disabled_params or {}):
            return True
        values = (self.disabled_params or {})[name]
        return values is not None and value not in values

    # -- many at once ------------------------------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """All at once, unless ``max_concurrency`` says otherwise: LangChain's threads would be few, and an engine's
        batch as small."""
        return super().batch(inputs, self._together(config, len(inputs)), **kwargs)

    def batch_as_completed(  # type: ignore[override]  # LangChain's has two overloads, for one keyword
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[int, AIMessage | Exception]]:
        """`batch`, each answer as it is there."""
        return super().batch_as_completed(inputs, self._together(config, len(inputs)), **kwargs)

    def _together(self, config: Any, count: int) -> list[RunnableConfig]:
        configs = get_config_list(config, count)
        if configs and configs[0].get("max_concurrency") is None:
            running = self.engine_options.get("max_running") or EngineConfig(self.model_name).max_running
            configs[0] = {**configs[0], "max_concurrency": min(count, running)}
        return configs

    # -- tools and schemas -------------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools; whatever it calls, the arguments fit.

        Args:
            tools: whatever LangChain makes a tool of.
            tool_choice: a tool's name, ``"auto"``, ``"none"``, ``"any"`` or ``"required"`` (or True), or OpenAI's
                object; None and False leave the choice to the model.
            strict: passed on to the tools' schemas; arguments are enforced either way.
            parallel_tool_calls: False allows one call in an answer.
            response_format: what an answer without calls is: the answer is calls, or this, and nothing else.
            kwargs: further parameters of each call.
        """
        bound: dict[str, Any] = {"tools": to_tools(tools, strict=strict), **kwargs}
        if (choice := to_tool_choice(tool_choice, bound["tools"])) is not None:
            bound["tool_choice"] = choice
        if parallel_tool_calls is not None:
            bound["parallel_tool_calls"] = parallel_tool_calls
        if response_format is not None:
            bound["response_format"] = as_response_format(response_format)
        return self.bind(**bound)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers as objects of a schema. A stream gives the object as it grows.

        Args:
            schema: a pydantic class (then the answer is an instance), a TypedDict, or a JSON schema.
            method: ``json_schema``; ``function_calling`` has the model call a tool of the schema; ``json_mode`` is
                ``json_schema`` where there is a schema, and any JSON object without one.
            include_raw: answer with ``{"raw": message, "parsed": …, "parsing_error": …}`` and do not raise.
            strict: passed on; a schema is enforced either way.
            tools: the model may call these instead; ``parsed`` is None then.
            kwargs: further parameters of each call.

        Raises:
            RadixConstraintError: when called: no grammar can hold this schema, with a pointer to the keyword.
            OutputParserException: when called: the answer was cut before its JSON was complete.
        """
        return structured(self, schema, method=method, include_raw=include_raw, strict=strict, tools=tools, **kwargs)

    # -- the model itself --------------------------------------------------------------------------------------------

    @property
    def chat(self) -> Chat:
        """The chat layer's face of the model: its statistics, its cache, `warm` and `pin`."""
        return self._shares.chat(self.model_name)

    @property
    def model(self) -> str:
        return self.model_name

    def warm(self, messages: LanguageModelInput, **kwargs: Any) -> Usage:
        """Compute the prompt of these messages into the cache, so that whatever begins with them starts at once.

        Bound parameters that are part of a prompt, such as ``tools``, are given as they are bound.
        """
        with translated:
            return self.chat.warm(self._call(self._convert_input(messages).to_messages(), None, kwargs).request)

    def get_token_ids(self, text: str) -> list[int]:
        """By the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with translated:
            return list(self.chat.tokenize(text))

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None, **_: Any
    ) -> int:
        """Tokens of the whole prompt, as the chat template writes it with these tools."""
        with translated:
            return self.chat.count_tokens(to_messages(messages), to_tools(tools) if tools else None)

    def close(self) -> None:
        """Give the model back; an engine closes with its last user. Safe to call twice."""
        self._shares.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what LangChain asks -----------------------------------------------------------------------------------------

    @property
    def _parameters(self) -> dict[str, Any]:
        """Of each call, by OpenAI's names; what is unset is left out."""
        fields = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "n": self.n,
            "seed": self.seed,
            "stop": self.stop or None,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "reasoning_effort": self.reasoning_effort,
            "reasoning": self.reasoning,
            "extra_body": self.extra_body,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "priority": self.priority,
            "regex": self.regex,
            "grammar": self.grammar,
            "choice": self.choice,
            "chat_template_kwargs": self.chat_template_kwargs,
            "cache_salt": self.cache_salt,
        }
        return {**_without_none(fields), **self.model_kwargs}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, **self._parameters}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        parameters = super()._get_invocation_params(stop=stop, **kwargs)
        return {"model": self.model_name, **self._parameters, **_without_none(parameters)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        parameters = {**self._parameters, **kwargs}
        traced = LangSmithParams(
            ls_provider=PROVIDER, ls_model_name=parameters.get("model") or self.model_name, ls_model_type="chat"
        )
        if (temperature := parameters.get("temperature")) is not None:
            traced["ls_temperature"] = temperature
        if (limit := parameters.get("max_completion_tokens") or parameters.get("max_tokens")) is not None:
            traced["ls_max_tokens"] = limit
        if stops := stop or parameters.get("stop"):
            traced["ls_stop"] = [stops] if isinstance(stops, str) else list(stops)
        return traced

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None], /) -> dict[str, Any]:
        """Usage of all prompts of a `generate` together."""
        total: dict[str, Any] = {}
        for output in llm_outputs:
            for name, value in ((output or {}).get("token_usage") or {}).items():
                total[name] = _added(total.get(name), value)
        return {"token_usage": total, "model_name": self.model_name}

    @property
    def _llm_type(self) -> str:
        return "radix-chat"

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"openai_api_key": "RADIX_API_KEY"}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True


def _without_none(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _added(total: Any, value: Any) -> Any:
    """Numbers added, dictionaries of numbers name by name."""
    if isinstance(value, Mapping):
        return {name: _added((total or {}).get(name), amount) for name, amount in value.items()}
    return value if total is None else total + value

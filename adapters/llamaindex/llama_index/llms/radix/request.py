"""Parameters by OpenAI's and our own names → what the chat layer is asked.

Rules. What is unknown is refused, with what there is; what OpenAI has and an engine in this process has no use for is
left out. `None` is the same as leaving a parameter out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools.types import BaseTool
from llama_index.llms.radix.messages import to_chat
from llama_index.llms.radix.schema import schema_of
from pydantic import BaseModel

from radixbackend.chat import ChatRequest
from radixbackend.errors import InvalidRequestError
from radixbackend.types import SamplingParams

SAMPLING = frozenset(field.name for field in fields(SamplingParams)) - {"n", "prompt_logprobs", "logprobs"}
REQUEST = frozenset(field.name for field in fields(ChatRequest)) - {"messages", "sampling"}
SPECIAL = frozenset(("max_completion_tokens", "logprobs", "top_logprobs", "n", "timeout", "extra_body"))
IGNORED = frozenset(("model", "stream", "stream_options", "user", "metadata", "store", "service_tier", "modalities"))


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and how long it may take."""

    request: ChatRequest
    timeout: float | None


def call_of(messages: Sequence[ChatMessage], parameters: Mapping[str, Any]) -> Call:
    """What to ask; raises `InvalidRequestError` that names the message or the parameter at fault."""
    given = {name: value for name, value in parameters.items() if value is not None}
    given |= given.pop("extra_body", {})
    if unknown := sorted(given.keys() - SAMPLING - REQUEST - SPECIAL - IGNORED):
        known = ", ".join(sorted(SAMPLING | REQUEST | SPECIAL))
        raise InvalidRequestError(f"unknown parameter {', '.join(unknown)}; known are {known}", param=unknown[0])
    if given.get("n", 1) != 1:
        raise InvalidRequestError("n is 1: a response of LlamaIndex has one answer; ask several times", param="n")
    request = {name: value for name, value in given.items() if name in REQUEST}
    made = ChatRequest.of(to_chat(messages), **request, sampling=_sampling(given))
    return Call(made, given.get("timeout"))


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    sampling = {"max_tokens": None} | {name: value for name, value in given.items() if name in SAMPLING}
    if "max_completion_tokens" in given:
        sampling["max_tokens"] = given["max_completion_tokens"]
    if given.get("logprobs"):
        sampling["logprobs"] = given.get("top_logprobs", 0)
    return SamplingParams(**sampling)


def tool_specs(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Tools in OpenAI's shape, with the schema of all that a tool takes, not of its top level alone.

    Raises:
        ConstraintError: the arguments of a tool cannot be written as a JSON schema.
    """
    return [_tool_spec(tool) for tool in tools]


def _tool_spec(tool: BaseTool) -> dict[str, Any]:
    about = tool.metadata
    shape = about.fn_schema
    known = isinstance(shape, type) and issubclass(shape, BaseModel)
    parameters = schema_of(shape) if known else about.get_parameters_dict()  # type: ignore[arg-type]
    described = {"name": about.get_name(), "description": about.description, "parameters": parameters}
    return {"type": "function", "function": described}


def choice_of(chosen: str | Mapping[str, Any] | None, *, required: bool) -> str | Mapping[str, Any]:
    """OpenAI's tool choice from LlamaIndex's, where the name of a tool is one, too."""
    if chosen is None:
        return "required" if required else "auto"
    if isinstance(chosen, str) and chosen not in ("none", "auto", "required", "any"):
        return {"type": "function", "function": {"name": chosen}}
    return chosen

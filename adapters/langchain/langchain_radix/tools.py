"""Tools and the choice of one, as LangChain's users write them, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from radixbackend.errors import InvalidRequestError


def to_tools(tools: Sequence[Any], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Functions, pydantic classes, TypedDicts, LangChain's tools, and tools in OpenAI's or Anthropic's shape."""
    return [convert_to_openai_tool(tool, strict=strict) for tool in tools]


def to_tool_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | dict[str, Any] | None:
    """In OpenAI's shape; None leaves the choice to the model.

    Raises:
        InvalidRequestError: no tool has this name.
    """
    if choice is None or choice is False:
        return None
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, Mapping):
        return dict(choice)
    names = [str(tool.get("function", tool).get("name")) for tool in tools]
    if choice in names:
        return {"type": "function", "function": {"name": choice}}
    if choice in ("auto", "none", "required"):
        return str(choice)
    raise InvalidRequestError(
        f"tool_choice is auto, none, any, required or the name of a tool ({', '.join(names)}), not {choice!r}",
        param="tool_choice",
    )

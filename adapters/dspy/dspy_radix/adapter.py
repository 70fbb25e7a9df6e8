"""`RadixAdapter`: typed outputs that parse the first time.

Rules. It asks for answers as `dspy.JSONAdapter` does and differs in what it promises: the answer's grammar is the
schema of the signature's own types, and where DSPy leaves a field open that the program knows more of (the arguments
of the tool that `dspy.ReAct` chose) the grammar knows it, too. There is no second attempt in another format. With an
LM that is no `RadixLM` it is a `dspy.JSONAdapter`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.adapters.utils import apply_output_field_defaults
from dspy.utils.exceptions import AdapterParseError
from pydantic import ValidationError
from pydantic_core import from_json

from dspy_radix.engine import RadixEngine
from dspy_radix.outputs import Outputs

TOOL, ARGUMENTS = "next_tool_name", "next_tool_args"
"""`dspy.ReAct`'s fields for the tool that it calls next."""


class RadixAdapter(dspy.JSONAdapter):
    """Use it beside `RadixLM`: ``dspy.configure(lm=RadixLM(…), adapter=RadixAdapter())``.

    Takes the arguments of `dspy.JSONAdapter`.
    """

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        if not _is_radix(lm):  # else it is up to `_call_preprocess`, which knows what is left of the signature
            super()._prepare_response_format(lm, lm_kwargs, signature)

    def _call_preprocess(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, inputs: dict[str, Any]) -> Any:
        left = super()._call_preprocess(lm, lm_kwargs, signature, inputs)
        if not _is_radix(lm):
            return left
        if left.output_fields:
            lm_kwargs["response_format"] = _response_format(left)
        elif lm_kwargs.get("tools"):  # nothing but calls can be the answer
            lm_kwargs.setdefault("tool_choice", "required")
        return left

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        try:
            fields = Outputs(signature.output_fields).read(completion)
        except ValidationError:
            if _is_cut(completion):
                raise AdapterParseError(
                    "RadixAdapter",
                    signature,
                    completion,
                    message="The answer ends before its JSON does; raise max_tokens.",
                ) from None
            parsed: dict[str, Any] = super().parse(signature, completion)
            return parsed
        filled: dict[str, Any] = apply_output_field_defaults(signature, fields)
        return filled


# `dspy.streaming.StreamListener` looks up by this name how an adapter's answers are read as they come.
RadixAdapter.__name__ = dspy.JSONAdapter.__name__


def _is_radix(lm: Any) -> bool:
    return isinstance(getattr(lm, "engine", None), RadixEngine)


def _response_format(signature: Any) -> dict[str, Any]:
    schema = Outputs(signature.output_fields).schema()
    if tools := _tools_to_choose_from(signature):
        schema = _one_of_the_tools(schema, tools)
    return {"type": "json_schema", "json_schema": {"name": "Outputs", "schema": schema, "strict": True}}


def _tools_to_choose_from(signature: Any) -> Mapping[str, dspy.Tool]:
    """The tools that the field `TOOL` names: those of the module (`dspy.ReAct` or its like) that asks."""
    fields = signature.output_fields
    if TOOL not in fields or ARGUMENTS not in fields or get_origin(fields[TOOL].annotation) is not Literal:
        return {}
    names = get_args(fields[TOOL].annotation)
    for module in reversed(dspy.settings.caller_modules or []):
        tools = getattr(module, "tools", None)
        if isinstance(tools, Mapping) and all(isinstance(tools.get(name), dspy.Tool) for name in names):
            return {name: tools[name] for name in names}
    return {}


def _one_of_the_tools(schema: dict[str, Any], tools: Mapping[str, dspy.Tool]) -> dict[str, Any]:
    """The schema once for each tool, with the tool's name and the schema of its arguments in their places."""
    definitions = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
    cases = []
    for name, tool in tools.items():
        case = copy.deepcopy(schema)
        case["properties"][TOOL] = {"const": name}
        arguments = tool.format_as_litellm_function_call()["function"]["parameters"]
        case["properties"][ARGUMENTS] = {**arguments, "additionalProperties": tool.has_kwargs}
        cases.append(case)
    return {**definitions, "anyOf": cases}


def _is_cut(text: str) -> bool:
    """Whether this is the beginning of a JSON value without its end."""
    try:
        from_json(text)
    except ValueError:
        try:
            from_json(text, allow_partial=True)
        except ValueError:
            return False
        return bool(text.strip())
    return False

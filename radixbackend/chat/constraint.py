"""From tools, tool choice and response format to the one grammar of the answer.

    reasoning?  (free text with calls  |  calls  |  calls or the response  |  the response)

Rules. Once a call has begun it is enforced; with a response format the answer is calls alone or the response alone,
never free text. What no grammar can hold of a schema is checked when the answer is there: arguments and response by
their own validators. A response format alone, for a model that does not think first, keeps its own kind of constraint
(the engine then chooses the best grammar backend for it); all else is one structural tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from radixbackend.chat.formats.base import ToolFormat, wraps_content
from radixbackend.chat.nodes import Node, const, either, json_value, regex
from radixbackend.chat.reasoning import Phase, ReasoningFormat
from radixbackend.chat.request import ChatRequest, Tool, ToolChoice
from radixbackend.errors import ConstraintError, OutputValidationError
from radixbackend.structured import CheckedConstraint, FrontDoor
from radixbackend.types import Constraint

BACKEND = "xgrammar"
"""The grammar backend of structural tags."""

Validate = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """What an answer may be, and how to check it.

    Attributes:
        constraint: for the engine; None leaves the model free.
        tools: what may be called, by name, with the schemas that the grammar has.
        check_arguments: raises `OutputValidationError` for (name, arguments) that break the tool's schema.
        check_content: the same for the content of an answer without calls.
    """

    constraint: Constraint | None
    tools: Mapping[str, Mapping[str, Any]]
    check_arguments: Callable[[str, str], None]
    check_content: Validate | None


class Planner:
    """Makes plans for one model; safe to use from many threads."""

    def __init__(self, tools: ToolFormat, reasoning: ReasoningFormat | None) -> None:
        self._tools = tools
        self._reasoning = reasoning
        self._front_door = FrontDoor()

    def plan(self, request: ChatRequest, phase: Phase) -> AnswerPlan:
        """Raises `ConstraintError` for a schema that is refused."""
        choice = request.tool_choice or ToolChoice()
        offered = [tool for tool in request.tools if not choice.names or tool.name in choice.names]
        if choice.mode == "none":
            offered = []
        checked = {tool.name: self._check_tool(tool) for tool in offered}
        schemas = {tool.name: tool.schema for tool in offered}
        response = request.response_format.constraint if request.response_format else None

        def check_arguments(name: str, arguments: str) -> None:
            _validate_call(checked[name].validate, name, arguments)

        constraint, check_content = self._constrain(request, choice, schemas, response, phase)
        return AnswerPlan(constraint, schemas, check_arguments, check_content)

    def _constrain(
        self,
        request: ChatRequest,
        choice: ToolChoice,
        schemas: Mapping[str, Mapping[str, Any]],
        response: Constraint | None,
        phase: Phase,
    ) -> tuple[Constraint | None, Validate | None]:
        if not request.tools and response is None:
            return None, None
        thinks = self._reasoning is not None and phase != "after"
        if response is not None and not schemas and not thinks and not wraps_content(self._tools):
            return response, None  # the engine validates it
        answer, validate = self._answer(request, choice, schemas, response)
        if self._reasoning is not None:
            answer = self._reasoning.before(answer, phase)
        tag = Constraint.structural_tag({"type": "structural_tag", "format": answer})
        return (tag if response is None else replace(tag, whitespace=response.whitespace)), validate

    def _answer(
        self,
        request: ChatRequest,
        choice: ToolChoice,
        schemas: Mapping[str, Mapping[str, Any]],
        response: Constraint | None,
    ) -> tuple[Node, Validate | None]:
        excludes = self._reasoning.markers if self._reasoning else ()
        at_most_one = choice.mode == "named" or not request.parallel_tool_calls or not self._tools.parallel
        if response is None and not schemas:
            every = {tool.name: tool.schema for tool in request.tools}
            return self._tools.silent(every, excludes=excludes), None
        if response is None and choice.mode == "auto":
            return self._tools.free(schemas, at_most_one=at_most_one, excludes=excludes), None
        if choice.mode in ("required", "named"):
            return self._tools.calls(schemas, at_most_one=at_most_one), None
        assert response is not None
        node, validate = self._response(response)
        content = self._tools.content(node)
        if not schemas:
            return content, validate
        return either([self._tools.calls(schemas, at_most_one=at_most_one), content]), validate

    def _response(self, response: Constraint) -> tuple[Node, Validate]:
        """The response format as a part of a structural tag, and its validator."""
        checked = self._front_door.check(response, prefer=BACKEND)
        return _as_node(response.kind, checked.constraint.source), checked.validate

    def _check_tool(self, tool: Tool) -> CheckedConstraint:
        try:
            return self._front_door.check(Constraint.json_schema(tool.schema), prefer=BACKEND)
        except ConstraintError as fault:
            raise ConstraintError(f"the parameters of {tool.name}: {fault}", pointer=fault.pointer) from fault


def _as_node(kind: str, source: str) -> Node:
    if kind == "json_schema":
        return json_value(json.loads(source))
    if kind == "json_object":
        return json_value({"type": "object", "additionalProperties": True})
    if kind == "regex":
        return regex(source)
    if kind == "choice":
        return either([const(text) for text in json.loads(source)])
    if kind == "grammar":
        return {"type": "grammar", "grammar": source}
    tag: Node = json.loads(source)["format"]
    return tag


def _validate_call(validate: Validate, name: str, arguments: str) -> None:
    try:
        validate(arguments)
    except OutputValidationError as fault:
        raise OutputValidationError(
            f"the arguments of a call of {name} break its schema: {fault}",
            keyword=fault.keyword,
            path=fault.path,
            text=fault.text,
        ) from fault

"""Schemas as LangChain's users write them, as OpenAI's ``response_format``.

Rules. A schema is kept as it is written, with one exception: an object that says nothing of properties beyond those
that it lists takes no others, which is what whoever wrote a class means. ``strict=False`` leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, TypeAdapter
from pydantic import v1 as pydantic_v1

from radixbackend.chat import ResponseFormat
from radixbackend.errors import InvalidRequestError
from radixbackend.types import Constraint

_OPENING = frozenset(("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"))
_COMPOSING = frozenset(
    (
        *("allOf", "not", "if", "then", "else", "dependentSchemas", "dependencies", "unevaluatedProperties"),
        *("$dynamicRef", "$recursiveRef", "contains"),
    )
)
"""Keywords that combine schemas of one value: there, each part may list properties that another one does not."""

FORMATS = frozenset(("text", "json_object", "json_schema", "structural_tag", "regex", "grammar", "choice"))


def response_format(schema: Any, *, strict: bool | None = None) -> ResponseFormat | dict[str, Any]:
    """A pydantic class (of version 1 or 2), a TypedDict, a dataclass, a JSON schema, an OpenAI function or a
    ``response_format`` as a ``response_format``.

    Raises:
        InvalidRequestError: it is none of these.
    """
    if isinstance(schema, ResponseFormat | Constraint):
        return ResponseFormat.of(schema)
    made: dict[str, Any] = {"type": "json_schema"}
    if isinstance(schema, Mapping) and schema.get("type") in FORMATS:
        made = dict(schema)
        body = dict(made.get("json_schema") or {})
    elif isinstance(schema, Mapping) and "schema" in schema and "name" in schema:
        body = dict(schema)
    else:
        document = json_schema(schema)
        body = {"name": document.get("title") or getattr(schema, "__name__", "response"), "schema": document}
    if made["type"] != "json_schema":
        return made
    if strict is not None:
        body["strict"] = strict
    if body.get("strict") is not False:
        body["schema"] = closed(body.get("schema"))
    return made | {"json_schema": body}


def json_schema(schema: Any) -> dict[str, Any]:
    """What an answer fits."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if isinstance(schema, type) and issubclass(schema, pydantic_v1.BaseModel):
        return schema.schema()
    if isinstance(schema, type) and is_dataclass(schema):
        return TypeAdapter(schema).json_schema()
    if isinstance(schema, Mapping):
        return _of_mapping(schema)
    try:
        return convert_to_json_schema(schema)  # TypedDict, in LangChain's reading of its annotations
    except (TypeError, ValueError) as fault:
        raise InvalidRequestError(
            f"a schema is a pydantic class, a TypedDict, a dataclass or a JSON schema, not {schema!r}",
            param="response_format",
        ) from fault


def _of_mapping(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Of a JSON schema, or of a function in OpenAI's or Anthropic's shape."""
    if schema.get("type") == "function" and isinstance(function := schema.get("function"), Mapping):
        return _of_mapping(function)
    for key in ("parameters", "input_schema"):
        if "name" in schema and isinstance(body := schema.get(key), Mapping):
            described = {"description": schema["description"]} if schema.get("description") else {}
            return {**described, **body, "title": schema["name"]}
    return dict(schema)


def closed(schema: Any) -> Any:
    """The schema with its objects closed that list properties; as it is if it combines schemas."""
    return schema if _composes(schema) else _close(schema)


def _composes(part: Any) -> bool:
    """Looks into everything, so that a property by such a name counts, too: then nothing is closed."""
    if isinstance(part, Mapping):
        several = (key for key in _COMPOSING & part.keys() if key != "allOf" or len(part[key]) != 1)
        return any(several) or any(_composes(value) for value in part.values())
    return isinstance(part, list) and any(_composes(value) for value in part)


def _close(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key, part in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(part, Mapping):
            made[key] = {name: _close(value) for name, value in part.items()}
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(part, list):
            made[key] = [_close(value) for value in part]
        elif key in ("items", "additionalProperties"):
            made[key] = [_close(value) for value in part] if isinstance(part, list) else _close(part)
    if "properties" in made and not _OPENING & made.keys():
        made["additionalProperties"] = False
    return made

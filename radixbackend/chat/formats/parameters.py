"""Arguments that are written one by one instead of as one JSON object: what XML-like and Python-like formats share.

Rules. Parameters come in the schema's order and each at most once; what the schema does not name is not written. A
parameter's own schema is looked at only as far as needed to know how its value is spelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from radixbackend.chat.nodes import Node, const, either, optional, sequence

MAX_FIRST = 8
"""Which parameter comes first is left open among so many; of more optional ones, one of these must be given."""

_JSON_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def properties(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Each parameter's schema, able to stand alone (with the definitions that it may refer to)."""
    schema = _body(schema)
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {
        name: {**own, **shared} if isinstance(own, Mapping) else {"not": {}, **shared} if own is False else shared
        for name, own in schema.get("properties", {}).items()
    }


def required(schema: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(_body(schema).get("required", ()))


def _body(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that lists the parameters, where the given one only refers to it."""
    if isinstance(reference := schema.get("$ref"), str) and "properties" not in schema:
        found = _resolve(reference, schema)
        if isinstance(found, Mapping):
            return {**schema, **found}
    return schema


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a value of this schema may have; all of them where it does not say."""
    return frozenset(_types(schema, schema, 0))


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > 16:
        yield from _JSON_TYPES
    elif isinstance(kind := schema.get("type"), str):
        yield kind
    elif isinstance(kind, Sequence):
        yield from kind
    elif "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        yield from (type_of(value) for value in values)
    elif isinstance(branches := schema.get("anyOf", schema.get("oneOf")), Sequence):
        for branch in branches:
            yield from _types(branch, root, depth + 1)
    elif isinstance(reference := schema.get("$ref"), str):
        yield from _types(_resolve(reference, root), root, depth + 1)
    else:
        yield from _JSON_TYPES


def _resolve(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#").split("/")[1:]:
        root = root.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def type_of(value: Any) -> str:
    """The JSON type of a value."""
    return "null" if value is None else _TYPE_OF[type(value)]


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, if it does."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def in_order(parameters: Sequence[tuple[Node, bool]], separator: str) -> Node | None:
    """These parameters (and whether each is required) in this order, separated; None if there are none."""
    if not parameters:
        return None

    def rest(start: int) -> list[Node]:
        following = [(sequence(separator, node), must) for node, must in parameters[start:]]
        return [node if must else optional(node) for node, must in following]

    if not separator:
        return sequence(*rest(0))
    first_required = next((i for i, (_, must) in enumerate(parameters) if must), len(parameters))
    firsts = [i for i in range(len(parameters)) if i <= first_required and (i < MAX_FIRST or i == first_required)]
    options = [sequence(parameters[i][0], *rest(i + 1)) for i in firsts]
    if first_required == len(parameters):
        options.append(const(""))
    return either(options)

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

JSON_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_MAX_CHAIN = 16
_DEFINITIONS = ("$defs", "definitions")
_DEFINED = tuple(f"#/{key}/" for key in _DEFINITIONS)
_WHOLE = "the whole"
_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def properties(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Each parameter's schema, able to stand alone (with the definitions that it may refer to)."""
    schema = resolved(_movable(schema))
    shared = {key: schema[key] for key in _DEFINITIONS if key in schema}
    return {name: _alone(own, shared) for name, own in schema.get("properties", {}).items()}


def items(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of each item of an array, able to stand alone; None where it does not say."""
    own = schema.get("items")
    shared = {key: schema[key] for key in _DEFINITIONS if key in schema}
    return _alone(own, shared) if isinstance(own, Mapping) else None


def _alone(schema: Any, shared: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(schema, Mapping):
        return {"not": {}} if schema is False else {}
    return {**schema, **shared} if any(_references(schema)) else schema


def _movable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with every reference of its own into its definitions, which each of its parts can take along."""
    if all(reference.startswith(_DEFINED) for reference in _references(schema)):
        return schema
    moved: Mapping[str, Any] = _moved(schema)
    whole = {key: value for key, value in moved.items() if key not in _DEFINITIONS}
    return {**moved, "$defs": {**moved.get("$defs", {}), _WHOLE: whole}}


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            yield reference
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _references(inner)


def _moved(part: Any) -> Any:
    if isinstance(part, list):
        return [_moved(inner) for inner in part]
    if not isinstance(part, Mapping):
        return part
    moved = {key: _moved(value) for key, value in part.items()}
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#") and not reference.startswith(_DEFINED):
        moved["$ref"] = f"#/$defs/{_WHOLE}{reference[1:]}"
    return moved


def required(schema: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(resolved(schema).get("required", ()))


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a schema that only refers to another one stands for."""
    for _ in range(_MAX_CHAIN):
        reference = schema.get("$ref")
        found = _resolve(reference, schema) if isinstance(reference, str) and "properties" not in schema else None
        if not isinstance(found, Mapping):
            break
        schema = {**{key: value for key, value in schema.items() if key != "$ref"}, **found}
    return schema


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a value of this schema may have; all of them where it does not say."""
    return frozenset(_types(schema, schema, 0))


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_CHAIN:
        yield from JSON_TYPES
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
        yield from JSON_TYPES


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


def of_types(schema: Mapping[str, Any], types: Sequence[str]) -> Mapping[str, Any]:
    """The same schema for values of these types alone."""
    return {**schema, "allOf": [*schema.get("allOf", ()), {"type": list(types)}]}


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

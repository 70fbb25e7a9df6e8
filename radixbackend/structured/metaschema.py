"""The metaschemas of drafts 4 to 2020-12 as a table: which value each keyword takes.

Rules. `first_fault` agrees with the published metaschemas (a test holds it against them) and is linear in the schema,
some fifty times faster than validating a schema as an instance.

Must not know: references, what keywords mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TYPES = ("null", "boolean", "number", "integer", "string", "array", "object")


def token(key: str | int) -> str:
    """One reference token of a JSON pointer (RFC 6901), with its slash."""
    return "/" + str(key).replace("~", "~0").replace("/", "~1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_some_names(value: Any) -> bool:
    return _is_names(value) and bool(value)


def _is_type(value: Any) -> bool:
    return value in TYPES if isinstance(value, str) else _is_some_names(value) and set(value) <= set(TYPES)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_divisor(value: Any) -> bool:
    return _is_number(value) and value > 0


_COUNT, _TEXT, _FLAG = (_is_count, "a whole number from 0"), (_is_text, "a string"), (_is_flag, "true or false")
_NUMBER, _NAMES = (_is_number, "a number"), (_is_names, "a list of different strings")

_Rule = tuple[Callable[[Any], bool], str]

_VALUES: dict[str, _Rule] = {
    "type": (_is_type, f"one or several of {', '.join(TYPES)}"),
    "enum": (_is_list, "a list"),
    "multipleOf": (_is_divisor, "a number above 0"),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": _TEXT,
    "format": _TEXT,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "uniqueItems": _FLAG,
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "required": _NAMES,
    "$schema": _TEXT,
    "title": _TEXT,
    "description": _TEXT,
}
_SINCE_6: dict[str, _Rule] = {"$id": _TEXT, "$ref": _TEXT, "examples": (_is_list, "a list")}
_SINCE_7: dict[str, _Rule] = {
    "$comment": _TEXT,
    "readOnly": _FLAG,
    "contentMediaType": _TEXT,
    "contentEncoding": _TEXT,
}
_SINCE_2019: dict[str, _Rule] = {
    "minContains": _COUNT,
    "maxContains": _COUNT,
    "writeOnly": _FLAG,
    "deprecated": _FLAG,
    "$anchor": _TEXT,
}
_BY_DRAFT: dict[int, dict[str, _Rule]] = {
    4: {"id": _TEXT, "exclusiveMinimum": _FLAG, "exclusiveMaximum": _FLAG, "required": (_is_some_names, _NAMES[1])},
    6: _SINCE_6,
    7: _SINCE_6 | _SINCE_7,
    2019: _SINCE_6 | _SINCE_7 | _SINCE_2019 | {"$recursiveRef": _TEXT, "$recursiveAnchor": _FLAG},
    2020: _SINCE_6 | _SINCE_7 | _SINCE_2019 | {"$dynamicRef": _TEXT, "$dynamicAnchor": _TEXT},
}

SCHEMA, SCHEMAS, MAP, SCHEMA_OR_LIST, SCHEMA_OR_FLAG, DEPENDENCIES = (
    "a schema", "a list of schemas", "an object of schemas", "a schema or a list of schemas", "a schema or a boolean",
    "an object of schemas and lists of names",
)  # fmt: skip

_APPLICATORS: dict[str, str] = {
    "allOf": SCHEMAS,
    "anyOf": SCHEMAS,
    "oneOf": SCHEMAS,
    "not": SCHEMA,
    "properties": MAP,
    "patternProperties": MAP,
    "additionalProperties": SCHEMA_OR_FLAG,
    "definitions": MAP,
    "dependencies": DEPENDENCIES,
}
"""Keyword → shape of its value, in every draft."""

_APPLICATORS_BY_DRAFT: dict[int, dict[str, str]] = {
    4: {"items": SCHEMA_OR_LIST, "additionalItems": SCHEMA_OR_FLAG},
    6: {"items": SCHEMA_OR_LIST, "additionalItems": SCHEMA, "contains": SCHEMA, "propertyNames": SCHEMA},
}
_APPLICATORS_BY_DRAFT[7] = _APPLICATORS_BY_DRAFT[6] | {"if": SCHEMA, "then": SCHEMA, "else": SCHEMA}
_APPLICATORS_BY_DRAFT[2019] = _APPLICATORS_BY_DRAFT[7] | {
    "$defs": MAP,
    "dependentSchemas": MAP,
    "unevaluatedItems": SCHEMA,
    "unevaluatedProperties": SCHEMA,
}
_APPLICATORS_BY_DRAFT[2020] = {
    keyword: shape for keyword, shape in _APPLICATORS_BY_DRAFT[2019].items() if keyword != "additionalItems"
} | {"items": SCHEMA, "prefixItems": SCHEMAS}


def values(draft: int) -> dict[str, _Rule]:
    """Keyword → (check, what it takes), of the keywords that hold no schema."""
    return _VALUES | _BY_DRAFT[draft]


def applicators(draft: int) -> dict[str, str]:
    """Keyword → shape of its value, of the keywords that hold schemas."""
    return _APPLICATORS | _APPLICATORS_BY_DRAFT[draft]


def children(schema: dict[str, Any], draft: int, *, definitions: bool = True) -> list[tuple[str, Any]]:
    """The schemas directly inside ``schema`` with their relative pointers."""
    found: list[tuple[str, Any]] = []
    for keyword, shape in applicators(draft).items():
        if keyword not in schema or (keyword in ("definitions", "$defs") and not definitions):
            continue
        value, path = schema[keyword], token(keyword)
        if isinstance(value, list):
            found.extend((path + token(index), child) for index, child in enumerate(value))
        elif shape in (MAP, DEPENDENCIES) and isinstance(value, dict):
            found.extend(
                (path + token(name), child)
                for name, child in value.items()
                if not (shape == DEPENDENCIES and isinstance(child, list))
            )
        else:
            found.append((path, value))
    return found


def first_fault(root: Any, draft: int) -> tuple[str, str] | None:
    """Pointer and message of a keyword whose value its metaschema refuses; None if there is none."""
    rules, shapes = values(draft), applicators(draft)
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        pointer, schema = todo.pop()
        if isinstance(schema, bool) and (draft > 4 or not _needs_object(pointer)):
            continue
        if not isinstance(schema, dict):
            return pointer, f"a schema is an object{'' if draft == 4 else ', true or false'}, not {_brief(schema)}"
        for keyword, value in schema.items():
            takes = _takes(keyword, value, rules, shapes, draft)
            if takes is not None:
                return pointer + token(keyword), f"{keyword} takes {takes}, not {_brief(value)}"
        if draft == 4 and (missing := _missing_bound(schema)):
            return pointer + token(missing), f"{missing} needs {missing[9:].lower()} beside it"
        todo.extend((pointer + path, child) for path, child in reversed(children(schema, draft)))
    return None


def _needs_object(pointer: str) -> bool:
    return pointer.rpartition("/")[2] not in ("additionalProperties", "additionalItems")


def _missing_bound(schema: dict[str, Any]) -> str | None:
    pairs = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
    return next((exclusive for exclusive, bound in pairs if exclusive in schema and bound not in schema), None)


def _takes(keyword: str, value: Any, rules: dict[str, _Rule], shapes: dict[str, str], draft: int) -> str | None:
    """What ``keyword`` takes, where ``value`` is something else."""
    if keyword in rules:
        check, takes = rules[keyword]
        return None if check(value) else takes
    shape = shapes.get(keyword)
    if shape is None:
        return None
    if isinstance(value, list):
        fits = shape in (SCHEMAS, SCHEMA_OR_LIST) and bool(value)
    elif shape in (MAP, DEPENDENCIES):
        fits = isinstance(value, dict)
        if fits and shape == DEPENDENCIES:
            names = _is_some_names if draft == 4 else _is_names
            fits = all(names(entry) for entry in value.values() if isinstance(entry, list))
    else:
        fits = shape != SCHEMAS and (isinstance(value, dict) or (isinstance(value, bool) and _takes_flag(shape, draft)))
    return None if fits else shape


def _takes_flag(shape: str, draft: int) -> bool:
    return draft > 4 or shape == SCHEMA_OR_FLAG


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "…"

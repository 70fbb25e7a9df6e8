"""What each grammar backend really enforces of a schema, found out without compiling it for a vocabulary.

Rules. `lint_xgrammar` knows the library's habits (0.2.8): keywords that it drops with a warning, drops silently, or
reads more strictly than the schema says; no findings means that its strict mode and the schema allow the same values
(numbers: up to exponents and the seventh decimal of a bounded one). `xgrammar_cost` estimates its compile time.
`llguidance_refusal` asks that library's own compiler, which refuses what it does not enforce. Pointers are into the
schema that is given, so lint the schema that will be compiled.

Must not know: routes, the caller's schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from radixbackend.structured.language import strip_anchors, whole
from radixbackend.structured.metaschema import children, token
from radixbackend.structured.pattern import (
    Chars,
    Either,
    Group,
    Node,
    PatternError,
    Ranges,
    Repeat,
    Sequence,
    parse,
    union,
)
from radixbackend.structured.report import Finding

_DROPPED = {
    "not": "is dropped",
    "if": "is dropped",
    "then": "is dropped",
    "else": "is dropped",
    "dependencies": "is dropped",
    "dependentRequired": "is dropped",
    "dependentSchemas": "is dropped",
    "contains": "is dropped",
    "minContains": "is dropped",
    "maxContains": "is dropped",
    "propertyNames": "is enforced in part",
    "unevaluatedProperties": "is enforced in part",
    "unevaluatedItems": "is enforced in part",
    "oneOf": "is read as anyOf",
    "$dynamicRef": "is dropped",
    "$recursiveRef": "is dropped",
    "format": "follows rules of its own",
    "minLength": "excludes escapes such as \\n",
    "maxLength": "excludes escapes such as \\n",
    "patternProperties": "does not keep such names out of the additional ones",
}
_OF_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
}
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_EXCLUSIVE = ("$ref", "const", "enum", "anyOf", "allOf")
_ASSERTIONS = frozenset(
    ("type", *_DROPPED, *_EXCLUSIVE, *(keyword for keywords in _OF_TYPE.values() for keyword in keywords))
)
_NOT_IN_STRINGS: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
"""Characters that JSON writes with an escape; the library puts them into strings as they are."""


def lint_xgrammar(schema: Any) -> tuple[Finding, ...]:
    """What xgrammar's strict mode would enforce otherwise than ``schema`` (2020-12 keywords) says."""
    return tuple(
        Finding(pointer + token(keyword), keyword, reason)
        for pointer, part in subschemas(schema)
        for keyword, reason in _habits(part)
    )


def subschemas(root: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema object inside ``root``, itself included, with its pointer."""
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        pointer, schema = todo.pop()
        if isinstance(schema, dict):
            yield pointer, schema
            for draft in (2020, 2019):  # the union of what both look into
                todo.extend(
                    (pointer + path, child)
                    for path, child in children(schema, draft)
                    if draft == 2020 or path.startswith(("/additionalItems", "/items/"))
                )


def _habits(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keyword and reason, for one schema object without its children."""
    for keyword, reason in _DROPPED.items():
        if keyword in schema:
            yield keyword, reason
    if schema.get("uniqueItems") is True:
        yield "uniqueItems", "is dropped"
    yield from _sibling_habits(schema)
    yield from _type_habits(schema)
    yield from _value_habits(schema)


def _sibling_habits(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    present = [keyword for keyword in _EXCLUSIVE if keyword in schema]
    if present:
        for keyword in schema:
            if keyword in _ASSERTIONS and keyword != present[0] and not (keyword == "type" and "enum" in present):
                yield keyword, f"is ignored beside {present[0]}"
    if len(schema.get("allOf", [])) > 1:
        yield "allOf", "with several branches allows any JSON"
    if not str(schema.get("$ref", "#")).startswith("#"):
        yield "$ref", "outside of the schema allows any JSON"


def _type_habits(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    named = schema.get("type")
    types = set([named] if isinstance(named, str) else named or ())
    types |= {"number"} if "integer" in types else set()
    for kind, keywords in _OF_TYPE.items():
        for keyword in keywords:
            if keyword in schema and named is None:
                yield keyword, f"is ignored without type: {kind}"
    if "object" in types:
        for name in schema.get("required", []):
            if name not in schema.get("properties", {}):
                yield "required", f"does not ask for {name!r}, which properties does not declare"
        if "additionalProperties" not in schema:
            yield "type", "object without additionalProperties is closed"
    if "array" in types and "items" not in schema and "prefixItems" in schema:
        yield "prefixItems", "without items allows no further ones"
    if "array" in types and isinstance(schema.get("items"), list):
        yield "items", "as a list is an error"


def _value_habits(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "pattern" in schema:
        reason = _pattern_habit(schema["pattern"])
        if reason:
            yield "pattern", reason
        if "minLength" in schema or "maxLength" in schema or "format" in schema:
            yield "pattern", "does not combine with lengths or formats"
    integer = schema.get("type") == "integer"
    if "multipleOf" in schema and (not integer or any(limit in schema for limit in _LIMITS)):
        yield "multipleOf", "is dropped" if not integer else "does not combine with bounds"
    for keyword in _LIMITS:
        bound = schema.get(keyword)
        if isinstance(bound, bool) or (bound is not None and integer and (bound != int(bound) or abs(bound) >= 2**53)):
            yield keyword, "as it stands is an error"
    for keyword, values in (("enum", schema.get("enum", [])), ("const", [schema.get("const")])):
        if any(isinstance(value, dict | list) for value in values):
            yield keyword, "writes objects and arrays without white space"
    for name, child in schema.get("properties", {}).items():
        if child is False:
            yield "properties", f"as false for {name!r} is an error"


def _pattern_habit(pattern: Any) -> str | None:
    try:
        tree = parse(pattern)
        anchored = strip_anchors(tree)
        if whole(tree) != anchored:
            return "is anchored at both ends"
    except PatternError as fault:
        return str(fault)
    characters = alphabet(anchored)
    if characters is None:
        return "with Unicode properties is an error"
    return "writes quotes and control characters unescaped" if _touches(characters, _NOT_IN_STRINGS) else None


def alphabet(tree: Node) -> Ranges | None:
    """The characters that may occur in what ``tree`` matches; None with Unicode properties."""
    found: list[Ranges] = []
    todo = [tree]
    while todo:
        match todo.pop():
            case Chars(ranges, properties, _):
                if properties:
                    return None
                found.append(ranges)
            case Sequence(parts) | Either(parts):
                todo.extend(parts)
            case Repeat(item=item) | Group(item=item):
                todo.append(item)
            case _:
                pass
    return union(*found)


def _touches(first: Ranges, second: Ranges) -> bool:
    return any(a <= d and c <= b for a, b in first for c, d in second)


def xgrammar_cost(schema: Any) -> float:
    """Rough milliseconds that xgrammar takes to compile ``schema`` for a vocabulary of 128k tokens (measured)."""
    cost = 20.0
    for _, part in subschemas(schema):
        properties = part.get("properties", {})
        optional = len(properties) - len(part.get("required", []))
        if part.get("additionalProperties", False) is not False:
            cost += 200.0 * len(properties)
        cost += 0.01 * optional**2 + 0.02 * len(part.get("enum", ()))
        counts = ("minItems", "maxItems", "minProperties", "maxProperties")
        cost += 0.5 * max(part.get(keyword, 0) for keyword in counts)
        if "maxLength" in part or "minLength" in part:
            cost += 30.0 * max(part.get("minLength", 1), part.get("maxLength", 1))
        if "pattern" in part:
            cost += _pattern_cost(part["pattern"])
    return cost


def _pattern_cost(pattern: str) -> float:
    cost, todo = 1.0, [parse(pattern)]
    while todo:
        match todo.pop():
            case Sequence(parts) | Either(parts):
                todo.extend(parts)
                cost += 0.1 * len(parts)
            case Repeat(item, low, high, _):
                todo.append(item)
                most = max(low, high or 0)
                cost += 10.0 if high is None else 8.0 * most if most > 8 else 0.0
            case Group(item=item):
                todo.append(item)
            case _:
                pass
    return cost


def llguidance_refusal(schema: Any, *, lenient: bool = False) -> str | None:
    """Why llguidance's compiler refuses ``schema``; None where it takes it, or where it is not installed."""
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        return None
    import json

    options: Any = {"whitespace_flexible": False, "lenient": lenient}
    text = json.dumps({} if schema is True else schema, ensure_ascii=False)
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=options)
        refused, faults = LLMatcher.validate_grammar_with_warnings(grammar, limits=LLParserLimits(verbose_errors=False))
    except ValueError as refusal:
        return str(refusal)
    except BaseException as panic:
        if isinstance(panic, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        return f"its compiler failed: {panic}"
    return faults[0] if refused else None

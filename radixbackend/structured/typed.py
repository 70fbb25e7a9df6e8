"""The keywords that bound one JSON type, read into shapes.

Rules. `TypedKeywords.read` gives the union over the types that a schema allows, in the schema's order. A keyword that
no shape expresses becomes a finding, bounds that nothing can meet an empty head with the pointer of one of them.

Must not know: keywords that apply other schemas in place (`normalize`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Protocol

from radixbackend.structured.algebra import Algebra
from radixbackend.structured.document import Subschema
from radixbackend.structured.formats import FORMATS, FormatBook
from radixbackend.structured.language import ANY_TEXT, Language, avoiding, languages
from radixbackend.structured.metaschema import token
from radixbackend.structured.pattern import ANYTHING, NOTHING, PatternError, Repeat, parse
from radixbackend.structured.report import Finding
from radixbackend.structured.shapes import (
    ANY,
    Array,
    Boolean,
    Never,
    Node,
    Null,
    Number,
    Object,
    Shape,
    String,
    Texts,
    all_of,
    tidy_array,
)
from radixbackend.structured.unions import Head, Unions

_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRING = ("minLength", "maxLength", "pattern", "format")
_ARRAY = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems")
_CONTAINS = ("contains", "minContains", "maxContains")
_OBJECT = ("properties", "patternProperties", "additionalProperties", "required", "unevaluatedProperties")
_COUNTS = ("minProperties", "maxProperties", "propertyNames")
KEYWORDS = frozenset(("type", *_NUMBER, *_STRING, *_ARRAY, *_CONTAINS, *_OBJECT, *_COUNTS))
_APPLIED_IN_PLACE = ("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")


class Children(Protocol):
    """What the reader asks of the normalizer about other schemas."""

    algebra: Algebra
    unions: Unions

    def node(self, schema: Any, pointer: str) -> Node: ...
    def head(self, node: Node) -> Head: ...
    def is_empty(self, node: Node) -> bool: ...


class TypedKeywords:
    """Reads the typed keywords of subschemas of one draft."""

    def __init__(self, draft: int, children: Children, formats: FormatBook) -> None:
        self._draft = draft
        self._children = children
        self._formats = formats

    def read(self, sub: Subschema) -> Head:
        named = sub.schema.get("type", ["null", "boolean", "number", "string", "array", "object"])
        types = [named] if isinstance(named, str) else named
        readers: dict[str, Callable[[], Head]] = {
            "null": lambda: Head((Null(),)),
            "boolean": lambda: Head((Boolean(),)),
            "integer": lambda: self._number(sub, integer=True),
            "number": lambda: self._number(sub, integer=False),
            "string": lambda: self._string(sub),
            "array": lambda: self._array(sub),
            "object": lambda: self._object(sub),
        }
        kinds = [kind for kind in types if not (kind == "integer" and "number" in types)]
        return self._children.unions.join((readers[kind]() for kind in kinds), sub.pointer + "/type")

    def _checked(self, shape: Shape, findings: list[Finding], why: Callable[[], Never]) -> Head:
        if self._children.algebra.possible(shape):
            return Head((shape,), not findings, tuple(findings))
        return Head((), findings=tuple(findings), never=why())

    def _number(self, sub: Subschema, *, integer: bool) -> Head:
        schema = sub.schema
        multiple = schema.get("multipleOf")
        limits = [Number(multiple=None if multiple is None else Fraction(repr(multiple)))]
        for keyword, exclusively in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            exclusive = schema.get(exclusively)
            if keyword in schema:
                limits.append(_bound(keyword, schema[keyword], is_open=exclusive is True))
            if exclusive is not None and not isinstance(exclusive, bool):
                limits.append(_bound(keyword, exclusive, is_open=True))
        shape: Shape | None = Number(integer=integer)
        for limit in limits:
            shape = self._children.algebra.meet(shape, limit)[0] if shape is not None else None
        if shape is not None:
            return Head((shape,))
        keyword = next((k for k in ("minimum", "exclusiveMinimum", "maximum", "multipleOf") if k in schema), "type")
        return Head((), never=Never(sub.pointer + token(keyword), "no number fits the bounds"))

    def _string(self, sub: Subschema) -> Head:
        schema, findings = sub.schema, list[Finding]()
        matched: list[Language] = []
        if "pattern" in schema:
            try:
                matched = [language for language in languages(parse(schema["pattern"])) if language.tree != ANY_TEXT]
                if any(language.tree == NOTHING for language in matched):
                    return Head((), never=Never(sub.pointer + "/pattern", "the pattern matches no text"))
            except PatternError as fault:
                findings.append(Finding(sub.pointer + "/pattern", "pattern", str(fault)))
        formats = tuple(name for name in [schema.get("format")] if name in FORMATS)
        if any(FORMATS[name].refuses is not None for name in formats):
            findings.append(Finding(sub.pointer + "/format", "format", f"{formats[0]} is only approximated"))
        least, most = int(schema.get("minLength", 0)), _whole_number(schema, "maxLength")
        shape = String(least, most, tuple(matched), formats)
        return self._checked(shape, findings, lambda: self._no_length(shape, sub.pointer))

    def _no_length(self, shape: String, pointer: str) -> Never:
        """Why no text has a length that fits, at the keyword at fault."""
        if shape.max_length is not None and shape.min_length > shape.max_length:
            return Never(pointer + "/minLength", "minLength is above maxLength")
        possible = self._children.algebra.possible
        keyword = "format" if shape.formats and not possible(replace(shape, patterns=())) else "pattern"
        if possible(replace(shape, max_length=None)):
            return Never(pointer + "/maxLength", f"every text of the {keyword} is longer")
        if possible(replace(shape, min_length=0)):
            return Never(pointer + "/minLength", f"every text of the {keyword} is shorter")
        return Never(f"{pointer}/{keyword}", "it excludes the keywords beside it")

    def _array(self, sub: Subschema) -> Head:
        schema, findings = sub.schema, list[Finding]()
        node = self._children.node
        positional, rest = self._item_keywords(schema)
        prefix = [node(part, f"{sub.pointer}/{positional}/{i}") for i, part in enumerate(schema.get(positional, []))]
        items = node(schema.get(rest, True), sub.pointer + token(rest))
        least = int(schema.get("minItems", 0))
        if "contains" in schema and self._draft >= 6:
            wanted = int(schema.get("minContains", 1))
            if node(schema["contains"], sub.pointer + "/contains") == ANY and "maxContains" not in schema:
                least = max(least, wanted)
            elif wanted or "maxContains" in schema:
                findings.append(Finding(sub.pointer + "/contains", "contains", "no grammar counts matching items"))
        if self._draft >= 2019 and schema.get("unevaluatedItems", True) is not True and rest not in schema:
            if "contains" in schema or _applies_in_place(schema):
                findings.append(_unevaluated(sub, "unevaluatedItems"))
            else:
                items = node(schema["unevaluatedItems"], sub.pointer + "/unevaluatedItems")
        shape = tidy_array(Array(tuple(prefix), items, least, _whole_number(schema, "maxItems")))
        if schema.get("uniqueItems") is True and (shape.max_items is None or shape.max_items > 1):
            findings.append(Finding(sub.pointer + "/uniqueItems", "uniqueItems", "no grammar remembers earlier items"))
        return self._checked(shape, findings, lambda: Never(sub.pointer + "/minItems", "no array is long enough"))

    def _item_keywords(self, schema: dict[str, Any]) -> tuple[str, str]:
        """The names of the positional and of the remaining items in this draft."""
        if self._draft == 2020:
            return "prefixItems", "items"
        return ("items", "additionalItems") if isinstance(schema.get("items"), list) else ("", "items")

    def _object(self, sub: Subschema) -> Head:
        schema, findings = sub.schema, list[Finding]()
        matched = self._matched(sub, findings)
        additional = self._additional(sub, findings)
        if any(finding.keyword == "patternProperties" for finding in findings):
            additional = ANY  # a name might match the pattern that was left out
        declared, has = [], self._children.algebra.has
        for name, inner in schema.get("properties", {}).items():
            node = self._children.node(inner, f"{sub.pointer}/properties{token(name)}")
            declared.append((name, all_of(node, *(also for language, also in matched if has(language, name)))))
        for language, node in list(matched):
            if language.tree == ANY_TEXT:  # then no name is additional
                matched = [(other, all_of(also, node)) for other, also in matched if other != language]
                additional = node
        shape = Object(
            tuple(declared),
            tuple(matched),
            additional,
            tuple(dict.fromkeys(schema.get("required", []))),
            int(schema.get("minProperties", 0)),
            _whole_number(schema, "maxProperties"),
            sub.pointer,
        )
        if "propertyNames" in schema and self._draft >= 6:
            shape = self._restrict_names(sub, shape, findings)
        return self._checked(shape, findings, lambda: self._why_no_object(sub, shape))

    def _matched(self, sub: Subschema, findings: list[Finding]) -> list[tuple[Language, Node]]:
        place = sub.pointer + "/patternProperties"
        matched = []
        for pattern, inner in sub.schema.get("patternProperties", {}).items():
            try:
                language = _one_language(pattern)
            except PatternError as fault:
                findings.append(Finding(place + token(pattern), "patternProperties", str(fault)))
            else:
                if language.tree != NOTHING:
                    matched.append((language, self._children.node(inner, place + token(pattern))))
        return matched

    def _additional(self, sub: Subschema, findings: list[Finding]) -> Node:
        schema, keyword = sub.schema, "additionalProperties"
        if self._draft >= 2019 and keyword not in schema and schema.get("unevaluatedProperties", True) is not True:
            if _applies_in_place(schema):
                findings.append(_unevaluated(sub, "unevaluatedProperties"))
            else:
                keyword = "unevaluatedProperties"
        return self._children.node(schema.get(keyword, True), sub.pointer + token(keyword))

    def _why_no_object(self, sub: Subschema, shape: Object) -> Never:
        property_of = self._children.algebra.properties(shape)
        for name in shape.required:
            if self._children.is_empty(property_of(name)):
                reason = "nothing fits it" if name in dict(shape.properties) else "no other property is allowed"
                return Never(sub.pointer + "/required", f"the required property {name!r} can never be there: {reason}")
        keyword = "minProperties" if shape.min_properties > len(shape.required) else "maxProperties"
        return Never(sub.pointer + token(keyword), "the number of properties cannot be met")

    def _restrict_names(self, sub: Subschema, shape: Object, findings: list[Finding]) -> Object:
        """``propertyNames`` said with the other keywords: names it refuses are excluded, the rest follow a pattern."""
        pointer = sub.pointer + "/propertyNames"
        names = self._children.head(self._children.node(sub.schema["propertyNames"], pointer))
        findings.extend(names.findings)
        strings = [allowed for allowed in names.shapes if isinstance(allowed, String | Texts)]
        refused = Never(pointer, "propertyNames refuses the name")

        def fits(name: str) -> bool:
            meet = self._children.algebra.meet
            return any(meet(Texts((name,)), allowed)[0] is not None for allowed in strings)

        declared = tuple((name, node if fits(name) else refused) for name, node in shape.properties)
        known = dict(declared)
        missing = tuple((name, refused) for name in shape.required if name not in known and not fits(name))
        shape = replace(shape, properties=declared + missing)
        if strings == [String()]:
            return shape
        if all(isinstance(allowed, Texts) for allowed in strings):
            property_of = self._children.algebra.properties(shape)
            listed = [text for allowed in strings if isinstance(allowed, Texts) for text in allowed.values]
            added = tuple((text, property_of(text)) for text in listed if text not in known)
            return replace(shape, properties=shape.properties + added, patterns=(), additional=refused)
        language = self._name_language(strings[0]) if len(strings) == 1 else None
        if language is None or shape.patterns:
            findings.append(Finding(pointer, "propertyNames", "is not enforced on names that are not declared"))
            return shape
        return replace(shape, patterns=((language, shape.additional),), additional=refused)

    def _name_language(self, allowed: Shape) -> Language | None:
        """One language for the names that ``allowed`` allows, if one can say it all."""
        if not isinstance(allowed, String):
            return None
        found = [*allowed.patterns, *map(self._formats.language, allowed.formats)]
        if allowed.excluded:
            found.append(Language(avoiding(sorted(allowed.excluded))))
        if allowed.min_length or allowed.max_length is not None:
            found.append(Language(Repeat(ANYTHING, allowed.min_length, allowed.max_length)))
        return found[0] if len(found) == 1 else None


def _one_language(pattern: str) -> Language:
    found = languages(parse(pattern))
    shared = found[0].automaton if len(found) > 1 else None
    for other in found[1:]:
        shared = shared.and_also(other.automaton) if shared and other.automaton else None
    one = found[0] if len(found) == 1 else Language.of(shared)
    if one is None:
        raise PatternError("its look-ahead is too large for a grammar", 0)
    return one


def _bound(keyword: str, value: int | float, *, is_open: bool) -> Number:
    return Number(low=value, low_open=is_open) if keyword == "minimum" else Number(high=value, high_open=is_open)


def _whole_number(schema: dict[str, Any], keyword: str) -> int | None:
    return int(schema[keyword]) if keyword in schema else None


def _applies_in_place(schema: dict[str, Any]) -> bool:
    """Whether other schemas apply to the same instance, so that what is evaluated depends on them."""
    return any(keyword in schema for keyword in _APPLIED_IN_PLACE)


def _unevaluated(sub: Subschema, keyword: str) -> Finding:
    return Finding(sub.pointer + token(keyword), keyword, "depends on which of the other schemas apply")

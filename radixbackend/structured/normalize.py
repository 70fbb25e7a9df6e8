"""A document's schemas as unions of shapes, one level at a time.

Rules. `Normalizer.head` resolves what applies in place (references, allOf, anyOf, oneOf, not, if, dependencies, enum
beside other keywords) into a union of `shapes`, whose children stay unresolved nodes, so recursion needs no limit but
the number of nodes. A head is the schema's value set or wider, and says which. What is negated must be exact; where
it is not, the negation allows everything and is recorded. Keys keep the order of the schema's text, left to right.

Must not know: how shapes are written down for a grammar (`emit`), which grammar that is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from radixbackend.structured.algebra import Algebra
from radixbackend.structured.document import Document, Subschema
from radixbackend.structured.formats import FormatBook
from radixbackend.structured.metaschema import token
from radixbackend.structured.report import Finding
from radixbackend.structured.shapes import (
    ANY,
    GENERIC,
    All,
    Anything,
    Array,
    Boolean,
    Constant,
    Never,
    Node,
    Not,
    Null,
    Numbers,
    Object,
    Shape,
    Sub,
    Texts,
    all_of,
    negation,
)
from radixbackend.structured.typed import KEYWORDS, TypedKeywords
from radixbackend.structured.unions import ANY_HEAD, Head, Unions, merge_lists

MAX_HEADS = 20_000
_MAX_LEVEL = 3
"""How deep the search for contradictions looks into required children."""

_MAX_SPLIT = 8
"""Shapes that leaving out what another branch of a oneOf allows may add to one branch."""

_SINCE = {"const": 6, "if": 7, "dependentRequired": 2019, "dependentSchemas": 2019, "$recursiveRef": 2019,
          "$dynamicRef": 2020}  # fmt: skip
_IN_PLACE = frozenset(("enum", "const", "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf"))
_LAST = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies")
_ASSERTIONS = KEYWORDS | _IN_PLACE | {"oneOf", "then", "else", *_LAST}


class TooComplexError(Exception):
    """The schema needs more nodes than the bounds allow."""


class _BusyError(Exception):
    """The head asked for is being computed."""


class Normalizer:
    """The heads of one document, computed when asked for.

    Attributes:
        root: the node of the whole document.
    """

    def __init__(self, document: Document, formats: FormatBook) -> None:
        self._document = document
        self._subschemas = {sub.pointer: sub for sub in document.subschemas}
        self._anchors = [sub.schema.get("$dynamicAnchor") for sub in document.subschemas]
        self._heads: dict[Node, Head] = {}
        self._busy: set[Node] = set()
        self._level = 0
        self.algebra = Algebra(formats, self.is_empty)
        self.unions = Unions(self.algebra)
        self._typed = TypedKeywords(document.draft, self, formats)
        self.root = self.node(document.root, "")

    def node(self, schema: Any, pointer: str) -> Node:
        """The node of a schema found at ``pointer``."""
        while isinstance(schema, dict):
            sub = self._document.subschema(schema)
            if not self._document.overrides_siblings(sub) and _asserting(schema) != {"$ref"}:
                return Sub(sub.pointer) if _asserting(schema) else ANY
            schema, pointer = self._document.resolve(sub, "$ref"), sub.pointer + "/$ref"
        return ANY if schema else Never(pointer, "nothing fits false")

    def head(self, node: Node) -> Head:
        """The union of shapes that ``node`` allows."""
        if isinstance(node, Anything):
            return ANY_HEAD
        if isinstance(node, Never):
            return Head((), never=node)
        if node not in self._heads:
            if node in self._busy:
                raise _BusyError
            if len(self._heads) > MAX_HEADS:
                raise TooComplexError
            self._busy.add(node)
            try:
                self._heads[node] = self._compute(node)
            finally:
                self._busy.remove(node)
        return self._heads[node]

    def is_empty(self, node: Node) -> bool:
        """Whether certainly nothing fits ``node``, as far as a bounded look into it shows."""
        if isinstance(node, Anything | Never):
            return isinstance(node, Never)
        if node not in self._heads and self._level >= _MAX_LEVEL:
            return False
        self._level += 1
        try:
            return not self.head(node).shapes
        except _BusyError:
            return False
        finally:
            self._level -= 1

    def _compute(self, node: Node) -> Head:
        match node:
            case Sub(pointer):
                return self._of_schema(self._subschemas[pointer])
            case Constant(text):
                return _of_values([json.loads(text)])
            case All(nodes):
                head = ANY_HEAD
                for part in nodes:
                    head = self.unions.meet(head, self.head(part), part.pointer if isinstance(part, Sub | Not) else "")
                return head
            case Not(inner, pointer):
                return self.unions.negate(self.head(inner), pointer)
            case _:
                return ANY_HEAD

    def _of_schema(self, sub: Subschema) -> Head:
        if self._document.overrides_siblings(sub):
            return self._of_reference(sub, "$ref")
        before = head = ANY_HEAD
        typed = [keyword for keyword in sub.schema if keyword in KEYWORDS]
        first_typed = "properties" if "properties" in typed else typed[0] if typed else None
        for keyword in sub.schema:
            pointer = sub.pointer + token(keyword)
            if keyword == first_typed:
                head = self.unions.meet(head, self._typed.read(sub), pointer)
            elif keyword == "oneOf":
                before, head = head, ANY_HEAD
            elif keyword in _IN_PLACE and self._has(sub, keyword):
                head = self.unions.meet(head, self._of_keyword(sub, keyword), pointer)
        if "oneOf" in sub.schema:
            head = self._of_one_of(sub, before, head)
        for keyword in _LAST:
            if self._has(sub, keyword):
                head = self._apply_last(sub, keyword, head)
        return head

    def _has(self, sub: Subschema, keyword: str) -> bool:
        return keyword in sub.schema and self._document.draft >= _SINCE.get(keyword, 4)

    def _of_keyword(self, sub: Subschema, keyword: str) -> Head:
        schema, pointer = sub.schema, sub.pointer + token(keyword)
        if keyword == "enum":
            return _of_values(schema["enum"], pointer)
        if keyword == "const":
            return _of_values([schema["const"]], pointer)
        if keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            return self._of_reference(sub, keyword)
        nodes = [self.node(part, pointer + token(index)) for index, part in enumerate(schema[keyword])]
        if keyword == "anyOf":
            return self.unions.join(map(self.head, nodes), pointer)
        return self.head(all_of(*nodes))

    def _of_reference(self, sub: Subschema, keyword: str) -> Head:
        pointer = sub.pointer + token(keyword)
        if keyword == "$dynamicRef" and self._anchors.count(sub.schema[keyword].rpartition("#")[2]) > 1:
            return Head(GENERIC, False, (Finding(pointer, keyword, "depends on how the schema was entered"),))
        return self.head(self.node(self._document.resolve(sub, keyword), pointer))

    def _of_one_of(self, sub: Subschema, before: Head, after: Head) -> Head:
        """Exactly one branch, between what the keywords before and after say: each without what others share."""
        pointer = sub.pointer + "/oneOf"
        heads = []
        for index, branch in enumerate(sub.schema["oneOf"]):
            head = self.head(self.node(branch, pointer + token(index)))
            heads.append(self.unions.meet(self.unions.meet(before, head, pointer), after, pointer))
        alone, apart = [], True
        for index, head in enumerate(heads):
            most = len(head.shapes) + _MAX_SPLIT
            for other in heads[:index] + heads[index + 1 :]:
                if self.algebra.exhausted:
                    apart = False
                    break
                shared = self.unions.overlap(head, other)
                if shared.shapes:
                    less = self.unions.meet(head, self.unions.negate(shared, pointer), pointer)
                    if less.exact and len(less.shapes) <= most:
                        head = less
                    else:
                        apart = False
            alone.append(head)
        joined = self.unions.join(alone, pointer)
        if apart:
            return joined
        finding = Finding(pointer, "oneOf", "that no second branch fits too is not enforced")
        return replace(joined, exact=False, findings=(*joined.findings, finding))

    def _apply_last(self, sub: Subschema, keyword: str, head: Head) -> Head:
        pointer, value = sub.pointer + token(keyword), sub.schema[keyword]
        if keyword == "not":
            return self.unions.meet(head, self.head(negation(self.node(value, pointer), pointer)), pointer)
        if keyword == "if":
            return self._apply_if(sub, head)
        for name, needed in value.items():
            head = self.unions.meet(head, self._dependency(sub, pointer + token(name), name, needed), pointer)
        return head

    def _dependency(self, sub: Subschema, place: str, name: str, needed: Any) -> Head:
        """Without the property, or with it and what it needs: other properties, or a schema."""
        absent = Object(((name, Never(place, "excluded")),), pointer=sub.pointer)
        if isinstance(needed, list):
            present = Head((Object(required=tuple(dict.fromkeys((name, *needed))), pointer=sub.pointer),))
        else:
            present = Head((Object(required=(name,), pointer=sub.pointer),))
            present = self.unions.meet(present, self.head(self.node(needed, place)), place)
        return replace(present, shapes=(*GENERIC[:-1], absent, *present.shapes), never=None)

    def _apply_if(self, sub: Subschema, head: Head) -> Head:
        pointer, schema = sub.pointer + "/if", sub.schema
        if "then" not in schema and "else" not in schema:
            return head
        condition = self.node(schema["if"], pointer)
        otherwise = self.head(negation(condition, pointer))
        if "else" not in schema and not otherwise.exact:
            return replace(head, exact=False, findings=head.findings + otherwise.findings)
        branches = []
        for keyword, guard in (("then", self.head(condition)), ("else", otherwise)):
            branch = self.head(self.node(schema.get(keyword, True), sub.pointer + token(keyword)))
            guarded = self.unions.meet(head, guard, pointer)
            branches.append(self.unions.meet(guarded, branch, sub.pointer + token(keyword)))
        return self.unions.join(branches, pointer)


def _asserting(schema: dict[str, Any]) -> set[str]:
    return {keyword for keyword in schema if keyword in _ASSERTIONS}


def _of_values(values: list[Any], pointer: str = "") -> Head:
    never = None if values else Never(pointer, "no value is listed")
    return Head(merge_lists(dict.fromkeys(map(_of_value, values))), never=never)


def _of_value(value: Any) -> Shape:
    if value is None:
        return Null()
    if isinstance(value, bool):
        return Boolean(frozenset((value,)))
    if isinstance(value, str):
        return Texts((value,))
    if isinstance(value, int | float):
        return Numbers((value,))
    if isinstance(value, list):
        return Array(tuple(map(_constant, value)), ANY, len(value), len(value))
    closed = Never("", "not part of the constant")
    return Object(tuple((name, _constant(part)) for name, part in value.items()), (), closed, tuple(value))


def _constant(value: Any) -> Node:
    return Constant(json.dumps(value, ensure_ascii=False))

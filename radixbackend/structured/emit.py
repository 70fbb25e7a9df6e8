"""Normalized schemas written down again, in the keywords that every grammar backend enforces.

Rules. The text says what the `Normalizer`'s heads say: one type per alternative, whole-match patterns, declared
required properties, explicit ``additionalProperties`` and ``items``. What nothing can fit (found by a least fixed
point over the whole graph, so a type that needs itself without end counts too) is written as false, or refused where
it is the root. Children used more than once, and recursive ones, become definitions.

Must not know: the keywords the caller used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from radixbackend.errors import ConstraintError
from radixbackend.structured.document import MAX_CHAIN, depth_of
from radixbackend.structured.formats import FORMATS, FormatBook
from radixbackend.structured.language import Language, avoiding
from radixbackend.structured.normalize import Normalizer, TooComplexError
from radixbackend.structured.report import Finding
from radixbackend.structured.shapes import (
    Anything,
    Array,
    Boolean,
    Never,
    Node,
    Null,
    Number,
    Numbers,
    Object,
    Shape,
    String,
    Texts,
    integer_bounds,
    listed_names,
)
from radixbackend.structured.unions import Head

MAX_NODES = 5_000
MAX_INLINE = 24
"""How deep schemas are written inside each other before they become definitions."""
_MAX_ROUNDS = 16
MAX_SUBSETS = 5
"""Optional properties of an object whose number is bounded: with so few, every subset becomes an alternative."""
MAX_ALTERNATIVES = 64
"""Properties of an object that is written down more than once to bound their number."""
LEFT_OUT_PLAIN = (
    *("pattern", "format", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
"""Keywords that a ``plain`` `Emitter` writes nothing for."""
_SAFE_INTEGER = 2**53
_MAX_INTEGER = 2**62
"""Integer bounds beyond it are drawn in to it: the backends count in 64 bits."""


class Emitter:
    """Writes one normalized document down; ``plain`` without patterns and bounds, which a backend may refuse.

    Attributes:
        findings: keywords that the text does not enforce, in the order of their pointers (complete after `emit`).
    """

    def __init__(self, normalizer: Normalizer, formats: FormatBook, *, plain: bool = False) -> None:
        self._normalizer = normalizer
        self._formats = formats
        self._plain = plain
        self._depth = 0
        self._heads: dict[Node, Head] = {}
        self._same: dict[Node, Node] = {}
        self._uses: Counter[Node] = Counter()
        self._names: dict[Node, str] = {}
        self._possible: set[Node] = set()
        self._found: dict[Finding, None] = {}

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(sorted(self._found))

    def emit(self) -> Any:
        """The schema, or `ConstraintError` where nothing can fit it."""
        root = self._normalizer.root
        self._collect(root)
        if depth_of(root, self._nodes_inside) > MAX_CHAIN:
            raise ConstraintError(f"the schema's references chain deeper than {MAX_CHAIN} levels")
        self._find_possible()
        if root not in self._possible and not isinstance(root, Anything):
            self._refuse(root)
        for head in self._heads.values():
            self._found.update(dict.fromkeys(head.findings))
        body = self._write(root)
        definitions: dict[str, Any] = {}
        while len(definitions) < len(self._names):  # writing one may name others
            for node, name in list(self._names.items())[len(definitions) :]:
                definitions[name] = self._body(node)
        if not definitions:
            return body
        body = {} if body is True else body
        return {**body, "$defs": definitions}

    # The graph

    def _collect(self, root: Node) -> None:
        todo = [root]
        first: dict[tuple[Shape, ...], Node] = {}
        algebra = self._normalizer.algebra
        while todo:
            node = todo.pop()
            if isinstance(node, Anything | Never):
                continue
            if node not in self._heads:
                if len(self._heads) > MAX_NODES:
                    raise TooComplexError
                head = self._normalizer.head(node)
                shapes = tuple(algebra.separate(s) if isinstance(s, Object) and s.patterns else s for s in head.shapes)
                self._heads[node] = replace(head, shapes=shapes)
                self._same[node] = first.setdefault(shapes, node)
                if self._same[node] == node:
                    todo.extend(child for shape in shapes for child in self._children(shape))
            self._uses[self._same[node]] += 1

    def _nodes_inside(self, node: Node) -> Iterator[Node]:
        if node in self._heads:
            node = self._same[node]
            yield from (child for shape in self._heads[node].shapes for child in self._children(shape))

    def _children(self, shape: Shape) -> Iterator[Node]:
        if isinstance(shape, Array):
            yield from shape.prefix
            yield shape.items
        elif isinstance(shape, Object):
            property_of = self._normalizer.algebra.properties(shape)
            yield from map(property_of, listed_names(shape))
            yield from (node for _, node in shape.patterns)
            yield shape.additional

    def _find_possible(self) -> None:
        """The least fixed point: a node is possible once one of its shapes needs possible nodes alone."""
        waiting = list(reversed(self._heads))  # children mostly come after their parents
        for _ in range(_MAX_ROUNDS):
            left = []
            for node in waiting:
                if any(self._is_possible(shape) for shape in self._heads[node].shapes):
                    self._possible.add(node)
                else:
                    left.append(node)
            if len(left) == len(waiting):
                return
            waiting = left
        self._possible.update(waiting)  # not known to be impossible

    def _can(self, node: Node) -> bool:
        return isinstance(node, Anything) or node in self._possible

    def _is_possible(self, shape: Shape) -> bool:
        if isinstance(shape, Array):
            return all(self._can(shape.item(index)) for index in range(min(shape.min_items, len(shape.prefix) + 1)))
        if isinstance(shape, Object):
            if shape.min_properties and not self._can_add(shape):
                declared = sum(self._can(node) for _, node in shape.properties)
                if declared < shape.min_properties:
                    return False
            property_of = self._normalizer.algebra.properties(shape)
            return all(self._can(property_of(name)) for name in shape.required)
        return True

    def _can_add(self, shape: Object) -> bool:
        """Whether a property that is not declared may be there."""
        return self._can(shape.additional) or any(self._can(node) for _, node in shape.patterns)

    def _refuse(self, node: Node) -> None:
        """Raise for the root, at the deepest place that a single chain of needs leads to."""
        seen: set[Node] = set()
        pointer, reason = "", "it needs itself without end"
        while node not in seen:
            seen.add(node)
            head = self._normalizer.head(node)
            if not head.shapes:
                never = head.never or Never("", "its keywords contradict each other")
                pointer, reason = never.pointer, never.reason
                break
            blocked = next((n for n in self._needs(head.shapes[0]) if not self._can(n)), None)
            if blocked is None:
                break
            node = blocked
        raise ConstraintError(f"nothing can fit this schema: at {pointer or 'the root'}, {reason}", pointer=pointer)

    def _needs(self, shape: Shape) -> Iterator[Node]:
        if isinstance(shape, Array):
            yield from (shape.item(index) for index in range(min(shape.min_items, len(shape.prefix) + 1)))
        elif isinstance(shape, Object):
            yield from map(self._normalizer.algebra.properties(shape), shape.required)

    # Writing

    def _write(self, node: Node) -> Any:
        """The schema of a child: in place, or a reference to its definition."""
        if isinstance(node, Anything):
            return {}
        if node not in self._possible:
            return False
        node = self._same[node]
        inline = self._uses[node] == 1 and self._depth < MAX_INLINE
        if node not in self._names and (inline or self._is_small(node)):
            self._depth += 1
            body = self._body(node)
            self._depth -= 1
            return body
        name = self._names.setdefault(node, f"s{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def _is_small(self, node: Node) -> bool:
        return not any(isinstance(shape, Array | Object) for shape in self._heads[node].shapes)

    def _body(self, node: Node) -> Any:
        head = self._heads[node]
        if head.is_any:
            return {}
        written = [schema for shape in head.shapes if self._is_possible(shape) for schema in self._shape(shape)]
        types = [schema.get("type") for schema in written]
        if len(written) == 1:
            return written[0]
        kinds = {"number" if kind == "integer" else kind for kind in types}
        if None not in types and len(kinds) == len(types) and not any("allOf" in schema for schema in written):
            merged = {"type": types}
            for schema in written:
                merged.update({keyword: value for keyword, value in schema.items() if keyword != "type"})
            return merged
        return {"anyOf": written}

    def _shape(self, shape: Shape) -> Iterator[dict[str, Any]]:
        match shape:
            case Null():
                yield {"type": "null"}
            case Boolean(values):
                yield {"type": "boolean"} if len(values) == 2 else {"const": next(iter(values))}
            case Numbers(values) | Texts(values):
                yield {"const": values[0]} if len(values) == 1 else {"enum": list(values)}
            case Number():
                yield self._number(shape)
            case String():
                yield self._string(shape)
            case Array():
                yield self._array(shape)
            case Object():
                for variant in self._counted(shape):
                    yield self._object(variant)

    def _number(self, shape: Number) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer" if shape.integer else "number"}
        if self._plain:
            return schema
        low, high = shape.low, shape.high
        if shape.integer:
            low, high = integer_bounds(shape)
            low = low if low is None or low > -_MAX_INTEGER else -_MAX_INTEGER
            high = high if high is None or high < _MAX_INTEGER else _MAX_INTEGER
        if low is not None:
            schema["exclusiveMinimum" if shape.low_open and not shape.integer else "minimum"] = _inward(low, 1)
        if high is not None:
            schema["exclusiveMaximum" if shape.high_open and not shape.integer else "maximum"] = _inward(high, -1)
        if shape.multiple is not None and not (shape.integer and shape.multiple == 1):
            schema["multipleOf"] = (
                shape.multiple.numerator if shape.multiple.denominator == 1 else float(shape.multiple)
            )
        return schema

    def _string(self, shape: String) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        if self._plain:
            return schema
        lengths = [shape.max_length, *(FORMATS[name].max_length for name in shape.formats)]
        bounds = [length for length in lengths if length is not None]
        if shape.min_length:
            schema["minLength"] = shape.min_length
        if bounds:
            schema["maxLength"] = min(bounds)
        languages = [*shape.patterns, *map(self._formats.language, shape.formats)]
        if shape.excluded:
            languages.append(Language(avoiding(sorted(shape.excluded))))
        texts = [f"^(?:{language.text})$" for language in languages]
        if texts:
            schema["pattern"] = texts[0]
        if len(texts) > 1:
            schema["allOf"] = [{"pattern": text} for text in texts[1:]]
        return schema

    def _array(self, shape: Array) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array"}
        most = shape.max_items
        prefix = []
        for index, node in enumerate(shape.prefix):
            if not self._can(node):
                most = index if most is None else min(most, index)
                break
            prefix.append(self._write(node))
        if prefix:
            schema["prefixItems"] = prefix
        more = most is None or most > len(prefix)
        schema["items"] = self._write(shape.items) if more else False
        if shape.min_items:
            schema["minItems"] = shape.min_items
        if most is not None and more and schema["items"] is not False:
            schema["maxItems"] = most
        return schema

    def _counted(self, shape: Object) -> Iterable[Object]:
        """``shape`` with its bounds on the number of properties in a form that the backends take."""
        optional = [n for n, node in shape.properties if n not in shape.required and self._can(node)]
        least = shape.min_properties if shape.min_properties > len(shape.required) else 0
        most = shape.max_properties
        closed = not self._can_add(shape)
        if most is not None and closed and len(optional) + len(shape.required) <= most:
            most = None
        shape = replace(shape, min_properties=least, max_properties=most)
        if (not least and most is None) or not optional:
            return [shape]
        few = len(shape.properties) <= MAX_ALTERNATIVES
        if few and len(optional) <= MAX_SUBSETS:
            return self._subsets(shape, optional)
        if few and most is None and least == len(shape.required) + 1:
            return self._at_least_one(shape, optional)
        keyword = "minProperties" if least else "maxProperties"
        self._found[Finding(f"{shape.pointer}/{keyword}", keyword, "too many optional properties to count")] = None
        return [replace(shape, min_properties=0, max_properties=None)]

    def _subsets(self, shape: Object, optional: list[str]) -> Iterator[Object]:
        closed = not self._can_add(shape)
        for count in range(len(optional) + 1):
            total = count + len(shape.required)
            if (closed and total < shape.min_properties) or total > (shape.max_properties or total):
                continue
            if shape.max_properties == 0 and total:
                continue
            for chosen in combinations(optional, count):
                yield _with_exactly(shape, chosen, [name for name in optional if name not in chosen])

    def _at_least_one(self, shape: Object, optional: list[str]) -> Iterator[Object]:
        """One alternative per property that comes first, and one for none of them."""
        free = replace(shape, min_properties=0)
        for index, name in enumerate(optional):
            yield _with_exactly(free, (name,), optional[:index])
        if self._can_add(shape):
            yield _with_exactly(shape, (), optional)

    def _object(self, shape: Object) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object"}
        property_of = self._normalizer.algebra.properties(shape)
        written = {name: self._write(property_of(name)) for name in listed_names(shape)}
        additional = self._write(shape.additional)
        if additional is False:  # then what is excluded goes without saying
            shape = replace(shape, patterns=tuple(pair for pair in shape.patterns if self._can(pair[1])))
        if additional is False and not shape.patterns:
            written = {name: child for name, child in written.items() if child is not False}
        if written:
            schema["properties"] = written
        if shape.patterns:
            schema["patternProperties"] = self._patterns(shape)
        schema["additionalProperties"] = additional
        if shape.required:
            schema["required"] = list(shape.required)
        if shape.min_properties:
            schema["minProperties"] = shape.min_properties
        if shape.max_properties is not None:
            schema["maxProperties"] = shape.max_properties
        return schema

    def _patterns(self, shape: Object) -> dict[str, Any]:
        """Patterns that no name matches twice: those that overlap are put together."""
        groups: list[tuple[list[Language], dict[Node, None]]] = []
        share = self._normalizer.algebra.share
        for language, node in shape.patterns:
            touching = [g for g in groups if any(share(language, other) is not False for other in g[0])]
            into = touching[0] if touching else ([], {})
            for group in touching[1:]:
                into[0].extend(group[0])
                into[1].update(group[1])
            groups = [group for group in groups if not any(group is other for other in touching[1:])]
            groups.extend(() if touching else (into,))
            into[0].append(language)
            into[1][node] = None
        written: dict[str, Any] = {}
        for languages, nodes in groups:
            if len(nodes) > 1:
                place = f"{shape.pointer}/patternProperties"
                self._found[Finding(place, "patternProperties", "a name may match several of the patterns")] = None
            schemas = [self._write(node) for node in nodes]
            name = "|".join(language.text for language in languages)
            written[f"^(?:{name})$"] = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        return written


def _with_exactly(shape: Object, present: tuple[str, ...], absent: list[str]) -> Object:
    """``shape`` with the properties ``present`` required and those in ``absent`` excluded."""
    excluded = Never("", "excluded")
    return replace(
        shape,
        properties=tuple((name, excluded if name in absent else node) for name, node in shape.properties),
        required=tuple(dict.fromkeys((*shape.required, *present))),
        min_properties=shape.min_properties if shape.min_properties > len(shape.required) + len(present) else 0,
    )


def _inward(bound: int | float, direction: int) -> int | float:
    """A bound that survives conversion to a float: the nearest on the allowed side, past 2^53."""
    if isinstance(bound, float) or abs(bound) <= _SAFE_INTEGER:
        return bound
    nearest = float(bound)
    outside = int(nearest) * direction < bound * direction
    return int(math.nextafter(nearest, math.inf * direction)) if outside else int(nearest)

"""The values a schema allows, as a union of shapes: one JSON type and its bounds each.

Rules. Shapes are immutable and know their child schemas only as opaque `Node`s, which are intersected by name and
never looked into. What is done with shapes is in `algebra`.

Must not know: schema text, references, drafts, grammars.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from radixbackend.structured.language import Language

# Nodes


@dataclass(frozen=True, slots=True)
class Anything:
    """The schema that every value fits."""


@dataclass(frozen=True, slots=True)
class Never:
    """A schema that nothing fits; equal to every other."""

    pointer: str
    reason: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Never)

    def __hash__(self) -> int:
        return hash(Never)


@dataclass(frozen=True, slots=True)
class Sub:
    """The subschema at ``pointer`` of the document."""

    pointer: str


@dataclass(frozen=True, slots=True)
class Constant:
    """One value, as JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class All:
    """What fits every one of ``nodes``."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """What does not fit ``node``; ``pointer`` is the keyword that says so."""

    node: Node
    pointer: str


Node = Anything | Never | Sub | Constant | All | Not

ANY = Anything()


def all_of(*nodes: Node) -> Node:
    """The intersection, flattened and without repetition."""
    flat: dict[Node, None] = {}
    for node in nodes:
        if isinstance(node, Never):
            return node
        flat.update(dict.fromkeys(node.nodes if isinstance(node, All) else (node,)))
    flat.pop(ANY, None)
    return next(iter(flat), ANY) if len(flat) <= 1 else All(tuple(flat))


def negation(node: Node, pointer: str) -> Node:
    if isinstance(node, Anything):
        return Never(pointer, "nothing is left to fit")
    if isinstance(node, Never):
        return ANY
    return node.node if isinstance(node, Not) else Not(node, pointer)


# Shapes


@dataclass(frozen=True, slots=True)
class Null:
    pass


@dataclass(frozen=True, slots=True)
class Boolean:
    values: frozenset[bool] = frozenset((False, True))


@dataclass(frozen=True, slots=True)
class Number:
    """Numbers between bounds; ``None`` is unbounded, the flags exclude the bound itself."""

    low: int | float | None = None
    low_open: bool = False
    high: int | float | None = None
    high_open: bool = False
    multiple: Fraction | None = None
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Numbers:
    """Some numbers, listed."""

    values: tuple[int | float, ...]


@dataclass(frozen=True, slots=True)
class String:
    """Texts of a length in code points, in every language, of every format, and none of those excluded."""

    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[Language, ...] = ()
    formats: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Texts:
    """Some texts, listed."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Array:
    prefix: tuple[Node, ...] = ()
    items: Node = ANY
    min_items: int = 0
    max_items: int | None = None

    def item(self, index: int) -> Node:
        return self.prefix[index] if index < len(self.prefix) else self.items


@dataclass(frozen=True, slots=True)
class Object:
    """Objects. Declared names come with everything that applies to them, patterns included.

    Attributes:
        patterns: (language, node) for names that are not declared; all that match apply.
        additional: for names neither declared nor matched.
        pointer: where in the schema it comes from, for messages.
    """

    properties: tuple[tuple[str, Node], ...] = ()
    patterns: tuple[tuple[Language, Node], ...] = ()
    additional: Node = ANY
    required: tuple[str, ...] = ()
    min_properties: int = 0
    max_properties: int | None = None
    pointer: str = field(default="", compare=False)


Shape = Null | Boolean | Number | Numbers | String | Texts | Array | Object

GENERIC: tuple[Shape, ...] = (Null(), Boolean(), Number(), String(), Array(), Object())


def json_type(shape: Shape) -> str:
    names = {Null: "null", Boolean: "boolean", Number: "number", Numbers: "number", String: "string", Texts: "string"}
    return names.get(type(shape), "array" if isinstance(shape, Array) else "object")


def least(first: int | None, second: int | None) -> int | None:
    return second if first is None else first if second is None else min(first, second)


def integer_bounds(shape: Number) -> tuple[int | None, int | None]:
    """The least and the greatest integer inside the bounds."""
    low = high = None
    if shape.low is not None:
        low = math.floor(shape.low) + 1 if shape.low_open else math.ceil(shape.low)
    if shape.high is not None:
        high = math.ceil(shape.high) - 1 if shape.high_open else math.floor(shape.high)
    return low, high


def tidy_array(shape: Array) -> Array:
    """The same array, with positions that nothing fits turned into a bound on its length."""
    most = shape.max_items
    for index, node in enumerate((*shape.prefix, shape.items)):
        if isinstance(node, Never):
            most = least(most, index)
            break
    prefix = shape.prefix if most is None else shape.prefix[:most]
    items = shape.items if most is None or most > len(prefix) else ANY
    return Array(prefix, items, shape.min_items, most)


def listed_names(shape: Object) -> Iterable[str]:
    """Declared names, then required ones that are not declared."""
    return dict.fromkeys([*(name for name, _ in shape.properties), *shape.required])

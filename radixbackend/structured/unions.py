"""Unions of shapes with what is known of them, and how they combine.

Rules. A `Head` is the value set of a schema or a superset of it. Combining is bounded: past the bounds the second
operand is left out, which makes the set wider, and a `Finding` says so. Nothing is ever left out silently.

Must not know: where the operands come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from radixbackend.structured.algebra import Algebra
from radixbackend.structured.metaschema import applicators, values
from radixbackend.structured.report import Finding
from radixbackend.structured.shapes import (
    GENERIC,
    Array,
    Boolean,
    Never,
    Numbers,
    Object,
    Shape,
    String,
    Texts,
    json_type,
)

MAX_UNION = 64
"""Shapes that multiplying two unions may yield, unless one of them has more to begin with."""
_MAX_JOIN = 1_000
_MAX_FINDINGS = 64
_CONTAINERS = {"properties", "patternProperties", "$defs", "definitions"}
_KEYWORDS = {*values(2020), *applicators(2020), *applicators(2019), "const", "dependentRequired"} - _CONTAINERS


@dataclass(frozen=True, slots=True)
class Head:
    """A union of shapes.

    Attributes:
        exact: the union is the value set itself, one level deep; else it is wider.
        findings: keywords that were left out.
        never: why there are no shapes, if there are none.
    """

    shapes: tuple[Shape, ...]
    exact: bool = True
    findings: tuple[Finding, ...] = ()
    never: Never | None = None

    @property
    def is_any(self) -> bool:
        return len(self.shapes) == len(GENERIC) and all(shape in GENERIC for shape in self.shapes)


ANY_HEAD = Head(GENERIC)


class Unions:
    """Intersection, union and complement of heads."""

    def __init__(self, algebra: Algebra) -> None:
        self._algebra = algebra

    def meet(self, first: Head, second: Head, pointer: str) -> Head:
        """The intersection; ``pointer`` is the keyword that ``second`` comes from."""
        findings = merge_findings((first, second))
        exact = first.exact and second.exact
        if first.is_any or second.is_any:
            kept = second if first.is_any else first
            return Head(kept.shapes, exact, findings, first.never or second.never)
        by_type: dict[str, list[Shape]] = {}
        for other in second.shapes:
            by_type.setdefault(json_type(other), []).append(other)
        shapes: dict[Shape, None] = {}
        most = max(MAX_UNION, len(first.shapes), len(second.shapes))
        for one in first.shapes:
            for other in by_type.get(json_type(one), ()):
                met, met_exactly = self._algebra.meet(one, other)
                if not met_exactly:
                    exact = False
                    findings += (Finding(pointer, "patternProperties", "does not combine with the other patterns"),)
                if met is not None:
                    shapes[met] = None
            if len(shapes) > most or self._algebra.exhausted:
                left_out = Finding(pointer, keyword_of(pointer), "combines with the rest in too many ways")
                return Head(first.shapes, False, (*findings, left_out))
        never = first.never or second.never
        if not shapes and never is None:
            never = Never(pointer, "contradicts the keywords beside it")
        return Head(tuple(shapes), exact, findings, None if shapes else never)

    def join(self, heads: Iterable[Head], pointer: str) -> Head:
        """The union; where every part is empty it says so at ``pointer``."""
        heads = list(heads)
        findings = merge_findings(heads)
        exact = all(head.exact for head in heads)
        if any(head.is_any for head in heads):
            return Head(GENERIC, exact, findings)
        shapes = merge_lists(dict.fromkeys(shape for head in heads for shape in head.shapes))
        if sum(isinstance(shape, Object | Array) for shape in shapes) > _MAX_JOIN:
            left_out = Finding(pointer, keyword_of(pointer), f"has more than {_MAX_JOIN} alternatives")
            return Head(GENERIC, False, (*findings, left_out))
        never = None
        if not shapes:
            whys = [head.never for head in heads if head.never is not None]
            never = whys[0] if len(whys) == 1 else Never(pointer, "every alternative contradicts something")
        return Head(shapes, exact, findings, never)

    def negate(self, head: Head, pointer: str) -> Head:
        """What is not in ``head``; everything, and a finding at ``pointer``, where that is no union of shapes."""
        if head.is_any and head.exact:
            return Head((), never=Never(pointer, "nothing is left to fit"))
        exact = head.exact
        shapes: list[Shape] = []
        for generic in GENERIC:
            left: list[Shape] = [generic]
            for shape in head.shapes:
                if json_type(shape) == json_type(generic) and exact:
                    outside, exact = self._algebra.opposite(shape, pointer)
                    if len(left) * len(outside) > MAX_UNION * MAX_UNION:
                        exact = False
                        break
                    met = [self._algebra.meet(one, other)[0] for one in left for other in outside]
                    left = [shape for shape in met if shape is not None]
                    exact = exact and len(left) <= MAX_UNION and not self._algebra.exhausted
            shapes.extend(left)
        if exact:
            return Head(tuple(shapes), never=None if shapes else Never(pointer, "nothing is left to fit"))
        return Head(GENERIC, False, (Finding(pointer, keyword_of(pointer), "its opposite is beyond a grammar"),))

    def overlap(self, first: Head, second: Head) -> Head:
        """The shapes that two heads share, as narrow as a look at their children makes them."""
        exact = first.exact and second.exact
        shared: dict[Shape, None] = {}
        for one in first.shapes:
            for other in second.shapes:
                met, met_exactly = self._algebra.meet(one, other)
                if met is None or (isinstance(met, String) and self._algebra.apart(met)):
                    continue
                exact = exact and met_exactly
                shared[self._algebra.tighten(met)] = None
        return Head(tuple(shared), exact)


def keyword_of(pointer: str) -> str:
    """The keyword that a pointer leads to, past the index or the name of a branch."""
    return next((part for part in reversed(pointer.split("/")) if part in _KEYWORDS), "allOf")


def merge_findings(heads: Iterable[Head]) -> tuple[Finding, ...]:
    """The findings of all, each once, up to `_MAX_FINDINGS` of them."""
    several = [head.findings for head in heads if head.findings]
    if len(several) <= 1:
        return several[0] if several else ()
    return tuple(dict.fromkeys(finding for findings in several for finding in findings))[:_MAX_FINDINGS]


def merge_lists(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """``shapes`` with the listed values of each type in one shape."""
    merged: list[Shape] = []
    texts: dict[str, None] = {}
    numbers: dict[int | float, None] = {}
    booleans: frozenset[bool] = frozenset()
    for shape in shapes:
        if isinstance(shape, Texts):
            texts.update(dict.fromkeys(shape.values))
        elif isinstance(shape, Numbers):
            numbers.update(dict.fromkeys(shape.values))
        elif isinstance(shape, Boolean):
            booleans |= shape.values
        else:
            merged.append(shape)
    if texts:
        merged.append(Texts(tuple(texts)))
    if numbers:
        merged.append(Numbers(tuple(numbers)))
    if booleans:
        merged.append(Boolean(booleans))
    return tuple(merged)

"""Intersection and complement of shapes.

Rules. `Algebra.meet` is the intersection of two shapes, `Algebra.opposite` the values of a type that are not in a
shape. Where the exact answer is not a union of shapes the answer is wider and says so (``exact`` is False), never
narrower. Formats are the one exception: a text is of a format when `FormatBook` accepts it, and no format is ever
negated.

Must not know: schema text, references, drafts, grammars.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, pairwise

from radixbackend.structured.automaton import EVERY_TEXT, Automaton, build
from radixbackend.structured.formats import FormatBook
from radixbackend.structured.language import MATCH_SECONDS, Language, SlowMatchError, avoiding, words
from radixbackend.structured.shapes import (
    ANY,
    GENERIC,
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
    all_of,
    integer_bounds,
    json_type,
    least,
    listed_names,
    negation,
    tidy_array,
)

MAX_WORK = 20_000
"""Intersections of shapes and of their properties that one schema may cost: some half second."""


_COMPLEMENT_WORK = 200
_COMPARE_WORK = 200
_MAX_CELLS = 16


class Algebra:
    """Intersection and complement. ``is_empty`` tells (or does not know: False) whether nothing fits a node."""

    def __init__(self, formats: FormatBook, is_empty: Callable[[Node], bool]) -> None:
        self._formats = formats
        self._is_empty = is_empty
        self._work = 0
        self._matching = 0.0

    # Intersection

    def meet(self, first: Shape, second: Shape) -> tuple[Shape | None, bool]:
        """The intersection (None where empty), and whether it is exact."""
        self._work += 1
        exact = True
        met: Shape | None
        match first, second:
            case Null(), Null():
                met = first
            case Boolean(), Boolean():
                met = Boolean(first.values & second.values)
            case Number(), Number():
                met = _meet_numbers(first, second)
            case Numbers(values), Number() | Numbers():
                met = Numbers(tuple(v for v in values if _has_number(second, v)))
            case Number(), Numbers():
                return self.meet(second, first)
            case String(), String():
                met = String(
                    max(first.min_length, second.min_length),
                    least(first.max_length, second.max_length),
                    tuple(dict.fromkeys(first.patterns + second.patterns)),
                    tuple(dict.fromkeys(first.formats + second.formats)),
                    first.excluded | second.excluded,
                )
            case Texts(values), String() | Texts():
                met = Texts(tuple(text for text in values if self._has_text(second, text)))
            case String(), Texts():
                return self.meet(second, first)
            case Array(), Array():
                met = _meet_arrays(first, second)
            case Object(), Object():
                met, exact = self._meet_objects(first, second)
            case _:
                return None, True
        return (met, exact) if met is not None and self.possible(met) else (None, True)

    @property
    def exhausted(self) -> bool:
        """Whether the schema has cost `MAX_WORK`; what is asked from now on is answered, but better not asked."""
        return self._work > MAX_WORK

    def _has_text(self, shape: String | Texts, text: str) -> bool:
        if isinstance(shape, Texts):
            return text in shape.values
        return (
            shape.min_length <= len(text) <= (math.inf if shape.max_length is None else shape.max_length)
            and text not in shape.excluded
            and all(self.has(language, text) for language in shape.patterns)
            and all(self._formats.accepts(name, text) for name in shape.formats)
        )

    def _meet_objects(self, first: Object, second: Object) -> tuple[Object, bool]:
        names = dict.fromkeys([*(n for n, _ in first.properties), *(n for n, _ in second.properties)])
        self._work += len(names) + len(first.required) + len(second.required)
        of_first, of_second = self.properties(first), self.properties(second)
        met_patterns, exact = _meet_patterns(first, second)
        return (
            Object(
                tuple((name, all_of(of_first(name), of_second(name))) for name in names),
                met_patterns,
                all_of(first.additional, second.additional),
                tuple(dict.fromkeys(first.required + second.required)),
                max(first.min_properties, second.min_properties),
                least(first.max_properties, second.max_properties),
                first.pointer or second.pointer,
            ),
            exact,
        )

    def properties(self, shape: Object) -> Callable[[str], Node]:
        """A function from a property's name to the node that the property has to fit."""
        declared = dict(shape.properties)

        def property_of(name: str) -> Node:
            if name in declared:
                return declared[name]
            matched = [node for language, node in shape.patterns if self.has(language, name)]
            return all_of(*matched) if matched else shape.additional

        return property_of

    # Names and patterns

    def has(self, language: Language, text: str) -> bool:
        """Whether ``text`` is in ``language``; raises `SlowMatchError` once this schema's matches take too long."""
        start = time.thread_time()
        found = language.has(text)
        self._matching += time.thread_time() - start
        if self._matching > MATCH_SECONDS:
            raise SlowMatchError
        return found

    def share(self, first: Language, second: Language) -> bool | None:
        """Whether some text is in both languages; None where that is too much work to tell."""
        self._work += _COMPARE_WORK
        if self.exhausted or first.automaton is None or second.automaton is None:
            return None
        shared = first.automaton.and_also(second.automaton)
        return None if shared is None else not shared.is_empty

    def separate(self, shape: Object) -> Object:
        """The same object, its patterns matching no declared name and no name of each other, where that can be."""
        known = dict(shape.properties)
        declared = [name for name in listed_names(shape) if any(self.has(each, name) for each, _ in shape.patterns)]
        matched = tuple(
            (name, all_of(*(node for language, node in shape.patterns if self.has(language, name))))
            for name in declared
            if name not in known
        )
        shape = replace(shape, properties=shape.properties + matched)
        pairs = combinations([language for language, _ in shape.patterns], 2)
        if not declared and all(self.share(first, second) is False for first, second in pairs):
            return shape
        cells = None if self.exhausted else _cells(shape, declared)
        languages = [(Language.of(cell), node) for cell, node in cells or ()]
        if cells is None or any(language is None for language, _ in languages):
            return shape
        return replace(shape, patterns=tuple((language, node) for language, node in languages if language is not None))

    # Emptiness

    def possible(self, shape: Shape) -> bool:
        """False where certainly nothing fits."""
        match shape:
            case Boolean(values) | Numbers(values) | Texts(values):
                return bool(values)
            case Number():
                return _possible_number(shape)
            case String():
                return _possible_string(shape, [self._formats.lengths(name) for name in shape.formats])
            case Array():
                if shape.max_items is not None and shape.min_items > shape.max_items:
                    return False
                checked = min(shape.min_items, len(shape.prefix) + 1)
                return not any(self._is_empty(shape.item(index)) for index in range(checked))
            case Object():
                return self._possible_object(shape)
            case _:
                return True

    def _possible_object(self, shape: Object) -> bool:
        most = shape.max_properties
        if most is not None and max(len(shape.required), shape.min_properties) > most:
            return False
        if shape.min_properties and not shape.patterns and isinstance(shape.additional, Never):
            declared = sum(not isinstance(node, Never) for _, node in shape.properties)
            if declared < shape.min_properties:
                return False
        property_of = self.properties(shape)
        return not any(self._is_empty(property_of(name)) for name in shape.required)

    def apart(self, shape: String) -> bool:
        """Whether two of the patterns that a text has to match certainly exclude each other."""
        return any(self.share(first, second) is False for first, second in combinations(shape.patterns, 2))

    def tighten(self, shape: Shape) -> Shape:
        """The same values, with children that nothing fits made plain."""
        if isinstance(shape, Array):
            prefix = tuple(map(self._plain, shape.prefix))
            return tidy_array(replace(shape, prefix=prefix, items=self._plain(shape.items)))
        if not isinstance(shape, Object):
            return shape
        shape = replace(
            shape,
            properties=tuple((name, self._plain(node)) for name, node in shape.properties),
            patterns=tuple((language, self._plain(node)) for language, node in shape.patterns),
            additional=self._plain(shape.additional),
        )
        nodes = [shape.additional, *(node for _, node in shape.properties), *(node for _, node in shape.patterns)]
        return Object(max_properties=0) if all(isinstance(node, Never) for node in nodes) else shape

    def _plain(self, node: Node) -> Node:
        return Never("", "nothing fits it") if self._is_empty(node) else node

    # Complement

    def opposite(self, shape: Shape, pointer: str) -> tuple[list[Shape], bool]:
        """The values of the shape's own type that are not in it, and whether that is exact."""
        generic = next(g for g in GENERIC if json_type(g) == json_type(shape))
        if isinstance(shape, String):
            self._work += _COMPLEMENT_WORK * len(shape.patterns)
        match shape:
            case Null():
                return [], True
            case Boolean(values):
                return [Boolean(frozenset((False, True)) - values)], True
            case Number():
                return _opposite_number(shape)
            case Numbers(values) if len(values) <= 64:
                return list(_gaps(sorted(set(values)))), True
            case Texts(values) if _can_exclude(values):
                return [String(excluded=frozenset(values))], True
            case String():
                return _opposite_string(shape)
            case Array():
                return _opposite_array(shape, pointer)
            case Object():
                return _opposite_object(shape, pointer)
            case _:
                return [generic], False


def _has_number(shape: Number | Numbers, value: int | float) -> bool:
    if isinstance(shape, Numbers):
        return value in shape.values
    if shape.integer and value != int(value):
        return False
    if shape.multiple is not None and (Fraction(repr(value)) / shape.multiple).denominator != 1:
        return False
    above = shape.low is None or value > shape.low or (value == shape.low and not shape.low_open)
    below = shape.high is None or value < shape.high or (value == shape.high and not shape.high_open)
    return above and below


def _meet_numbers(first: Number, second: Number) -> Number:
    low = max((first.low, first.low_open), (second.low, second.low_open), key=_lower)
    high = min((first.high, first.high_open), (second.high, second.high_open), key=_upper)
    multiple = first.multiple or second.multiple
    if first.multiple and second.multiple:
        multiple = _common_multiple(first.multiple, second.multiple)
    integer = first.integer or second.integer
    if integer and multiple:
        multiple = _common_multiple(multiple, Fraction(1))
    return Number(low[0], low[1], high[0], high[1], multiple, integer)


def _lower(bound: tuple[int | float | None, bool]) -> tuple[float | int, bool]:
    return -math.inf if bound[0] is None else bound[0], bound[1]


def _upper(bound: tuple[int | float | None, bool]) -> tuple[float | int, bool]:
    return math.inf if bound[0] is None else bound[0], not bound[1]


def _common_multiple(first: Fraction, second: Fraction) -> Fraction:
    return Fraction(
        math.lcm(first.numerator * second.denominator, second.numerator * first.denominator),
        first.denominator * second.denominator,
    )


def _possible_string(shape: String, formats: list[tuple[int, int | None]]) -> bool:
    """As far as lengths tell: a text has to be as long as every pattern and format wants it."""
    wanted = [*(language.lengths for language in shape.patterns), *formats]
    shortest = max([shape.min_length, *(least for least, _ in wanted)])
    bounds = [shape.max_length, *(most for _, most in wanted)]
    longest = min((bound for bound in bounds if bound is not None), default=None)
    if longest == 0 and "" in shape.excluded:
        return False
    return longest is None or shortest <= longest


def _possible_number(shape: Number) -> bool:
    if shape.low is None or shape.high is None:
        return True
    if shape.low > shape.high or (shape.low == shape.high and (shape.low_open or shape.high_open)):
        return False
    if shape.integer:
        low, high = integer_bounds(shape)
        if low is not None and high is not None and low > high:
            return False
    if shape.multiple is None:
        return True
    low_multiple, high_multiple = (Fraction(repr(bound)) / shape.multiple for bound in (shape.low, shape.high))
    least = math.floor(low_multiple) + 1 if shape.low_open else math.ceil(low_multiple)
    most = math.ceil(high_multiple) - 1 if shape.high_open else math.floor(high_multiple)
    return least <= most


def _opposite_number(shape: Number) -> tuple[list[Shape], bool]:
    if shape.integer or shape.multiple is not None:
        return [Number()], False
    outside: list[Shape] = []
    if shape.low is not None:
        outside.append(Number(high=shape.low, high_open=not shape.low_open))
    if shape.high is not None:
        outside.append(Number(low=shape.high, low_open=not shape.high_open))
    return outside, True


def _gaps(values: list[int | float]) -> Iterator[Number]:
    yield Number(high=values[0], high_open=True)
    for low, high in pairwise(values):
        yield Number(low, True, high, True)
    yield Number(low=values[-1], low_open=True)


def _opposite_string(shape: String) -> tuple[list[Shape], bool]:
    outside: list[Shape] = []
    exact = not shape.formats
    if shape.min_length:
        outside.append(String(max_length=shape.min_length - 1))
    if shape.max_length is not None:
        outside.append(String(min_length=shape.max_length + 1))
    if shape.excluded:
        outside.append(Texts(tuple(sorted(shape.excluded))))
    for language in shape.patterns:
        listed = words(language.tree, 64)
        if listed is not None and _can_exclude(listed):
            outside.append(String(excluded=frozenset(listed)))
        else:
            others = EVERY_TEXT.without(language.automaton) if language.automaton else None
            rest = Language.of(others)
            exact = exact and others is not None and (rest is not None or others.is_empty)
            outside.extend(() if rest is None else (String(patterns=(rest,)),))
    return (outside, True) if exact else ([String()], False)


def _can_exclude(texts: tuple[str, ...]) -> bool:
    """Whether a pattern can avoid these texts without growing too long or nesting too deep."""
    return sum(map(len, texts)) <= 1_000 and all(len(text) <= 40 for text in texts)


def _meet_arrays(first: Array, second: Array) -> Array:
    length = max(len(first.prefix), len(second.prefix))
    prefix = tuple(all_of(first.item(index), second.item(index)) for index in range(length))
    return tidy_array(
        Array(
            prefix,
            all_of(first.items, second.items),
            max(first.min_items, second.min_items),
            least(first.max_items, second.max_items),
        )
    )


def _opposite_array(shape: Array, pointer: str) -> tuple[list[Shape], bool]:
    outside: list[Shape] = []
    if shape.min_items:
        outside.append(Array(max_items=shape.min_items - 1))
    if shape.max_items is not None:
        outside.append(Array(min_items=shape.max_items + 1))
    for index, node in enumerate(shape.prefix):
        if node != ANY:
            outside.append(Array((ANY,) * index + (negation(node, pointer),), ANY, index + 1))
    beyond = shape.max_items is None or shape.max_items > len(shape.prefix)
    if shape.items != ANY and beyond:
        if shape.max_items is None or shape.max_items > len(shape.prefix) + 8:
            return [Array()], False
        for index in range(len(shape.prefix), shape.max_items):
            outside.append(Array((ANY,) * index + (negation(shape.items, pointer),), ANY, index + 1))
    return outside, True


def _opposite_object(shape: Object, pointer: str) -> tuple[list[Shape], bool]:
    excluded = Never(pointer, "excluded")
    outside: list[Shape] = [Object(((name, excluded),), pointer=shape.pointer) for name in shape.required]
    optional = [name for name, node in shape.properties if node != excluded and name not in shape.required]
    if shape.patterns or (shape.additional != ANY and (shape.additional != excluded or len(optional) > 3)):
        return [Object(pointer=shape.pointer)], False
    if shape.additional == excluded:  # one property more than those declared, whichever of them are there
        for count in range(len(optional) + 1):
            for chosen in combinations(optional, count):
                present = (*shape.required, *chosen)
                absent = tuple((name, excluded) for name in optional if name not in chosen)
                outside.append(Object(absent, (), ANY, present, len(present) + 1, None, shape.pointer))
    for name, node in shape.properties:
        if node != ANY:
            outside.append(Object(((name, negation(node, pointer)),), required=(name,), pointer=shape.pointer))
    if shape.min_properties:
        outside.append(Object(max_properties=shape.min_properties - 1, pointer=shape.pointer))
    if shape.max_properties is not None:
        outside.append(Object(min_properties=shape.max_properties + 1, pointer=shape.pointer))
    return outside, True


def _meet_patterns(first: Object, second: Object) -> tuple[tuple[tuple[Language, Node], ...], bool]:
    """The patterns of an intersection: a name that only one side matches has to fit the other's additional too."""
    mine, theirs = dict(first.patterns), dict(second.patterns)
    met = [(language, all_of(mine[language], theirs[language])) for language in mine if language in theirs]
    exact = True
    for shape, other in ((first, second), (second, first)):
        known = dict(other.patterns)
        for language, node in shape.patterns:
            if language in known:
                continue
            if not known:
                met.append((language, all_of(node, other.additional)))
                continue
            met.append((language, node))
            if other.additional != ANY:
                alone = _without(language, known)
                exact = exact and alone is not None
                met.extend((one, other.additional) for one in alone or ())
    return tuple(met), exact


def _without(language: Language, others: Iterable[Language]) -> list[Language] | None:
    """The texts that are in none of ``others``, as no language or one; None where that is too much work."""
    rest = language.automaton
    for other in others:
        rest = rest.without(other.automaton) if rest and other.automaton else None
    if rest is None:
        return None
    alone = Language.of(rest)
    return [] if rest.is_empty else None if alone is None else [alone]


def _cells(shape: Object, declared: list[str]) -> list[tuple[Automaton, Node]] | None:
    """The names that are not ``declared``, by which of the patterns they match; None where that is too much work."""
    cells: list[tuple[Automaton, Node]] = []
    taken = build(avoiding(declared)) if declared else EVERY_TEXT
    for language, node in shape.patterns:
        rest = taken and language.automaton and language.automaton.and_also(taken)
        if language.automaton is None or rest is None:
            return None
        split: list[tuple[Automaton | None, Node]] = []
        for cell, other in cells:
            split.append((cell.without(language.automaton), other))
            split.append((cell.and_also(language.automaton), all_of(other, node)))
            rest = rest and rest.without(cell)
        split.append((rest, node))
        if any(cell is None for cell, _ in split) or len(split) > _MAX_CELLS:
            return None
        cells = [(cell, one) for cell, one in split if cell is not None and not cell.is_empty]
    return cells

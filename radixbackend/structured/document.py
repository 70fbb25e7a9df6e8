"""A schema as the caller gave it: parsed within bounds, its dialect known, every reference resolved.

Rules. Whatever the text holds, building a `Document` takes well under a second and either works or raises
`ConstraintError` with the JSON pointer at fault. Key order is kept, duplicate keys are refused, nothing is ever
fetched. Only what the root can reach is looked at: a broken definition that nobody uses is nobody's problem.

Must not know: what a keyword means for an instance (`normalize`), what a grammar can do (`lint`).
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from radixbackend.errors import ConstraintError
from radixbackend.structured.metaschema import children, first_fault, token
from radixbackend.structured.pattern import PatternError, parse

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
MAX_ITEMS = 10_000
"""Entries of one array, so of one ``enum``."""
MAX_KEYS = 4_000
"""Keys of one object, so ``properties`` of one schema."""
MAX_PATTERN = 8_192
MAX_PATTERNS = 1_000
"""Patterns of one ``patternProperties``."""
MAX_CHAIN = 200
"""Schemas inside or behind each other, references followed: grammar compilers recurse that deep on their stack."""
MAX_DIGITS = 308

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")

_IN_PLACE = frozenset(("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"))
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def parse_json(text: str, what: str) -> Any:
    """The JSON value of ``text`` within this module's bounds; numbers beyond float range are refused."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as fault:
        raise ConstraintError(f"the {what} holds an unpaired surrogate", pointer=f"@{fault.start}") from fault
    if size > MAX_BYTES:
        raise ConstraintError(f"the {what} has {size:,} bytes; at most {MAX_BYTES:,} are taken")
    _check_depth(text, what)
    repeated: dict[int, str] = {}

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated[id(value)] = next(key for key in counts if counts[key] > 1)
        return value

    try:
        value = json.loads(text, object_pairs_hook=collect, parse_constant=_refuse_constant, parse_int=_parse_int)
    except (ValueError, RecursionError) as fault:
        raise ConstraintError(f"the {what} is not JSON: {fault}") from fault
    for pointer, part in walk(value):
        _check_part(part, pointer, what)
        if id(part) in repeated:
            key = repeated[id(part)]
            raise ConstraintError(
                f"the key {key!r} appears twice at {pointer or 'the root'}", pointer=pointer + token(key)
            )
    return value


def _check_depth(text: str, what: str) -> None:
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ConstraintError(f"the {what} nests deeper than {MAX_DEPTH} levels")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value inside ``value``, itself included, with its JSON pointer; iterative, in document order."""
    todo = [("", value)]
    while todo:
        pointer, part = todo.pop()
        yield pointer, part
        if isinstance(part, dict):
            todo.extend((pointer + token(key), part[key]) for key in reversed(part))
        elif isinstance(part, list):
            todo.extend((pointer + token(index), part[index]) for index in reversed(range(len(part))))


def _check_part(part: Any, pointer: str, what: str) -> None:
    if isinstance(part, float) and not math.isfinite(part):
        raise ConstraintError(f"the number at {pointer or 'the root'} is out of range", pointer=pointer)
    if isinstance(part, list) and len(part) > MAX_ITEMS:
        raise ConstraintError(f"{pointer} lists {len(part):,} values; at most {MAX_ITEMS:,} are taken", pointer=pointer)
    if isinstance(part, dict):
        if len(part) > MAX_KEYS:
            raise ConstraintError(f"{pointer} has {len(part):,} keys; at most {MAX_KEYS:,} are taken", pointer=pointer)
        for key in part:
            _check_text(key, pointer, what)
    if isinstance(part, str):
        _check_text(part, pointer, what)


def _check_text(text: str, pointer: str, what: str) -> None:
    if "\0" in text:
        raise ConstraintError(f"the {what} holds a NUL character at {pointer or 'the root'}", pointer=pointer)
    if not text.isascii() and any("\ud800" <= char < "\ue000" for char in text):
        raise ConstraintError(f"the {what} holds an unpaired surrogate at {pointer}", pointer=pointer)


@dataclass(frozen=True, slots=True, eq=False)
class Subschema:
    """One schema object of a document, with the base that its references resolve against."""

    schema: dict[str, Any]
    pointer: str
    resolver: Any
    """referencing's ``Resolver``, which has no public name."""


class Document:
    """A schema that passed the front door's structural checks.

    Attributes:
        root: the parsed schema.
        dialect: the validator class of the draft it is written in.
        draft: 4, 6, 7, 2019 or 2020.
    """

    def __init__(self, text: str) -> None:
        self.root: Any = parse_json(text, "schema")
        self.dialect, self.draft = _dialect(self.root)
        self._pointers = {id(part): pointer for pointer, part in walk(self.root) if isinstance(part, dict)}
        self._subschemas: dict[int, Subschema] = {}
        self._reach()
        self._refuse_endless()
        if isinstance(self.root, dict) and depth_of(self.subschema(self.root), self._inside) > MAX_CHAIN:
            raise ConstraintError(f"the schema's references chain deeper than {MAX_CHAIN} levels")

    @property
    def subschemas(self) -> tuple[Subschema, ...]:
        """Every schema object that the root can reach, each once."""
        return tuple(self._subschemas.values())

    def subschema(self, schema: dict[str, Any]) -> Subschema:
        """The subschema that is this very object."""
        return self._subschemas[id(schema)]

    def resolve(self, origin: Subschema, keyword: str) -> Any:
        """What a reference of ``origin`` points at: a boolean, or an object that `subschema` knows."""
        return self._lookup(origin, keyword)[0]

    def _reach(self) -> None:
        import referencing.jsonschema
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

        specification = referencing.jsonschema.specification_with(_metaschema_id(self.dialect))
        with _usable_id("/$id"):
            resolver = REGISTRY.resolver_with_root(specification.create_resource(self.root))
        todo = [(self.root, "", resolver)]
        while todo:
            schema, pointer, resolver = todo.pop()
            if not isinstance(schema, dict) or id(schema) in self._subschemas:
                continue
            here = Subschema(schema, self._pointers.get(id(schema), pointer), resolver)
            self._subschemas[id(schema)] = here
            _check_patterns(here)
            for keyword in _REFERENCES:
                if isinstance(schema.get(keyword), str):
                    target, base = self._lookup(here, keyword)
                    todo.append((target, here.pointer + token(keyword), base))
            if not self.overrides_siblings(here):
                for path, child in children(schema, self.draft, definitions=False):
                    if isinstance(child, bool):
                        continue
                    with _usable_id(here.pointer + path):
                        base = resolver.in_subresource(specification.create_resource(child))
                    todo.append((child, here.pointer + path, base))

    def _refuse_endless(self) -> None:
        """Refuse references that come back to themselves without entering the value: nothing could be decided."""
        done: set[int] = set()
        for start in self._subschemas.values():
            path: dict[int, str] = {}
            todo: list[tuple[Subschema, str] | int] = [(start, start.pointer)]
            while todo:
                step = todo.pop()
                if isinstance(step, int):
                    path.pop(step)
                    done.add(step)
                    continue
                sub, pointer = step
                if id(sub) in path:
                    raise ConstraintError(f"{pointer} refers to itself without end", pointer=pointer)
                if id(sub) not in done:
                    path[id(sub)] = pointer
                    todo.append(id(sub))
                    todo.extend(self._in_place(sub))

    def _in_place(self, sub: Subschema) -> Iterator[tuple[Subschema, str]]:
        """The subschemas that apply to the very value that ``sub`` applies to."""
        for keyword in _REFERENCES:
            if isinstance(sub.schema.get(keyword), str):
                target = self.resolve(sub, keyword)
                if isinstance(target, dict):
                    yield self.subschema(target), sub.pointer + token(keyword)
        if not self.overrides_siblings(sub):
            for path, child in children(sub.schema, self.draft, definitions=False):
                if isinstance(child, dict) and path.split("/")[1] in _IN_PLACE:
                    yield self.subschema(child), sub.pointer + path

    def _inside(self, sub: Subschema) -> Iterator[Subschema]:
        """Every subschema that ``sub`` holds or refers to."""
        for keyword in _REFERENCES:
            if isinstance(sub.schema.get(keyword), str):
                target = self.resolve(sub, keyword)
                if isinstance(target, dict):
                    yield self.subschema(target)
        if not self.overrides_siblings(sub):
            for _, child in children(sub.schema, self.draft, definitions=False):
                if isinstance(child, dict):
                    yield self.subschema(child)

    def overrides_siblings(self, sub: Subschema) -> bool:
        """Whether the drafts up to 7 ignore everything beside this subschema's ``$ref``."""
        return self.draft <= 7 and isinstance(sub.schema.get("$ref"), str)

    def _lookup(self, origin: Subschema, keyword: str) -> tuple[Any, Any]:
        reference = origin.schema[keyword]
        pointer = origin.pointer + token(keyword)
        try:
            found = origin.resolver.lookup(reference)
        except Exception as fault:  # the library raises whatever its URI parser does
            local = reference.startswith("#") or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", reference)
            reason = "points at nothing in this schema" if local else "is remote; put what it names into $defs"
            raise ConstraintError(f"{keyword} {reference!r} at {pointer} {reason}", pointer=pointer) from fault
        if not isinstance(found.contents, dict | bool):
            raise ConstraintError(f"{keyword} {reference!r} at {pointer} points at no schema", pointer=pointer)
        return found.contents, found.resolver


_Item = TypeVar("_Item", bound=Hashable)


def depth_of(root: _Item, inside: Callable[[_Item], Iterable[_Item]]) -> int:
    """How deep a compiler recurses that enters every item once, in order."""
    entered: set[_Item] = set()
    deepest = 0
    todo = [(root, 1)]
    while todo:
        item, depth = todo.pop()
        if item not in entered:
            entered.add(item)
            deepest = max(deepest, depth)
            todo.extend((other, depth + 1) for other in reversed(list(inside(item))))
    return deepest


@contextlib.contextmanager
def _usable_id(pointer: str) -> Iterator[None]:
    try:
        yield
    except Exception as fault:  # the library raises whatever its URI parser does
        raise ConstraintError(f"the $id at {pointer} cannot be used: {fault}", pointer=pointer) from fault


def _check_patterns(sub: Subschema) -> None:
    schema = sub.schema
    places = [("/pattern", schema["pattern"])] if isinstance(schema.get("pattern"), str) else []
    if isinstance(schema.get("patternProperties"), dict):
        if len(schema["patternProperties"]) > MAX_PATTERNS:
            pointer = sub.pointer + "/patternProperties"
            raise ConstraintError(f"{pointer} has more than {MAX_PATTERNS:,} patterns", pointer=pointer)
        places += [("/patternProperties" + token(pattern), pattern) for pattern in schema["patternProperties"]]
    for path, pattern in places:
        if len(pattern) > MAX_PATTERN:
            message = f"the pattern at {sub.pointer + path} is longer than {MAX_PATTERN:,} characters"
            raise ConstraintError(message, pointer=sub.pointer + path)
        try:
            parse(pattern)
        except PatternError as fault:
            message = f"the pattern at {sub.pointer + path} is invalid at @{fault.position}: {fault}"
            raise ConstraintError(message, pointer=sub.pointer + path) from fault


def _metaschema_id(dialect: type[Validator]) -> str:
    meta: Any = dialect.META_SCHEMA
    return str(meta.get("$id") or meta["id"])


def _dialect(root: Any) -> tuple[type[Validator], int]:
    """The draft that ``$schema`` names; without it the newest whose metaschema the schema fits."""
    from radixbackend.structured.library import jsonschema

    drafts: dict[type[Validator], int] = {
        jsonschema.Draft202012Validator: 2020,
        jsonschema.Draft201909Validator: 2019,
        jsonschema.Draft7Validator: 7,
        jsonschema.Draft6Validator: 6,
        jsonschema.Draft4Validator: 4,
    }
    if not isinstance(root, dict | bool):
        raise ConstraintError("a schema is a JSON object, true or false")
    named = root.get("$schema") if isinstance(root, dict) else None
    if isinstance(named, str):
        dialect = jsonschema.validators.validator_for(root, default=jsonschema.Draft202012Validator)
        if dialect not in drafts:
            raise ConstraintError(f"the draft {named!r} is not supported; use draft 4 or later", pointer="/$schema")
        candidates = [dialect]
    else:
        candidates = [jsonschema.Draft202012Validator, jsonschema.Draft7Validator, jsonschema.Draft4Validator]
    faults = []
    for dialect in candidates:
        fault = first_fault(root, drafts[dialect])
        if fault is None:
            return dialect, drafts[dialect]
        faults.append(fault)
    pointer, message = faults[0]
    raise ConstraintError(f"not a valid schema at {pointer or 'the root'}: {message}", pointer=pointer)

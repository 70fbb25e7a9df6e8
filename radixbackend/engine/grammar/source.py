"""What every backend does with a constraint's text before its library sees it.

Rules. Only what could crash or stall a library in this process is refused here; whether a schema makes sense and
what a backend can enforce of it is judged at the front door. Nothing here imports a grammar library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from radixbackend.engine.grammar.derivation import pattern_length
from radixbackend.errors import ConstraintError
from radixbackend.types import Constraint

ITEM_SEPARATOR = ", "
KEY_SEPARATOR = ": "
MAX_WHITESPACE = 16  # characters in a row, where a constraint leaves white space to the model
ANY_OBJECT = '{"type": "object"}'

MAX_BYTES = 1 << 20
MAX_DEPTH = 200  # brackets and parentheses inside each other
MAX_LEAST = 20_000  # characters of the shortest text of a pattern or of a grammar's rule

_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_VALUES = ("enum", "const", "default", "examples")
_OPEN = {"(": ")", "[": "]", "{": "}"}


def check_source(constraint: Constraint) -> None:
    """Refuse what crashes or stalls grammar libraries: NUL, sheer size, deep nesting, huge repetitions."""
    text = constraint.source
    if len(text) > MAX_BYTES:
        raise ConstraintError(f"the {constraint.kind} has {len(text)} characters; at most {MAX_BYTES} are accepted")
    if "\0" in text or (constraint.kind not in ("regex", "grammar") and "\\u0000" in text):
        raise ConstraintError(f"the {constraint.kind} contains a NUL character; remove it")
    if _nesting(text) > MAX_DEPTH:
        raise ConstraintError(f"the {constraint.kind} nests deeper than {MAX_DEPTH} levels; flatten it")
    if constraint.kind == "regex" and pattern_length(text) > MAX_LEAST:
        raise ConstraintError(f"the shortest text that the regex matches has more than {MAX_LEAST} characters")


def _nesting(text: str) -> int:
    """Deepest nesting of brackets, over-estimated where strings or classes contain some unmatched."""
    depth = deepest = 0
    for bracket in re.findall(r"\\.|[()\[\]{}]", text, re.DOTALL):
        if bracket in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif len(bracket) == 1:
            depth = max(0, depth - 1)
    return deepest


def parse_json(constraint: Constraint) -> Any:
    """The source as JSON, for the kinds whose source is JSON."""
    try:
        return json.loads(constraint.source)
    except (ValueError, RecursionError) as fault:
        raise ConstraintError(f"the {constraint.kind} is not JSON: {fault}") from fault


def escape_key(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def keyword_pointers(node: Any, keywords: Collection[str], pointer: str = "") -> Iterator[str]:
    """Where these keywords stand in a schema; names of properties and values of enums are no keywords."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from keyword_pointers(value, keywords, f"{pointer}/{index}")
    elif isinstance(node, dict):
        for key, value in node.items():
            here = f"{pointer}/{escape_key(key)}"
            if key in keywords:
                yield here
            elif key in _NAMED and isinstance(value, dict):
                for name, inner in value.items():
                    yield from keyword_pointers(inner, keywords, f"{here}/{escape_key(name)}")
            elif key not in _VALUES:
                yield from keyword_pointers(value, keywords, here)

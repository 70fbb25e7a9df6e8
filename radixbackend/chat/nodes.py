"""Structural-tag formats, the pieces that one grammar of a whole answer is put together from.

Rules. Each function returns a plain mapping in xgrammar's structural-tag notation; nothing is compiled here. JSON has
the fixed separators that the grammar backend gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]


def const(text: str) -> Node:
    return {"type": "const_string", "value": text}


def regex(pattern: str) -> Node:
    return {"type": "regex", "pattern": pattern}


def json_value(schema: Mapping[str, Any] | bool) -> Node:
    return {"type": "json_schema", "json_schema": schema}


def any_text(excludes: Iterable[str] = ()) -> Node:
    """Any text without these strings in it."""
    return {"type": "any_text", "excludes": list(excludes)}


def sequence(*parts: Node | str) -> Node:
    """One after the other; empty strings are left out, and a sequence in a sequence is spliced in."""
    elements: list[Node] = []
    for part in parts:
        if isinstance(part, str):
            elements += [const(part)] if part else []
        elif part["type"] == "sequence":
            elements += part["elements"]
        else:
            elements.append(part)
    return elements[0] if len(elements) == 1 else {"type": "sequence", "elements": elements}


def either(options: Sequence[Node]) -> Node:
    return options[0] if len(options) == 1 else {"type": "or", "elements": list(options)}


def optional(node: Node) -> Node:
    return {"type": "optional", "content": node}


def tag(begin: str, content: Node, end: str) -> Node:
    """``content`` between two strings; any text in it goes up to the first ``end``."""
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def separated(tags: Sequence[Node], separator: str, *, at_most_one: bool) -> Node:
    """One or more of these tags."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": at_most_one,
    }


def triggered(triggers: Sequence[str], tags: Sequence[Node], *, excludes: Iterable[str], at_most_one: bool) -> Node:
    """Free text in which one of the tags must follow as soon as a trigger was written."""
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": list(tags),
        "excludes": list(excludes),
        "stop_after_first": at_most_one,
    }

"""What the pattern trees of `pattern` match: written again for grammars and Python, listed, complemented, compared.

Rules. Every function is pure and bounded: where an answer would be too large it is None, never a guess. A grammar
gets a *whole-match* tree (`whole`): no anchors, and anything allowed around a part that was not anchored, so that
backends which anchor everything and backends which search agree.

Must not know: JSON Schema, which backend supports what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from radixbackend.structured.automaton import EVERY_TEXT, Automaton, build
from radixbackend.structured.pattern import (
    ANYTHING,
    EMPTY,
    NOTHING,
    Anchor,
    Back,
    Boundary,
    Chars,
    Either,
    Group,
    Look,
    Node,
    PatternError,
    Repeat,
    Sequence,
    complement,
    first_obstacle,
    literal,
    parse,
    union,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MATCH_SECONDS = 0.5
"""Longest time that matching in Python may take; a pattern that backtracks longer is reported, not waited for."""

_MAX_BRANCHES = 64
ANY_TEXT = Repeat(ANYTHING, 0, None)


def whole(node: Node) -> Node:
    """The tree that matches all of a text wherever ``node`` is found in it.

    Raises `PatternError` for what no grammar can express, and for anchors in places that this cannot resolve.
    """
    if obstacle := first_obstacle(node):
        raise PatternError(f"{obstacle[0]} cannot be enforced by a grammar", obstacle[1])
    by_anchors: dict[tuple[bool, bool], list[Node]] = {}
    for start, body, end in _branches(node):
        by_anchors.setdefault((start, end), []).append(body)
    options = []
    for (start, end), bodies in by_anchors.items():
        body = bodies[0] if len(bodies) == 1 else Either(tuple(bodies))
        before, after = ([] if start else [ANY_TEXT]), ([] if end else [ANY_TEXT])
        if body == EMPTY and before and after:
            after = []
        options.append(_sequence([*before, body, *after]))
    if any(_is_any_text(option) for option in options):
        return ANY_TEXT
    return _prune(Either(tuple(options)))


def _is_any_text(node: Node) -> bool:
    """Whether ``node`` plainly matches every text: ``[\\s\\S]*`` beside what may be empty."""
    return node == ANY_TEXT or (isinstance(node, Sequence) and ANY_TEXT in node.items and nullable(node))


def strip_anchors(node: Node) -> Node:
    """The whole-match tree of a pattern that must match the whole text anyway: its outer anchors say nothing."""
    if obstacle := first_obstacle(node):
        raise PatternError(f"{obstacle[0]} cannot be enforced by a grammar", obstacle[1])
    return _prune(Either(tuple(body for _, body, _ in _branches(node))))


def _prune(node: Node) -> Node:
    """The same without the parts that match nothing; `NOTHING` if that is all of it."""
    match node:
        case Sequence(items):
            pruned = tuple(map(_prune, items))
            return NOTHING if NOTHING in pruned else _sequence(pruned)
        case Either(options):
            kept = tuple(option for option in map(_prune, options) if option != NOTHING)
            return Either(kept) if len(kept) > 1 else kept[0] if kept else NOTHING
        case Repeat(item=item, low=low):
            pruned_item = _prune(item)
            if pruned_item == NOTHING:
                return EMPTY if low == 0 else NOTHING
            return replace(node, item=pruned_item)
        case Group(item=item):
            return _prune(item)
        case _:
            return node


def _sequence(items: Iterable[Node]) -> Node:
    flat: list[Node] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Sequence) else (item,))
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def _branches(node: Node) -> list[tuple[bool, Node, bool]]:
    """``node`` as alternatives (anchored at the start, what is between, anchored at the end)."""
    if not _has_anchor(node):
        return [(False, node, False)]
    match node:
        case Anchor(at):
            return [(at == "^", EMPTY, at == "$")]
        case Group(item=item):
            return _branches(item)
        case Either(options):
            return [branch for option in options for branch in _branches(option)]
        case Sequence(items):
            joined: list[tuple[bool, Node, bool]] = [(False, EMPTY, False)]
            for item in _runs(items):
                joined = [pair for left in joined for right in _branches(item) for pair in _join(left, right)]
                if len(joined) > _MAX_BRANCHES:
                    raise PatternError("anchors in too many alternatives", 0)
            return joined
        case Repeat(item=item, low=low) if low <= 1:
            # Past the first round an anchor can only hold where nothing was matched, which adds nothing.
            rounds = _branches(item)
            if any(not nullable(body) for start, body, end in rounds if not (start or end)):
                raise PatternError("an anchor inside a repetition", 0)
            return [*rounds, *([(False, EMPTY, False)] if low == 0 else [])]
        case _:
            raise PatternError("an anchor inside a repetition", 0)


def _runs(items: tuple[Node, ...]) -> Iterator[Node]:
    """``items`` with neighbours that hold no anchor put together."""
    for anchored, group in groupby(items, key=_has_anchor):
        run = tuple(group)
        yield from run if anchored else (Sequence(run),)


def _join(left: tuple[bool, Node, bool], right: tuple[bool, Node, bool]) -> Iterator[tuple[bool, Node, bool]]:
    (start, before, middle_end), (middle_start, after, end) = left, right
    if middle_start:
        if not nullable(before):
            return
        start, before = True, EMPTY
    if middle_end:
        if not nullable(after):
            return
        end, after = True, EMPTY
    yield start, _sequence((before, after)), end


def _has_anchor(node: Node) -> bool:
    match node:
        case Anchor():
            return True
        case Sequence(parts) | Either(parts):
            return any(map(_has_anchor, parts))
        case Repeat(item=item) | Group(item=item):
            return _has_anchor(item)
        case _:
            return False


def nullable(node: Node) -> bool:
    """Whether the empty text matches."""
    match node:
        case Sequence(items):
            return all(map(nullable, items))
        case Either(options):
            return any(map(nullable, options))
        case Repeat(item=item, low=low):
            return low == 0 or nullable(item)
        case Group(item=item):
            return nullable(item)
        case Chars():
            return False
        case _:
            return True


def lengths(node: Node) -> tuple[int, int | None]:
    """Length in code points of the shortest and of the longest text that ``node`` matches (None: no bound)."""
    match node:
        case Chars():
            return 1, 1
        case Sequence(items):
            parts = list(map(lengths, items))
            longest = None if any(most is None for _, most in parts) else sum(most or 0 for _, most in parts)
            return sum(least for least, _ in parts), longest
        case Either(options):
            parts = list(map(lengths, options))
            longest = None if any(most is None for _, most in parts) else max(most or 0 for _, most in parts)
            return min(least for least, _ in parts), longest
        case Repeat(item, low, high, _):
            least, most = lengths(item)
            return least * low, 0 if most == 0 else None if most is None or high is None else most * high
        case Group(item=item):
            return lengths(item)
        case _:
            return 0, 0


# Writing


def render(node: Node) -> str:
    """``node`` in the syntax that xgrammar, llguidance and Python's ``regex`` share."""
    match node:
        case Chars():
            return _render_chars(node)
        case Sequence(items):
            return "".join(f"(?:{render(i)})" if isinstance(i, Either) else render(i) for i in items)
        case Either(options):
            return "|".join(map(render, options))
        case Repeat(item, low, high, lazy):
            body = render(item)
            if not isinstance(item, Chars | Group):
                body = f"(?:{body})"
            optional_group = (low, high) == (0, 1) and not isinstance(item, Chars)
            # xgrammar 0.2.8 takes ab and ac for a(b*c)?, as if what loops at an end of the group were outside of it.
            counts = "{0,1}" if optional_group else _render_counts(low, high)
            return body + counts + ("?" if lazy else "")
        case Anchor(at):
            return r"\A" if at == "^" else r"\Z"
        case Group(item=item):
            return f"({render(item)})"
        case Look(item, opener, _):
            return f"({opener}{render(item)})"
        case Back(number=number):
            return f"(?:\\{number})"
        case Boundary(negated, _):
            word = "[0-9A-Za-z_]"
            if negated:
                return f"(?:(?<={word})(?={word})|(?<!{word})(?!{word}))"
            return f"(?:(?<={word})(?!{word})|(?<!{word})(?={word}))"


def _render_counts(low: int, high: int | None) -> str:
    known = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
    if known is not None:
        return known
    if high is None:
        return f"{{{low},}}"
    return f"{{{low}}}" if low == high else f"{{{low},{high}}}"


def _render_chars(node: Chars) -> str:
    if not node.properties and node.ranges == ANYTHING.ranges:
        return r"[\s\S]"
    if not node.properties and not node.ranges:
        return "(?!)"  # in Python; whole-match trees have no such part unless they match nothing at all
    if not node.properties and len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
        return _render_char(node.ranges[0][0])
    negated, ranges = node.negated, node.ranges
    if not node.properties and ranges[-1][1] == ANYTHING.ranges[0][1]:
        negated, ranges = True, complement(ranges)
    names = "".join(f"\\{name}" for name in node.properties)
    body = "".join(
        _render_char(low) if low == high else f"{_render_char(low)}-{_render_char(high)}" for low, high in ranges
    )
    return f"[{'^' if negated else ''}{body}{names}]"


def _render_char(code: int) -> str:
    char = chr(code)
    if char.isalnum() and char.isascii():
        return char
    if code in (9, 10, 13):
        return {9: r"\t", 10: r"\n", 13: r"\r"}[code]
    if code < 0x80:
        # Punctuation that some dialect gives a meaning inside or outside of classes goes by number.
        return char if char in " !\"#%',/:;<=>@_`" else f"\\x{code:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code < 0xE000 or code in (0x2028, 0x2029, 0xFEFF) else char


# Matching in Python


class SlowMatchError(Exception):
    """Matching took longer than `MATCH_SECONDS`."""


class Language:
    """The texts that a whole-match tree matches; equal to another where both are written alike.

    Attributes:
        tree: no anchors, nothing that a grammar cannot express.
        text: the tree, written for grammars.
    """

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.text = render(tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Language) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @cached_property
    def has(self) -> Callable[[str], bool]:
        """Whether a text is in the language; raises `SlowMatchError` rather than hang."""
        return _matcher(self.text, "fullmatch")

    @cached_property
    def lengths(self) -> tuple[int, int | None]:
        """Of its shortest and of its longest text (None: no bound)."""
        return lengths(self.tree)

    @cached_property
    def automaton(self) -> Automaton | None:
        """For set operations; None where it would be too large."""
        return build(self.tree)

    @classmethod
    def of(cls, automaton: Automaton | None) -> Language | None:
        """The language of an automaton, unless there is none or its tree would be too large."""
        tree = automaton.tree() if automaton is not None and not automaton.is_empty else None
        return None if tree is None else cls(tree)


def languages(node: Node) -> tuple[Language, ...]:
    """The languages a text must be in for ``node`` to be found in it: one, and one per look-ahead at its start.

    Raises `PatternError` for what no grammar can express.
    """
    items = node.items if isinstance(node, Sequence) else (node,)
    found: list[Language] = []
    if items and items[0] == Anchor("^"):
        while len(items) > 1 and isinstance(items[1], Look) and "<" not in items[1].opener:
            look, items = items[1], (items[0], *items[2:])
            ahead: Language | None = Language(whole(Sequence((items[0], look.item))))
            if look.opener == "?!":
                taken = ahead.automaton if ahead is not None else None
                ahead = Language.of(EVERY_TEXT.without(taken)) if taken is not None else None
            if ahead is None:
                raise PatternError("this look-ahead is too large for a grammar", look.position)
            found.append(ahead)
    return (Language(whole(Sequence(items))), *found)


def searcher(source: str) -> Callable[[str], bool]:
    """A function that tells whether ``source`` is found in a text; raises `SlowMatchError` rather than hang."""
    return _matcher(render(parse(source)), "search")


def _matcher(rendered: str, method: str) -> Callable[[str], bool]:
    import regex  # type: ignore[import-untyped]

    try:
        run = getattr(regex.compile(rendered), method)
    except regex.error as fault:
        raise PatternError(str(fault), 0) from fault

    def matches(text: str) -> bool:
        try:
            return run(text, timeout=MATCH_SECONDS, concurrent=True) is not None
        except TimeoutError as fault:
            raise SlowMatchError from fault

    return matches


# Listing and comparing


def words(node: Node, limit: int) -> tuple[str, ...] | None:
    """Every text that ``node`` matches as a whole, in the pattern's order, if there are at most ``limit``."""
    match node:
        case Chars(ranges, properties, _):
            if properties or sum(high - low + 1 for low, high in ranges) > limit:
                return None
            return tuple(chr(code) for low, high in ranges for code in range(low, high + 1))
        case Sequence(items):
            return _products((words(item, limit) for item in items), limit)
        case Either(options):
            found: dict[str, None] = {}
            for option in options:
                if (part := words(option, limit)) is None:
                    return None
                found.update(dict.fromkeys(part))
            return tuple(found) if len(found) <= limit else None
        case Repeat(item, low, high, _):
            if high is None or high > limit or (part := words(item, limit)) is None:
                return None
            counts = [_products((part for _ in range(count)), limit) for count in range(low, high + 1)]
            listed = [text for texts in counts if texts is not None for text in texts]
            return None if None in counts or len(listed) > limit else tuple(dict.fromkeys(listed))
        case Group(item=item):
            return words(item, limit)
        case _:
            return None


def _products(parts: Iterable[tuple[str, ...] | None], limit: int) -> tuple[str, ...] | None:
    texts: tuple[str, ...] = ("",)
    for part in parts:
        if part is None or len(texts) * len(part) > limit:
            return None
        texts = tuple(left + right for left in texts for right in part)
    return texts


def avoiding(taken: Iterable[str]) -> Node:
    """The tree that matches every text but those ``taken``: a trie, left at the first character that differs."""
    ends: set[str] = set()
    steps: dict[str, list[str]] = {"": []}
    for word in taken:
        ends.add(word)
        for length in range(len(word)):
            following = steps.setdefault(word[:length], [])
            if word[length] not in following:
                following.append(word[length])
    nodes: dict[str, Node] = {}
    for prefix in sorted({*steps, *ends}, key=len, reverse=True):
        following = steps.get(prefix, [])
        strayed = Chars(complement(union(*(((ord(c), ord(c)),) for c in following))))
        options: list[Node] = [] if prefix in ends else [EMPTY]
        options.append(Sequence((strayed, ANY_TEXT)))
        options.extend(_sequence((literal(char), nodes[prefix + char])) for char in following)
        nodes[prefix] = options[0] if len(options) == 1 else Either(tuple(options))
    return nodes[""]

"""Grammars by xgrammar: fast masks, every constraint kind, structural tags.

Rules. The library's own cache is off (`service.GrammarService` owns the cache). Its tokens are given as bytes,
special tokens as empty, so that no string can hold them; a structural tag gets back those that it names. Input that
crashes the library is refused before it. What the library compiles but does not enforce is not judged here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from radixbackend.engine.grammar.base import Vocabulary
from radixbackend.engine.grammar.derivation import longer_than
from radixbackend.engine.grammar.matcher import CursorGrammar
from radixbackend.engine.grammar.source import (
    ANY_OBJECT,
    ITEM_SEPARATOR,
    KEY_SEPARATOR,
    MAX_LEAST,
    MAX_WHITESPACE,
    check_source,
    escape_key,
    keyword_pointers,
    parse_json,
)
from radixbackend.engine.grammar.tokens import Row, TokenTable
from radixbackend.errors import ConstraintError, MissingDependencyError, RadixError
from radixbackend.types import Constraint

MAX_CHOICES = 20_000  # of one choice or enum; more take the library many seconds
MAX_PROPERTIES = 2_000  # of one object
MAX_MARKERS = 16  # ends of free text that budget steering knows

# Keywords that the library reads over, wherever they stand in a schema.
UNENFORCED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "multipleOf"),
    *("dependencies", "dependentRequired", "dependentSchemas", "propertyNames"),
    *("unevaluatedProperties", "unevaluatedItems"),
)


class XGrammarBackend:
    """xgrammar over one vocabulary."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary, *, tokens: TokenTable | None = None) -> None:
        try:
            import xgrammar
        except ImportError as fault:
            raise MissingDependencyError("grammar='xgrammar' needs the package xgrammar; install it") from fault
        self._library: Any = xgrammar
        self.version = version("xgrammar")
        self._vocabulary = vocabulary
        self._tokens = TokenTable.of(vocabulary) if tokens is None else tokens
        self._lock = threading.Lock()
        self._compilers: dict[tuple[int, ...], tuple[TokenTable, Any]] = {}  # by the special tokens that have text
        self._json_tokens: dict[bool, TokenTable] = {}  # by whether lines may be broken

    def compile(self, constraint: Constraint) -> CursorGrammar:
        check_source(constraint)
        tokens, compiler = self._compiler(self._needed(constraint))
        try:
            compiled = self._compile(compiler, constraint)
            _check_ends(constraint, str(compiled.grammar))
            matcher = self._library.GrammarMatcher(compiled, override_stop_tokens=sorted(tokens.end_tokens))
        except RadixError:
            raise
        except (RuntimeError, ValueError, TypeError) as fault:
            raise _refusal(constraint, fault) from fault
        root, legal = XGrammarCursor(matcher), self._legal(tokens, constraint)
        ends = _ends_of_text(parse_json(constraint)) if constraint.kind == "structural_tag" else ()
        markers = [end.encode() for end in dict.fromkeys(ends)][:MAX_MARKERS]
        return CursorGrammar(root, legal, self._vocabulary.tokenizer, compiled.memory_size_bytes, markers)

    def unsupported(self, constraint: Constraint) -> Sequence[str]:
        """Pointers of the keywords that the library never enforces.

        Combinations that it weakens (a reference with siblings, a branch of several ``allOf``) are beyond this list:
        the front door's lint knows them.
        """
        if constraint.kind != "json_schema":
            return ()
        return tuple(keyword_pointers(parse_json(constraint), UNENFORCED))

    def _compile(self, compiler: Any, constraint: Constraint) -> Any:
        kind, source = constraint.kind, constraint.source
        if kind == "json_schema":
            _check_width(parse_json(constraint))
            return compiler.compile_json_schema(source, **_json_options(constraint), strict_mode=True)
        if kind == "json_object":
            return compiler.compile_json_schema(ANY_OBJECT, **_json_options(constraint), strict_mode=False)
        if kind == "regex":
            return compiler.compile_regex(source)
        if kind == "choice":
            return compiler.compile_grammar(_choice_grammar(parse_json(constraint)))
        if kind == "grammar":
            return compiler.compile_grammar(source)
        tag = self._fix_separators(parse_json(constraint), constraint)
        return compiler.compile_structural_tag(json.dumps(tag, ensure_ascii=False))

    def _legal(self, tokens: TokenTable, constraint: Constraint) -> TokenTable:
        """Without control characters where the output is JSON: the library lets strings of bounded length have them."""
        if constraint.kind not in ("json_schema", "json_object"):
            return tokens
        with self._lock:
            if constraint.whitespace not in self._json_tokens:
                lines = b"\n" if constraint.whitespace else b""
                self._json_tokens[constraint.whitespace] = tokens.without(
                    lambda text: any(byte < 0x20 for byte in text.replace(lines, b""))
                )
            return self._json_tokens[constraint.whitespace]

    def _needed(self, constraint: Constraint) -> tuple[int, ...]:
        """Special tokens that a structural tag names, by text or id."""
        if constraint.kind != "structural_tag":
            return ()
        named = list(_named(parse_json(constraint)))
        ids = {value for value in named if isinstance(value, int)}
        texts = [value.encode() for value in named if isinstance(value, str)]
        specials = self._tokens.specials.items()
        ids |= {token for token, content in specials if content and any(content in text for text in texts)}
        return tuple(sorted(ids & self._tokens.specials.keys()))

    def _compiler(self, specials: tuple[int, ...]) -> tuple[TokenTable, Any]:
        with self._lock:
            if specials not in self._compilers:
                if len(self._compilers) > 16:
                    self._compilers.clear()
                self._compilers[specials] = self._make_compiler(specials)
            return self._compilers[specials]

    def _make_compiler(self, specials: Collection[int]) -> tuple[TokenTable, Any]:
        tokens = self._tokens.with_specials(specials) if specials else self._tokens
        info = self._library.TokenizerInfo(
            list(tokens.texts),
            self._library.VocabType.RAW,
            vocab_size=tokens.size,
            stop_token_ids=sorted(tokens.end_tokens),
        )
        threads = min(4, os.cpu_count() or 1)
        return tokens, self._library.GrammarCompiler(info, max_threads=threads, cache_enabled=False)

    def _fix_separators(self, node: Any, constraint: Constraint) -> Any:
        """The tag with each plain JSON schema in it as a grammar of fixed separators; bounded white space in others."""
        if isinstance(node, list):
            return [self._fix_separators(item, constraint) for item in node]
        if not isinstance(node, dict):
            return node
        if node.get("type") != "json_schema" or "json_schema" not in node:
            return {key: self._fix_separators(value, constraint) for key, value in node.items()}
        options = {key: value for key, value in node.items() if key not in ("type", "json_schema")}
        if constraint.whitespace or options not in ({}, {"style": "json"}):
            return {"max_whitespace_cnt": MAX_WHITESPACE, **node}
        _check_width(node["json_schema"])
        schema = json.dumps(node["json_schema"], ensure_ascii=False)
        grammar = self._library.Grammar.from_json_schema(schema, **_json_options(constraint), strict_mode=True)
        # Strings of bounded length may hold control characters in the library's own conversion.
        return {"type": "grammar", "grammar": str(grammar).replace(r"[^\"\\\r\n]", r"[^\0-\x1f\"\\]")}


class XGrammarCursor:
    """`Cursor` over xgrammar's matcher."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, row: Row) -> None:
        if not self._matcher.fill_next_token_bitmask(row.reshape(1, -1), 0):
            row[:] = -1

    def accept(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))

    def follow(self, tokens: Sequence[int]) -> int:
        return sum(1 for _ in itertools.takewhile(self._matcher.accept_token, tokens))

    def rollback(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)

    def fork(self) -> XGrammarCursor:
        return XGrammarCursor(self._matcher.fork())

    def trial(self) -> XGrammarCursor:
        return self

    def forced(self) -> bytes:
        try:
            return str(self._matcher.find_jump_forward_string()).encode()
        except UnicodeDecodeError as fault:  # the bytes forced end inside a character
            return fault.object

    def complete(self) -> bool:
        return bool(self._matcher.is_completed())


def _json_options(constraint: Constraint) -> dict[str, Any]:
    if constraint.whitespace:
        return {"any_whitespace": True, "max_whitespace_cnt": MAX_WHITESPACE}
    return {"any_whitespace": False, "separators": (ITEM_SEPARATOR, KEY_SEPARATOR)}


def _check_ends(constraint: Constraint, printed: str) -> None:
    """Refuse grammars on which the library would look for forced text without end."""
    if endless := longer_than(printed, MAX_LEAST):
        raise ConstraintError(
            f"a part of the {constraint.kind} requires itself, or more than {MAX_LEAST} characters"
            f" (rule {endless[0]} of the grammar made from it); make it optional or shorter"
        )


def _choice_grammar(choices: Any) -> str:
    if len(choices) > MAX_CHOICES:
        raise ConstraintError(f"xgrammar takes at most {MAX_CHOICES} choices, not {len(choices)}")
    return "root ::= " + " | ".join(json.dumps(choice) for choice in choices)


def _check_width(schema: Any) -> None:
    """Refuse enums and objects so wide that the library would compile for many seconds."""
    stack: list[tuple[str, Any]] = [("", schema)]
    while stack:
        pointer, node = stack.pop()
        if isinstance(node, dict):
            for key, limit in (("enum", MAX_CHOICES), ("properties", MAX_PROPERTIES)):
                inner = node.get(key)
                if isinstance(inner, list | dict) and len(inner) > limit:
                    raise ConstraintError(
                        f"xgrammar takes at most {limit} entries in {key}, not {len(inner)}", pointer=f"{pointer}/{key}"
                    )
            stack += [(f"{pointer}/{escape_key(key)}", value) for key, value in node.items()]
        elif isinstance(node, list):
            stack += [(f"{pointer}/{index}", value) for index, value in enumerate(node)]


def _named(node: Any, key: str = "") -> Iterator[str | int]:
    """Every string of a structural tag, and every token id."""
    if isinstance(node, str):
        yield node.replace('\\"', '"') if key == "grammar" else node
    elif isinstance(node, int) and "token" in key:
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from _named(item, key)
    elif isinstance(node, dict):
        for name, item in node.items():
            if name != "json_schema":
                yield from _named(item, name)


def _ends_of_text(node: Any) -> Iterator[str]:
    """What ends the free text between the two strings of a tag."""
    if isinstance(node, list):
        for item in node:
            yield from _ends_of_text(item)
    elif isinstance(node, dict):
        if node.get("type") == "tag" and _is_text(node.get("content")):
            ends = node.get("end")
            yield from (end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, str) and end)
        for key, item in node.items():
            if key != "json_schema":
                yield from _ends_of_text(item)


def _is_text(node: Any) -> bool:
    return isinstance(node, dict) and node.get("type") == "any_text"


def _refusal(constraint: Constraint, fault: Exception) -> ConstraintError:
    """The library's complaint without its source positions, with the place in the constraint where it names one."""
    text = str(fault).strip()
    text = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)
    text = re.sub(r"^Check failed: \(.*?\) is false: ", "", text)
    pointer = ""
    if found := re.search(r"at position (\d+)", text):
        pointer = f"@{max(0, int(found[1]) - 1)}"
    elif found := re.search(r"at line (\d+), column (\d+)", text):
        before = constraint.source.split("\n")[: int(found[1]) - 1]
        pointer = f"@{sum(len(line) + 1 for line in before) + int(found[2]) - 1}"
    return ConstraintError(f"xgrammar refuses the {constraint.kind}: {text[:500]}", pointer=pointer)

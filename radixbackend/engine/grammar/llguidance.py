"""Grammars by llguidance: compiles in milliseconds, and refuses what it would not enforce.

Rules. The library reports errors by state, not by exception: every call that can fail is followed by a question.
A token that it rejects would spoil its matcher for good, so tokens are only ever tried. A panic in it reaches Python
as a `BaseException`; it is caught around its calls and nowhere else. It has no structural tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from radixbackend.engine.grammar.base import Vocabulary
from radixbackend.engine.grammar.ebnf import to_lark
from radixbackend.engine.grammar.forced import Speller
from radixbackend.engine.grammar.matcher import CursorGrammar
from radixbackend.engine.grammar.source import (
    ANY_OBJECT,
    ITEM_SEPARATOR,
    KEY_SEPARATOR,
    MAX_WHITESPACE,
    check_source,
    keyword_pointers,
    parse_json,
)
from radixbackend.engine.grammar.tokens import Row, TokenTable
from radixbackend.errors import ConstraintError, GrammarCompileError, MissingDependencyError
from radixbackend.types import Constraint

MAX_CHOICES = 100_000
BYTES_PER_CHARACTER = 40  # of memory that a compiled grammar takes, per character of its source; measured
BYTES_AT_LEAST = 100_000


class LLGuidanceBackend:
    """llguidance over one vocabulary.

    ``lenient`` compiles schemas with keywords that the library does not enforce, as if they were not there; what
    comes out must be validated.
    """

    def __init__(self, vocabulary: Vocabulary, *, lenient: bool = False, tokens: TokenTable | None = None) -> None:
        try:
            import llguidance
        except ImportError as fault:
            raise MissingDependencyError("grammar='llguidance' needs the package llguidance; install it") from fault
        self.name = "llguidance-lenient" if lenient else "llguidance"
        self.version = version("llguidance")
        self._library: Any = llguidance
        self._lenient = lenient
        self._tokenizer = vocabulary.tokenizer
        self._tokens = TokenTable.of(vocabulary) if tokens is None else tokens
        self._vocabulary: Any = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(self._tokens, Speller(vocabulary.tokenizer, self._tokens)))
        )
        self._limits: Any = llguidance.LLParserLimits(max_grammar_size=1_000_000, verbose_errors=False)

    def compile(self, constraint: Constraint) -> CursorGrammar:
        check_source(constraint)
        with _PANICS:
            matcher = self._matcher(constraint)
        nbytes = max(BYTES_AT_LEAST, BYTES_PER_CHARACTER * len(constraint.source))
        cursor = LLGuidanceCursor(matcher, -(-self._vocabulary.vocab_size // 32))
        return CursorGrammar(cursor, self._tokens, self._tokenizer, nbytes)

    def unsupported(self, constraint: Constraint) -> Sequence[str]:
        """Pointers of the keywords that ``lenient`` reads over; without it there are none, for they are refused."""
        if constraint.kind != "json_schema" or not self._lenient:
            return ()
        with _PANICS:
            warnings: list[str] = self._matcher(constraint).get_grammar_warnings()
        keys = {key for warning in warnings for key in re.findall(r'"([^"]+)"', warning)}
        keys |= {"format" for warning in warnings if "format" in warning}
        return tuple(keyword_pointers(parse_json(constraint), keys))

    def _matcher(self, constraint: Constraint) -> Any:
        grammar = self._grammar(constraint)
        matcher = self._library.LLMatcher(self._vocabulary, grammar, limits=self._limits, log_level=0)
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return matcher

    def _grammar(self, constraint: Constraint) -> str:
        kind, source, make = constraint.kind, constraint.source, self._library.LLMatcher
        if kind == "json_schema":
            return self._json_grammar(_as_object(parse_json(constraint)), constraint)
        if kind == "json_object":
            return self._json_grammar(json.loads(ANY_OBJECT), constraint)
        if kind == "regex":
            return str(make.grammar_from_regex(_ascii_classes(source)))
        if kind == "choice":
            return str(make.grammar_from_lark(_choice_grammar(parse_json(constraint))))
        if kind == "grammar":
            return str(make.grammar_from_lark(to_lark(source)))
        raise ConstraintError(
            "llguidance compiles no structural tags: they, and so tool calls and what follows reasoning, are xgrammar's"
        )

    def _json_grammar(self, schema: dict[str, Any], constraint: Constraint) -> str:
        options: dict[str, Any] = {"whitespace_flexible": False, "lenient": self._lenient}
        options |= {"item_separator": ITEM_SEPARATOR, "key_separator": KEY_SEPARATOR}
        if constraint.whitespace:
            blank = rf"[ \n\r\t]{{0,{MAX_WHITESPACE}}}"
            options |= {"whitespace_flexible": True, "whitespace_pattern": blank}
            options |= {"item_separator": ",", "key_separator": ":"}
        try:
            text = json.dumps(schema, ensure_ascii=False)
            return str(self._library.LLMatcher.grammar_from_json_schema(text, overrides=options))
        except ValueError as fault:
            raise _refusal(constraint, str(fault)) from fault


class LLGuidanceCursor:
    """`Cursor` over llguidance's matcher. ``words`` is the length of the library's own mask rows."""

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher = matcher
        self._row = np.empty(words, dtype=np.int32)

    def fill(self, row: Row) -> None:
        with _PANICS:
            self._matcher.unsafe_compute_mask_ptr(self._row.ctypes.data, self._row.nbytes)
        self._ask()
        row[:] = self._row[: len(row)]

    def accept(self, token: int) -> bool:
        return self.follow((token,)) == 1

    def follow(self, tokens: Sequence[int]) -> int:
        with _PANICS:
            taken = int(self._matcher.try_consume_tokens(list(tokens)))
        if taken < len(tokens):
            self._ask()
        return taken

    def rollback(self, count: int) -> None:
        if count:
            with _PANICS:
                self._matcher.rollback(count)
            self._ask()

    def fork(self) -> LLGuidanceCursor:
        with _PANICS:
            return LLGuidanceCursor(self._matcher.deep_copy(), len(self._row))

    def trial(self) -> LLGuidanceCursor:
        return self.fork()  # beyond its limits the library's matcher is lost

    def forced(self) -> bytes:
        with _PANICS:
            return bytes(self._matcher.compute_ff_bytes())

    def complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    def _ask(self) -> None:
        if self._matcher.is_error():
            raise GrammarCompileError(f"llguidance gave up on this output: {_short(self._matcher.get_error())}")


class _Vocabulary:
    """The tokens in the form that llguidance reads, with an end token of its own behind them."""

    bos_token_id = None

    def __init__(self, tokens: TokenTable, speller: Speller) -> None:
        own = [text or b"<[%d]>" % token for token, text in enumerate(tokens.texts)]
        # It marks special tokens by a first byte 0xff, which no text has.
        bare = [t for t, text in enumerate(tokens.texts) if not text or text.startswith(b"\xff")]
        self.tokens = [*own, b"<[end]>"]
        self.eos_token_id = tokens.size
        self.special_token_ids = [*bare, tokens.size]
        self._spell = speller.spell

    def __call__(self, text: bytes | str) -> list[int]:
        return list(self._spell(b"", text.encode() if isinstance(text, str) else text))


class _Panics:
    """Turns a panic inside the library into an error of the request."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        if fault is None or isinstance(fault, Exception | KeyboardInterrupt | SystemExit | GeneratorExit):
            return
        raise GrammarCompileError(f"llguidance failed: {_short(str(fault))}") from fault


_PANICS = _Panics()


def _as_object(schema: Any) -> dict[str, Any]:
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise ConstraintError("nothing fits the schema false" if schema is False else "a schema is an object")
    return schema


def _ascii_classes(pattern: str) -> str:
    r"""The pattern with ``\d``, ``\w`` and ``\s`` spelled out: here they would match beyond ASCII, elsewhere not."""
    inside = False

    def spelled(match: re.Match[str]) -> str:
        nonlocal inside
        inside = match[0] == "[" or (inside and match[0] != "]")
        members = {r"\d": "0-9", r"\w": "0-9A-Za-z_", r"\s": r" \t\n\r\f\v"}.get(match[0])
        return match[0] if members is None else members if inside else f"[{members}]"

    return re.sub(r"\\.|[\[\]]", spelled, pattern, flags=re.DOTALL)


def _choice_grammar(choices: Any) -> str:
    if len(choices) > MAX_CHOICES:
        raise ConstraintError(f"llguidance takes at most {MAX_CHOICES} choices, not {len(choices)}")
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _short(message: str) -> str:
    """Without the library's dump of its state, which follows the message."""
    return message.split("\n<state>")[0].split("\n<backtrace>")[0].strip()[:500]


def _refusal(constraint: Constraint, message: str) -> Exception:
    text = _short(message)
    if text.startswith("panic"):
        return GrammarCompileError(f"llguidance failed on the {constraint.kind}: {text}")
    keys: list[str] = re.findall(r'"([^"]+)"', text) if "Unimplemented keys" in text else []
    pointers = keyword_pointers(parse_json(constraint), keys) if keys else ()
    return ConstraintError(f"llguidance refuses the {constraint.kind}: {text}", pointer=next(iter(pointers), ""))

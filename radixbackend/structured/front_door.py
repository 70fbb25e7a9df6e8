"""The front door: every constraint is judged here, in the caller's thread, before anything reaches the engine.

Rules. `FrontDoor.check` either raises `ConstraintError` with the place at fault, in well under a second whatever the
input, or answers with everything that follows from the constraint: what the grammar backends shall compile, in which
order to try them, what they leave to validation, and the validation itself. No constraint is ever weakened silently,
and none leads to unconstrained output. Answers are cached by a `FrontDoor`, which may be shared between threads.

Must not know: engines, vocabularies, how a backend compiles.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from radixbackend.errors import ConstraintError
from radixbackend.structured import ebnf, validation
from radixbackend.structured.document import MAX_ITEMS, MAX_PATTERN, Document, parse_json
from radixbackend.structured.emit import LEFT_OUT_PLAIN, Emitter
from radixbackend.structured.formats import FormatBook
from radixbackend.structured.language import Language, SlowMatchError, strip_anchors
from radixbackend.structured.lint import lint_xgrammar, llguidance_refusal, subschemas, xgrammar_cost
from radixbackend.structured.metaschema import token
from radixbackend.structured.normalize import Normalizer, TooComplexError
from radixbackend.structured.pattern import NOTHING, PatternError, parse
from radixbackend.structured.report import CoverageReport, Finding
from radixbackend.structured.validation import Validate
from radixbackend.types import Constraint

CHEAP_MS = 150.0
"""Estimated xgrammar compile time, in ms at 128k tokens, up to which a schema without findings goes there."""
MAX_CACHED_BYTES = 16 * 1024 * 1024
_MAX_LEFT_OUT = 64

STRICT, FAST, CLOSEST = "xgrammar", "llguidance", "llguidance-lenient"


@dataclass(frozen=True, slots=True)
class CheckedConstraint:
    """A constraint that passed the front door.

    Attributes:
        constraint: what the backends compile: an equivalent of the caller's that they enforce more of.
        route: names of grammar backends, in order of preference.
        report: what they enforce, and what is left to `validate`.
    """

    constraint: Constraint
    route: tuple[str, ...]
    report: CoverageReport
    _validate: Validate = field(repr=False, compare=False)

    def validate(self, text: str) -> None:
        """Raise `OutputValidationError`, with keyword and path, where a finished output breaks the constraint."""
        self._validate(text)


def explain_schema(schema: Any) -> CoverageReport:
    """What the grammars enforce of a JSON schema (a mapping, its text, or a class with ``model_json_schema``)."""
    return FrontDoor().check(Constraint.json_schema(schema)).report


class FrontDoor:
    """Checks constraints, and remembers the answers up to ``MAX_CACHED_BYTES`` of constraint text."""

    def __init__(self) -> None:
        self._formats = FormatBook()
        self._cache: OrderedDict[tuple[Constraint, str], CheckedConstraint | ConstraintError] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def check(self, constraint: Constraint, *, prefer: str = STRICT) -> CheckedConstraint:
        """Judge ``constraint``; raises `ConstraintError` naming the JSON pointer, or ``"@N"``, at fault.

        ``prefer`` is the grammar backend to ask first where it is as good as any other; one that is unknown here, a
        plugin's, is always asked first. With ``on_unsupported="warn"`` a `UserWarning` lists what no backend enforces
        while generating; with ``"error"`` the first such keyword is refused.
        """
        answer = self._recall((constraint, prefer))
        if answer is None:
            try:
                answer = _led_by(prefer, self._judge(constraint, prefer))
            except ConstraintError as refusal:
                answer = refusal
            self._remember((constraint, prefer), answer)
        if isinstance(answer, ConstraintError):
            raise ConstraintError(str(answer), pointer=answer.pointer) from answer.__cause__
        _act_on_findings(constraint, answer.report.findings)
        return answer

    def _recall(self, key: tuple[Constraint, str]) -> CheckedConstraint | ConstraintError | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _remember(self, key: tuple[Constraint, str], answer: CheckedConstraint | ConstraintError) -> None:
        with self._lock:
            if key not in self._cache:
                self._cached_bytes += _size(key)
            self._cache[key] = answer
            while self._cached_bytes > MAX_CACHED_BYTES:
                oldest, _ = self._cache.popitem(last=False)
                self._cached_bytes -= _size(oldest)

    def _judge(self, constraint: Constraint, prefer: str) -> CheckedConstraint:
        if constraint.kind == "json_schema":
            return self._judge_schema(constraint, prefer)
        if constraint.kind == "json_object":
            return _enforced(constraint, _route(prefer), validation.object_validator)
        if constraint.kind == "regex":
            return _judge_regex(constraint, prefer)
        if constraint.kind == "choice":
            return _judge_choice(constraint, prefer)
        if constraint.kind == "grammar":
            ebnf.check(constraint.source)
            return _enforced(constraint, _route(prefer), _nothing_to_validate)
        return self._judge_tag(constraint)

    def _judge_schema(self, constraint: Constraint, prefer: str) -> CheckedConstraint:
        document = Document(constraint.source)
        validate = validation.schema_validator(document, self._formats)
        try:
            schema, route, findings, notes = self._normalized(document, prefer)
        except TooComplexError:
            schema, route = document.root, (CLOSEST,)
            findings = (Finding("", "$schema", "the schema is too intertwined to tell what a grammar enforces"),)
            notes = ()
        except SlowMatchError as fault:
            raise ConstraintError("matching the schema's names against its patterns takes too long") from fault
        except RecursionError as fault:
            raise ConstraintError("the schema nests too deeply") from fault
        compiled = replace(constraint, source=_dump(schema))
        report = CoverageReport(route[0], route, findings, notes)
        return CheckedConstraint(compiled, route, report, validate)

    def _normalized(
        self, document: Document, prefer: str
    ) -> tuple[Any, tuple[str, ...], tuple[Finding, ...], tuple[str, ...]]:
        """The schema to compile, its route, what it leaves out, and why."""
        normalizer = Normalizer(document, self._formats)
        emitter = Emitter(normalizer, self._formats)
        schema = emitter.emit()
        habits = lint_xgrammar(schema)
        if not habits and prefer == STRICT and xgrammar_cost(schema) <= CHEAP_MS:
            return schema, (STRICT, FAST), emitter.findings, ()
        notes = _why_not_strict(habits) if prefer == STRICT else ()
        refusal = llguidance_refusal(schema)
        if refusal is None:
            route = (FAST,) if habits else (FAST, STRICT)
            return schema, route, emitter.findings, notes
        plain = Emitter(normalizer, self._formats, plain=True)
        schema = plain.emit()
        reason = f"patterns and bounds are left out, for llguidance refuses one: {refusal.splitlines()[0][:120]}"
        left_out = [
            Finding(sub.pointer + token(keyword), keyword, reason)
            for sub in document.subschemas
            for keyword in LEFT_OUT_PLAIN
            if keyword in sub.schema
        ]
        findings = (*(sorted(left_out)[:_MAX_LEFT_OUT] or [Finding("", "not", reason)]), *plain.findings)
        route = (FAST, CLOSEST) if llguidance_refusal(schema) is None else (CLOSEST,)
        return schema, route, findings, notes

    def _judge_tag(self, constraint: Constraint) -> CheckedConstraint:
        """Schemas inside a structural tag are rewritten in place; what is left over is reported with their pointers."""
        tag = parse_json(constraint.source, "structural tag")
        findings: list[Finding] = []
        notes: dict[str, None] = {}
        rewritten = self._rewrite_tag(tag, "", findings, notes)
        compiled = replace(constraint, source=_dump(rewritten))
        report = CoverageReport(STRICT, (STRICT,), tuple(findings), tuple(notes))
        return CheckedConstraint(compiled, (STRICT,), report, _nothing_to_validate)

    def _rewrite_tag(self, part: Any, pointer: str, findings: list[Finding], notes: dict[str, None]) -> Any:
        if isinstance(part, list):
            return [self._rewrite_tag(item, f"{pointer}/{index}", findings, notes) for index, item in enumerate(part)]
        if not isinstance(part, dict):
            return part
        if part.get("type") != "json_schema" or "json_schema" not in part:
            return {key: self._rewrite_tag(value, pointer + token(key), findings, notes) for key, value in part.items()}
        place = f"{pointer}/json_schema"
        try:
            document = Document(_dump(part["json_schema"]))
            emitter = Emitter(Normalizer(document, self._formats), self._formats)
            schema = emitter.emit()
        except ConstraintError as fault:
            raise ConstraintError(str(fault), pointer=place + fault.pointer) from fault
        except TooComplexError:
            findings.append(Finding(place, "$schema", "the schema is too intertwined to tell what is enforced"))
            return part
        if _close_objects(schema):
            notes[_CLOSED] = None
        found = (*emitter.findings, *lint_xgrammar(schema))
        findings.extend(Finding(place + finding.pointer, finding.keyword, finding.reason) for finding in found)
        return {**part, "json_schema": schema}


_CLOSED = "inside a structural tag, objects with declared properties take no others: xgrammar is slow with open ones"


def _close_objects(schema: Any) -> bool:
    """Close the open objects of ``schema``, as an `Emitter` wrote it, that declare properties; whether any was."""
    closed = False
    for _, part in subschemas(schema):
        if part.get("properties") and part.get("additionalProperties") == {} and "minProperties" not in part:
            part["additionalProperties"] = False
            closed = True
    return closed


def _led_by(prefer: str, checked: CheckedConstraint) -> CheckedConstraint:
    """The same with a backend in front that is unknown here."""
    if prefer in (STRICT, FAST, CLOSEST) or checked.constraint.kind == "structural_tag":
        return checked
    route = (prefer, *checked.route)
    notes = (*checked.report.notes, f"what {prefer} enforces is not known here")
    return replace(checked, route=route, report=replace(checked.report, backend=prefer, route=route, notes=notes))


def _size(key: tuple[Constraint, str]) -> int:
    return 2_000 + 10 * len(key[0].source)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _route(prefer: str) -> tuple[str, ...]:
    return (FAST, STRICT) if prefer == FAST else (STRICT, FAST)


def _enforced(constraint: Constraint, route: tuple[str, ...], validate: Validate) -> CheckedConstraint:
    return CheckedConstraint(constraint, route, CoverageReport(route[0], route), validate)


def _nothing_to_validate(text: str) -> None:
    """The grammar is the whole promise: there is nothing beside it to check."""


def _act_on_findings(constraint: Constraint, findings: tuple[Finding, ...]) -> None:
    if not findings or constraint.on_unsupported == "fallback":
        return
    if constraint.on_unsupported == "error":
        first = findings[0]
        message = f"no grammar backend enforces {first.keyword} at {first.pointer or 'the root'}: {first.reason}"
        raise ConstraintError(message, pointer=first.pointer)
    listed = "; ".join(map(str, findings))
    warnings.warn(f"left to validation of the finished output: {listed}", UserWarning, stacklevel=4)


def _why_not_strict(habits: tuple[Finding, ...]) -> tuple[str, ...]:
    if not habits:
        return ("xgrammar would take long to compile this schema",)
    first = habits[0]
    return (f"xgrammar is passed over: {first.keyword} {first.reason}",)


def _judge_regex(constraint: Constraint, prefer: str) -> CheckedConstraint:
    """The pattern must match the whole output, so its outer anchors say nothing and are taken away."""
    source = constraint.source
    _check_regex_text(source)
    try:
        language = Language(strip_anchors(parse(source)))
    except PatternError as fault:
        message = f"the pattern is refused at @{fault.position}: {fault}"
        raise ConstraintError(message, pointer=f"@{fault.position}") from fault
    if language.tree == NOTHING:
        raise ConstraintError("nothing can match this pattern", pointer="@0")
    compiled = replace(constraint, source=language.text)
    return _enforced(compiled, _route(prefer), validation.regex_validator(language))


def _check_regex_text(source: str) -> None:
    if len(source) > MAX_PATTERN:
        raise ConstraintError(f"the pattern is longer than {MAX_PATTERN:,} characters", pointer=f"@{MAX_PATTERN}")
    if "\0" in source:
        raise ConstraintError("the pattern holds a NUL character", pointer=f"@{source.index(chr(0))}")
    surrogate = next((at for at, char in enumerate(source) if "\ud800" <= char < "\ue000"), None)
    if surrogate is not None:
        raise ConstraintError("the pattern holds an unpaired surrogate", pointer=f"@{surrogate}")


def _judge_choice(constraint: Constraint, prefer: str) -> CheckedConstraint:
    choices = parse_json(constraint.source, "choices")
    if not isinstance(choices, list) or not choices:
        raise ConstraintError("choices are a list of at least one string")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise ConstraintError(f"choice {index} is not a string of at least one character", pointer=f"/{index}")
    if len(choices) > MAX_ITEMS:
        raise ConstraintError(f"{len(choices):,} choices; at most {MAX_ITEMS:,} are taken")
    return _enforced(constraint, _route(prefer), validation.choice_validator(choices))

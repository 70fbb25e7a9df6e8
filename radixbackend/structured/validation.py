"""Does a finished output keep what its constraint promised?

Rules. The judge is the caller's own schema in its own draft, never the rewritten one. Patterns have the semantics of
ECMA-262 and formats those of their RFCs, as the grammars have. A match that backtracks too long counts as a failure
rather than hold the process up. Every failure is an `OutputValidationError` with keyword and path.

Must not know: grammars, routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn

from radixbackend.errors import OutputValidationError
from radixbackend.structured.document import Document
from radixbackend.structured.formats import FORMATS, FormatBook
from radixbackend.structured.language import Language, SlowMatchError, searcher
from radixbackend.structured.metaschema import token

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Validate = Callable[[str], None]
"""Takes the whole output; raises `OutputValidationError` where it breaks the constraint."""


def parse_output(text: str) -> Any:
    """The output as JSON, in the strict sense of RFC 8259."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as fault:
        message = f"the output is not complete JSON: {fault}"
        raise OutputValidationError(message, keyword="json", path="", text=text) from fault


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def schema_validator(document: Document, formats: FormatBook) -> Validate:
    """A validator for outputs of one schema; safe to call from several threads."""
    validator = _Judge(document, formats).validator

    def validate(text: str) -> None:
        from radixbackend.structured.library import jsonschema

        value = parse_output(text)
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except SlowMatchError as fault:
            message = "a pattern of the schema takes too long on this output; simplify it"
            raise OutputValidationError(message, keyword="pattern", path="", text=text) from fault
        except RecursionError as fault:
            message = "the output nests too deeply to be validated"
            raise OutputValidationError(message, keyword="$ref", path="", text=text) from fault
        if error is not None:
            path = "".join(map(token, error.absolute_path))
            reason = error.message if len(error.message) <= 300 else error.message[:300] + " …"
            message = f"the output breaks {error.validator} at {path or 'the root'}: {reason}"
            raise OutputValidationError(message, keyword=str(error.validator), path=path, text=text)

    return validate


def object_validator(text: str) -> None:
    """Any JSON object."""
    if not isinstance(parse_output(text), dict):
        raise OutputValidationError("the output is no JSON object", keyword="type", path="", text=text)


def regex_validator(language: Language) -> Validate:
    """The text as a whole is in ``language``."""

    def validate(text: str) -> None:
        try:
            matched = language.has(text)
        except SlowMatchError as fault:
            message = "the pattern takes too long on this output; simplify it"
            raise OutputValidationError(message, keyword="pattern", path="", text=text) from fault
        if not matched:
            raise OutputValidationError("the output does not match the pattern", keyword="pattern", path="", text=text)

    return validate


def choice_validator(choices: list[str]) -> Validate:
    """The text is one of ``choices``."""
    allowed = frozenset(choices)

    def validate(text: str) -> None:
        if text not in allowed:
            raise OutputValidationError("the output is none of the choices", keyword="enum", path="", text=text)

    return validate


class _Judge:
    """jsonschema's validator of the document's draft, with our patterns, formats and divisors."""

    def __init__(self, document: Document, formats: FormatBook) -> None:
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

        from radixbackend.structured.library import jsonschema

        self._searchers: dict[str, Callable[[str], bool]] = {}
        checker = jsonschema.FormatChecker(formats=())
        for name in FORMATS:
            checker.checks(name)(_format_check(formats, name))
        keywords: dict[str, Any] = {
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties,
            "multipleOf": _multiple_of,
        }
        if document.draft >= 2019:
            keywords["dependencies"] = jsonschema.Draft7Validator.VALIDATORS["dependencies"]
        extend: Any = jsonschema.validators.extend
        extended = extend(document.dialect, keywords)
        self.validator: Validator = extended(document.root, format_checker=checker, registry=REGISTRY)

    def _found(self, pattern: str, text: str) -> bool:
        if pattern not in self._searchers:
            self._searchers[pattern] = searcher(pattern)
        return self._searchers[pattern](text)

    def _pattern(self, validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        from jsonschema import ValidationError

        if isinstance(instance, str) and not self._found(pattern, instance):
            yield ValidationError(f"{instance!r} does not match {pattern!r}")

    def _pattern_properties(self, validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, dict):
            for pattern, subschema in patterns.items():
                for name, value in instance.items():
                    if self._found(pattern, name):
                        yield from validator.descend(value, subschema, path=name, schema_path=pattern)

    def _additional_properties(self, validator: Any, subschema: Any, instance: Any, schema: Any) -> Iterator[Any]:
        from jsonschema import ValidationError

        if not isinstance(instance, dict):
            return
        declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, value in instance.items():
            if name in declared or any(self._found(pattern, name) for pattern in patterns):
                continue
            if subschema is False:
                yield ValidationError(f"the property {name!r} is not allowed")
            elif subschema is not True:
                yield from validator.descend(value, subschema, path=name)


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """In decimals, as written: 0.3 is a multiple of 0.1."""
    from jsonschema import ValidationError

    if isinstance(instance, int | float) and not isinstance(instance, bool):
        try:
            whole = (Fraction(repr(instance)) / Fraction(repr(divisor))).denominator == 1
        except ValueError:  # an output like 1e999 reads as infinity
            whole = False
        if not whole:
            yield ValidationError(f"{instance!r} is not a multiple of {divisor!r}")


def _format_check(formats: FormatBook, name: str) -> Callable[[object], bool]:
    return lambda instance: not isinstance(instance, str) or formats.accepts(name, instance)

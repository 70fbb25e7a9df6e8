"""Fills in what the pages say from the code: ``python docs/tables.py`` rewrites the tables between their marks.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The tests fail where a page is behind the code.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import dedent
from typing import Any

from radixbackend import EngineConfig, EngineStats, SamplingParams, Usage, errors, explain_schema
from radixbackend.metrics import PrometheusMetrics
from radixbackend.structured.lint import lint_xgrammar, llguidance_refusal

FOLDER = Path(__file__).parent
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """The page with every table as the code has it now."""
    return PLACE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", page)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


# -- fields ----------------------------------------------------------------------------------------------------------


def attributes(kind: type) -> Iterator[tuple[str, str]]:
    """What the docstring says of each attribute: its name, or several, and the text."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    for entry in re.split(r"\n(?=    \S)", section):
        name, _, text = entry.strip().partition(": ")
        yield name, " ".join(text.split()).replace("``", "`")


def _defaults(kind: type) -> dict[str, str]:
    found = {}
    for field in fields(kind):
        value: Any = field.default
        if value is MISSING:
            value = field.default_factory() if field.default_factory is not MISSING else ""
        found[field.name] = "required" if value == "" else f"`{value!r}`"
    return found


def _options(kind: type) -> str:
    defaults = _defaults(kind)
    return table(
        ("name", "default", ""), ((f"`{n}`", defaults[n], f"{t[:1].upper()}{t[1:]}") for n, t in attributes(kind))
    )


def _values(kind: type) -> str:
    rows = ((re.sub(r"(\w+)", r"`\1`", name), f"{text[:1].upper()}{text[1:]}") for name, text in attributes(kind))
    return table(("name", ""), rows)


def _metrics() -> str:
    rows = []
    for metric in PrometheusMetrics(model_name="m").registry.collect():
        suffix = "_total" if metric.type == "counter" else ""
        rows.append((f"`{metric.name}{suffix}`", metric.type, metric.documentation))
    return table(("name", "type", ""), sorted(rows, key=lambda row: (row[1], row[0])))


# -- what is enforced of a schema ------------------------------------------------------------------------------------

INTEGER, STRING = {"type": "integer"}, {"type": "string"}
CLOSED = {"type": "object", "additionalProperties": False}
PAIR = {**CLOSED, "properties": {"a": STRING, "b": INTEGER}}

SAMPLES: dict[str, Any] = {
    "type": {"type": ["integer", "null"]},
    "enum": {"enum": ["a", 1, None]},
    "const": {"const": "a"},
    "properties, required": {**PAIR, "required": ["a"]},
    "additionalProperties": {"type": "object", "additionalProperties": INTEGER},
    "patternProperties": {**CLOSED, "patternProperties": {"^x": INTEGER}},
    "propertyNames": {"type": "object", "additionalProperties": INTEGER, "propertyNames": {"pattern": "^[a-z]{3}$"}},
    "minProperties, maxProperties": {
        "type": "object",
        "additionalProperties": INTEGER,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "dependentRequired": {**PAIR, "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {**PAIR, "dependentSchemas": {"a": {"type": "object", "required": ["b"]}}},
    "unevaluatedProperties": {"type": "object", "properties": {"a": STRING}, "unevaluatedProperties": False},
    "items, minItems, maxItems": {"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 3},
    "prefixItems": {"type": "array", "prefixItems": [INTEGER, STRING], "items": False},
    "uniqueItems": {"type": "array", "items": INTEGER, "uniqueItems": True},
    "contains": {"type": "array", "items": INTEGER, "contains": {"const": 7}},
    "minLength, maxLength": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern, anchored": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
    "pattern, not anchored": {"type": "string", "pattern": "[0-9]{3}"},
    "pattern with lengths": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
    "format: date": {"type": "string", "format": "date"},
    "format: email": {"type": "string", "format": "email"},
    "format: uuid": {"type": "string", "format": "uuid"},
    "minimum, maximum, of integers": {"type": "integer", "minimum": 1, "maximum": 40},
    "minimum, maximum, of numbers": {"type": "number", "minimum": 0.5, "maximum": 1.5},
    "multipleOf, of integers": {"type": "integer", "multipleOf": 5},
    "multipleOf, of numbers": {"type": "number", "multipleOf": 0.01},
    "anyOf": {"anyOf": [STRING, INTEGER]},
    "oneOf, of things apart": {"oneOf": [STRING, INTEGER]},
    "oneOf, overlapping": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 9}]},
    "not": {"type": "string", "not": {"enum": ["a", "b"]}},
    "if, then, else": {
        **PAIR,
        "if": {"type": "object", "properties": {"a": {"const": "x"}}},
        "then": {"type": "object", "required": ["b"]},
    },
    "$ref": {"$ref": "#/$defs/a", "$defs": {"a": INTEGER}},
    "$ref, recursive": {
        **CLOSED,
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    },
}


def _coverage() -> str:
    head = ("keyword", "xgrammar by itself", "llguidance by itself", "here")
    return table(head, ((f"`{name}`", _xgrammar(s), _llguidance(s), _here(s)) for name, s in SAMPLES.items()))


def _xgrammar(schema: Any) -> str:
    findings = lint_xgrammar(schema)
    return "; ".join(dict.fromkeys(f"`{finding.keyword}` {finding.reason}" for finding in findings)) or "enforced"


def _llguidance(schema: Any) -> str:
    return "enforced" if llguidance_refusal(schema) is None else "refused"


def _here(schema: Any) -> str:
    try:
        report = explain_schema(schema)
    except errors.ConstraintError as refusal:
        return f"refused: {refusal}"
    if report.enforced:
        return f"enforced ({report.backend})"
    rest = ", ".join(f"`{finding.keyword}`" for finding in report.findings)
    return f"{rest} validated afterwards"


def _errors() -> str:
    tree = [line[4:] for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    return "\n".join(("```text", *tree, "```"))


def _benchmarks() -> str:
    """What each says of itself, its command in a block of its own."""
    folder = FOLDER.parent / "benchmarks"
    files = [file for file in sorted(folder.glob("*.py")) if "__main__" in file.read_text(encoding="utf-8")]
    sections = []
    for file in (*files, folder / "peers" / "compare.py", folder / "peers" / "plots.py"):
        module = ".".join(file.relative_to(folder.parent).with_suffix("").parts)
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        about = about.replace("``", "`") + "\n"
        commands = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
        about = commands.sub(lambda match: f"```text\n{dedent(match[0])}```\n", about)
        sections.append(f"### {module}\n\n{about}")
    return "\n".join(sections).rstrip()


TABLES: dict[str, Callable[[], str]] = {
    "config": lambda: _options(EngineConfig),
    "sampling": lambda: _options(SamplingParams),
    "usage": lambda: _values(Usage),
    "stats": lambda: _values(EngineStats),
    "metrics": _metrics,
    "coverage": _coverage,
    "errors": _errors,
    "benchmarks": _benchmarks,
}

if __name__ == "__main__":
    for page in sorted(FOLDER.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        if (after := render(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(page)

"""What the first schema of a process imports, seen from a process of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

FIRST = """
import sys
from radixbackend.structured import FrontDoor
from radixbackend.types import Constraint

formats = ["date-time", "email", "uri", "ipv6", "uuid"]
schema = {"type": "object", "properties": {name: {"type": "string", "format": name} for name in formats}}
FrontDoor().check(Constraint.json_schema(schema)).validate('{"email": "a@b.example"}')
assert "jsonschema" in sys.modules
"""


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", FIRST + program], check=True)


def test_first_schema_builds_no_parsers() -> None:
    run('assert not {"rfc3987_syntax", "lark", "torch", "transformers"} & set(sys.modules)')


@pytest.mark.skipif(find_spec("rfc3987_syntax") is None, reason="jsonschema's format extras are not installed")
def test_checkers_that_others_use_work_as_ever() -> None:
    run("""
import jsonschema
checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
assert checker.conforms("http://caf\\u00e9.example/", "iri")
assert not checker.conforms("http://a b/", "iri")
assert hasattr(sys.modules["rfc3987_syntax"], "syntax_parser")
""")

"""Structured output: what "fits the schema" means here, judged before and after generation.

`FrontDoor.check` takes a `radixbackend.Constraint` and answers with a `CheckedConstraint`: what to compile, by which
grammar backend, what stays to be validated, and the validation. `explain_schema` prints the same for people.
"""

from __future__ import annotations

from radixbackend.structured.front_door import CheckedConstraint, FrontDoor, explain_schema
from radixbackend.structured.report import CoverageReport, Finding

__all__ = ["CheckedConstraint", "CoverageReport", "Finding", "FrontDoor", "explain_schema"]

"""What the front door found out about a constraint, as values that can be printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One keyword that a grammar does not enforce while generating."""

    pointer: str
    """JSON pointer of the keyword in the caller's schema."""
    keyword: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pointer}: {self.reason}"


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """How far the grammar goes, and what is left to validation.

    Attributes:
        backend: the grammar backend asked first.
        route: all of them, in order of preference.
        findings: keywords of the caller's schema that this grammar does not enforce; the finished output is
            validated against them instead.
        notes: why this route, and where generation is narrower than the schema.
    """

    backend: str
    route: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def enforced(self) -> bool:
        """Whether the grammar alone guarantees the constraint: a complete output cannot fail validation."""
        return not self.findings

    def __str__(self) -> str:
        lines = [f"backend: {self.backend} (route: {' → '.join(self.route)})"]
        if self.enforced:
            lines.append("enforced while generating: all of it")
        else:
            lines.append("left to validation of the finished output:")
            lines.extend(f"  {finding}" for finding in self.findings)
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)

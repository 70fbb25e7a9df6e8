"""``radix explain-schema``: how a schema would be enforced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from radixbackend.cli.options import text_of


def explain_schema(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON schema.")],
) -> None:
    """Say how a schema would be enforced, and which keywords only a check afterwards can cover."""
    from radixbackend import explain_schema as explain

    print(explain(text_of(file)))

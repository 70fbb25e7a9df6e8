"""The program ``radix``."""

from radixbackend.cli.program import main

__all__ = ["main"]

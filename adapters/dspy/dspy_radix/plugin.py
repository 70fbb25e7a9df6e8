"""The adapter's announcement, for ``radix plugins``."""

from __future__ import annotations

from dspy_radix import __version__
from radixbackend import hookimpl
from radixbackend.types import AdapterInfo


@hookimpl
def radix_adapters() -> AdapterInfo:
    return AdapterInfo("dspy-radix", "dspy", __version__, ("RadixLM", "RadixAdapter", "warm"))

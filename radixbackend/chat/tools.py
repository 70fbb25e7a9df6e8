"""Which of the known formats a model writes its tool calls in, and what a model without one is told.

Rules. Told by the model's own template and tokens, never by its name. The order matters: families that borrow
another's markers come before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from radixbackend.chat.formats import (
    deepseek,
    gemma,
    granite,
    harmony,
    hermes,
    kimi,
    kimi_k3,
    llama,
    mistral,
    phi,
    pythonic,
    xml,
)
from radixbackend.chat.formats.base import ToolFormat
from radixbackend.chat.request import Tool
from radixbackend.types import ModelInfo

FAMILIES = (harmony, kimi, kimi_k3, deepseek, gemma, mistral, xml, pythonic, phi, granite, hermes, llama)

DEFAULT = hermes.HERMES
"""For models that nobody taught to call tools; their prompt explains it, see `instructions`."""


def find(model: ModelInfo) -> ToolFormat:
    """The built-in format that this model's template or tokens mention; `DEFAULT` if none."""
    found = (family.find(model) for family in FAMILIES)
    return next((format for format in found if format is not None), DEFAULT)


def instructions(format: ToolFormat, tools: Sequence[Tool]) -> str:
    """What to tell a model whose chat template says nothing of tools."""
    listed = "\n".join(json.dumps(tool.as_dict()["function"], ensure_ascii=False) for tool in tools)
    example = format.write([("name_of_function", {"name_of_argument": "value"})])
    return (
        "You may call functions to help with the user's request. These are the functions, one JSON object each:\n"
        f"{listed}\n\nTo call one, write exactly this, with the function's name and its arguments:\n{example}"
    )

"""Llama 3.1 to 3.3: bare JSON objects with ``parameters``. (Llama 4 writes Python: see `pythonic`.)

Meta's prompt format asks for one object ``{"name": …, "parameters": …}``; several are separated by semicolons. The
token ``<|python_tag|>``, which some answers begin with, is a special token and so no part of the text.
"""

from __future__ import annotations

from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

LLAMA = LaidOutFormat(
    "llama",
    Layout(
        begin='{"name": "',
        middle='", "parameters": ',
        end="}",
        trigger='{"name": "',
        separator="; ",
    ),
)


def find(model: ModelInfo) -> ToolFormat | None:
    return LLAMA if model.mentions("<|python_tag|>") or '"parameters": dictionary' in model.chat_template else None

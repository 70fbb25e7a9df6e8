"""Mistral: ``[TOOL_CALLS]`` before a JSON list (up to tokenizer version 7) or before each call (from version 11).

Version 11 writes an id into each call, later ones do not; the template tells.
"""

from __future__ import annotations

import hashlib
import secrets
import string

from radixbackend.chat.formats.base import INDEX, Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

TRIGGER = "[TOOL_CALLS]"
ID_LENGTH = 9  # alphanumeric; the chat templates refuse others
_ALPHABET = string.ascii_letters + string.digits


class MistralFormat(LaidOutFormat):
    """A layout with ids as Mistral's chat templates accept them."""

    def call_id(self, name: str, index: str) -> str | None:
        return index or None

    def new_id(self) -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))

    def template_id(self, call_id: str) -> str:
        if len(call_id) == ID_LENGTH and call_id.isascii() and call_id.isalnum():
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:ID_LENGTH]


LIST = MistralFormat(
    "mistral-list",
    Layout(
        opens=(f"{TRIGGER}[", f"{TRIGGER} ["),
        begin='{"name": "',
        middle='", "arguments": ',
        end="}",
        trigger=TRIGGER,
        separator=", ",
        close="]",
    ),
)

CALLS = MistralFormat(
    "mistral",
    Layout(begin=TRIGGER, middle="[ARGS]", end="", trigger=TRIGGER),
    hidden=("[ARGS]",),
)


CALLS_WITH_ID = MistralFormat(
    "mistral-id",
    Layout(begin=TRIGGER, middle=f"[CALL_ID]{INDEX}[ARGS]", end="", trigger=TRIGGER, index_width=ID_LENGTH),
    hidden=("[ARGS]", "[CALL_ID]"),
)


def find(model: ModelInfo) -> ToolFormat | None:
    if not model.mentions(TRIGGER):
        return None
    shown: str | frozenset[str] = model.chat_template if TRIGGER in model.chat_template else model.added_tokens
    if "[ARGS]" not in shown:
        return LIST
    return CALLS_WITH_ID if "[CALL_ID]" in model.chat_template else CALLS

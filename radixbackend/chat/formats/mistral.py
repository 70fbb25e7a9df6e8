"""Mistral: ``[TOOL_CALLS]`` before a JSON list (up to tokenizer version 7) or before each call (from version 11)."""

from __future__ import annotations

import hashlib
import secrets
import string

from radixbackend.chat.formats.base import Layout, ToolFormat
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.types import ModelInfo

TRIGGER = "[TOOL_CALLS]"
ID_LENGTH = 9  # alphanumeric; the chat templates refuse others
_ALPHABET = string.ascii_letters + string.digits


class MistralFormat(LaidOutFormat):
    """A layout with ids as Mistral's chat templates accept them."""

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


def find(model: ModelInfo) -> ToolFormat | None:
    if not model.mentions(TRIGGER):
        return None
    return CALLS if model.mentions("[ARGS]") else LIST

"""Bookings from letters: partial objects as they grow, then a whole pile at once.

python bookings.py my-model
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.llms.radix import Radix
from pydantic import BaseModel, Field


class Guest(BaseModel):
    name: str = Field(max_length=20)
    age: int | None = Field(default=None, ge=0, le=120)


class Booking(BaseModel):
    """What a guest asks for."""

    view: Literal["sea", "garden", "any"]
    nights: int = Field(ge=1, le=21)
    guests: list[Guest] = Field(min_length=1, max_length=3)


PROMPT = ChatPromptTemplate(
    [
        ChatMessage(role="system", content="You read the letters that a small hotel gets, and note down bookings."),
        ChatMessage(content="{letter}"),
    ]
)
LETTERS = (
    "A room by the sea for three nights, please. Anna Schmidt, 41.",
    "My son Ben (9) and I would love to stay a week. Lou Okafor",
    "Anything for tonight? Lee",
)


async def read(llm: Radix) -> None:
    print("== One letter, as it is read")
    async for booking in await llm.astream_structured_predict(Booking, PROMPT, letter=LETTERS[0]):
        print(repr(booking))

    print("\n== All letters at once")
    before = llm.stats()
    for booking in await asyncio.gather(*(llm.astructured_predict(Booking, PROMPT, letter=text) for text in LETTERS)):
        print(booking.model_dump_json())
    after = llm.stats()
    prompts, cached = after.prompt_tokens - before.prompt_tokens, after.cached_tokens - before.cached_tokens
    print(f"{cached} of {prompts} prompt tokens came from the cache")


if __name__ == "__main__":
    with Radix(sys.argv[1] if len(sys.argv) > 1 else "radix-tiny", temperature=0) as model:
        asyncio.run(read(model))

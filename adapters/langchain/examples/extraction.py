"""Facts from texts, as objects: many at once, sharing the instructions in the cache.

python extraction.py [model]
"""

from __future__ import annotations

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_radix import ChatRadix
from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0, le=120)
    city: str


TEXTS = [
    "Anna Schmidt is 31 years old and lives in Rome.",
    "Tom is a 42 year old cook from Berlin.",
    "Meet Maria, 28, from Lisbon.",
]

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "You extract structured data."),
        ("human", "Extract the person from the text.\n{text}"),
    ]
)


def main(model: str) -> list[Person]:
    with ChatRadix(model=model, temperature=0, max_tokens=100) as llm:
        chain = PROMPT | llm.with_structured_output(Person, include_raw=True)
        found = []
        for text, answer in zip(TEXTS, chain.batch([{"text": text} for text in TEXTS]), strict=True):
            cached = answer["raw"].usage_metadata["input_token_details"]["cache_read"]
            print(f"{text}\n  {answer['parsed']!r} ({cached} prompt tokens from the cache)")
            found.append(answer["parsed"])
        return found


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "radix-tiny")

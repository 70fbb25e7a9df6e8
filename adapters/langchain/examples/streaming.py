"""Text as it is written, an object as it grows, and many streams at once on one event loop.

python streaming.py [model]
"""

from __future__ import annotations

import asyncio
import sys

from langchain_radix import ChatRadix
from pydantic import BaseModel

TEXT = "Maria Rossi is 28 years old, lives in Lisbon and works as a teacher."


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    city: str
    job: str


async def tell(llm: ChatRadix, question: str) -> str:
    return "".join([chunk.text async for chunk in llm.astream(f"{TEXT}\n\n{question}")])


async def together(llm: ChatRadix) -> list[str]:
    """All of them are decoded in one batch, and the text before the questions is computed once."""
    questions = ("Where does Maria Rossi live?", "How old is Maria Rossi?", "What does Maria Rossi work as?")
    return await asyncio.gather(*(tell(llm, question) for question in questions))


def main(model: str) -> None:
    with ChatRadix(model=model, temperature=0, max_tokens=80) as llm:
        for chunk in llm.stream("Tell me a joke."):
            print(chunk.text, end="", flush=True)
        print()
        for growing in llm.with_structured_output(Person.model_json_schema()).stream(f"Extract the person.\n{TEXT}"):
            print(growing)
        for text in asyncio.run(together(llm)):
            print(repr(text))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "radix-tiny")

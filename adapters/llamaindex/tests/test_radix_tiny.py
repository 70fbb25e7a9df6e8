"""With the trained model that ships: agents call the right tool and answer from what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.radix import Radix
from pydantic import BaseModel


@pytest.fixture(scope="module")
def tiny() -> Iterator[Radix]:
    package = find_spec("radixbackend")
    assert package is not None
    assert package.origin is not None
    if not (Path(package.origin).parent / "models" / "radix_tiny" / "model.safetensors").exists():
        pytest.skip("radix-tiny is not in this package")
    with Radix("radix-tiny", temperature=0, max_tokens=128) as llm:
        yield llm


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return "sunny, 21 degrees"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_calls_the_right_tool_and_answers(tiny: Radix, streaming: bool) -> None:
    async def run() -> Any:
        agent = FunctionAgent(tools=[add, get_weather], llm=tiny, streaming=streaming)
        return await agent.run("What is the weather in Oslo?")

    result = asyncio.run(run())
    assert [(call.tool_name, call.tool_kwargs) for call in result.tool_calls] == [("get_weather", {"city": "Oslo"})]
    assert "sunny" in str(result)


def test_objects_say_what_the_text_says(tiny: Radix) -> None:
    class Person(BaseModel):
        age: int
        city: str

    prompt = PromptTemplate("{who} is {age} years old and lives in {city}.")
    facts = ({"who": "Anna", "age": 31, "city": "Oslo"}, {"who": "Ben", "age": 58, "city": "Rome"})
    for fact in facts:
        person = tiny.structured_predict(Person, prompt, **fact)
        assert person == Person(age=fact["age"], city=fact["city"])  # type: ignore[arg-type]

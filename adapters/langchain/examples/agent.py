"""An agent that calls tools and answers with an object: every turn is calls that fit, or JSON that fits.

python agent.py [model]
"""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_radix import ChatRadix
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"It is 21 degrees in {city}."


def main(model: str) -> Weather:
    with ChatRadix(model=model, temperature=0, max_tokens=120) as llm:
        agent = create_agent(llm, [get_weather], response_format=Weather)
        state = agent.invoke({"messages": [("user", "What is the weather in Rome?")]}, {"recursion_limit": 12})
        for message in state["messages"]:
            if isinstance(message, AIMessage) and message.tool_calls:
                print("calls ", [(call["name"], call["args"]) for call in message.tool_calls])
            elif isinstance(message, ToolMessage):
                print("is told", message.content)
        answer: Weather = state["structured_response"]
        print("answers", repr(answer))
        return answer


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "radix-tiny")

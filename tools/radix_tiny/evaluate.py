"""The model card's figures: ``python -m tools.radix_tiny.evaluate``.

Rules. Cases are of the held-out world, drawn by the generator with a seed that training never uses, and go through the
package's own engine and chat service, greedily. A case is right if the answer is right as a whole: every value of a
record, every call with all its arguments, every letter of a text. "grammar" lets the engine enforce what a caller could
ask for: the schema of a record, the choice among labels, a call where a call is due. Tasks in which there is nothing to
enforce have the same figure twice; prompts that leave the fields' names to the grammar are asked with it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from radixbackend import Constraint, Engine, SamplingParams
from radixbackend.chat.request import ChatRequest, Message
from radixbackend.chat.service import ChatService
from radixbackend.errors import RadixError
from tools.radix_tiny.corpus import dialogs
from tools.radix_tiny.dialog import Dialog

SEED = "evaluation"
MAX_TOKENS = 400
IN_FLIGHT = 32


@dataclass
class Score:
    """Of one task in one mode."""

    cases: int = 0
    right: int = 0
    wrong: list[tuple[Dialog, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.cases if self.cases else float("nan")


def cases(limit: int, tasks: Sequence[str] = ()) -> Iterator[Dialog]:
    """`limit` held-out conversations of each task, in the order in which they are drawn."""
    counts: dict[str, int] = defaultdict(int)
    wanted = set(tasks or ALL_TASKS)
    for dialog in dialogs(SEED, held_out=True):
        if dialog.task in wanted and counts[dialog.task] < limit:
            counts[dialog.task] += 1
            yield dialog
        if all(counts[task] == limit for task in wanted):
            return


ALL_TASKS = {
    "extraction": "extraction to JSON, English",
    "extraction_tr": "extraction to JSON, Turkish",
    "classification": "sentiment and topic",
    "lookup": "looking up a fact in a passage",
    "tools_call": "right tool, right arguments",
    "tools_answer": "answering from a tool's result",
    "tools_none": "answering without the tools on offer",
    "facts": "capitals and small sums",
    "chat": "memory and persona over several turns",
    "dspy": "DSPy's field formats",
    "react": "a step of DSPy's ReAct",
}


def request_of(dialog: Dialog, *, grammar: bool) -> ChatRequest:
    """What a caller would send: the conversation without its last answer."""
    response_format: Constraint | None = None
    tool_choice: str | None = None
    if grammar and dialog.schema is not None:
        response_format = Constraint.json_schema(dialog.schema)
    elif grammar and dialog.choices is not None:
        response_format = Constraint.choice(dialog.choices)
    if grammar and dialog.task == "tools_call":
        tool_choice = "required"
    return ChatRequest.of(
        _openai(dialog.prompt),
        tools=dialog.tools or None,
        tool_choice=tool_choice,
        response_format=response_format,
        sampling=SamplingParams(temperature=0, max_tokens=MAX_TOKENS),
    )


def _openai(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The generator's messages with the ids, and the arguments as JSON text, that the OpenAI shape has."""
    written: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            written.append({**message, "tool_call_id": open_calls.pop(0)})
        elif "tool_calls" in message:
            made: list[dict[str, Any]] = []
            for call in message["tool_calls"]:
                function = call["function"]
                arguments = json.dumps(function["arguments"], ensure_ascii=False)
                made.append(
                    {**call, "id": f"call_{len(written)}_{len(made)}", "function": {**function, "arguments": arguments}}
                )
            open_calls = [call["id"] for call in made]
            written.append({**message, "tool_calls": made})
        else:
            written.append(message)
    return written


def is_right(dialog: Dialog, message: Message) -> bool:
    expected = dialog.answer
    calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
    due = [(call["function"]["name"], call["function"]["arguments"]) for call in expected.get("tool_calls", ())]
    if calls or due:
        return calls == due
    text = message.text.strip()
    if dialog.schema is not None:
        return bool(_loaded(text) == json.loads(expected["content"]))
    return text == str(expected["content"]).strip()


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def evaluate(service: ChatService, dialogs: Sequence[Dialog], *, grammar: bool) -> dict[str, Score]:
    """Scores by task; an answer that the engine refuses to call an answer is wrong."""
    asked = [dialog for dialog in dialogs if grammar or not dialog.grammar_only]
    scores: dict[str, Score] = defaultdict(Score)
    for dialog, given in zip(asked, asyncio.run(_answers(service, asked, grammar=grammar)), strict=True):
        score = scores[dialog.task]
        score.cases += 1
        if isinstance(given, Message) and is_right(dialog, given):
            score.right += 1
        else:
            score.wrong.append((dialog, _shown(given) if isinstance(given, Message) else str(given)))
    return scores


async def _answers(service: ChatService, dialogs: Sequence[Dialog], *, grammar: bool) -> list[Message | RadixError]:
    """All at once, as far as the engine's batch goes."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def answer(dialog: Dialog) -> Message | RadixError:
        async with room:
            try:
                return (await service.acomplete(request_of(dialog, grammar=grammar))).message
            except RadixError as fault:
                return fault

    return await asyncio.gather(*map(answer, dialogs))


def _shown(message: Message) -> str:
    calls = "; ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)
    return calls or message.text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure radix-tiny on held-out cases.")
    parser.add_argument("--model", default="radix-tiny")
    parser.add_argument("--limit", type=int, default=200, help="cases of each task")
    parser.add_argument("--tasks", nargs="*", default=(), choices=list(ALL_TASKS))
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per task")
    options = parser.parse_args(arguments)
    drawn = list(cases(options.limit, options.tasks))
    began = time.monotonic()
    with Engine(options.model) as engine:
        service = ChatService(engine)
        free = evaluate(service, drawn, grammar=False)
        bound = evaluate(service, drawn, grammar=True)
    print("| task | cases | free | grammar |\n|---|---:|---:|---:|")
    for task, title in ALL_TASKS.items():
        if task in free:
            print(f"| {title} (`{task}`) | {free[task].cases} | {free[task].share:.1%} | {bound[task].share:.1%} |")
    print(f"\n{len(drawn)} cases, twice, in {time.monotonic() - began:.0f} s")
    for task, score in bound.items():
        for dialog, given in score.wrong[: options.show]:
            print(f"\n--- {task}: {dialog.prompt[-1]['content']!r}\n  due   {dialog.answer}\n  given {given}")


if __name__ == "__main__":
    main()

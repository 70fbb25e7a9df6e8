"""The model card's figures: ``python -m tools.radix_tiny.evaluate``, with ``--card`` written into the card.

Rules. Cases are of the held-out world, drawn by the generator with a seed that training never uses, and go through the
package's own engine and chat service, greedily. "new names" have names and invented words that training never shows,
in wordings that it does; "new wordings" have neither. A case is right if the answer is right as a whole: every value of
a record, every call with all its arguments, every letter of a text. "grammar" lets the engine enforce what a caller
could ask for: the schema of a record, the choice among labels, a call where a call is due. Tasks in which there is
nothing to enforce have the same figure twice; prompts that leave the fields' names to the grammar are asked with it
alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
KINDS = {"new names": False, "new wordings": True}
"""What is new to the model, and whether wordings are."""
MARK = "<!-- figures -->"
"""Stands before and after the figures in a model card."""


@dataclass
class Score:
    """Of one task in one mode."""

    cases: int = 0
    right: int = 0
    wrong: list[tuple[Dialog, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.cases if self.cases else float("nan")


def cases(limit: int, tasks: Sequence[str] = (), *, new_wordings: bool) -> Iterator[Dialog]:
    """`limit` held-out conversations of each task, in the order in which they are drawn."""
    counts: dict[str, int] = defaultdict(int)
    wanted = set(tasks or ALL_TASKS)
    for dialog in dialogs(SEED, held_out=True, new_wordings=new_wordings):
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


Column = tuple[str, bool]
"""What is new, and whether the engine enforces what it can."""


def measure(service: ChatService, limit: int, tasks: Sequence[str]) -> dict[Column, dict[str, Score]]:
    """Every column of the table: scores by task."""
    columns: dict[Column, dict[str, Score]] = {}
    for kind, new_wordings in KINDS.items():
        drawn = list(cases(limit, tasks, new_wordings=new_wordings))
        for grammar in (False, True):
            columns[kind, grammar] = evaluate(service, drawn, grammar=grammar)
    return columns


def report(columns: dict[Column, dict[str, Score]], limit: int) -> str:
    """The card's table, and how far its figures can be trusted."""
    headings = [f"{kind}: {'grammar' if grammar else 'free'}" for kind, grammar in columns]
    lines = [f"| task | cases | {' | '.join(headings)} |", "|---|---:|" + "---:|" * len(headings)]
    for task, title in ALL_TASKS.items():
        scores = [column[task] for column in columns.values() if task in column]
        if scores:
            shares = " | ".join(f"{score.share:.1%}" for score in scores)
            lines.append(f"| {title} (`{task}`) | {max(score.cases for score in scores)} | {shares} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Repeat with `python -m tools.radix_tiny.evaluate --limit {limit}`; `--tasks` chooses, `--show` shows.",
            f"With so many cases a figure is good to about {100 * _margin(limit):.0f} points either way.",
        ]
    )


def _margin(cases: int) -> float:
    """Half of the interval that holds 95 % of what a share of one half would be measured as."""
    return float(1.96 * (0.25 / cases) ** 0.5)


def fill(card: str, figures: str) -> str:
    """The card with these figures between its two marks.

    Raises:
        ValueError: the card does not have two marks.
    """
    parts = card.split(MARK)
    if len(parts) != 3:
        raise ValueError(f"a card needs {MARK} before and after its figures, this one has it {len(parts) - 1} times")
    return f"{parts[0]}{MARK}\n{figures}\n{MARK}{parts[2]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure radix-tiny on held-out cases.")
    parser.add_argument("--model", default="radix-tiny")
    parser.add_argument("--quantization", help="as the engine's option; None is the model as it is")
    parser.add_argument("--limit", type=int, default=200, help="cases of each task and column")
    parser.add_argument("--tasks", nargs="*", default=(), choices=list(ALL_TASKS))
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per task")
    parser.add_argument("--card", type=Path, help=f"model card whose figures, between two lines {MARK}, to replace")
    options = parser.parse_args(arguments)
    if options.card:
        if options.tasks:
            parser.error("a card has the figures of all tasks: --card or --tasks")
        fill(options.card.read_text(encoding="utf-8"), "")  # a card without marks fails before the work, not after it
    began = time.monotonic()
    with Engine(options.model, quantization=options.quantization) as engine:
        columns = measure(ChatService(engine), options.limit, options.tasks)
    figures = report(columns, options.limit)
    print(figures)
    print(f"\n{sum(s.cases for column in columns.values() for s in column.values())} answers", end=" ")
    print(f"in {time.monotonic() - began:.0f} s")
    if options.card:
        options.card.write_text(fill(options.card.read_text(encoding="utf-8"), figures), encoding="utf-8")
    for (kind, grammar), scores in columns.items():
        for task, score in scores.items() if grammar else ():
            for dialog, given in score.wrong[: options.show]:
                print(f"\n--- {task}, {kind}: {dialog.prompt[-1]['content']!r}")
                print(f"  due   {dialog.answer}\n  given {given}")


if __name__ == "__main__":
    main()

"""Four frameworks, one engine, one cache, on the model that ships. ``make demo`` runs it.

Each framework does a job as people have them: long instructions with examples or tools, and many short inputs. It does
it twice: with the prefix cache off and with it on, starting cold both times. Everything printed was just computed;
nothing is recorded.
"""

# ruff: noqa: RUF001 -- Turkish has an i without a dot.

from __future__ import annotations

import argparse
import ast
import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import dspy
from dspy_radix import RadixAdapter, RadixLM
from langchain_core.prompts import ChatPromptTemplate
from langchain_radix import ChatRadix
from llama_index.core.prompts import ChatPromptTemplate as LlamaPrompt
from llama_index.llms.radix import Radix
from pydantic import BaseModel
from rich.console import Console, Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from radixbackend import get_backend
from radixbackend.backend import Backend
from radixbackend.openai import OpenAI

WIDTH, BAR = 100, 32
SHOWN = 4
"""Answers of each job that are printed."""


@dataclass(frozen=True)
class Answer:
    """What was asked, what was answered, and what would have been right."""

    asked: str
    said: str
    due: str


class Person(BaseModel):
    name: str
    age: int
    job: str
    city: str | None


class Story(BaseModel):
    topic: Literal["sports", "politics", "health", "music"]


PEOPLE = (
    ("Clara Voss is 38 years old and works as a doctor. She lives in Vienna.", ("Clara Voss", 38, "doctor", "Vienna")),
    ("Mehmet 44 yaşında bir doktordur.", ("Mehmet", 44, "doktor", None)),
    ("This is Piet Mulder. He is 23 years old, is a farmer and is from Ghent.", ("Piet Mulder", 23, "farmer", "Ghent")),
    ("Meet Nina. She is 31, works as a lawyer and is based in Oslo.", ("Nina", 31, "lawyer", "Oslo")),
    ("Our new colleague is Tomas. He is 57 years old and is a baker.", ("Tomas", 57, "baker", None)),
    ("Here is Rosa Bell. She is aged 64, is a painter and comes from Turin.", ("Rosa Bell", 64, "painter", "Turin")),
    ("Selin 27 yaşında bir öğretmendir.", ("Selin", 27, "öğretmen", None)),
    ("Samuel Price lives in Leeds, is 19 years old and works as a chef.", ("Samuel Price", 19, "chef", "Leeds")),
    # Those above are the examples in the prompt, those below are asked.
    ("Marta Lind is 41 years old and works as a nurse. She lives in Oslo.", ("Marta Lind", 41, "nurse", "Oslo")),
    ("Ahmet 35 yaşında bir mühendistir.", ("Ahmet", 35, "mühendis", None)),
    ("Meet Henry Ward. He is 29, works as a pilot and lives in Porto.", ("Henry Ward", 29, "pilot", "Porto")),
    ("Our new colleague is Ingrid. She is 52 years old and works as a teacher.", ("Ingrid", 52, "teacher", None)),
    ("This is Jonas Becker. He is 33, is a dentist and comes from Lyon.", ("Jonas Becker", 33, "dentist", "Lyon")),
    ("Zeynep 48 yaşında bir avukattır.", ("Zeynep", 48, "avukat", None)),
    ("Here is Maria. She is aged 71, is a writer and comes from Turin.", ("Maria", 71, "writer", "Turin")),
    ("Daniel Hill lives in Bath, is 22 years old and works as a waiter.", ("Daniel Hill", 22, "waiter", "Bath")),
    ("Grace Novak is 39 years old and works as a nurse. She lives in Prague.", ("Grace Novak", 39, "nurse", "Prague")),
    ("Kerem 26 yaşında bir doktordur.", ("Kerem", 26, "doktor", None)),
    ("Meet Emma. She is 45, works as a banker and is based in York.", ("Emma", 45, "banker", "York")),
    ("Our new colleague is Victor. He is 60 years old and works as a tailor.", ("Victor", 60, "tailor", None)),
)
STORIES = (
    ("The coach and the team were in the news in Ghent.", "sports"),
    ("Big news about the vaccine: the hospital is here.", "health"),
    ("Everyone in Oslo speaks of the senator after the election.", "politics"),
    ("This week the singer and the band came to Turin.", "music"),
    ("Maria talked about the medicine and the clinic.", "health"),
    ("Last night the orchestra met the choir.", "music"),
    ("A new law changed the parliament this week.", "politics"),
    ("The league surprised the champion on 3 May.", "sports"),
    ("Henry wrote an article on therapy, virus and diet.", "health"),
    ("No stadium without a team, said Nina.", "sports"),
    ("The mayor in Bath needs a better treaty and campaign.", "politics"),
    ("A guitar, a violin and a day in Lisbon.", "music"),
    ("After the race, the runner came to Athens.", "sports"),
    ("The doctor is more important than the surgery, says Maria.", "health"),
    ("Everyone in Rome speaks of the opera after the concert.", "music"),
    ("This week the president and the congress came to Bonn.", "politics"),
    # Those above are the examples in the prompt, those below are asked.
    ("The player and the goal were in the news in Leeds.", "sports"),
    ("Big news about the virus: the doctor is here.", "health"),
    ("Everyone in Lyon speaks of the singer after the album.", "music"),
    ("This week the minister and the parliament came to York.", "politics"),
    ("Jonas talked about the coach and the match.", "sports"),
    ("A new therapy changed the hospital this week.", "health"),
    ("Last night the choir met the orchestra.", "music"),
    ("The election surprised the president on 9 June.", "politics"),
    ("No team without a striker, said Rosa.", "sports"),
    ("The clinic in Porto needs a better nurse and vaccine.", "health"),
    ("A violin, a piano and a day in Vienna.", "music"),
    ("After the vote, the senator came to Prague.", "politics"),
)
QUESTIONS = (
    ("What is the capital of France?", "Paris"),
    ("Name the capital of Japan.", "Tokyo"),
    ("Which city is the capital of Kenya?", "Nairobi"),
    ("Tell me the capital of Norway.", "Oslo"),
    ("What is the capital of Chile?", "Santiago"),
    ("What's the capital of Poland?", "Warsaw"),
    ("Name the capital of Egypt.", "Cairo"),
    ("What is the capital of Hungary?", "Budapest"),
    # Those above are the demonstrations, those below are asked.
    ("Name the capital of Italy.", "Rome"),
    ("What is the capital of Turkey?", "Ankara"),
    ("Which city is the capital of Portugal?", "Lisbon"),
    ("Tell me the capital of Canada.", "Ottawa"),
    ("What is the capital of Greece?", "Athens"),
    ("What's the capital of Sweden?", "Stockholm"),
    ("Name the capital of Cuba.", "Havana"),
    ("What is the capital of Peru?", "Lima"),
    ("Which city is the capital of Ireland?", "Dublin"),
    ("Name the capital of Thailand.", "Bangkok"),
    ("What is the capital of Finland?", "Helsinki"),
    ("Tell me the capital of Iran.", "Tehran"),
    ("What's the capital of Austria?", "Vienna"),
    ("What is the capital of Spain?", "Madrid"),
    ("Name the capital of Nepal.", "Kathmandu"),
    ("Which city is the capital of Brazil?", "Brasília"),
)
SKY = {"Oslo": "raining", "Rome": "sunny", "Lyon": "windy", "Bath": "foggy", "York": "cloudy", "Porto": "clear"}


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"It's {SKY.get(city, 'sunny')}."


def set_timer(minutes: int) -> str:
    """Set a timer."""
    return "Done."


def play_song(title: str) -> str:
    """Play a song."""
    return "Done."


REQUESTS = (
    ("What is the weather in Rome?", "get_weather(city='Rome')", "It's sunny."),
    ("Set a timer for 45 minutes.", "set_timer(minutes=45)", "Done."),
    ("How is the weather in York?", "get_weather(city='York')", "It's cloudy."),
    ("Play Harvest Moon.", "play_song(title='Harvest Moon')", "Done."),
    # Those above are the conversation so far, those below are asked.
    ("What is the weather in Porto?", "get_weather(city='Porto')", "It's clear."),
    ("Set a timer for 12 minutes.", "set_timer(minutes=12)", "Done."),
    ("Play Blue Monday.", "play_song(title='Blue Monday')", "Done."),
    ("How is the weather in Bath?", "get_weather(city='Bath')", "It's foggy."),
    ("Set a timer for 5 minutes.", "set_timer(minutes=5)", "Done."),
    ("What is the weather in Lyon?", "get_weather(city='Lyon')", "It's windy."),
    ("Play Yesterday.", "play_song(title='Yesterday')", "Done."),
    ("How is the weather in Oslo?", "get_weather(city='Oslo')", "It's raining."),
)


def langchain(model: str, inputs: int | None, **options: Any) -> list[Answer]:
    """``ChatRadix`` in place of ``ChatOpenAI``: people by eight examples, twelve texts in one batch."""
    llm = ChatRadix(model=model, temperature=0, **options)
    people = [(text, Person(**dict(zip(Person.model_fields, fields, strict=True)))) for text, fields in PEOPLE]
    examples, asked = people[:8], people[8:][:inputs]
    shots = [message for text, due in examples for message in (("human", text), ("ai", _braces(due.model_dump())))]
    told = "Extract the person from the text.\nFields: name, age, job, city."
    prompt = ChatPromptTemplate.from_messages([("system", told), *shots, ("human", "{text}")])
    found = (prompt | llm.with_structured_output(Person)).batch([{"text": text} for text, _ in asked])
    return [Answer(text, _fields(said), _fields(due)) for (text, due), said in zip(asked, found, strict=True)]


def llamaindex(model: str, inputs: int | None, **options: Any) -> list[Answer]:
    """``Radix`` in place of ``OpenAI``: ``astructured_predict`` by sixteen examples, twelve texts at once."""
    llm = Radix(model=model, temperature=0, **options)
    examples, asked = STORIES[:16], STORIES[16:][:inputs]
    told = "Classify the topic of the text. Labels: sports, politics, health, music. Answer as JSON with the key topic."
    shots = [said for text, topic in examples for said in (("user", text), ("assistant", _braces({"topic": topic})))]
    prompt = LlamaPrompt.from_messages([("system", told), *shots, ("user", "{text}")])

    async def label() -> list[Story]:
        return await asyncio.gather(*(llm.astructured_predict(Story, prompt, text=text) for text, _ in asked))

    return [Answer(text, said.topic, due) for (text, due), said in zip(asked, asyncio.run(label()), strict=True)]


def dspy_evaluate(model: str, inputs: int | None, **options: Any) -> list[Answer]:
    """``RadixLM`` in place of ``dspy.LM``: eight demonstrations, sixteen questions evaluated by eight threads."""
    examples = [dspy.Example(question=text, answer=due).with_inputs("question") for text, due in QUESTIONS]
    program = dspy.Predict("question -> answer")
    program.demos = examples[:8]
    asked = examples[8:][:inputs]
    with RadixLM(model, temperature=0, cache=False, **options) as lm, dspy.context(lm=lm, adapter=RadixAdapter()):
        evaluate = dspy.Evaluate(
            devset=asked, metric=_agrees, num_threads=8, display_progress=False, provide_traceback=True
        )
        rows = evaluate(program).results
    return [Answer(example.question, said.answer, example.answer) for example, said, _ in rows]


def openai_sdk(model: str, inputs: int | None, **options: Any) -> list[Answer]:
    """OpenAI's own client classes, in process: a talk with tools, gone on in eight ways at once."""
    so_far = [message for request in REQUESTS[:4] for message in _exchange(*request)]

    def go_on(request: tuple[str, str, str]) -> Answer:
        question, *due = request
        messages = [*so_far, {"role": "user", "content": question}]
        said = ask(messages)
        if not said.tool_calls:
            return Answer(question, said.content or "", " → ".join(due))
        function = said.tool_calls[0].function
        arguments = json.loads(function.arguments)
        result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": _called(function.name, arguments)}
        told = ask([*messages, said.model_dump(exclude_none=True), result])
        call = f"{function.name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        return Answer(question, f"{call} → {told.content}", " → ".join(due))

    def ask(messages: list[Any]) -> Any:
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, temperature=0, max_tokens=60
        )
        return answer.choices[0].message

    with OpenAI(model=model, **options) as client, ThreadPoolExecutor(8) as threads:
        return list(threads.map(go_on, REQUESTS[4:][:inputs]))


def _described(tool: Callable[..., str]) -> dict[str, Any]:
    """A function as OpenAI's ``tools`` describes it."""
    types = {"str": "string", "int": "integer"}
    parameters = {name: {"type": types[type]} for name, type in tool.__annotations__.items() if name != "return"}
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"name": tool.__name__, "description": tool.__doc__, "parameters": schema}


FUNCTIONS: dict[str, Callable[..., str]] = {tool.__name__: tool for tool in (get_weather, set_timer, play_song)}
TOOLS = [{"type": "function", "function": _described(tool)} for tool in FUNCTIONS.values()]


def _exchange(question: str, call: str, answer: str) -> list[Any]:
    """A request, the call, its result and the answer, as messages."""
    name, _, value = call.removesuffix(")").partition("(")
    key, _, written = value.partition("=")
    arguments = {key: ast.literal_eval(written)}
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "tool_calls": [{"id": question, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": question, "content": _called(name, arguments)},
        {"role": "assistant", "content": answer},
    ]


def _called(name: str, arguments: dict[str, Any]) -> str:
    """What the tool says, or that it cannot be called so."""
    try:
        return FUNCTIONS[name](**arguments)
    except TypeError as fault:
        return f"Error: {fault}"


def _agrees(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


def _fields(value: BaseModel) -> str:
    return " · ".join("–" if part is None else str(part) for _, part in value)


def _braces(value: dict[str, Any]) -> str:
    """JSON whose braces a prompt template leaves alone."""
    return json.dumps(value, ensure_ascii=False).replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True)
class Job:
    """One framework's part. ``swap`` is the line that its users change."""

    title: str
    swap: str
    run: Callable[..., list[Answer]]


JOBS = (
    Job("LangChain", "llm = ChatRadix(model={model!r})  # was: ChatOpenAI(model=…)", langchain),
    Job("LlamaIndex", "llm = Radix(model={model!r})  # was: OpenAI(model=…)", llamaindex),
    Job("DSPy", "dspy.configure(lm=RadixLM({model!r}))  # was: dspy.LM('openai/…')", dspy_evaluate),
    Job("OpenAI SDK", "from radixbackend.openai import OpenAI  # was: from openai import OpenAI", openai_sdk),
)


@dataclass(frozen=True)
class Run:
    """What one pass of a job took."""

    answers: list[Answer]
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int


def run(job: Job, model: str, engine: Backend, inputs: int | None, **options: Any) -> Run:
    """One pass on a cold cache; what is only done once in a process (imports, grammars) is done before."""
    job.run(model, 1, **options)
    engine.flush_cache()
    before = engine.stats()
    gc.disable()  # as timeit does: to look for garbage among all that is imported takes a third of a second
    try:
        started = time.perf_counter()
        answers = job.run(model, inputs, **options)
        seconds, after = time.perf_counter() - started, engine.stats()
    finally:
        gc.enable()

    def spent(counter: str) -> int:
        return int(getattr(after, counter) - getattr(before, counter))

    return Run(answers, seconds, *map(spent, ("prompt_tokens", "cached_tokens", "prefilled_tokens")))


def show(job: Job, model: str, off: Run, on: Run) -> Panel:
    """A framework's panel: its line, some answers, and the two passes as bars."""
    answers = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    answers.add_column(max_width=45)
    answers.add_column(width=1)
    answers.add_column()
    for answer in on.answers[:SHOWN]:
        right = answer.said == answer.due
        mark = Text("✓", "green") if right else Text("✗", "yellow")
        answers.add_row(Text(answer.asked, "cyan"), mark, Text(answer.said, "bold" if right else ""))
    right = sum(answer.said == answer.due for answer in on.answers)
    bars = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for justify in ("left", "right", "right", "left"):
        bars.add_column(justify=justify, no_wrap=True)
    for name, passed, style in (("cache off", off, "dim"), ("cache on", on, "green")):
        bar = Text("█" * max(1, round(BAR * passed.seconds / max(off.seconds, on.seconds))), style)
        bars.add_row(name, f"{passed.seconds:.2f} s", f"{passed.prefilled_tokens:,} tokens computed", bar)
    same = [answer.said for answer in off.answers] == [answer.said for answer in on.answers]
    verdict = "the same answers both ways" if same else "[red]the cache changed an answer: please report this[/red]"
    return Panel(
        Group(
            Syntax(job.swap.format(model=model), "python", background_color="default"),
            Text((job.run.__doc__ or "").strip().replace("``", ""), "dim"),
            "",
            answers,
            f"[dim]{right} of {len(on.answers)} right; {verdict}[/dim]",
            "",
            bars,
            f"[bold green]{off.seconds / on.seconds:.1f} times as fast[/bold green]: {on.cached_tokens:,} of "
            f"{on.prompt_tokens:,} prompt tokens came from the cache ({on.cached_tokens / on.prompt_tokens:.0%})",
        ),
        title=f"[bold]{job.title}[/bold]",
        title_align="left",
        border_style="cyan",
        width=WIDTH,
    )


def summary(runs: Sequence[tuple[Run, Run]]) -> Panel:
    off, on = zip(*runs, strict=True)
    asked, computed = sum(run.prompt_tokens for run in on), sum(run.prefilled_tokens for run in on)
    slow, fast = sum(run.seconds for run in off), sum(run.seconds for run in on)
    return Panel(
        f"{asked:,} prompt tokens were sent, [bold green]{computed:,} of them computed[/bold green]: the rest was in "
        f"the radix tree.\n{slow:.1f} s without the cache, [bold green]{fast:.1f} s with it[/bold green]. It was empty "
        "at the start of each job;\nthe requests and all other settings are the same.\n\n"
        "Next: [bold].venv/bin/radix chat radix-tiny[/bold]  and  [bold].venv/bin/radix tree radix-tiny[/bold]",
        title="[bold]In all[/bold]",
        title_align="left",
        border_style="green",
        width=WIDTH,
    )


def demonstrate(console: Console, model: str, inputs: int | None = None) -> None:
    """All four jobs; with `inputs`, only so many of each."""
    off = {"prefix_cache": False}
    with get_backend(model) as cached, get_backend(model, **off) as plain:
        console.print(
            f"\n[bold]{cached.model_name}[/bold] is a model of toy size that ships with the package: small enough to "
            "load at once, able enough to show the machinery. Every framework below uses one engine, one batch and "
            "one radix tree of KV cache in this process. Each runs twice, with the prefix cache off and on.\n",
            width=WIDTH,
        )
        runs = []
        for job in JOBS:
            with console.status(f"{job.title} …"):
                runs.append((run(job, model, plain, inputs, **off), run(job, model, cached, inputs)))
            console.print(show(job, model, *runs[-1]))
        console.print(summary(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="radix-tiny", help="a folder, a hub id, or the model that ships")
    parser.add_argument("--inputs", type=int, help="so many of each job's inputs, in place of all")
    parser.add_argument("--svg", help="file to draw the screen into as well")
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.WARNING)
    console = Console(highlight=False, record=options.svg is not None, width=None if sys.stdout.isatty() else WIDTH)
    demonstrate(console, options.model, options.inputs)
    if options.svg:
        console.save_svg(options.svg, title="make demo")


if __name__ == "__main__":
    main()

"""Four frameworks, one engine, one cache, on the model that ships. ``make demo`` runs it.

Each framework does a small job twice: with the prefix cache off and with it on, starting cold both times. Everything
printed was just computed; nothing is recorded.
"""

# ruff: noqa: RUF001 -- Turkish has an i without a dot.

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy
from dspy_radix import RadixAdapter, RadixLM
from langchain_core.prompts import ChatPromptTemplate
from langchain_radix import ChatRadix
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.radix import Radix
from pydantic import BaseModel
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from radixbackend import get_backend
from radixbackend.openai import OpenAI

Answers = list[tuple[str, str]]
"""What was asked and what was answered, as text."""


class Person(BaseModel):
    name: str
    age: int
    job: str
    city: str | None


class Product(BaseModel):
    name: str
    price: float
    color: str | None


PEOPLE = (
    "Marta Lindqvist is 41 years old and works as a nurse. She lives in Oslo.",
    "Ahmet 35 yaşında bir mühendistir.",
    "Meet Tomasz Wrobel. He is a 29-year-old baker and lives in Porto.",
    "My name is Ines Okafor. I am 52 years old and work as a teacher.",
    "Our new colleague is Jonas Pekka. He is 33, works as a pilot and is from Lyon.",
    "Zeynep 27 yaşında bir öğretmendir.",
    "Here is Lucia Ferrante. She is aged 64, is a painter and comes from Turin.",
    "Nils Abend is 19 years old and is employed as a cook. He is based in Bern.",
)
EXAMPLES = (
    (
        "Clara Voss is 38 years old and works as a doctor. She lives in Vienna.",
        Person(name="Clara Voss", age=38, job="doctor", city="Vienna"),
    ),
    (
        "Mehmet 44 yaşında bir doktordur.",
        Person(name="Mehmet", age=44, job="doktor", city=None),
    ),
    (
        "This is Piet Mulder. He is a 23-year-old farmer and comes from Ghent.",
        Person(name="Piet Mulder", age=23, job="farmer", city="Ghent"),
    ),
)
PRODUCTS = (
    "The Velora lamp costs $49.90 and comes in green.",
    "New arrival: Kantu chair. It is priced at $120 and is available in black.",
    "We offer the Brisko kettle. It sells for $35.50.",
    "Introducing the Solmar tent. It comes in orange and is yours for $210.",
    "I bought the Pindo radio. It has the color red and costs 89 dollars.",
    "Now in stock: Harvo desk. It goes for $310 and is painted white.",
)
REVIEWS = (
    ("The staff were wonderful and the room was lovely.", "positive"),
    ("A terrible dinner, and the waiter was rude.", "negative"),
    ("I love this place, the food is excellent.", "positive"),
    ("The worst trip of my life, I want my money back.", "negative"),
    ("Great service and a beautiful garden.", "positive"),
    ("The room was dirty and the bed was awful.", "negative"),
    ("A fantastic film, I enjoyed every minute.", "positive"),
    ("It broke after a day, what a disappointment.", "negative"),
    ("Delicious cake and a very friendly owner.", "positive"),
    ("The noise was horrible and nobody helped us.", "negative"),
    ("Perfect, I would buy it again.", "positive"),
    ("Cold soup, bad wine, never again.", "negative"),
    ("A pleasant walk and a superb view.", "positive"),
    ("The worst phone I have ever had.", "negative"),
    ("An amazing concert with great music.", "positive"),
    ("Boring, slow and far too expensive.", "negative"),
    ("The children were happy all day long.", "positive"),
    ("I hate this app, it is useless.", "negative"),
    ("What a charming little hotel.", "positive"),
    ("The delivery was late and the box was broken.", "negative"),
    ("Brilliant book, I recommend it.", "positive"),
    ("A sad and ugly place.", "negative"),
    ("The best coffee in town.", "positive"),
    ("Poor quality, and the support was terrible.", "negative"),
)
TALK = ("Hello!", "My name is Ferdinand.", "What is the capital of France?", "What is 17 + 8?", "What is my name?")


def langchain(model: str, inputs: int, **options: Any) -> Answers:
    """``ChatRadix`` in place of ``ChatOpenAI``: extraction with a few-shot prompt, all inputs in one batch."""
    llm = ChatRadix(model=model, temperature=0, **options)
    shots = [message for text, person in EXAMPLES for message in (("human", text), ("ai", _braces(person)))]
    system = "Extract the person from the text as JSON with the fields name, age, job and city. Use null if unknown."
    prompt = ChatPromptTemplate.from_messages([("system", system), *shots, ("human", "{text}")])
    people = (prompt | llm.with_structured_output(Person)).batch([{"text": text} for text in PEOPLE[:inputs]])
    return [(text, _fields(person)) for text, person in zip(PEOPLE, people, strict=False)]


def llamaindex(model: str, inputs: int, **options: Any) -> Answers:
    """``Radix`` in place of ``OpenAI``: ``structured_predict`` for one text after the other."""
    llm = Radix(model=model, temperature=0, **options)
    prompt = PromptTemplate(
        "Extract the product from the text as JSON with the fields name, price and color.\n\n{text}"
    )
    return [(text, str(llm.structured_predict(Product, prompt, text=text))) for text in PRODUCTS[:inputs]]


class Sentiment(dspy.Signature):
    """Say whether the review is positive or negative."""

    review: str = dspy.InputField()
    sentiment: Literal["positive", "negative"] = dspy.OutputField()


def dspy_evaluate(model: str, inputs: int, **options: Any) -> Answers:
    """``RadixLM`` in place of ``dspy.LM``: eight demonstrations, sixteen inputs evaluated by eight threads."""
    examples = [dspy.Example(review=text, sentiment=label).with_inputs("review") for text, label in REVIEWS]
    judge = dspy.Predict(Sentiment)
    judge.demos = examples[:8]
    asked = examples[8 : 8 + 2 * inputs]
    with RadixLM(model, temperature=0, cache=False, **options) as lm, dspy.context(lm=lm, adapter=RadixAdapter()):
        evaluate = dspy.Evaluate(
            devset=asked, metric=_agrees, num_threads=8, display_progress=False, provide_traceback=True
        )
        rows = evaluate(judge).results
    return [(example.review, prediction.sentiment) for example, prediction, _ in rows]


def openai_sdk(model: str, inputs: int, **options: Any) -> Answers:
    """OpenAI's own client classes, in process: a chat that grows, every turn streamed."""
    answers: Answers = []
    with OpenAI(model=model, **options) as client:
        messages = [{"role": "system", "content": "You are a helpful assistant."}]
        for text in TALK[:inputs]:
            messages.append({"role": "user", "content": text})
            chunks = client.chat.completions.create(
                model=model, messages=messages, temperature=0, max_tokens=40, stream=True
            )
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            messages.append({"role": "assistant", "content": said})
            answers.append((text, said))
    return answers


def _agrees(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.sentiment == prediction.sentiment)


def _fields(value: BaseModel) -> str:
    return ", ".join(f"{name}={part!r}" for name, part in value)


def _braces(value: BaseModel) -> str:
    """JSON whose braces a prompt template leaves alone."""
    return value.model_dump_json().replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True)
class Job:
    """One framework's part. ``swap`` is the line that its users change."""

    title: str
    swap: str
    run: Callable[..., Answers]
    inputs: int


JOBS = (
    Job("LangChain", "llm = ChatRadix(model={model!r})  # was: ChatOpenAI(model=…)", langchain, len(PEOPLE)),
    Job("LlamaIndex", "llm = Radix(model={model!r})  # was: OpenAI(model=…)", llamaindex, len(PRODUCTS)),
    Job("DSPy", "dspy.configure(lm=RadixLM({model!r}))  # was: dspy.LM('openai/…')", dspy_evaluate, 8),
    Job("OpenAI SDK", "client = OpenAI(model={model!r})  # from radixbackend.openai", openai_sdk, len(TALK)),
)


@dataclass(frozen=True)
class Run:
    """What one pass of a job took."""

    answers: Answers
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    generated_tokens: int

    @property
    def rate(self) -> float:
        return self.generated_tokens / self.seconds


def run(job: Job, model: str, prefix_cache: bool) -> Run:
    """One pass on a cold cache; what is only done once in a process (imports, grammars) is done before."""
    options = {"prefix_cache": prefix_cache}
    with get_backend(model, **options) as engine:
        job.run(model, job.inputs, **options)
        engine.flush_cache()
        before, started = engine.stats(), time.perf_counter()
        answers = job.run(model, job.inputs, **options)
        seconds, after = time.perf_counter() - started, engine.stats()

        def spent(counter: str) -> int:
            return int(getattr(after, counter) - getattr(before, counter))

        return Run(
            answers,
            seconds,
            *map(spent, ("prompt_tokens", "cached_tokens", "prefilled_tokens", "generated_tokens")),
        )


def show(console: Console, job: Job, model: str, on: Run) -> None:
    console.rule(f"[bold]{job.title}[/bold]", align="left")
    console.print(Syntax(job.swap.format(model=model), "python", background_color="default"))
    console.print(f"[dim]{(job.run.__doc__ or '').strip()}[/dim]")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", max_width=56)
    table.add_column(style="bold")
    for question, answer in on.answers[:4]:
        table.add_row(question, answer)
    console.print(table)
    if (more := len(on.answers) - 4) > 0:
        console.print(f"[dim]… and {more} more[/dim]")
    console.print(
        f"{on.prompt_tokens:,} prompt tokens, [green]{on.cached_tokens:,} of them from the cache "
        f"({on.cached_tokens / on.prompt_tokens:.0%})[/green]\n"
    )


def summary(rows: Sequence[tuple[Job, Run, Run]]) -> Table:
    table = Table(title="The same work with the prefix cache off and on, starting cold", title_justify="left")
    for heading in ("", "prompt tokens computed", "seconds", "output tok/s", "faster"):
        table.add_column(heading, justify="right" if heading else "left")
    for job, off, on in rows:
        table.add_row(
            job.title,
            f"{off.prefilled_tokens:,} → [green]{on.prefilled_tokens:,}[/green]",
            f"{off.seconds:.2f} → [green]{on.seconds:.2f}[/green]",
            f"{off.rate:.0f} → [green]{on.rate:.0f}[/green]",
            f"[bold]{off.seconds / on.seconds:.1f}x[/bold]",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="radix-tiny", help="a folder, a hub id, or the model that ships")
    model = parser.parse_args().model
    logging.getLogger("dspy").setLevel(logging.WARNING)
    console = Console(highlight=False)
    with get_backend(model) as engine:
        console.print(
            Panel(
                f"[bold]{engine.model_name}[/bold], a model of toy size that ships with the package: small enough to "
                "load at once, able enough to show the machinery. Every framework below shares one engine, one batch "
                "and one radix tree of KV cache in this process.",
                title="radixbackend",
                width=min(console.width, 100),
            )
        )
        rows = []
        for job in JOBS:
            off, on = run(job, model, prefix_cache=False), run(job, model, prefix_cache=True)
            show(console, job, model, on)
            if off.answers != on.answers:
                console.print("[red]The cache changed an answer; please report this.[/red]")
            rows.append((job, off, on))
        console.print(summary(rows))
    console.print("\nNext: [bold].venv/bin/radix chat radix-tiny[/bold], [bold].venv/bin/radix tree radix-tiny[/bold]")


if __name__ == "__main__":
    main()

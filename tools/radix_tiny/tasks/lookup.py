"""Looking up a fact in a given passage, in the prompt shapes of retrieval libraries; copying text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.radix_tiny.dialog import Dialog, assistant, system, user
from tools.radix_tiny.words import COLORS, JOBS, Source, split

UNKNOWN = "I don't know."


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact: who has it, its value, sentences that state it, questions for it."""

    subject: Callable[[Source], str]
    value: Callable[[Source], str]
    states: tuple[str, ...]
    asks: tuple[str, ...]


def _money(s: Source) -> str:
    return f"{s.number(2, 900)} {s.any(('dollars', 'euros'))}"


RELATIONS = (
    Relation(
        Source.company,
        Source.person,
        (
            "{s} was founded by {v}.",
            "The founder of {s} is {v}.",
            "{v} founded {s}.",
            "{v} is the founder of {s}.",
            "It was {v} who founded {s}.",
            "{s} has {v} as its founder.",
            "{s} owes its start to its founder {v}.",
        ),
        (
            "Who founded {s}?",
            "Who is the founder of {s}?",
            "Name the founder of {s}.",
            "{s} was founded by whom?",
            "Which person founded {s}?",
            "Which person is the founder of {s}?",
            "Who was the founder of {s}?",
        ),
    ),
    Relation(
        Source.company,
        Source.city,
        (
            "{s} is based in {v}.",
            "The headquarters of {s} are in {v}.",
            "{s} has its office in {v}.",
            "From its office in {v}, {s} serves the world.",
            "In {v}, {s} has its headquarters.",
            "The office of {s} is in {v}.",
            "{s} is at home in {v}.",
        ),
        (
            "Where is {s} based?",
            "Where are the headquarters of {s}?",
            "In which city is {s} based?",
            "Where is the office of {s}?",
            "Which city is {s} based in?",
            "In which city are the headquarters of {s}?",
            "Where can I find {s}?",
        ),
    ),
    Relation(
        Source.company,
        lambda s: str(s.number(1850, 2024)),
        (
            "{s} was founded in {v}.",
            "{s} started in {v}.",
            "Since {v}, {s} is in business.",
            "{s} opened in {v}.",
            "The year {v} saw the start of {s}.",
            "{s} was started in {v}.",
            "{s} began its work in {v}.",
        ),
        (
            "When was {s} founded?",
            "In which year was {s} founded?",
            "When did {s} start?",
            "In what year did {s} open?",
            "What year was {s} founded?",
            "In what year was {s} founded?",
            "When did {s} begin?",
        ),
    ),
    Relation(
        Source.person,
        Source.city,
        (
            "{s} lives in {v}.",
            "{s} moved to {v}.",
            "The home of {s} is in {v}.",
            "{v} is the home of {s}.",
            "{s} has a house in {v}.",
            "{s} has moved to {v}.",
            "{s} settled in {v}.",
        ),
        (
            "Where does {s} live?",
            "In which city does {s} live?",
            "Where is the home of {s}?",
            "Which city is the home of {s}?",
            "What city does {s} live in?",
            "Where is {s}'s home?",
            "Where has {s} settled?",
        ),
    ),
    Relation(
        Source.person,
        lambda s: s.any(JOBS),
        (
            "{s} works as a {v}.",
            "{s} is a {v}.",
            "The job of {s} is {v}.",
            "By profession {s} is a {v}.",
            "{s} earns money as a {v}.",
            "{s} has a job as a {v}.",
            "As a {v}, {s} is well known.",
        ),
        (
            "What is the job of {s}?",
            "What does {s} do?",
            "What is {s}'s profession?",
            "What does {s} work as?",
            "Which job does {s} have?",
            "What is the profession of {s}?",
            "What is {s} by profession?",
        ),
    ),
    Relation(
        Source.person,
        lambda s: str(s.number(4, 98)),
        (
            "{s} is {v} years old.",
            "{s} is {v}.",
            "The age of {s} is {v}.",
            "{s} turned {v}.",
            "At {v}, {s} feels young.",
            "{s} is at the age of {v}.",
            "{s} reached the age of {v}.",
        ),
        (
            "How old is {s}?",
            "What is the age of {s}?",
            "What is {s}'s age?",
            "Tell me the age of {s}.",
            "What age is {s}?",
            "Tell me how old {s} is.",
            "{s} is how old?",
        ),
    ),
    Relation(
        Source.product,
        _money,
        (
            "The {s} costs {v}.",
            "The price of the {s} is {v}.",
            "You pay {v} for the {s}.",
            "The {s} sells for {v}.",
            "The {s} is priced at {v}.",
            "The {s} has a price of {v}.",
            "For {v} the {s} is yours.",
        ),
        (
            "How much does the {s} cost?",
            "What is the price of the {s}?",
            "What does the {s} cost?",
            "How much is the {s}?",
            "Tell me the price of the {s}.",
            "What is the cost of the {s}?",
            "What do I pay for the {s}?",
        ),
    ),
    Relation(
        Source.product,
        lambda s: s.any(COLORS),
        (
            "The {s} is {v}.",
            "The color of the {s} is {v}.",
            "The {s} comes in {v}.",
            "The {s} is painted {v}.",
            "The {s} has a {v} finish.",
            "The {s} has the color {v}.",
            "They made the {s} in {v}.",
        ),
        (
            "What color is the {s}?",
            "What is the color of the {s}?",
            "Which color does the {s} have?",
            "What colour is the {s}?",
            "In which color does the {s} come?",
            "Tell me the color of the {s}.",
            "Name the color of the {s}.",
        ),
    ),
    Relation(
        lambda s: (
            f"{s.proper()} {s.any(('Library', 'Museum', 'Cafe', 'Hotel', 'Park', 'Bridge', 'Theatre', 'Station'))}"
        ),
        Source.time,
        (
            "The {s} opens at {v}.",
            "The {s} opens its doors at {v}.",
            "At {v} the {s} opens.",
            "You can visit the {s} from {v}.",
            "The {s} is open from {v}.",
            "The doors of the {s} open at {v}.",
            "From {v} on, the {s} is open.",
        ),
        (
            "When does the {s} open?",
            "At what time does the {s} open?",
            "What time does the {s} open?",
            "From when is the {s} open?",
            "When can I visit the {s}?",
            "At what time can I visit the {s}?",
            "What are the opening hours of the {s}?",
        ),
    ),
    Relation(
        lambda s: (
            f"{s.proper()} {s.any(('Library', 'Museum', 'Cafe', 'Hotel', 'Park', 'Bridge', 'Theatre', 'Station'))}"
        ),
        Source.proper,
        (
            "The {s} was designed by {v}.",
            "The architect of the {s} was {v}.",
            "{v} designed the {s}.",
            "{v} was the architect of the {s}.",
            "It was {v} who designed the {s}.",
            "The {s} was the work of the architect {v}.",
            "The {s} is the work of {v}.",
        ),
        (
            "Who designed the {s}?",
            "Who was the architect of the {s}?",
            "Name the architect of the {s}.",
            "The {s} was designed by whom?",
            "Which architect designed the {s}?",
            "Which person designed the {s}?",
            "Who is the designer of the {s}?",
        ),
    ),
    Relation(
        lambda s: s.proper(),
        Source.city,
        (
            "The capital of {s} is {v}.",
            "{v} is the capital of {s}.",
            "{s} has the capital {v}.",
            "In {s}, the capital is {v}.",
            "The capital city of {s} is called {v}.",
            "The city of {v} is the capital of {s}.",
            "{s}'s capital is {v}.",
        ),
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital of {s}.",
            "What's the capital of {s}?",
            "Tell me the capital of {s}.",
            "Name the capital city of {s}.",
            "What is the capital city of {s}?",
        ),
    ),
)
_THINGS = split("""
password color manager motto mascot price owner address director code leader number symbol captain speed weight
height length title language river author sponsor deadline budget goal keyword channel
""")


def _open_relation(s: Source) -> Relation:
    """ "The <thing> of X is Y.", also with things that are invented."""
    thing = s.any(_THINGS) if s.chance(0.7) else s.invented()
    value = s.any((Source.proper, Source.code, lambda s: str(s.number(1, 9999)), Source.invented, Source.person))
    return Relation(
        s.any((Source.proper, Source.company, Source.person)),
        value,
        (
            f"The {thing} of {{s}} is {{v}}.",
            f"{{s}} has the {thing} {{v}}.",
            f"{{v}} is the {thing} of {{s}}.",
            f"{{s}}: {thing} {{v}}.",
            f"{{s}}'s {thing} is {{v}}.",
            f"As {thing}, {{s}} has {{v}}.",
        ),
        (
            f"What is the {thing} of {{s}}?",
            f"Which {thing} does {{s}} have?",
            f"Tell me the {thing} of {{s}}.",
            f"What's {{s}}'s {thing}?",
            f"Give me the {thing} of {{s}}.",
            f"What {thing} has {{s}}?",
        ),
    )


def draw_passage(s: Source, facts: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Sentences, and questions that they answer. Subjects repeat, so that the question decides."""
    sentences: list[str] = []
    questions: list[tuple[str, str]] = []
    while len(sentences) < facts:
        relation = _open_relation(s) if s.chance(0.15) else s.any(RELATIONS)
        for _ in range(s.any((1, 1, 1, 2))):
            subject, value = relation.subject(s), relation.value(s)
            same = [r for r in RELATIONS if r.subject is relation.subject and r is not relation]
            for told in [relation, *s.some(same, 0, 1)]:
                value = told.value(s)
                sentences.append(s.of(told.states).format(s=subject, v=value))
                questions.append((s.of(told.asks).format(s=subject), value))
    order = s.shuffled(range(len(sentences)))
    return [sentences[at] for at in order], s.shuffled(questions)


def unanswerable(s: Source) -> tuple[str, str]:
    relation = s.any(RELATIONS)
    return s.of(relation.asks).format(s=relation.subject(s)), UNKNOWN


_LLAMA_INDEX = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along "
    "those lines."
)
_LANGCHAIN = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the "
    "question. If you don't know the answer, just say that you don't know. Use three sentences maximum and keep the "
    "answer concise."
)
_BEFORE = (
    "Answer using the context:",
    "Use only this context:",
    "Answer the question based on the context.",
    "Context:",
    "You answer from this text:",
    "Documents:",
)
_NAMES = ("Passage", "Text", "Document", "Source", "Notes", "Read this")
_ASKING = ("Question", "Q", "My question", "Query", "Tell me", "Ask")


def wrap(s: Source, context: str, question: str) -> tuple[str | None, str]:
    """System and user text of a retrieval prompt; the first three shapes are those of the libraries."""
    style = s.number(0, 8)
    if style <= 1:
        text = (
            f"Context information is below.\n---------------------\n{context}\n---------------------\n"
            f"Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "
        )
        return s.any((None, _LLAMA_INDEX)), text
    if style == 2:
        if s.chance(0.5):
            return None, f"{_LANGCHAIN}\nQuestion: {question} \nContext: {context} \nAnswer:"
        return f"{_LANGCHAIN}\n\n{context}", question
    if style == 3:
        rule = "If you don't know the answer, say that you don't know."
        head = f"Use the following context to answer the question. {rule}"
        return None, f"{head}\n\n{context}\n\nQuestion: {question}\nHelpful Answer:"
    if style == 4:
        return f"{s.of(_BEFORE)}\n{context}", question
    if style == 5:
        return None, f"{context}\n\n{question}"
    if style == 6:
        return None, f"Answer the question based only on the following context:\n{context}\n\nQuestion: {question}\n"
    if style == 7:
        return None, f"Context: {context}\n\nQuestion: {question}\nAnswer:"
    return s.any((None, "You are a helpful assistant.")), f"{s.of(_NAMES)}: {context}\n{s.of(_ASKING)}: {question}"


def make(s: Source) -> Dialog:
    """A passage and a question; in most of them more questions follow."""
    sentences, questions = draw_passage(s, s.any((1, 1, 2, 2, 3, 4)) if s.chance(0.97) else s.number(8, 16))
    joiner = "\n\n" if s.chance(0.2) else "\n" if s.chance(0.15) else " "
    wanted = questions[: s.any((1, 1, 2, 3, 4, 6))]
    wanted = [unanswerable(s) if s.chance(0.15) else pair for pair in wanted]
    first, text = wrap(s, joiner.join(sentences), wanted[0][0])
    messages = [system(first)] if first else []
    messages += [user(text), assistant(wanted[0][1])]
    for question, answer in wanted[1:]:
        messages += [user(question), assistant(answer)]
    return Dialog("lookup", messages)


_REPEATS = (
    "Repeat: {}",
    "Copy this: {}",
    "Say {}",
    "Repeat after me: {}",
    "Write {}",
    "Echo {}",
    "Please repeat the text: {}",
    "Print {}",
    "Repeat exactly: {}",
    "Return this text: {}",
    "Type {}",
    "Say exactly: {}",
)


def scrap(s: Source) -> str:
    """A short piece of text that nobody could guess."""
    makers = (
        Source.proper,
        Source.code,
        Source.foreign,
        Source.person,
        Source.invented,
        Source.email,
        Source.city,
        Source.snake,
        Source.product,
    )
    return " ".join(s.any(makers)(s) for _ in range(s.any((1, 1, 1, 2, 3))))


def copy(s: Source) -> Dialog:
    """Copying, and looking up in a list of pairs: the bare skills under everything else, for the start of training."""
    messages = []
    if s.chance(0.5):
        for _ in range(s.number(1, 4)):
            text = scrap(s)
            messages += [user(s.of(_REPEATS).format(text)), assistant(text)]
    else:
        pairs = {s.any((Source.proper, Source.invented, Source.code))(s): scrap(s) for _ in range(s.number(2, 8))}
        between = s.any((": ", " = ", " is ", " -> "))
        lines = s.any(("\n", ", ", "; ")).join(f"{key}{between}{value}" for key, value in pairs.items())
        keys = s.some(list(pairs), 1, 4)
        messages += [user(f"{lines}\n{keys[0]}?"), assistant(pairs[keys[0]])]
        for key in keys[1:]:
            messages += [user(f"{key}?"), assistant(pairs[key])]
    return Dialog("copy", messages)

"""Looking up a fact in a given passage, in the prompt shapes of retrieval libraries; copying text."""

from __future__ import annotations

from tools.radix_tiny.dialog import Dialog, assistant, system, user
from tools.radix_tiny.tasks.relations import RELATIONS, open_relation
from tools.radix_tiny.words import Source, later

UNKNOWN = "I don't know."


_ASIDES = later(
    "It is a quiet place.",
    "Nobody knows why.",
    "The weather was good.",
    "Many people visit every year.",
    "More will be told later.",
    "This is well known.",
    "There are many stories about it.",
    "It was in all the papers.",
    "The reasons are not clear.",
    "Some say it was luck.",
    "Things have changed since.",
    "It took a long time.",
)


def draw_passage(s: Source, facts: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Sentences, and questions that they answer. Subjects repeat, so that the question decides."""
    sentences: list[str] = []
    questions: list[tuple[str, str]] = []
    while len(sentences) < facts:
        relation = open_relation(s) if s.chance(0.15) else s.any(RELATIONS)
        for _ in range(s.any((1, 1, 1, 2))):
            subject, value = relation.subject(s), relation.value(s)
            same = [r for r in RELATIONS if r.subject is relation.subject and r is not relation]
            for told in [relation, *s.some(same, 0, 1)]:
                value = told.value(s)
                sentences.append(s.of(told.states).format(s=subject, v=value))
                questions.append((s.of(told.asks).format(s=subject), value))
    order = s.shuffled(range(len(sentences)))
    if s.inventive and s.chance(0.12):
        sentences.append(s.of(_ASIDES))
        order.insert(s.number(0, len(order)), len(sentences) - 1)
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
    *later(
        "Here is a text:",
        "Read the following and answer.",
        "This is what we know:",
        "Some notes:",
        "Search results:",
        "Answer from these documents:",
        "Knowledge:",
        "Facts:",
    ),
)
_NAMES = (
    "Passage",
    "Text",
    "Document",
    "Source",
    "Notes",
    "Read this",
    *later("Excerpt", "Article", "Report", "Background", "Page", "Chunk", "Paragraph"),
)
_ASKING = (
    "Question",
    "Q",
    "My question",
    "Query",
    "Tell me",
    "Ask",
    *later("Please answer", "User question", "Now answer", "Please tell me", "Task", "I want to know"),
)


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
    *later(
        "Just say {}",
        "Answer with {}",
        "Reply with {}",
        "Write exactly this: {}",
        "Spell this: {}",
        "Give back {}",
        "{} -- repeat that",
        "Respond with {}",
    ),
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

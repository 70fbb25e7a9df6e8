"""Extraction of people, products, events and addresses from a text to JSON.

Rules. A record is drawn first; its text is a sentence built of one clause per attribute, and a text may leave some out
(then the value is null). The fields asked for, their names and their order are independent of the text's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.radix_tiny.dialog import Dialog, Message, assistant, dump, system, user
from tools.radix_tiny.tasks.records import (
    ADDRESS,
    ADDRESS_TEXTS,
    EVENT,
    KINDS,
    PERSON,
    PRODUCT,
    TURKISH_KEYS,
    TURKISH_TEXTS,
    Attribute,
    Kind,
)
from tools.radix_tiny.words import CITIES, JOBS_TR, Source, later, split


def _article(word: str) -> str:
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


_ASKS = (
    "Extract {what} from the text.",
    "Extract {what}.",
    "Extract information about {what} as JSON.",
    "Get the {what} from this text.",
    "Find the {what} in the following text.",
    "Extract {what} from the following text.",
    "Parse {what}.",
    "Read the text and return {what}.",
    "Turn the text into {what}.",
    "Return {what} as JSON.",
    "Pull {what} out of the text.",
    "Read this text and get the {what}.",
    "Give me {what} as JSON.",
    "Which {what} is in the text?",
    "Convert this to JSON: {what}.",
    "Fill in {what} from the text.",
    *later(
        "Extract the details of {what}.",
        "What does the text say about {what}?",
        "Take {what} from the text.",
        "Please extract {what}.",
        "I need {what} as JSON.",
        "Make a JSON object of {what}.",
        "Get {what}.",
        "Write {what} as a JSON object.",
        "Find {what}.",
        "Collect the data of {what} in the text.",
        "Please find {what} in this text.",
        "Identify {what} in the text below.",
        "From the text, extract {what}.",
        "Your task is to extract {what}.",
        "Here is a text. Extract {what}.",
        "Structure this text: {what}.",
    ),
)
_ROLES = (
    "You extract structured data.",
    "You are a helpful assistant.",
    "You are an extraction engine.",
    "Answer in JSON.",
    "You turn text into JSON.",
    "You are a helpful extraction engine.",
    "Extract the data from the text of the user.",
    "You are a careful data entry clerk.",
    "Return only JSON.",
    "You are an expert at extracting information.",
    "Output JSON only.",
    *later(
        "You read texts and answer with JSON.",
        "You are a data extraction assistant.",
        "You fill in forms.",
        "Be exact.",
        "You are an assistant that answers in JSON.",
        "Never guess.",
        "You are an information extraction system.",
        "Give the data as JSON.",
        "Your answers are JSON objects.",
        "You help with data entry.",
        "Take the data from the text.",
    ),
)


@dataclass(frozen=True, slots=True)
class Field:
    key: str
    type: str
    optional: bool
    attribute: Attribute


def draw_stating(
    s: Source, kind: Kind, stated: Sequence[Attribute], asked: Sequence[Attribute] = ()
) -> tuple[str, dict[Attribute, Any]]:
    """A text that states these attributes and up to one that nobody asks for, and all values in it."""
    others = [a for a in kind.attributes if a.clauses and a not in stated and a not in asked]
    clauses, facts = [], {kind.subject: kind.subject.draw(s)}
    shown = s.shuffled([*(a for a in stated if a is not kind.subject), *s.some(others, 0, 1)])
    for attribute in shown or others[:1]:
        facts[attribute] = attribute.draw(s)
        clauses.append(_clause(s.of(attribute.clauses), facts[attribute]))
    return _told(s, _sentences(s, kind, str(facts[kind.subject]), clauses)), facts


_ASIDES = later(
    "It was a sunny day.",
    "Thank you for reading.",
    "More news will follow.",
    "Everybody was happy about it.",
    "We will keep you informed.",
    "That is all for now.",
    "Who would have thought so?",
    "There is more to say, but not today.",
    "Good morning to all of you!",
    "Please note the following.",
    "This was sent to everybody.",
    "The rest is known.",
    "I am sure you agree.",
    "So much for today.",
    "We had coffee first.",
    "Please do not reply to this.",
    "Here is the news of the week.",
    "It rained all day long.",
    "Have a nice day!",
    "What a surprise!",
    "I hope this helps.",
)


def _told(s: Source, text: str) -> str:
    """The text, now and then with a sentence beside it that says nothing of the record."""
    if not s.inventive or not s.chance(0.12):
        return text
    return f"{s.of(_ASIDES)} {text}" if s.chance(0.5) else f"{text} {s.of(_ASIDES)}"


def _address(s: Source) -> tuple[str, dict[Attribute, Any]]:
    facts = {attribute: attribute.draw(s) for attribute in (ADDRESS.subject, *ADDRESS.attributes)}
    values = {attribute.keys[-1 if attribute.keys[-1] == "name" else 0]: value for attribute, value in facts.items()}
    return s.of(ADDRESS_TEXTS).format(**values), facts


def _clause(clause: str, value: Any) -> str:
    return clause.replace("a(n) {}", _article(str(value))).replace("{}", str(value))


def _sentences(s: Source, kind: Kind, subject: str, clauses: list[str]) -> str:
    """The clauses after the subject's opening: joined in one sentence, or in several with a pronoun."""
    head = s.of(kind.heads[1:])
    pronoun = s.any(("She", "He")) if kind is PERSON else "It"
    if kind is PERSON and head.startswith(("My name", "I am")):
        parts = [_first_person(clause) for clause in clauses]
        return " ".join([head.format(subject), *(f"I {part}." for part in parts)])
    joined = _join(clauses)
    style = s.rng.random()
    opening = subject if kind is PERSON or s.chance(0.3) else f"The {subject}"
    if s.inventive and s.chance(0.15):
        opening, subject = _introduced(s, kind, subject)
    if style < 0.4:
        return f"{opening} {joined}."
    if style < 0.6:
        return f"{head.format(subject)} {pronoun} {joined}."
    if style < 0.8 and len(clauses) > 1:
        return f"{opening} {clauses[0]}. {pronoun} {_join(clauses[1:])}."
    return " ".join([head.format(subject), *(f"{pronoun} {clause}." for clause in clauses)])


_RELATIVES = split("""
neighbour friend sister brother boss teacher guest uncle cousin partner student patient customer trainer aunt nephew
manager assistant grandmother visitor
""")
_OWNERS = ("my", "our", "their", "her", "his", "your", "the")


def _introduced(s: Source, kind: Kind, subject: str) -> tuple[str, str]:
    """The subject as a sentence may begin with it, and inside of one: "Our product", "my neighbour Alice"."""
    owner = s.any(_OWNERS)
    if kind is not PERSON:
        return f"{owner.capitalize()} {subject}", subject
    relative = s.any(_RELATIVES) if s.chance(0.8) else s.invented(1, 2)
    return f"{owner.capitalize()} {relative} {subject}", f"{owner} {relative} {subject}"


def _first_person(clause: str) -> str:
    verb, _, rest = clause.partition(" ")
    known = {"is": "am", "has": "have", "says:": "say:"}
    if verb == "always":
        return clause.replace("wears", "wear")
    if verb.endswith("s") and verb != "was":
        verb = known.get(verb, verb[:-1])
    return f"{verb} {rest}"


def _join(clauses: list[str]) -> str:
    if len(clauses) == 1:
        return clauses[0]
    return f"{', '.join(clauses[:-1])} and {clauses[-1]}"


def _turkish(s: Source) -> tuple[str, dict[str, Any]]:
    text = s.of(TURKISH_TEXTS)
    job = s.any(list(JOBS_TR))
    values = {
        "name": s.turkish_person(),
        "age": s.number(3, 99),
        "job": job,
        "city": s.city() if s.inventive else s.word_of(CITIES),
    }
    facts = {key: value for key, value in values.items() if f"{{{key}}}" in text or f"{{{key}+}}" in text}
    return text.replace("{job+}", JOBS_TR[job]).format(**values), facts


def _turkish_case(s: Source) -> tuple[list[Field], Callable[[], tuple[str, dict[str, Any]]]]:
    keys = s.some(list(TURKISH_KEYS), 2, 4)
    fields = []
    for key in keys:
        attribute = Attribute((key,), "integer" if key == "age" else "string", Source.city, ())
        fields.append(Field(s.any(TURKISH_KEYS[key]), attribute.type, key not in ("name", "age"), attribute))

    def draw() -> tuple[str, dict[str, Any]]:
        text, facts = _turkish(s)
        return text, {field.key: facts.get(field.attribute.keys[0]) for field in fields}

    return fields, draw


def _case(s: Source, kind: Kind) -> tuple[list[Field], Callable[[], tuple[str, dict[str, Any]]]]:
    """The fields asked for, and what draws a text with their values."""
    always = [kind.subject] if kind is not ADDRESS else []
    stated = [a for a in kind.attributes if a.clauses or kind is ADDRESS] + ([kind.subject] if kind is ADDRESS else [])
    wanted = s.shuffled([*always, *s.some(stated, 1, 3)]) if s.chance(0.4) else [*always, *s.some(stated, 1, 3)]
    fields, used = [], set()
    strict = s.chance(0.7)  # every field is required, so every text must state all
    for attribute in wanted:
        key = s.any(attribute.keys)
        if key not in used:
            used.add(key)
            fields.append(Field(key, attribute.type, not (strict or attribute in always or kind is ADDRESS), attribute))

    def draw() -> tuple[str, dict[str, Any]]:
        if kind is ADDRESS:
            text, facts = _address(s)
        else:
            asked = [field.attribute for field in fields]
            text, facts = draw_stating(
                s, kind, [a for a in asked if strict or a is kind.subject or s.chance(0.7)], asked
            )
        return text, {field.key: facts.get(field.attribute) for field in fields}

    return fields, draw


def json_schema(
    fields: list[Field], title: str | None = None, *, bare: bool = False, defaults: bool = False
) -> dict[str, Any]:
    """As pydantic writes it; `bare` without titles of fields, with `defaults` an optional field need not be given."""
    properties: dict[str, Any] = {}
    for field in fields:
        if field.optional:
            properties[field.key] = {"anyOf": [{"type": field.type}, {"type": "null"}]}
            if defaults:
                properties[field.key]["default"] = None
        else:
            properties[field.key] = {"type": field.type}
        if not bare:
            properties[field.key]["title"] = field.key.replace("_", " ").title()
    required = [field.key for field in fields if not (defaults and field.optional)]
    schema: dict[str, Any] = {"properties": properties, "required": required}
    if title:
        schema["title"] = title
    return {**schema, "type": "object"}


def closed(fields: list[Field]) -> dict[str, Any]:
    """The schema as an engine enforces it: these fields and no others."""
    return {**json_schema(fields, bare=True), "additionalProperties": False}


def _described(s: Source, kind_name: str, fields: list[Field]) -> str:
    """The fields, stated in one of the ways in which libraries and people state them."""
    title = s.any((kind_name.title(), "Record", "Info", "Result"))
    keys = [field.key for field in fields]
    python = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
    types = [python[field.type] + (" | None" if field.optional else "") for field in fields]
    style = s.number(0, 9)
    if style == 0:
        schema = dump(json_schema(fields, title, defaults=s.chance(0.5)))
        return f"Here's a JSON schema to follow:\n{schema}\n\nOutput a valid JSON object but do not repeat the schema."
    if style == 9:
        schema = dump(json_schema(fields, title, bare=True, defaults=True))
        return f"Answer with one JSON value that fits this JSON schema, and nothing else:\n{schema}\n"
    if style == 1:
        opening = s.any(("Use this schema", "JSON schema", "The output must follow this schema"))
        return f"{opening}: {dump(json_schema(fields, title, bare=s.chance(0.5)))}"
    if style == 2:
        return f"{s.any(('Fields', 'Keys', 'Return the keys', 'Give these fields'))}: {', '.join(keys)}."
    if style == 3:
        return f"{s.any(('Fields', 'The fields are', 'Return JSON with'))}:\n" + "\n".join(f"- {key}" for key in keys)
    if style == 4:
        lines = "\n".join(f"    {key}: {type}" for key, type in zip(keys, types, strict=True))
        return f"class {title}(BaseModel):\n{lines}"
    if style == 5:
        return "{" + ", ".join(f'"{key}": <{type}>' for key, type in zip(keys, types, strict=True)) + "}"
    if style == 6:
        return "\n".join(f"- {key} ({type})" for key, type in zip(keys, types, strict=True))
    if style == 7:
        return f"Use {', '.join(keys[:-1])} and {keys[-1]} as keys." if len(keys) > 1 else f"Use {keys[0]} as the key."
    return f"{{{', '.join(keys)}}}"


def make(s: Source) -> Dialog:
    """One conversation of up to four extractions with the same fields."""
    if s.chance(0.3 if s.inventive else 0.22):
        what, (fields, draw), task = "person", _turkish_case(s), "extraction_tr"
    else:
        kind = s.any(KINDS)
        what, (fields, draw), task = kind.words[0], _case(s, kind), "extraction"
        if s.chance(0.5):
            what = s.any(kind.words)
    ask = s.of(_ASKS).format(what=what)
    described = _described(s, what if what.isalpha() else "Record", fields)
    messages: list[Message] = []
    style = s.rng.random()
    grammar_only = 0.7 <= style < 0.85
    prefix = ""
    if style < 0.35:
        messages.append(system(f"{ask}\n{described}" if s.chance(0.7) else f"{s.of(_ROLES)} {ask} {described}"))
    elif style < 0.7:
        prefix = f"{ask}\n{described}\n" if s.chance(0.5) else f"{described}\n{ask} "
        if s.chance(0.4):
            messages.append(system(s.of(_ROLES)))
    elif grammar_only:
        prefix = f"{ask} " if s.chance(0.6) else ""
        if s.chance(0.4):
            messages.append(system(s.of(_ROLES)))
    else:
        prefix = ""
        messages.append(system(f"{s.of(_ROLES)} {described}"))
    indent = 2 if s.chance(0.06) else None
    for turn in range(s.any((1, 2, 3, 4)) if messages and not prefix else s.any((1, 2, 3))):
        text, record = draw()
        wrapped = s.any((text, text, f"Text: {text}", f'"{text}"', f"{text}")) if prefix or turn else text
        after = described and prefix and s.chance(0.15)
        messages.append(user(f"{wrapped}\n\n{prefix.strip()}" if after else f"{prefix}{wrapped}"))
        messages.append(assistant(dump(record, indent)))
    return Dialog(task, messages, schema=closed(fields), grammar_only=grammar_only)


_MANY = ("people", "products", "events")


def _list_schema(key: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {key: {"type": "array", "items": item}}, "required": [key]}


def make_list(s: Source) -> Dialog:
    """A list of records: all people, products or events of a text."""
    at = s.number(0, 2)
    kind = (PERSON, PRODUCT, EVENT)[at]
    key = s.any((_MANY[at], _MANY[at], "items", "records"))
    wanted = [kind.subject, *s.some([a for a in kind.attributes if a.clauses], 1, 2)]
    keys = [s.any(attribute.keys) for attribute in wanted]
    if len(set(keys)) < len(keys):
        return make_list(s)
    fields = [Field(key, a.type, False, a) for key, a in zip(keys, wanted, strict=True)]
    drawn = [draw_stating(s, kind, wanted) for _ in range(s.number(1, 3))]
    record = {key: [{field.key: facts[field.attribute] for field in fields} for _, facts in drawn]}
    schema = _list_schema(key, json_schema(fields, bare=True))
    enforced = {**_list_schema(key, closed(fields)), "additionalProperties": False}
    text = " ".join(text for text, _ in drawn)
    ask = s.of(
        (
            f"Extract all {_MANY[at]}.",
            f"Extract the {_MANY[at]} from the text.",
            f"List all {_MANY[at]} in the text.",
            f"Find every record of the {_MANY[at]}.",
            f"Which {_MANY[at]} are in the text?",
            f"Get all {_MANY[at]} as JSON.",
            *later(
                f"Give me all {_MANY[at]}.",
                f"Extract every one of the {_MANY[at]}.",
                f"Find all {_MANY[at]} in this text.",
                f"All {_MANY[at]} as a list, please.",
                f"Return the {_MANY[at]} as JSON.",
                f"Collect the {_MANY[at]}.",
            ),
        )
    )
    how = s.any(
        (
            f"JSON schema: {dump(schema)}",
            f'{{"{key}": [{{{", ".join(keys)}}}]}}',
            f"Key: {key}. Fields of each: {', '.join(keys)}.",
        )
    )
    told = f"{ask}\n{how}"
    messages = s.any(([system(told), user(text)], [user(f"{told}\n\n{text}")]))
    return Dialog("extraction", [*messages, assistant(dump(record))], schema=enforced)

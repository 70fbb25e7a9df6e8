"""Extraction of people, products, events and addresses from a text to JSON.

Rules. A record is drawn first; its text is a sentence built of one clause per attribute, and a text may leave some out
(then the value is null). The fields asked for, their names and their order are independent of the text's order.
"""

# ruff: noqa: RUF001 -- Turkish has an i without a dot.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.radix_tiny.dialog import Dialog, Message, assistant, dump, system, user
from tools.radix_tiny.words import (
    CITIES,
    COLORS,
    EVENT_KINDS,
    JOBS,
    JOBS_TR,
    STREET_KINDS,
    Source,
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a kind of record has: names for its field, its JSON type, how a value is drawn, clauses that state it."""

    keys: tuple[str, ...]
    type: str
    draw: Callable[[Source], Any]
    clauses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of record. `heads` are the openings that name its subject; clauses follow in any order."""

    name: str
    words: tuple[str, ...]
    subject: Attribute
    heads: tuple[str, ...]
    attributes: tuple[Attribute, ...]


def _article(word: str) -> str:
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


PERSON = Kind(
    "person",
    ("person", "Person", "the person", "personal details", "UserInfo", "contact"),
    Attribute(("name", "full_name", "person", "person_name", "name"), "string", Source.person, ()),
    (
        "{}",
        "This is {}.",
        "Meet {}.",
        "My name is {}.",
        "I met {} yesterday.",
        "Let me introduce {}.",
        "Let me introduce our colleague {}.",
        "We spoke to {}.",
        "Our new colleague is {}.",
        "{} joined us.",
        "{} wrote to us.",
        "I am {}.",
        "Here is our colleague {}.",
        "Here is {}.",
    ),
    (
        Attribute(
            ("age", "age", "years", "age_years"),
            "integer",
            lambda s: s.number(3, 99),
            (
                "is {} years old",
                "is {}",
                "is aged {}",
                "turned {} this year",
                "is a {}-year-old",
                "is a person aged {}",
                "just became {}",
                "has the age of {}",
                "celebrated birthday number {}",
                "is {} years of age",
            ),
        ),
        Attribute(
            ("job", "occupation", "profession", "role", "job_title"),
            "string",
            lambda s: s.any(JOBS),
            (
                "works as a(n) {}",
                "is a(n) {}",
                "has a job as a(n) {}",
                "earns a living as a(n) {}",
                "is employed as a(n) {}",
                "is working as a(n) {}",
                "has been a(n) {} for years",
                "trained as a(n) {}",
                "became a(n) {}",
            ),
        ),
        Attribute(
            ("city", "city", "location", "home_city", "residence"),
            "string",
            Source.city,
            (
                "lives in {}",
                "is based in {}",
                "comes from {}",
                "resides in {}",
                "moved to {}",
                "has moved to {}",
                "is from {}",
                "has a home in {}",
                "is at home in {}",
            ),
        ),
        Attribute(
            ("email", "email", "email_address", "mail"),
            "string",
            Source.email,
            (
                "can be reached at {}",
                "uses the email {}",
                "has the email address {}",
                "reads mail at {}",
                "writes from {}",
                "can be reached by email at {}",
                "answers at {}",
            ),
        ),
        Attribute(
            ("company", "employer", "company", "organization"),
            "string",
            Source.company,
            (
                "works for {}",
                "is employed by {}",
                "works at {}",
                "joined {}",
                "has a job at {}",
                "has joined {}",
                "is with {}",
            ),
        ),
        Attribute(
            ("favorite_color", "color", "favorite_color"),
            "string",
            lambda s: s.any(COLORS),
            (
                "likes the color {}",
                "prefers {} things",
                "loves {}",
                "always wears {}",
                "is fond of {}",
                "likes {}",
                "has {} shoes",
            ),
        ),
    ),
)
PRODUCT = Kind(
    "product",
    ("product", "Product", "the product", "item", "ProductInfo", "article"),
    Attribute(("name", "product", "product_name", "item", "title"), "string", Source.product, ()),
    (
        "{}",
        "The {} is new.",
        "We offer the {}.",
        "Buy the {}!",
        "I ordered the {}.",
        "Introducing the {}.",
        "Introducing our {}.",
        "Now in stock: {}.",
        "New arrival: {}.",
        "Item: {}.",
        "I bought the {}.",
        "Take a look at the {}.",
        "The {} is for sale.",
        "For sale: {}.",
    ),
    (
        Attribute(
            ("price", "price", "cost", "price_usd", "amount"),
            "number",
            Source.price,
            (
                "costs ${}",
                "sells for ${}",
                "is priced at ${}",
                "is yours for ${}",
                "has a price of ${}",
                "has a cost of ${}",
                "costs {} dollars",
                "is on sale for ${}",
                "goes for ${}",
                "is ${}",
            ),
        ),
        Attribute(
            ("color", "color", "colour"),
            "string",
            lambda s: s.any(COLORS),
            (
                "comes in {}",
                "is {}",
                "has the color {}",
                "is painted {}",
                "is available in {}",
                "is available in the color {}",
                "is sold in {}",
            ),
        ),
        Attribute(
            ("brand", "manufacturer", "maker", "brand"),
            "string",
            Source.company,
            (
                "is made by {}",
                "comes from {}",
                "is produced by {}",
                "is a product of {}",
                "was designed by {}",
                "was made by {}",
                "is built by {}",
                "is manufactured by {}",
            ),
        ),
        Attribute(
            ("quantity", "stock", "count", "units"),
            "integer",
            lambda s: s.number(1, 500),
            (
                "has {} units left",
                "is in stock ({} pieces)",
                "has {} pieces in stock",
                "is limited to {} units",
                "comes in a pack of {}",
                "has {} pieces left",
                "has {} left in store",
            ),
        ),
        Attribute(
            ("sku", "code", "product_code", "sku"),
            "string",
            Source.code,
            (
                "has the code {}",
                "has SKU {}",
                "is listed as {}",
                "is numbered {}",
                "carries the number {}",
                "has the number {}",
                "is filed under {}",
            ),
        ),
        Attribute(
            ("rating", "stars", "score"),
            "integer",
            lambda s: s.number(1, 5),
            (
                "got {} stars",
                "is rated {} out of 5",
                "has a rating of {}",
                "earned {} of 5 stars",
                "received {} stars",
                "earned {} stars",
                "was given {} points",
            ),
        ),
        Attribute(("in_stock", "available", "in_stock"), "boolean", lambda s: s.chance(0.5), ()),
    ),
)
EVENT = Kind(
    "event",
    ("event", "Event", "the event", "calendar entry", "EventInfo", "meeting"),
    Attribute(
        ("name", "event", "title", "event_name"),
        "string",
        lambda s: (
            f"{s.proper()} {s.any(EVENT_KINDS).capitalize()}"
            if s.chance(0.7)
            else f"{s.proper()} {s.invented(1, 2).capitalize()}"
        ),
        (),
    ),
    (
        "{}",
        "Join us for the {}.",
        "The {} is coming.",
        "Save the date for the {}.",
        "Do not miss the {}.",
        "Tickets for the {} are out.",
        "The date for the {} is out.",
        "You are invited to the {}.",
        "We announce the {}.",
        "Next up: {}.",
        "Get ready for the {}.",
        "Reminder: {}.",
        "Tickets for the {} are here.",
        "I will attend the {}.",
    ),
    (
        Attribute(
            ("date", "date", "day", "when", "event_date"),
            "string",
            Source.date,
            (
                "takes place on {}",
                "is on {}",
                "will be held on {}",
                "starts on {}",
                "happens on {}",
                "will take place on {}",
                "is scheduled for {}",
                "is planned for {}",
                "opens on {}",
            ),
        ),
        Attribute(
            ("location", "city", "place", "venue", "where"),
            "string",
            Source.city,
            (
                "is held in {}",
                "takes place in {}",
                "comes to {}",
                "will be in {}",
                "happens in {}",
                "will be held in {}",
                "is hosted in {}",
                "opens in {}",
                "can be seen in {}",
            ),
        ),
        Attribute(
            ("time", "time", "start_time", "starts_at"),
            "string",
            Source.time,
            (
                "begins at {}",
                "starts at {}",
                "kicks off at {}",
                "opens its doors at {}",
                "opens at {}",
                "will begin at {}",
                "gets going at {}",
            ),
        ),
        Attribute(
            ("organizer", "host", "organized_by", "organizer"),
            "string",
            Source.company,
            (
                "is organized by {}",
                "is hosted by {}",
                "is run by {}",
                "is presented by {}",
                "is put on by {}",
                "is an event by {}",
                "was set up by {}",
            ),
        ),
        Attribute(
            ("attendees", "capacity", "guests", "participants"),
            "integer",
            lambda s: s.number(5, 900),
            (
                "expects {} guests",
                "has room for {} people",
                "will host {} visitors",
                "counts {} participants",
                "welcomes {} people",
                "has room for {} guests",
                "is open to {} people",
            ),
        ),
    ),
)
ADDRESS = Kind(
    "address",
    ("address", "Address", "the address", "shipping address", "AddressInfo", "delivery address"),
    Attribute(
        ("street", "street", "street_name", "road"), "string", lambda s: f"{s.proper()} {s.any(STREET_KINDS)}", ()
    ),
    (),
    (
        Attribute(("number", "house_number", "street_number"), "string", lambda s: str(s.number(1, 399)), ()),
        Attribute(("city", "town", "city"), "string", Source.city, ()),
        Attribute(("zip", "zip_code", "postal_code", "postcode"), "string", lambda s: str(s.number(10000, 99999)), ()),
        Attribute(
            ("country", "country"),
            "string",
            lambda s: s.any(
                (
                    "Germany",
                    "France",
                    "Turkey",
                    "Spain",
                    "Italy",
                    "Norway",
                    "Canada",
                    "Japan",
                    "Brazil",
                    "Poland",
                    "Austria",
                )
            ),
            (),
        ),
        Attribute(("name", "recipient", "name"), "string", Source.person, ()),
    ),
)
KINDS = (PERSON, PERSON, PRODUCT, EVENT, ADDRESS)
_ADDRESS_TEXTS = (
    "{name} lives at {number} {street}, {city} {zip}, {country}.",
    "Please send it to {name}, {number} {street}, {zip} {city}, {country}.",
    "Ship the parcel to {name}, {street} {number}, {city}, {country}, {zip}.",
    "The address of {name} is {number} {street}, {city}, {country} (zip {zip}).",
    "{name}\n{number} {street}\n{zip} {city}\n{country}",
    "Please ship the parcel to {name} at {number} {street}, {city}, {country}, {zip}.",
    "Our new office: {street} {number}, {zip} {city}, {country}. Contact: {name}.",
    "Deliver to {number} {street} in {city}, {country}, postal code {zip}. Ask for {name}.",
    "{name} moved to {country}: {street} {number}, {zip} {city}.",
    "Address: {number} {street}, {city}, {country}. Postcode: {zip}. Name: {name}.",
    "In {country}, {name} has a flat at {street} {number}, {zip} {city}.",
    "{name} lives at {street} {number}, {zip} {city}, {country}.",
    "To: {name}, {street} {number}, {city} {zip}, {country}",
    "Send the letter to {street} {number}, {zip} {city}, {country}, for {name}.",
)
_TURKISH_TEXTS = (
    "{name} {age} yaşında bir {job+}.",
    "{name} {age} yaşında ve {city} şehrinde yaşıyor.",
    "Benim adım {name}, {age} yaşındayım, mesleğim {job}.",
    "{city} şehrinde yaşayan {name}, {age} yaşında bir {job+}.",
    "{name} bir {job+} ve {age} yaşındadır.",
    "{city} şehrinde yaşayan {name} {age} yaşındadır ve mesleği {job}.",
    "{age} yaşındaki {name} {city} şehrinde {job} olarak çalışıyor.",
    "{name} adlı {job} {age} yaşında.",
    "{name}, {city} şehrinden, {age} yaşında.",
    "{name} {city} şehrinde yaşıyor. {age} yaşında bir {job+}.",
    "{job} {name} {age} yaşında ve {city} şehrinde oturuyor.",
    "{name} {city} şehrinde oturuyor, {age} yaşında ve bir {job+}.",
    "Adı {name}, yaşı {age}, mesleği {job}.",
    "{name} {age} yaşındadır ve bir {job+}.",
)
_TURKISH_KEYS = {
    "name": ("name", "isim", "ad", "name"),
    "age": ("age", "yaş", "yas", "age"),
    "job": ("job", "meslek", "occupation", "profession"),
    "city": ("city", "şehir", "sehir", "city"),
}

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
    return _sentences(s, kind, str(facts[kind.subject]), clauses), facts


def _address(s: Source) -> tuple[str, dict[Attribute, Any]]:
    facts = {attribute: attribute.draw(s) for attribute in (ADDRESS.subject, *ADDRESS.attributes)}
    values = {attribute.keys[-1 if attribute.keys[-1] == "name" else 0]: value for attribute, value in facts.items()}
    return s.of(_ADDRESS_TEXTS).format(**values), facts


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
    the = "" if kind is PERSON or s.chance(0.3) else "The "
    if style < 0.4:
        return f"{the}{subject} {joined}."
    if style < 0.6:
        return f"{head.format(subject)} {pronoun} {joined}."
    if style < 0.8 and len(clauses) > 1:
        return f"{the}{subject} {clauses[0]}. {pronoun} {_join(clauses[1:])}."
    return " ".join([head.format(subject), *(f"{pronoun} {clause}." for clause in clauses)])


def _first_person(clause: str) -> str:
    verb, _, rest = clause.partition(" ")
    known = {
        "is": "am",
        "has": "have",
        "works": "work",
        "lives": "live",
        "comes": "come",
        "resides": "reside",
        "uses": "use",
    }
    known |= {
        "reads": "read",
        "writes": "write",
        "answers": "answer",
        "likes": "like",
        "prefers": "prefer",
        "loves": "love",
    }
    if verb == "always":
        return clause.replace("wears", "wear")
    return f"{known.get(verb, verb if verb not in ('earns',) else 'earn')} {rest}"


def _join(clauses: list[str]) -> str:
    if len(clauses) == 1:
        return clauses[0]
    return f"{', '.join(clauses[:-1])} and {clauses[-1]}"


def _turkish(s: Source) -> tuple[str, dict[str, Any]]:
    text = s.of(_TURKISH_TEXTS)
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
    keys = s.some(list(_TURKISH_KEYS), 2, 4)
    fields = []
    for key in keys:
        attribute = Attribute((key,), "integer" if key == "age" else "string", Source.city, ())
        fields.append(Field(s.any(_TURKISH_KEYS[key]), attribute.type, key not in ("name", "age"), attribute))

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
    if s.chance(0.22):
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

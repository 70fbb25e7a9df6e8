"""Sentiment and topic: zero-shot and few-shot, as plain labels and as JSON.

Rules. The words that carry a feeling or a topic are shared with the held-out world: a model this small cannot know
words that it never saw. The sentences around them, and the names in them, are not.
"""

from __future__ import annotations

from collections.abc import Callable

from tools.radix_tiny.dialog import Dialog, Message, assistant, dump, system, user
from tools.radix_tiny.words import GOODS, Source, split

FEELINGS = {
    "positive": split("""
        great wonderful excellent amazing fantastic perfect lovely brilliant superb delightful awesome good nice
        beautiful outstanding pleasant enjoyable impressive helpful friendly happy love loved enjoyed recommend best
        fast reliable comfortable delicious harika güzel mükemmel
    """),
    "negative": split("""
        terrible awful horrible bad poor disappointing boring broken useless dreadful worst hate hated annoying rude
        slow ugly dirty noisy faulty cheap disgusting unpleasant sad angry waste regret overpriced failed kötü berbat
    """),
    "neutral": ["average", "ordinary", "okay", "standard", "usual", "normal", "typical", "acceptable"],
}
_VERBS = {"love", "loved", "enjoyed", "recommend", "hate", "hated", "regret"}
_NOUNS = {"best": "the best", "worst": "the worst", "waste": "a waste of money"}
SUBJECTS = [
    *split("""
film movie book hotel room food service staff meal pizza coffee concert play song album game app phone battery
screen flight train trip beach museum course teacher lesson restaurant dinner cake soup sound picture story ending
plot actor delivery package support store website price quality weather view garden
"""),
    *GOODS,
]
_FRAMES = (
    "The {n} was {w}.",
    "The {n} is {w}.",
    "What a {w} {n}!",
    "I found the {n} {w}.",
    "This {n} is really {w}.",
    "I told everyone that the {n} was {w}.",
    "My {n} was {w} and I told everyone.",
    "We thought the {n} was {w}.",
    "The {n} at {p} was {w}.",
    "{p} has a {w} {n}.",
    "Such a {w} {n}.",
    "I have a {w} {n}.",
    "Honestly, the {n} felt {w}.",
    "It was a {w} {n}.",
    "{w} {n}, as everyone said.",
    "The {n} from {p} is very {w}.",
    "I have to say that the {n} is {w}.",
    "The {n} in {p} was really {w}.",
    "A {w} {n} from start to finish.",
    "They sold me a {w} {n}.",
    "So {w}! That {n} surprised me.",
    "In {p} we had a {w} {n}.",
    "{q} said the {n} was {w}.",
    "They said that the {n} is {w}.",
    "Their {n}: {w}.",
    "I got a {w} {n} from {p}.",
    "Well, the {n} turned out {w}.",
    "The {n} looked {w} to me.",
)
_VERB_FRAMES = (
    "I {w} this {n}.",
    "I {w} the {n} from {p}.",
    "We {w} the {n}.",
    "I really {w} that {n}.",
    "My friends {w} the {n}.",
    "We really {w} this {n}.",
    "I {w} the {n} at {p}.",
    "Everybody here will say they {w} the {n}.",
    "{q} and I {w} this {n}.",
)
_NOUN_FRAMES = (
    "This {n} is {w}.",
    "The {n} was {w}.",
    "The {n} at {p} is {w}.",
    "I think this {n} is {w}.",
    "For me the {n} was {w}.",
    "This {n} was really {w}.",
    "{q} calls the {n} {w}.",
)

TOPICS = {
    "sports": split("""
        team match goal player coach football tennis basketball stadium league champion race medal runner referee
        tournament striker score cup swimmer
    """),
    "politics": split("""
        president parliament election minister vote senate law government party mayor campaign senator treaty ballot
        congress voters policy candidate
    """),
    "technology": split("""
        software computer robot chip internet startup processor laptop code smartphone browser server algorithm
        programmer app cloud encryption network
    """),
    "business": split("""
        market shares profit investor merger revenue stock bank company earnings economy trade sales quarterly dividend
        factory prices exports
    """),
    "health": split("""
        doctor hospital vaccine patients disease medicine diet surgery virus clinic nurse therapy symptoms vitamin
        infection heart sleep allergy
    """),
    "food": split("""
        recipe restaurant cheese chef soup bread kitchen dessert sauce pasta spices oven baked salad chocolate flavor
        cooking grill
    """),
    "travel": split("""
        flight hotel airport beach tourists passport luggage island cruise vacation museum tour resort visa backpack
        sightseeing itinerary airline
    """),
    "music": split("""
        guitar album singer concert band orchestra song piano drummer melody lyrics chorus violin opera rapper tune
        vinyl choir
    """),
    "science": split("""
        physics telescope experiment researchers planet molecule fossil laboratory scientists galaxy atom gene climate
        theory asteroid biology chemistry microscope
    """),
}
TOPIC_NAMES = {"sports": ("sports", "sport"), "technology": ("technology", "tech"), "business": ("business", "economy")}
_TOPIC_FRAMES = (
    "The {a} and the {b} were in the news in {p}.",
    "{q} talked about the {a} and the {b}.",
    "A new {a} changed the {b} this week.",
    "{p}: {a} and {b} draw a crowd.",
    "Everyone in {p} speaks of the {a} after the {b}.",
    "{q} talked about a new {a} and a {b}.",
    "The {a} is more important than the {b}, says {q}.",
    "The {b} surprised the {a} on {d}.",
    "{q} wrote an article on {a}, {b} and {c}.",
    "After the {a}, the {b} came to {p}.",
    "Big news about the {a}: the {b} is here.",
    "This week the {a} and the {b} came to {p}.",
    "No {a} without a {b}, said {q}.",
    "The {a} in {p} needs a better {b} and {c}.",
    "Why the {a} matters for every {b}.",
    "{q} showed the {a} to the {b}.",
    "This {a} has a {b} and a {c}.",
    "{q} wrote about the {b}, the {c} and the {a}.",
    "A {a}, a {b} and a day in {p}.",
    "Reports from {p} mention the {a} and its {b}.",
    "Last night the {a} met the {b}.",
)

_SENTIMENT_ASKS = (
    "Classify the sentiment of the text",
    "What is the sentiment of this text?",
    "Decide the sentiment",
    "Is the text {labels}?",
    "Label the sentiment",
    "Decide the sentiment of the review",
    "Sentiment analysis",
    "Determine the sentiment of the review",
    "How does the writer feel?",
    "Classify the review as {labels}",
    "Tell the sentiment of the following text",
    "Determine the sentiment of this text",
    "Rate the sentiment",
    "Classify the sentiment",
)
_TOPIC_ASKS = (
    "Classify the topic of the text",
    "What is the topic of this text?",
    "Choose the topic",
    "Which topic fits: {labels}?",
    "Label the topic",
    "Choose the topic of the text",
    "Topic classification",
    "Determine the category of the text",
    "What is the text about?",
    "Sort the text into {labels}",
    "Pick the category of the following news",
    "Determine the topic of this text",
    "Classify the text",
    "Choose the right category",
)


def feeling_text(s: Source, label: str) -> str:
    """A short review that expresses a feeling."""
    word = s.any(FEELINGS[label])
    frames = _VERB_FRAMES if word in _VERBS else _NOUN_FRAMES if word in _NOUNS else _FRAMES
    noun = s.any(SUBJECTS)
    text = s.of(frames).format(n=noun, w=_NOUNS.get(word, word), p=s.city(), q=s.person())
    if s.chance(0.25):
        filler = s.of(
            (
                "I went there on {d}.",
                "It arrived on {d}.",
                "{q} came too.",
                "We were in {p}.",
                "I paid {k} dollars.",
                "I was there with {q}.",
                "This was in {p} on {d}.",
                "We waited {k} minutes.",
            )
        )
        extra = filler.format(d=s.date(), q=s.person(), p=s.city(), k=s.number(5, 90))
        text = f"{extra} {text}" if s.chance(0.5) else f"{text} {extra}"
    return text[0].upper() + text[1:]


def topic_text(s: Source, topic: str) -> str:
    first, second, third = s.some(TOPICS[topic], 3, 3)
    text = s.of(_TOPIC_FRAMES).format(a=first, b=second, c=third, p=s.city(), q=s.person(), d=s.date())
    return text[0].upper() + text[1:]


def draw_labels(s: Source) -> tuple[str, list[str], dict[str, str]]:
    """The aspect ("sentiment" or "topic"), the labels on offer, and the label's text for each."""
    if s.chance(0.5):
        kinds = ["positive", "negative"] if s.chance(0.65) else ["positive", "negative", "neutral"]
        shapes: tuple[dict[str, str], ...] = (
            {},
            {},
            {},
            {"positive": "pos", "negative": "neg", "neutral": "neu"},
            {"positive": "good", "negative": "bad"},
        )
        shape = s.any(shapes)
        names = {kind: shape.get(kind, kind) for kind in kinds}
        aspect = "sentiment"
    else:
        kinds = s.some(list(TOPICS), 2, 4)
        names = {kind: s.any(TOPIC_NAMES.get(kind, (kind,))) for kind in kinds}
        aspect = "topic"
    case: Callable[[str], str] = s.any((str, str, str, str.upper, str.capitalize))
    return aspect, s.shuffled(kinds), {kind: case(name) for kind, name in names.items()}


def text_of(s: Source, aspect: str, kind: str) -> str:
    return feeling_text(s, kind) if aspect == "sentiment" else topic_text(s, kind)


def make(s: Source) -> Dialog:
    """A conversation of one or more texts to be labelled; in a fifth of them the examples stand in one prompt."""
    aspect, kinds, names = draw_labels(s)
    labels = [names[kind] for kind in kinds]
    listed = s.any((", ", " / ", " or ", " | ")).join(labels)
    ask = s.of(_SENTIMENT_ASKS if aspect == "sentiment" else _TOPIC_ASKS).format(labels=listed)
    as_json = s.chance(0.3)
    key = s.any(("label", aspect, "label", "category"))
    how = s.of(
        (
            f"Labels: {listed}.",
            f"Options: {listed}.",
            f"Answer with one of: {listed}.",
            f"({listed})",
            f"Answer only {listed}.",
            f"Choose from: {listed}.",
            f"One of {listed}.",
            f"Possible answers: {listed}.",
        )
    )
    ask = f"{ask.rstrip('.')}{'' if ask.endswith('?') else s.any(('.', ':', '.'))} {how}"
    if as_json:
        ask += s.any(
            (f" Answer as JSON with the key {key}.", f' Answer as {{"{key}": ...}}.', f" Return JSON: {{{key}}}.")
        )

    def shown(label: str) -> str:
        return dump({key: label}) if as_json else label

    properties = {key: {"type": "string", "enum": labels}}
    schema = {"type": "object", "properties": properties, "required": [key], "additionalProperties": False}
    turns = s.any((1, 2, 4, 8, 8)) if s.chance(0.8) else s.number(8, 14)
    pairs = [(text_of(s, aspect, kind), shown(names[kind])) for kind in (s.any(kinds) for _ in range(turns))]
    messages: list[Message] = []
    if s.chance(0.2):
        before, after = s.any(
            (
                ("Text: ", "Label: "),
                ("Text: ", f"{aspect.capitalize()}: "),
                ("Review: ", "Answer: "),
                ("Input: ", "Output: "),
            )
        )
        lines = [f"{before}{text}\n{after}{label}\n" for text, label in pairs]
        lines[-1] = f"{before}{pairs[-1][0]}\n{after.strip()}"
        messages = [user("\n".join([ask, *lines])), assistant(pairs[-1][1])]
    else:
        in_system = s.chance(0.6)
        if in_system:
            messages.append(system(ask))
        wrap = s.any(("{}", "{}", "Text: {}", '"{}"'))
        for at, (text, label) in enumerate(pairs):
            text = wrap.format(text)
            if not in_system and (at == 0 or s.chance(0.3)):
                text = s.any((f"{ask}\n{text}", f"{ask}\n\n{text}", f"{ask} {text}", f"{text}\n{ask}"))
            messages += [user(text), assistant(label)]
    return Dialog("classification", messages, schema=schema if as_json else None, choices=None if as_json else labels)

"""Short facts: capitals and small sums; small talk; who said what earlier in the conversation."""

from __future__ import annotations

from tools.radix_tiny.dialog import Dialog, Message, assistant, system, user
from tools.radix_tiny.words import COLORS, JOBS, Source, later

CAPITALS = dict(
    pair.split(":")
    for pair in """
France:Paris;Germany:Berlin;Spain:Madrid;Italy:Rome;Austria:Vienna;Poland:Warsaw;Portugal:Lisbon;Ireland:Dublin
Norway:Oslo;Greece:Athens;Turkey:Ankara;Japan:Tokyo;South Korea:Seoul;China:Beijing;India:New Delhi;Egypt:Cairo
Kenya:Nairobi;Nigeria:Abuja;Canada:Ottawa;Australia:Canberra;Brazil:Brasília;Argentina:Buenos Aires;Chile:Santiago
Peru:Lima;Mexico:Mexico City;Cuba:Havana;Sweden:Stockholm;Finland:Helsinki;Denmark:Copenhagen;Iceland:Reykjavik
Estonia:Tallinn;Latvia:Riga;Lithuania:Vilnius;Hungary:Budapest;Romania:Bucharest;Bulgaria:Sofia;Croatia:Zagreb
Serbia:Belgrade;Slovenia:Ljubljana;Slovakia:Bratislava;Belgium:Brussels;Netherlands:Amsterdam;Switzerland:Bern
Ukraine:Kyiv;Russia:Moscow;Georgia:Tbilisi;Iran:Tehran;Iraq:Baghdad;Israel:Jerusalem;Lebanon:Beirut;Qatar:Doha
Thailand:Bangkok;Vietnam:Hanoi;Indonesia:Jakarta;Malaysia:Kuala Lumpur;Philippines:Manila;New Zealand:Wellington
Morocco:Rabat;Tunisia:Tunis;Ethiopia:Addis Ababa;Ghana:Accra;United Kingdom:London;United States:Washington
Colombia:Bogotá;Uruguay:Montevideo;Nepal:Kathmandu;Pakistan:Islamabad
""".strip()
    .replace("\n", ";")
    .split(";")
)
_CAPITAL_ASKS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital of {}.",
    "What's the capital city of {}?",
    "{}: what is its capital?",
    "Do you know the capital of {}?",
    "The capital of {} is?",
    "I need the capital of {}.",
    "What's the capital of {}?",
    "Please give me the capital of {}.",
)
_SUM_ASKS = (
    "What is {a} + {b}?",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
    "Compute {a} + {b}.",
    "What is the sum of {a} and {b}?",
    "{a} + {b}",
    "How much is {a} + {b}?",
    "Calculate {a} + {b}.",
    "{a} plus {b}?",
    "What's {a} + {b}?",
    "How much is {a} plus {b}?",
)
_GREETINGS = {
    "Hello! How can I help you?": (
        "Hello",
        "Hi",
        "Hey",
        "Hello!",
        "Hi there",
        "Hello there",
        "Hey there!",
        "hello",
        "hi",
        "Good day",
        "Merhaba",
        "Hi!",
    ),
    "I am fine, thank you. How can I help you?": (
        "How are you?",
        "how are you",
        "How are you doing?",
        "How do you do?",
        "Are you well?",
        "How is it going?",
    ),
    "You are welcome!": ("Thanks!", "Thank you", "Thank you very much", "thanks a lot", "Many thanks", "Great, thanks"),
    "Goodbye!": ("Bye", "Goodbye", "See you", "Good night", "bye bye", "See you later"),
    "I am a very small language model.": (
        "Who are you?",
        "What are you?",
        "Are you a robot?",
        "Are you human?",
        "Tell me about yourself.",
        "What kind of model are you?",
    ),
    "I can extract data, label texts, look up facts and call tools.": (
        "What can you do?",
        "How can you help me?",
        "What are you good at?",
        "Help",
        "Can you help me?",
        "Your skills?",
    ),
    "Why did the cat sit on the computer? To keep an eye on the mouse.": (
        "Tell me a joke.",
        "Do you know a joke?",
        "Make me laugh.",
        "Tell me a joke about cats.",
        "Another joke, please.",
        "A joke!",
    ),
}
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are helpful.",
    "Be brief.",
    "Answer in one word.",
    "Answer briefly.",
    "You are a friendly assistant.",
    "You know geography and sums.",
    "Answer the question.",
    "You answer in a few words.",
    "You are an assistant.",
    "Keep it short.",
    "Be polite.",
    *later(
        "You are a short and friendly assistant.",
        "Give short answers.",
        "You like questions.",
        "Help the user.",
        "Reply in a few words.",
        "You are here to help.",
    ),
)


def draw(s: Source) -> tuple[str, str]:
    """A question and its short answer."""
    if s.chance(0.4):
        country = s.any(list(CAPITALS))
        return s.of(_CAPITAL_ASKS).format(country), CAPITALS[country]
    while True:
        first, second = s.number(0, 50), s.number(0, 49)
        if s.chance(0.3):
            first, second = first % 10, second % 10
        # A held-out sum is one that training never shows, but small ones are known by heart.
        small = first < 10 and second < 10
        if small or ((first * 7 + second * 3) % 11 == 0) == s.held_out:
            return s.of(_SUM_ASKS).format(a=first, b=second), str(first + second)


def small_talk(s: Source) -> tuple[str, str]:
    answer = s.any(list(_GREETINGS))
    return s.any(_GREETINGS[answer]), answer


def make(s: Source) -> Dialog:
    """Several questions in a row; the last is a fact."""
    messages: list[Message] = [system(s.of(_SYSTEMS))] if s.chance(0.5) else []
    for _ in range(s.number(0, 10)):
        question, answer = small_talk(s) if s.chance(0.25) else draw(s)
        messages += [user(question), assistant(answer)]
    question, answer = draw(s)
    return Dialog("facts", [*messages, user(question), assistant(answer)])


_PERSONAL = (
    (
        "name",
        Source.person,
        (
            "My name is {}.",
            "I am {}.",
            "I'm {}.",
            "Call me {}.",
            "Hello, I am {}.",
            "Hi, my name is {}.",
            "They call me {}.",
            *later(
                "People call me {}.",
                "{} is my name.",
                "You can call me {}.",
                "I go by {}.",
                "Good day, I am {}.",
                "This is {} speaking.",
                "The name is {}.",
            ),
        ),
        (
            "What is my name?",
            "Who am I?",
            "Do you remember my name?",
            "What's my name?",
            "Tell me my name.",
            "Say my name.",
            "Can you recall my name?",
            *later(
                "Which name did I give you?",
                "How am I called?",
                "What do people call me?",
                "You know my name, don't you?",
                "My name?",
                "Please say my name.",
                "What was my name?",
            ),
        ),
        "Your name is {}.",
    ),
    (
        "city",
        Source.city,
        (
            "I live in {}.",
            "I am from {}.",
            "My home is in {}.",
            "I moved to {}.",
            "My city is {}.",
            "I reside in {}.",
            *later(
                "I have a home in {}.",
                "I come from {}.",
                "{} is where I live.",
                "I settled in {}.",
                "I am at home in {}.",
                "Home for me is {}.",
            ),
        ),
        (
            "Where do I live?",
            "Which city do I live in?",
            "Where is my home?",
            "What is my city?",
            "Do you know where I live?",
            "Name my city.",
            *later(
                "What city am I from?",
                "Where am I at home?",
                "Tell me where I live.",
                "In which city is my home?",
                "My city?",
                "What place do I live in?",
            ),
        ),
        "You live in {}.",
    ),
    (
        "job",
        lambda s: s.any(JOBS),
        (
            "I work as a {}.",
            "My job is {}.",
            "I'm employed as a {}.",
            "By profession I am a {}.",
            "I earn money as a {}.",
            "My work: {}.",
            *later(
                "I am a {}.",
                "I have a job as a {}.",
                "I became a {}.",
                "I make a living as a {}.",
                "As for work, I am a {}.",
                "I was trained as a {}.",
            ),
        ),
        (
            "What is my job?",
            "What do I do?",
            "What is my profession?",
            "Which job do I have?",
            "What's my job?",
            "What do I work as?",
            *later(
                "How do I earn money?",
                "Tell me my job.",
                "Name my profession.",
                "What kind of work do I do?",
                "My job?",
                "What am I by profession?",
            ),
        ),
        "Your job is {}.",
    ),
    (
        "color",
        lambda s: s.any(COLORS),
        (
            "My favorite color is {}.",
            "I like {} most.",
            "I love the color {}.",
            "The color I like is {}.",
            "My color is {}.",
            "For me it's {}.",
            *later(
                "I like {}.",
                "{} is my favorite color.",
                "The best color is {}.",
                "I always wear {}.",
                "Nothing is better than {}.",
                "I prefer {}.",
            ),
        ),
        (
            "What is my favorite color?",
            "Which color do I like?",
            "What color do I love?",
            "Name my favorite color.",
            "What's my color?",
            "Which color is mine?",
            *later(
                "What is the color I like?",
                "Tell me my favorite color.",
                "My favorite color?",
                "Do you know my color?",
                "Which color do I prefer?",
                "Say my favorite color.",
            ),
        ),
        "Your favorite color is {}.",
    ),
)
_NOTED = "Nice to know."


def chat(s: Source) -> Dialog:
    """Several turns: things told and asked for later, a persona in the system prompt, small talk between."""
    persona = s.proper() if s.chance(0.5) else None
    messages: list[Message] = []
    if persona:
        messages.append(
            system(
                s.of(
                    (
                        "You are {}, a helpful assistant.",
                        "Your name is {}.",
                        "You are called {}.",
                        "You are {}.",
                        "You play {}, a friendly guide.",
                        "Act as {}.",
                        "You are the assistant {}.",
                        *later(
                            "Here you are called {}.",
                            "This is {}, an assistant.",
                            "Your name: {}.",
                            "You go by the name {}.",
                            "From now on you are {}.",
                            "I call you {}.",
                        ),
                    )
                ).format(persona)
            )
        )
    elif s.chance(0.4):
        messages.append(system(s.of(_SYSTEMS)))
    told: list[tuple[tuple[str, ...], str]] = []
    turns: list[tuple[str, str]] = []
    for _, make_value, tells, asks, answer in s.some(_PERSONAL, 1, 3):
        value = make_value(s)
        turns.append(
            (s.of(tells).format(value), f"Nice to meet you, {value}!" if answer.startswith("Your name") else _NOTED)
        )
        told.append((asks, answer.format(value)))
    between = [small_talk(s) if s.chance(0.6) else draw(s) for _ in range(s.number(0, 3))]
    if persona:
        asks = (
            "What is your name?",
            "What are you called?",
            "Your name?",
            "What's your name?",
            "Tell me your name.",
            "How should I call you?",
            *later(
                "Who am I talking to?",
                "What do they call you?",
                "Say your name.",
                "You are called what?",
                "Which name do you have?",
                "May I know your name?",
            ),
        )
        told.append((asks, f"My name is {persona}."))
    for question, reply in [*turns, *between, *((s.of(asks), reply) for asks, reply in s.shuffled(told))]:
        messages += [user(question), assistant(reply)]
    return Dialog("chat", messages)

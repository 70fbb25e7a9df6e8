"""Tools: whether one is needed, which, with what arguments; answering from its result.

Rules. Known kinds of tools (weather, sums, mail, ...) appear under many names and parameter names; open ones have names
that are invented, and the request names them. Once the answer is there, no tool is called again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.radix_tiny.dialog import Dialog, Message, assistant, calls, dump, result, system, user
from tools.radix_tiny.tasks import facts
from tools.radix_tiny.words import CURRENCIES, LANGUAGES, WEATHER, Source

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Parameter:
    names: tuple[str, ...]
    type: str
    draw: Callable[[Source], Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class ToolKind:
    """Names it may have, what it says of itself, its parameters, requests for it, and what it gives back."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    results: Callable[[Source, dict[str, Any]], str]


def _number(low: int, high: int) -> Callable[[Source], int]:
    return lambda s: s.number(low, high)


def _weather(s: Source, args: dict[str, Any]) -> str:
    where = next(iter(args.values()))
    return s.of(
        (
            f"It's {s.any(WEATHER)}.",
            f"{s.any(WEATHER)}",
            f"It is {s.any(WEATHER)} in {where}.",
            f"{s.any(WEATHER)}, {s.number(-9, 39)} degrees",
            dump({"temperature": s.number(-9, 39), "condition": s.any(WEATHER)}),
            f"{s.number(-9, 39)} C and {s.any(WEATHER)}",
        )
    )


def _description(s: Source) -> str:
    nation = s.any(("Chinese", "Japanese", "German", "Turkish", "French", "Greek", "Korean", "Russian"))
    kind = s.any(("bank", "technology company", "restaurant", "company", "shop", "factory", "startup"))
    return f"{s.any(('a', 'a new', 'a small', 'a large'))} {nation} {kind}"


def _scalar(s: Source, args: dict[str, Any]) -> str:
    value = s.any((s.number(0, 999), s.number(0, 20), s.proper(), s.code()))
    return s.of(
        (str(value), dump({"result": value}), f"{value}", dump({"value": value}), dump({"result": value}), str(value))
    )


def _done(s: Source, args: dict[str, Any]) -> str:
    return s.of(("Done.", "ok", dump({"status": "ok"}), "Success", "The task is done.", dump({"id": s.number(1, 999)})))


def _text(s: Source, args: dict[str, Any]) -> str:
    return s.of(
        (
            f"{s.person()} lives in {s.city()}.",
            f"{s.company()} was founded in {s.number(1900, 2020)}.",
            f"{s.proper()} is in {s.city()}.",
            f"Found: {s.proper()}.",
            f"{s.proper()}",
            dump({"name": s.person(), "city": s.city()}),
        )
    )


CITY = Parameter(("location", "city", "place", "location", "town"), "string", Source.place, "The city.")
KINDS = (
    ToolKind(
        (
            "get_weather",
            "weather",
            "current_weather",
            "fetch_weather",
            "get_current_weather",
            "get_city_weather",
            "weather_lookup",
            "check_weather",
        ),
        (
            "Get the weather at a location.",
            "Get the current weather.",
            "Returns the weather of a city.",
            "Weather service.",
            "Tells the weather.",
            "Get the weather of a city.",
            "Look up the weather in a place.",
        ),
        (CITY,),
        (
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "What's the weather like in {0}?",
            "Weather in {0}?",
            "Is it raining in {0}?",
            "What is the current weather in {0}?",
            "Tell me the weather for {0}.",
            "Will I need an umbrella in {0}?",
            "Check the weather in {0}.",
            "I travel to {0}. What is the weather there?",
            "weather {0}",
            "Please tell me the weather in {0}.",
            "Please look up the weather in {0}.",
            "How warm is it in {0}?",
        ),
        _weather,
    ),
    ToolKind(
        ("add", "sum_numbers", "my_adder", "adder_tool", "add_numbers", "add_two_numbers", "plus", "calculate_sum"),
        (
            "Add two integers.",
            "Add two numbers together.",
            "Takes two integers, a and b, and returns their sum.",
            "Sum of two numbers.",
            "Adds numbers.",
            "Adds two integers.",
            "Compute a sum.",
        ),
        (
            Parameter(("a", "x", "first", "a", "left"), "integer", _number(0, 999)),
            Parameter(("b", "y", "second", "b", "right"), "integer", _number(0, 999)),
        ),
        (
            "What is {0} + {1}?",
            "Add {0} and {1}.",
            "What is {0} plus {1}?",
            "{0} + {1}",
            "Use the tool to add {0} and {1}.",
            "Please add {0} and {1}.",
            "What is {0} + {1}",
            "Sum up {0} and {1}.",
            "Compute {0} + {1}.",
        ),
        _scalar,
    ),
    ToolKind(
        ("multiply", "times", "multiply_numbers", "product_of", "mul", "multiply_two_numbers", "calculate_product"),
        (
            "Multiply two integers.",
            "Multiply two numbers.",
            "Returns the product of two numbers.",
            "Product of a and b.",
            "Multiplies.",
            "Returns the product.",
            "Multiply.",
        ),
        (
            Parameter(("a", "x", "first", "a", "left"), "integer", _number(0, 999)),
            Parameter(("b", "y", "second", "b", "right"), "integer", _number(0, 999)),
        ),
        (
            "What is {0} * {1}?",
            "Multiply {0} by {1}.",
            "What is {0} times {1}?",
            "{0} x {1}",
            "Compute {0} * {1}.",
            "Please multiply {0} by {1}.",
            "What is the product of {0} and {1}?",
        ),
        _scalar,
    ),
    ToolKind(
        (
            "search",
            "web_search",
            "search_web",
            "find_information",
            "search_documents",
            "search_information",
            "search_tool",
            "lookup",
        ),
        (
            "Search the web.",
            "Search for information.",
            "Find documents about a topic.",
            "Web search.",
            "Searches the internet.",
            "Searches the web for information.",
            "Look things up.",
        ),
        (
            Parameter(
                ("query", "q", "search_query", "query", "text"),
                "string",
                lambda s: s.any((s.company, s.person, s.proper, s.product))(),
                "What to search for.",
            ),
        ),
        (
            "Search for {0}.",
            "Find information about {0}.",
            "Look up {0}.",
            "Google {0}.",
            "Search the web for {0}.",
            "Please search the web for {0}.",
            "What can you find about {0}?",
            "Tell me about {0}.",
            "I want to know more about {0}.",
        ),
        _text,
    ),
    ToolKind(
        ("send_email", "email", "send_message", "write_email", "mail_to", "send_mail", "message"),
        (
            "Send an email.",
            "Send a message to somebody.",
            "Sends mail.",
            "Write to a person.",
            "Email tool.",
            "Sends a message to a person.",
            "Send a short message.",
        ),
        (
            Parameter(
                ("to", "recipient", "receiver", "to", "address"),
                "string",
                lambda s: s.email() if s.chance(0.6) else s.person(),
            ),
            Parameter(
                ("subject", "text", "message", "body", "content"),
                "string",
                lambda s: s.any(
                    (
                        "hello",
                        "lunch",
                        "the meeting",
                        "thank you",
                        "good news",
                        s.proper(),
                        f"{s.proper()} report",
                        f"see you on {s.date()}",
                    )
                ),
            ),
        ),
        (
            "Send an email to {0} with the text '{1}'.",
            "Write to {0}: {1}",
            'Send "{1}" to {0}.',
            "Tell {0} this: {1}",
            "Email {0} saying {1}.",
            "Please send an email to {0}: {1}",
            "Message {0}: {1}",
            "Please send {0} the message {1}.",
        ),
        _done,
    ),
    ToolKind(
        ("get_stock_price", "stock_price", "stock", "quote", "share_price", "get_share_price", "get_quote"),
        (
            "Get the price of a stock.",
            "Current stock price.",
            "Price of a share by its symbol.",
            "Stock quotes.",
            "Looks up a stock.",
            "Get the current price of a stock.",
            "Get a quote.",
        ),
        (
            Parameter(
                ("symbol", "ticker", "stock", "symbol"),
                "string",
                lambda s: s.fresh(lambda: "".join(s.any("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(s.number(3, 4)))),
            ),
        ),
        (
            "What is the price of {0}?",
            "How much is the {0} stock?",
            "Stock price of {0}?",
            "What does a share of {0} cost?",
            "Get the quote for {0}.",
            "How much is a share of {0}?",
            "How is {0} trading?",
        ),
        _scalar,
    ),
    ToolKind(
        ("convert_currency", "currency_converter", "exchange", "convert", "convert_money", "convert_amount", "fx"),
        (
            "Convert an amount between currencies.",
            "Currency conversion.",
            "Converts money.",
            "Exchange money.",
            "Convert currencies.",
            "Converts an amount of money.",
            "Gives the amount in another currency.",
        ),
        (
            Parameter(("amount", "value", "amount"), "number", _number(1, 999)),
            Parameter(("from_currency", "source", "from"), "string", lambda s: s.any(CURRENCIES)),
            Parameter(("to_currency", "target", "to"), "string", lambda s: s.any(CURRENCIES)),
        ),
        (
            "Convert {0} {1} to {2}.",
            "How much is {0} {1} in {2}?",
            "What are {0} {1} in {2}?",
            "Exchange {0} {1} for {2}.",
            "{0} {1} in {2}?",
            "Please convert {0} {1} to {2}.",
            "Change {0} {1} into {2}.",
        ),
        _scalar,
    ),
    ToolKind(
        ("translate", "translate_text", "translator", "translation", "to_language", "translate_phrase", "translate_to"),
        (
            "Translate a text.",
            "Translate text to another language.",
            "Translator.",
            "Translates words.",
            "Language translation.",
            "Translates a text.",
            "Turns a text into another language.",
        ),
        (
            Parameter(
                ("text", "phrase", "source_text", "text"),
                "string",
                lambda s: s.any(
                    (
                        "good morning",
                        "thank you",
                        "where is the station",
                        "I am hungry",
                        s.invented(),
                        f"hello {s.proper()}",
                    )
                ),
            ),
            Parameter(("target_language", "language", "to", "language"), "string", lambda s: s.any(LANGUAGES)),
        ),
        (
            "Translate '{0}' to {1}.",
            "Translate '{0}' into {1}.",
            'How do you say "{0}" in {1}?',
            'What is "{0}" in {1}?',
            "Say '{0}' in {1}.",
            "Please translate '{0}' to {1}.",
            "I need '{0}' in {1}.",
        ),
        _scalar,
    ),
    ToolKind(
        (
            "create_customer",
            "new_customer",
            "add_customer",
            "register_client",
            "create_client",
            "create_new_customer",
            "save_customer",
        ),
        (
            "Create a customer.",
            "Tool for creating a customer.",
            "Register a new client.",
            "Adds a customer to the database.",
            "Save a client.",
            "Creates a customer.",
            "Customer registration.",
        ),
        (
            Parameter(
                ("name", "customer_name", "client", "full_name"),
                "string",
                lambda s: s.foreign() if s.chance(0.5) else s.company(),
                "The name of the customer.",
            ),
            Parameter(
                ("description", "notes", "comment", "description"),
                "string",
                _description,
                "Description of the customer.",
            ),
        ),
        (
            "Create a customer named '{0}' - {1}",
            "Create the customer '{0}', {1}.",
            "Add a customer named {0}: {1}",
            "Register '{0}' ({1}).",
            'New customer "{0}", {1}',
            "Create a new customer named {0}: {1}",
            "Please create a customer called {0}, {1}.",
        ),
        _done,
    ),
    ToolKind(
        ("set_timer", "timer", "start_timer", "set_alarm", "countdown", "set_countdown", "remind"),
        (
            "Set a timer.",
            "Start a timer for some minutes.",
            "Timer.",
            "Counts down.",
            "Sets an alarm in minutes.",
            "Sets a timer for some minutes.",
            "Remind after a while.",
        ),
        (Parameter(("minutes", "duration", "time", "minutes"), "integer", _number(1, 120)),),
        (
            "Set a timer for {0} minutes.",
            "Start a {0} minute timer.",
            "Remind me in {0} minutes.",
            "Wake me in {0} minutes.",
            "Timer: {0} minutes",
            "Please set a timer for {0} minutes.",
            "Count down {0} minutes.",
        ),
        _done,
    ),
    ToolKind(
        (
            "book_table",
            "reserve_table",
            "restaurant_booking",
            "make_reservation",
            "book_restaurant",
            "reserve_restaurant_table",
            "reservation",
        ),
        (
            "Book a table in a restaurant.",
            "Reserve a table.",
            "Makes a reservation.",
            "Restaurant booking.",
            "Table reservation.",
            "Makes a restaurant reservation.",
            "Book a place to eat.",
        ),
        (
            Parameter(("restaurant", "name", "place", "restaurant"), "string", Source.proper),
            Parameter(("people", "guests", "party_size", "people"), "integer", _number(1, 12)),
            Parameter(("time", "at", "hour", "time"), "string", Source.time),
        ),
        (
            "Book a table at {0} for {1} people at {2}.",
            "Reserve a table for {1} at {0}, {2}.",
            "We are {1} people and want to eat at {0} at {2}.",
            "Table at {0} for {1}, {2}.",
            "Get us a table for {1} at {0} at {2}.",
            "Please book a table for {1} people at {0} at {2}.",
            "Please reserve {0} at {2} for {1} people.",
        ),
        _done,
    ),
    ToolKind(
        (
            "get_population",
            "population",
            "city_population",
            "count_people",
            "inhabitants",
            "get_city_population",
            "population_of",
        ),
        (
            "Get the population of a city.",
            "How many people live in a city.",
            "Population data.",
            "City statistics.",
            "Counts the people of a place.",
            "Returns the population of a city.",
            "Returns the number of inhabitants.",
        ),
        (CITY,),
        (
            "How many people live in {0}?",
            "What is the population of {0}?",
            "Population of {0}?",
            "How big is {0}?",
            "Number of people in {0}?",
            "What is the number of people in {0}?",
            "How many inhabitants has {0}?",
        ),
        _scalar,
    ),
    ToolKind(
        ("get_time", "current_time", "time_in", "clock", "local_time", "get_local_time", "what_time"),
        (
            "Get the time in a city.",
            "Current local time.",
            "Tells the time.",
            "Local time of a place.",
            "World clock.",
            "Tells the time in a city.",
            "The time somewhere.",
        ),
        (CITY,),
        (
            "What time is it in {0}?",
            "What is the time in {0}?",
            "Local time in {0}?",
            "Tell me the time in {0}.",
            "How late is it in {0}?",
            "What is the local time in {0}?",
            "Current time in {0}?",
        ),
        lambda s, a: s.time(),
    ),
    ToolKind(
        ("get_order", "order_status", "track_order", "find_order", "check_order", "get_order_status", "order_lookup"),
        (
            "Get the status of an order.",
            "Track an order by its number.",
            "Order status.",
            "Find an order.",
            "Tracks parcels.",
            "Finds an order by its number.",
            "Look up an order.",
        ),
        (Parameter(("order_id", "id", "order_number", "order"), "string", Source.code, "The number of the order."),),
        (
            "Where is my order {0}?",
            "What is the status of order {0}?",
            "Track order {0}.",
            "Has order {0} been sent?",
            "Check order {0}.",
            "What is the status of my order {0}?",
            "My order is {0}. Where is it?",
        ),
        lambda s, a: s.of(
            (
                "shipped",
                "delivered",
                "on its way",
                dump({"status": "shipped"}),
                dump({"status": "delivered"}),
                "cancelled",
            )
        ),
    ),
    ToolKind(
        (
            "add_event",
            "create_event",
            "calendar",
            "schedule_meeting",
            "new_appointment",
            "add_calendar_event",
            "plan_event",
        ),
        (
            "Add an event to the calendar.",
            "Schedule a meeting.",
            "Creates an appointment.",
            "Calendar.",
            "Plan something.",
            "Adds an event to the calendar.",
            "Save a date.",
        ),
        (
            Parameter(
                ("title", "name", "event", "title"),
                "string",
                lambda s: s.any(
                    ("dentist", "lunch", "team meeting", f"call with {s.proper()}", f"{s.proper()} workshop")
                ),
            ),
            Parameter(("date", "day", "when", "date"), "string", Source.date),
        ),
        (
            "Add {0} to my calendar on {1}.",
            "Schedule {0} for {1}.",
            "Plan {0} on {1}.",
            "Put {0} on {1} in the calendar.",
            "New event: {0}, {1}",
            "Please add {0} to the calendar on {1}.",
            "On {1} I have {0}. Save it.",
        ),
        _done,
    ),
    ToolKind(
        ("play_music", "play_song", "play", "music_player", "start_song", "play_music_track", "play_track"),
        (
            "Play a song.",
            "Plays music.",
            "Music player.",
            "Start a song.",
            "Play a track.",
            "Plays a song.",
            "Plays what you like.",
        ),
        (
            Parameter(
                ("song", "title", "track", "name"),
                "string",
                lambda s: s.any((s.proper(), f"{s.proper()} {s.proper()}", f"the {s.invented()} song")),
            ),
        ),
        (
            "Play {0}.",
            "I want to hear {0}.",
            "Put on {0}.",
            "Start the song {0}.",
            "Please play {0}.",
            "Please play the song {0}.",
            "Let me hear {0}.",
        ),
        _done,
    ),
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as offered: its definition, and a way to draw a request with the call that it asks for."""

    name: str
    definition: dict[str, Any]
    draw: Callable[[], tuple[str, dict[str, Any], str]]


def _definition(s: Source, name: str, description: str, parameters: list[tuple[str, str, str]]) -> dict[str, Any]:
    described, titled = s.chance(0.25), s.chance(0.15)
    properties: dict[str, Any] = {}
    for key, type, text in parameters:
        properties[key] = {"type": type}
        if described and text:
            properties[key] = (
                {"description": text, "type": type} if s.chance(0.5) else {"type": type, "description": text}
            )
        if titled:
            properties[key]["title"] = key.replace("_", " ").title()
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if s.chance(0.85) and properties:
        schema["required"] = list(properties)
    if s.chance(0.5):
        schema = {key: schema[key] for key in ("properties", "required", "type") if key in schema}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def known(s: Source, kind: ToolKind) -> Tool:
    """A tool of a known kind, under one of its names or with an invented word in it."""
    name = s.of(kind.names)
    if s.chance(0.25):
        name = f"{s.invented(1, 2)}_{name}" if s.chance(0.5) else f"{name}_{s.invented(1, 2)}"
    keys: list[str] = []
    for parameter in kind.parameters:
        keys.append(s.any([key for key in parameter.names if key not in keys]))
    definition = _definition(
        s,
        name,
        s.of(kind.descriptions),
        [(k, p.type, p.description) for k, p in zip(keys, kind.parameters, strict=True)],
    )

    def draw() -> tuple[str, dict[str, Any], str]:
        values = [parameter.draw(s) for parameter in kind.parameters]
        args = dict(zip(keys, values, strict=True))
        request = s.of(kind.requests).format(*values)
        if s.chance(0.12):
            request += s.any((" Use the tool.", f" Use {name}.", f" Use the {name} tool."))
        return request, args, kind.results(s, args)

    return Tool(name, definition, draw)


_OPEN_DESCRIPTIONS = (
    "Calculate a {0}.",
    "Apply a {0} to an input.",
    "Get the {0}.",
    "A tool for {0}.",
    "Returns the {0}.",
    "Compute the {0}.",
    "Does {0}.",
    "Run {0}.",
    "Helper for {0}.",
    "Use it for {0}.",
    "The {0} service.",
    "Looks up {0}.",
)


def invented(s: Source) -> Tool:
    """A tool of no known kind: the request names it and its arguments."""
    name = s.snake(s.any((1, 2, 2, 2, 3)))
    types = [
        s.any(("integer", "integer", "string", "string", "number", "boolean"))
        for _ in range(s.any((0, 1, 1, 1, 1, 2, 2)))
    ]
    plain = ["input", "x", "value", "n", "text", "key", "name", "query", "id", "item", "code", "amount"]
    keys: list[str] = []
    while len(keys) < len(types):
        key = s.of(plain) if s.chance(0.45) else s.invented(1, 2) if s.chance(0.7) else s.snake()
        if key not in keys:
            keys.append(key)
    thing = s.any((name.replace("_", " "), s.invented(), f"{s.invented()} value"))
    definition = _definition(
        s, name, s.of(_OPEN_DESCRIPTIONS).format(thing), [(k, t, f"The {k}.") for k, t in zip(keys, types, strict=True)]
    )

    def value(type: str) -> Any:
        if type == "integer":
            return s.number(0, 9) if s.chance(0.4) else s.number(-20, 9999) if s.chance(0.2) else s.number(0, 999)
        if type == "number":
            return s.number(1, 999) / s.any((10, 100))
        if type == "boolean":
            return s.chance(0.5)
        return s.any((s.proper, s.invented, s.code, s.city, s.person, s.foreign, s.product))()

    def draw() -> tuple[str, dict[str, Any], str]:
        args = {key: value(type) for key, type in zip(keys, types, strict=True)}
        return _request(s, name, args), args, _scalar(s, args)

    return Tool(name, definition, draw)


def _request(s: Source, name: str, args: dict[str, Any]) -> str:
    plain = [str(v) if not isinstance(v, bool) else str(v).lower() for v in args.values()]
    code = ", ".join(dump(v) for v in args.values()) if s.chance(0.3) else ", ".join(plain)
    named = ", ".join(f"{k}={v}" for k, v in zip(args, plain, strict=True))
    spoken = " and ".join(f"{k} {v}" for k, v in zip(args, plain, strict=True))
    ending = s.any((" Use the tool.", " Use the tool.", "", " Call the tool.", " Use a tool."))
    if not args:
        return s.of(
            (
                f"What is the value of {name}()?",
                f"Call {name}.",
                f"Run {name}.",
                f"What does {name}() return?",
                f"Use {name}.",
                f"Please call {name}().",
                f"Execute {name}().",
            )
        )
    if s.chance(0.5):
        return (
            s.of(
                (
                    f"What is the value of {name}({code})?",
                    f"Compute {name}({code}).",
                    f"What is {name}({code})?",
                    f"What does {name}({code}) return?",
                    f"Evaluate {name}({code}).",
                    f"{name}({code}) = ?",
                    f"Give me {name}({code}).",
                    f"What is the result of {name}({code})?",
                    f"Calculate {name}({code}).",
                    f"{name}({code})",
                    f"Tell me {name}({code}).",
                    f"Apply {name} to {code}.",
                )
            )
            + ending
        )
    return s.of(
        (
            f"Call {name} with {named}.",
            f"Run {name} with {spoken}.",
            f"Use {name} with {spoken}.",
            f"Call {name}: {named}",
            f"Please use {name} for {spoken}.",
            f"Execute {name} with {named}.",
            f"I need {name} with {spoken}.",
            f"Use the tool {name} with {named}.",
            f"{name}({named})",
            f"Invoke {name} with {spoken}.",
            f"Try {name} with {named}.",
            f"Start {name} using {spoken}.",
        )
    )


def answer_from(results: list[str]) -> str:
    """What the model says once the tools have answered."""
    return " ".join(_said(text) for text in results)


def _said(text: str) -> str:
    if text.startswith("{"):
        pairs = json.loads(text)
        if len(pairs) == 1:
            key, value = next(iter(pairs.items()))
            return f"The {key} is {value}."
        return ", ".join(f"{key}: {value}" for key, value in pairs.items()) + "."
    if text.startswith("Error"):
        return f"The tool failed. {text}"
    return text if text.endswith(".") else f"The result is {text}."


_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tools.",
    "Use the tools when they help.",
    "You can call functions.",
    "Answer with the help of tools.",
    "You are an agent.",
    "Call a tool if you need one.",
)


def offer(s: Source) -> list[Tool]:
    """One to three different tools."""
    kinds = s.shuffled(KINDS)
    drawn = [invented(s) if s.chance(0.35) else known(s, kinds[at]) for at in range(s.any((1, 1, 1, 2, 2, 3)))]
    return list({tool.name: tool for tool in drawn}.values())


def make(s: Source) -> Dialog:
    """The last message is a call, or an answer where no tool is needed or the result is there."""
    offered = offer(s)
    messages: list[Message] = [system(s.of(_SYSTEMS))] if s.chance(0.35) else []
    for _ in range(s.any((0, 0, 1, 2, 3))):
        messages += _exchange(s, offered)
    last = _exchange(s, offered)
    definitions = [tool.definition for tool in offered]
    draw = s.rng.random()
    if draw < 0.18 or len(last) == 2:
        question, answer = facts.small_talk(s) if s.chance(0.6) else facts.draw(s)
        if any("weather" in t.name for t in offered) or not _sums(offered):
            return Dialog("tools_none", [*messages, user(question), assistant(answer)], definitions)
    if draw < 0.6:
        return Dialog("tools_call", [*messages, *last[:2]], definitions)
    return Dialog("tools_answer", [*messages, *last], definitions)


def _sums(offered: list[Tool]) -> bool:
    return any(word in tool.name for tool in offered for word in ("add", "sum", "plus", "search", "lookup", "find"))


def _exchange(s: Source, offered: list[Tool]) -> list[Message]:
    """A request, the call or calls, their results and the answer; now and then a tool fails."""
    tool = s.any(offered)
    request, args, output = tool.draw()
    pairs, outputs = [(tool.name, args)], [output]
    if s.chance(0.12):
        other = s.any(offered)
        second, more, another = other.draw()
        request = f"{request} {s.any(('Also: ', 'And then: ', ''))}{second}"
        pairs.append((other.name, more))
        outputs.append(another)
    elif s.chance(0.06):
        outputs = [
            s.of(
                (
                    "Error: not found",
                    "Error: invalid input",
                    "Error: timeout",
                    f"Error: no data for {s.proper()}",
                    "Error: service is down",
                    "Error: missing argument",
                )
            )
        ]
    return [user(request), calls(*pairs), *(result(text) for text in outputs), assistant(answer_from(outputs))]

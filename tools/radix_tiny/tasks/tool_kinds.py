"""The known kinds of tools: their names, parameters, requests for them, and what they give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.radix_tiny.dialog import dump
from tools.radix_tiny.words import CURRENCIES, LANGUAGES, WEATHER, Source, later


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


def scalar(s: Source, args: dict[str, Any]) -> str:
    """One value, as it is or in an object."""
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
            *later(
                "What the weather is like somewhere.",
                "Weather information for a city.",
                "Gives temperature and sky.",
                "Current conditions in a town.",
                "Find out the weather.",
                "Rain or sun at a location.",
            ),
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
            *later(
                "What will the weather be in {0}?",
                "Is it cold in {0}?",
                "Do I need a coat in {0}?",
                "Weather report for {0}, please.",
                "How does the sky look in {0}?",
                "I am in {0}. Is it going to rain?",
                "Give me the weather of {0}.",
                "Is the sun shining in {0}?",
                "Can you check the weather in {0}?",
                "{0}: weather?",
            ),
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
            *later(
                "Calculates a + b.",
                "Addition.",
                "Returns a plus b.",
                "Adds the given integers.",
                "The sum of the two inputs.",
                "Add up.",
            ),
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
            *later(
                "Give me the sum of {0} and {1}.",
                "Can you add {0} to {1}?",
                "What do {0} and {1} make together?",
                "{0} plus {1}",
                "Calculate {0} + {1}.",
                "What is the total of {0} and {1}?",
                "I have {0} and get {1} more. How many is that?",
                "Sum: {0}, {1}",
            ),
        ),
        scalar,
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
            *later(
                "Calculates a * b.",
                "Multiplication.",
                "Multiplies two integers.",
                "a times b.",
                "The product of the two inputs.",
                "Times.",
            ),
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
            *later(
                "Calculate {0} * {1}.",
                "{0} * {1} = ?",
                "Can you multiply {0} and {1}?",
                "How much is {0} times {1}?",
                "Give me {0} times {1}.",
                "{0} times {1}",
                "I buy {0} boxes of {1}. How many is that?",
                "Product: {0}, {1}",
            ),
        ),
        scalar,
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
            *later(
                "Find something on the web.",
                "Query a search engine.",
                "Retrieve information about anything.",
                "Search engine.",
                "Research a topic.",
                "Gets documents for a query.",
            ),
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
            *later(
                "Research {0}.",
                "Can you look up {0}?",
                "See what the web says about {0}.",
                "Is there anything on {0}?",
                "Find out who or what {0} is.",
                "Get me information on {0}.",
                "Search: {0}",
                "Do a search for {0}.",
                "What is known about {0}?",
            ),
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
            *later(
                "Deliver a mail to someone.",
                "Messaging.",
                "Sends text to a receiver.",
                "Mail a person.",
                "Compose and send an email.",
                "Write a mail.",
            ),
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
            *later(
                "Let {0} know: {1}",
                "Can you write to {0}: {1}",
                "Mail to {0}: {1}",
                "{0} should get this message: {1}",
                "Drop {0} a line: {1}",
                "Contact {0} and say '{1}'.",
                "To {0}: {1}",
                'Forward "{1}" to {0}.',
                "I want {0} to read this: {1}",
            ),
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
            *later(
                "What a share costs.",
                "Stock market data.",
                "Returns the price of a stock.",
                "Share price by ticker.",
                "Look up a ticker.",
                "Market price.",
            ),
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
            *later(
                "What is {0} worth?",
                "Give me the stock price of {0}.",
                "Can you look up the {0} share?",
                "Price of {0} stock",
                "How much does {0} cost at the market?",
                "Quote {0}.",
                "Should I sell {0}? What is its price?",
                "{0} share price?",
            ),
        ),
        scalar,
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
            *later(
                "Money from one currency to another.",
                "Exchange rate calculator.",
                "Change money.",
                "How much an amount is elsewhere.",
                "Calculates an exchange.",
                "Currency tool.",
            ),
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
            *later(
                "I have {0} {1}. What is that in {2}?",
                "Give me {0} {1} in {2}.",
                "Can you convert {0} {1} into {2}?",
                "{0} {1} to {2}",
                "What do I get in {2} for {0} {1}?",
                "How many {2} are {0} {1}?",
                "Turn {0} {1} into {2}.",
                "Value of {0} {1} in {2}?",
            ),
        ),
        scalar,
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
            *later(
                "Says it in another language.",
                "Translation service.",
                "Translate a phrase.",
                "Put words into a language.",
                "Language tool.",
                "Get a translation.",
            ),
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
            *later(
                "Give me '{0}' in {1}.",
                "Can you translate '{0}' to {1}?",
                "What does '{0}' mean in {1}?",
                "Put '{0}' into {1}.",
                "Into {1}: '{0}'",
                "{1} for '{0}'?",
                "Write '{0}' in {1}.",
                "'{0}' - how is that in {1}?",
            ),
        ),
        scalar,
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
            *later(
                "Store a new customer.",
                "Add a client.",
                "Enter a customer.",
                "A new entry in the customer list.",
                "Makes a customer record.",
                "Sign up a customer.",
            ),
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
            *later(
                "We have a new client: {0}, {1}.",
                "Save {0} as a customer: {1}",
                "Can you add the customer '{0}'? It is {1}.",
                "Customer {0} is new here, {1}.",
                "Enter '{0}' as a customer, {1}.",
                "Put {0} ({1}) into the customer list.",
                'Store the client "{0}": {1}',
                "Sign up {0}, {1}.",
            ),
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
            *later(
                "Alarm clock.",
                "Wait for some minutes and ring.",
                "Kitchen timer.",
                "Starts a countdown.",
                "Sets an alarm.",
                "Rings after the given minutes.",
            ),
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
            *later(
                "Give me {0} minutes.",
                "Ring in {0} minutes.",
                "Can you set a timer of {0} minutes?",
                "Alarm in {0} minutes, please.",
                "I need a break of {0} minutes. Tell me when it is over.",
                "{0} minutes from now, wake me.",
                "{0} minute timer",
                "Let me know when {0} minutes have passed.",
            ),
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
            *later(
                "Reserve seats at a restaurant.",
                "Dinner reservation.",
                "Get a table.",
                "Booking for restaurants.",
                "Reserves a table for some people.",
                "Books dinner.",
            ),
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
            *later(
                "Can we eat at {0} at {2}? We are {1}.",
                "I want a table for {1} at {0}. We come at {2}.",
                "Make a reservation at {0}: {1} people, {2}.",
                "{1} of us go to {0} at {2}. Book it.",
                "At {2} we want to be at {0}, {1} people.",
                "Dinner for {1} at {0}, at {2}.",
                "Keep a table for {1} at {0} at {2}.",
                "Call {0} and book for {1}, {2}.",
            ),
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
            *later(
                "Number of people in a town.",
                "Size of a city.",
                "How big a city is.",
                "Population lookup.",
                "Gives the inhabitants of a city.",
                "People per city.",
            ),
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
            *later(
                "Is {0} a big city? How many people are there?",
                "What is the size of the population of {0}?",
                "Tell me how many people live in {0}.",
                "{0} has how many people?",
                "Population count for {0}",
                "How many live in {0}?",
                "Give me the population of {0}.",
                "How large is the population in {0}?",
            ),
        ),
        scalar,
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
            *later(
                "What time it is in a place.",
                "Clock for cities.",
                "Returns the local time.",
                "Time at a location.",
                "Current time of a city.",
                "Time service.",
            ),
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
            *later(
                "What's the time in {0}?",
                "Is it late in {0}?",
                "Give me the local time of {0}.",
                "How late is it now in {0}?",
                "I call somebody in {0}. What time is it there?",
                "What does the clock say in {0}?",
                "{0}: what time?",
                "Time in {0}, please.",
            ),
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
            *later(
                "Where an order is.",
                "Shipping status.",
                "State of a delivery.",
                "Check on an order.",
                "Parcel tracking.",
                "Returns the status of an order.",
            ),
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
            *later(
                "Can you check on order {0}?",
                "When does order {0} come?",
                "I wait for order {0}. Any news?",
                "Find order {0}.",
                "Please track {0}.",
                "Status of {0}?",
                "I ordered something, the number is {0}. Where is it?",
                "Is order {0} on its way?",
            ),
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
            *later(
                "Puts an entry into the calendar.",
                "Make an appointment.",
                "Plan a meeting.",
                "Calendar entry.",
                "Create an entry for a day.",
                "Schedule something.",
            ),
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
            *later(
                "Can you plan {0} for {1}?",
                "I have {0} on {1}, note it down.",
                "Create an event: {0} on {1}.",
                "Remind me of {0} on {1}.",
                "Make an appointment for {0} on {1}.",
                "Calendar: {0}, {1}",
                "{1}: {0}. Please enter it.",
                "Block {1} for {0}.",
            ),
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
            *later("Music.", "Put on a song.", "Starts music.", "Play a title.", "Song player.", "Turn on music."),
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
            *later(
                "Can you play {0}?",
                "Turn on {0}.",
                "I feel like listening to {0}.",
                "Next song: {0}",
                "Play me {0}.",
                "Could I hear {0}?",
                "Put {0} on, please.",
                "My favorite song is {0}. Play it.",
            ),
        ),
        _done,
    ),
)

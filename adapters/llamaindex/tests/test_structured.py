"""Objects: four ways to ask, events, growing partial objects, and many callers of one instruction."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.program.utils import FlexibleModel, create_list_model
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.radix import Radix
from pydantic import BaseModel, Field, RootModel, ValidationError, field_validator

from radixbackend.errors import ConstraintError, OutputValidationError

PROMPT = PromptTemplate("A room for {guest}, please.")


class Guest(BaseModel):
    name: str = Field(max_length=8)
    age: int | None = Field(default=None, ge=0, le=150)


class Room(BaseModel):
    """A room of the hotel."""

    number: int = Field(ge=1, le=40)
    view: Literal["sea", "garden"]
    guests: list[Guest] = Field(min_length=1, max_length=2)
    note: str = Field(alias="remark", max_length=12)


class Names(RootModel[list[Annotated[str, Field(max_length=3)]]]):
    pass


async def every(stream: Any) -> list[Any]:
    return [item async for item in await stream]


def test_four_ways_to_ask(llm: Radix) -> None:
    whole = llm.structured_predict(Room, PROMPT, guest="Eva")
    assert isinstance(whole, Room)
    assert asyncio.run(llm.astructured_predict(Room, PROMPT, guest="Eva")) == whole
    streams = (
        list(llm.stream_structured_predict(Room, PROMPT, guest="Eva")),
        asyncio.run(every(llm.astream_structured_predict(Room, PROMPT, guest="Eva"))),
    )
    for *partials, last in streams:
        assert last == whole
        assert all(isinstance(partial, FlexibleModel) for partial in partials)
        assert partials[-1].model_dump() == whole.model_dump() | {
            "guests": [guest.model_dump(exclude_unset=True) for guest in whole.guests]
        }


def test_partial_objects_grow_field_by_field(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    text = '{"number": 12, "view": "sea", "guests": [{"name": "Eva", "age": 4}], "remark": "quiet"}'
    llm, _ = scripted(text)
    *partials, room = llm.stream_structured_predict(Room, PROMPT, guest="Eva")
    dumps = [{k: v for k, v in partial.model_dump().items() if v is not None} for partial in partials]
    assert dumps[0] == {"number": 12}  # not 1: a number that is not over may become another
    assert {"number": 12, "view": "sea"} in dumps
    assert {"number": 12, "view": "sea", "guests": [{"name": "Eva"}]} in dumps
    assert dumps[-1]["note"] == "quiet"  # by the name of the field, not by its alias
    assert room.note == "quiet"
    for before, after in itertools.pairwise(dumps):
        assert before.keys() <= after.keys()
        assert before != after


def test_a_field_that_comes_in_one_piece_has_a_partial_of_its_own(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    text = '{"number": 12, "view": "sea", "guests": [{"name": "Eva"}], "remark": ""}'
    llm, _ = scripted(text, chunks=lambda step: 1000)
    *partials, _ = llm.stream_structured_predict(Room, PROMPT, guest="Eva")
    fields = [[k for k, v in partial.model_dump().items() if v is not None] for partial in partials]
    assert [names for k, names in enumerate(fields) if k == 0 or names != fields[k - 1]] == [
        ["number"],
        ["number", "view"],
        ["number", "view", "guests"],
        ["number", "view", "guests", "note"],
    ]


def test_roots(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    llm, _ = scripted('["Eva", "Bo"]')
    *partials, names = llm.stream_structured_predict(Names, PROMPT, guest="Eva")
    assert names == Names(["Eva", "Bo"])
    roots = [partial.root for partial in partials]  # type: ignore[union-attr]
    assert ["Ev"] in roots or ["Eva"] in roots
    assert roots[-1] == ["Eva", "Bo"]


def test_lists(llm: Radix) -> None:
    many = create_list_model(Guest)
    for seed in range(3):
        guests = llm.structured_predict(many, PROMPT, guest="Eva", llm_kwargs={"max_tokens": 80, "seed": seed})
        assert all(isinstance(guest, Guest) for guest in guests.items)  # type: ignore[attr-defined]
    program = FunctionCallingProgram.from_defaults(Guest, prompt=PROMPT, llm=llm, allow_parallel_tool_calls=True)
    called = [program(guest="Eva", llm_kwargs={"seed": seed, "max_tokens": 150}) for seed in range(3)]
    assert all(guests and all(isinstance(guest, Guest) for guest in guests) for guests in called)  # type: ignore[union-attr]
    assert max(len(guests) for guests in called) > 1  # type: ignore[arg-type]
    single = FunctionCallingProgram.from_defaults(Guest, prompt=PROMPT, llm=llm)
    assert isinstance(single(guest="Eva", llm_kwargs={"max_tokens": 150}), Guest)


def test_what_the_caller_gives_is_only_read(llm: Radix) -> None:
    for mode in (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION):
        with llm.model_copy(update={"pydantic_program_mode": mode}) as own:
            given = {"max_tokens": 150, "tool_choice": "auto", "tool_required": False, "seed": 2}
            kept = dict(given)
            room = own.structured_predict(Guest, PROMPT, llm_kwargs=given, guest="Eva")
            assert isinstance(room, Guest)
            list(own.stream_structured_predict(Guest, PROMPT, llm_kwargs=given, guest="Eva"))
            assert given == kept
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(content="A room, please.")]
    before = [message.model_dump() for message in messages]
    llm.structured_predict(Room, ChatPromptTemplate(messages), llm_kwargs=None)
    assert [message.model_dump() for message in messages] == before


def test_other_modes_are_llamaindexs_own(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    prompt = PromptTemplate("A room for {guest}, please.")  # LlamaIndex sets its output parser
    options = {"pydantic_program_mode": PydanticProgramMode.LLM}
    llm, backend = scripted('So: {"name": "Eva", "age": 4}', llm_options=options)
    assert llm.structured_predict(Guest, prompt, guest="Eva") == Guest(name="Eva", age=4)
    assert backend.asked[-1].constraint is None
    call = '<tool_call>\n{"name": "Guest", "arguments": {"name": "Eva"}}\n</tool_call>'
    llm, backend = scripted(call, llm_options={"pydantic_program_mode": PydanticProgramMode.FUNCTION})
    assert asyncio.run(llm.astructured_predict(Guest, PROMPT, guest="Eva")) == Guest(name="Eva")
    assert backend.asked[-1].constraint.kind == "structural_tag"


def test_events_are_told(llm: Radix) -> None:
    class Handler(BaseEventHandler):
        seen: list[str] = Field(default_factory=list)

        def handle(self, event: Any, **kwargs: Any) -> None:
            if event.class_name().startswith("LLMStructured"):
                self.seen.append(event.class_name())

    handler, dispatcher = Handler(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        llm.structured_predict(Guest, PROMPT, guest="Eva")
        asyncio.run(llm.astructured_predict(Guest, PROMPT, guest="Eva"))
        assert handler.seen == ["LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent"] * 2
        handler.seen.clear()
        seen = list(llm.stream_structured_predict(Guest, PROMPT, guest="Eva"))
    finally:
        dispatcher.event_handlers.remove(handler)
    assert handler.seen[0] == "LLMStructuredPredictStartEvent"
    assert handler.seen[1:-1] == ["LLMStructuredPredictInProgressEvent"] * len(seen)
    assert handler.seen[-1] == "LLMStructuredPredictEndEvent"


def test_the_model_is_told_the_schema_where_others_share_it(scripted: Callable[..., tuple[Radix, Any]]) -> None:
    answer = '{"name": "Eva"}'
    llm, backend = scripted(answer)

    def prompt() -> str:
        return str(backend.inner.decode(backend.asked[-1].prompt))

    llm.structured_predict(Guest, PROMPT, guest="Eva")
    alone = prompt()
    assert alone.index('"maxLength": 8') < alone.index("A room for Eva")
    assert "<|im_start|>system" not in alone  # a model may know no system messages
    system = ChatPromptTemplate([ChatMessage(role="system", content="Be brief."), ChatMessage(content="{guest}")])
    llm.structured_predict(Guest, system, guest="Eva")
    assert prompt().index("Be brief.") < prompt().index('"maxLength": 8') < prompt().index("Eva")
    silent, backend = scripted(answer, llm_options={"schema_in_prompt": False})
    silent.structured_predict(Guest, PROMPT, guest="Eva")
    assert "maxLength" not in prompt()


def test_a_class_that_no_grammar_holds_is_refused_first(llm: Radix) -> None:
    class Distinct(BaseModel):
        numbers: set[Annotated[int, Field(ge=0, le=3)]] = Field(min_length=2, max_length=3)

    class Callback(BaseModel):
        call: Callable[[int], int]

    before = llm.stats()
    for refused in (Distinct, Callback):
        with pytest.raises(ConstraintError):
            llm.structured_predict(refused, PROMPT, guest="Eva")
        with pytest.raises(ConstraintError):
            asyncio.run(llm.astructured_predict(refused, PROMPT, guest="Eva"))
    assert llm.stats().prompt_tokens == before.prompt_tokens
    with llm.model_copy(update={"strict": False}) as lenient:
        outcomes = set()
        for seed in range(12):
            try:
                made = lenient.structured_predict(Distinct, PROMPT, guest="Eva", llm_kwargs={"seed": seed})
                outcomes.add(len(made.numbers) >= 2)
            except OutputValidationError as fault:
                outcomes.add(fault.keyword)
    assert outcomes == {True, "uniqueItems"}


def test_what_only_the_class_knows_is_said_by_it(llm: Radix) -> None:
    class Picky(BaseModel):
        number: int = Field(ge=1, le=9)

        @field_validator("number")
        @classmethod
        def never(cls, value: int) -> int:
            raise ValueError("not this one")

    with pytest.raises(ValidationError, match="not this one"):
        llm.structured_predict(Picky, PROMPT, guest="Eva")


def test_an_object_that_was_cut_short_is_none(scripted: Callable[..., tuple[Radix, Any]], llm: Radix) -> None:
    cut, _ = scripted('{"name": "Ev', ends=False)
    for ask in (
        lambda: cut.structured_predict(Guest, PROMPT, guest="Eva"),
        lambda: asyncio.run(cut.astructured_predict(Guest, PROMPT, guest="Eva")),
        lambda: list(cut.stream_structured_predict(Guest, PROMPT, guest="Eva")),
        lambda: asyncio.run(every(cut.astream_structured_predict(Guest, PROMPT, guest="Eva"))),
    ):
        with pytest.raises(OutputValidationError, match="raise max_tokens") as fault:
            ask()
        assert fault.value.text == '{"name": "Ev'
    for budget in range(12, 40, 4):  # enough for the shortest object: the grammar closes in time
        assert llm.structured_predict(Guest, PROMPT, guest="Eva", llm_kwargs={"max_tokens": budget, "seed": budget})


def test_structured_llm(llm: Radix) -> None:
    rooms = llm.as_structured_llm(Room)
    answer = rooms.chat([ChatMessage(content='Braces {are} {"fine": 1}')])
    assert isinstance(answer.raw, Room)
    assert isinstance(list(rooms.stream_chat([ChatMessage(content="A room.")]))[-1].raw, Room)
    assert isinstance(asyncio.run(rooms.achat([ChatMessage(content="A room.")])).raw, Room)


def test_many_at_once_compute_their_instruction_once(llm: Radix) -> None:
    """And the event loop stays free: measured as what this thread computes between two turns of a watching task."""
    instruction = "You are the desk clerk of a small hotel by the sea. " * 20
    prompt = ChatPromptTemplate([ChatMessage(role="system", content=instruction), ChatMessage(content="For {guest}.")])
    turns: list[float] = []

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            turns.append(time.thread_time() - before)

    async def ask() -> list[Room]:
        watching = asyncio.create_task(watch())
        questions = (llm.astructured_predict(Room, prompt, guest=f"guest {n}") for n in range(32))
        rooms = await asyncio.gather(*questions)
        watching.cancel()
        return list(rooms)

    asyncio.run(ask())  # imports and compiles
    llm.chat_layer.flush_cache()
    turns.clear()
    before = llm.stats()
    gc.disable()  # its search through what all tests have made is not this one's work
    try:
        rooms = asyncio.run(ask())
    finally:
        gc.enable()
    after = llm.stats()
    assert all(isinstance(room, Room) for room in rooms)
    shared = llm.count_tokens([ChatMessage(role="system", content=instruction)])
    prompts, cached = after.prompt_tokens - before.prompt_tokens, after.cached_tokens - before.cached_tokens
    assert cached > 31 * shared
    assert prompts - cached < shared + 32 * 300 + 32 * 40
    assert max(turns) < 0.05

"""Random pydantic classes: nested, lists, enums, optionals, unions, maps, constrained numbers and strings."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional, Union

from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model

NAMES = ("alpha", "beta", "gamma", "delta", "épsilon", "f_1", "when", "kind", "x")
PATTERNS = ("^[a-z]+$", "^[A-Z]{2}-[0-9]{3}$", "^(yes|no|maybe)$", "[0-9]", r"^\w+@\w+\.org$")
WORDS = st.sampled_from(("red", "green", "blue", "sea-blue", "ünï", "a b", "", "null", '"', "\\"))

_number = itertools.count()


@st.composite
def integers(draw: Callable[..., Any]) -> Any:
    kind = draw(st.sampled_from(("free", "low", "high", "between", "open", "multiple")))
    low = draw(st.integers(-1000, 1000))
    high = low + draw(st.integers(0, 2000))
    step = draw(st.sampled_from((2, 3, 5, 10)))
    bounds = {
        "free": Field(),
        "low": Field(ge=low),
        "high": Field(le=high),
        "between": Field(ge=low, le=high),
        "open": Field(gt=low, lt=high + 2),
        "multiple": Field(multiple_of=step, ge=low, le=high + step),
    }[kind]
    return Annotated[int, bounds]


@st.composite
def floats(draw: Callable[..., Any]) -> Any:
    low = draw(st.integers(-50, 50)) / draw(st.sampled_from((1, 2, 10)))
    high = low + draw(st.integers(1, 100)) / 4
    bounds = draw(
        st.sampled_from((Field(), Field(ge=low), Field(le=high), Field(ge=low, le=high), Field(gt=low, lt=high)))
    )
    return Annotated[float, bounds, Field(allow_inf_nan=draw(st.booleans()))]


@st.composite
def strings(draw: Callable[..., Any]) -> Any:
    low = draw(st.integers(0, 5))
    high = low + draw(st.integers(0, 12))
    bounds = draw(
        st.sampled_from(
            (
                Field(max_length=20),
                Field(max_length=high),
                Field(min_length=low, max_length=high),
                *(Field(pattern=pattern, max_length=24) for pattern in PATTERNS),
            )
        )
    )
    return Annotated[str, bounds]


@st.composite
def enums(draw: Callable[..., Any]) -> Any:
    words = draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
    if draw(st.booleans()):
        return Literal[tuple(words)]
    kind = draw(st.sampled_from((str, int)))
    values = words if kind is str else draw(st.lists(st.integers(-5, 5), min_size=1, max_size=4, unique=True))
    members = {f"M{index}": value for index, value in enumerate(values)}
    return enum.Enum(f"E{next(_number)}", members, type=kind)


def scalars() -> st.SearchStrategy[Any]:
    return st.one_of(integers(), floats(), strings(), enums(), st.just(bool), st.sampled_from((int, float)))


@st.composite
def lists(draw: Callable[..., Any], inner: st.SearchStrategy[Any]) -> Any:
    low = draw(st.integers(0, 2))
    return Annotated[list[draw(inner)], Field(min_length=low, max_length=low + draw(st.integers(0, 2)))]  # type: ignore[misc]


@st.composite
def maps(draw: Callable[..., Any], inner: st.SearchStrategy[Any]) -> Any:
    names: list[Any] = [str, Annotated[str, Field(max_length=6)], Annotated[str, Field(pattern="^[a-z]{1,4}$")], int]
    keys = draw(st.one_of(st.sampled_from(names), enums()))
    bounds = draw(st.sampled_from((Field(max_length=2), Field(max_length=3), Field(min_length=1, max_length=2))))
    return Annotated[dict[keys, draw(inner)], bounds]  # type: ignore[misc]


@st.composite
def unions(draw: Callable[..., Any], inner: st.SearchStrategy[Any]) -> Any:
    kinds = draw(st.lists(inner, min_size=2, max_size=3))
    return Union[tuple(kinds)]  # noqa: UP007


def types(depth: int) -> st.SearchStrategy[Any]:
    if depth == 0:
        return scalars()
    inner = types(depth - 1)
    tuples = st.lists(inner, min_size=1, max_size=3).map(lambda kinds: tuple[tuple(kinds)])  # type: ignore[misc]
    deeper = st.one_of(lists(inner), maps(inner), unions(inner), tuples, classes(depth - 1), inner.map(_optional))
    return st.one_of(scalars(), deeper)


def _optional(kind: Any) -> Any:
    return Optional[kind]  # noqa: UP045


@st.composite
def classes(draw: Callable[..., Any], depth: int = 2) -> type[BaseModel]:
    """A class; up to ``depth`` levels of others inside."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    fields: dict[str, Any] = {}
    for name in names:
        kind = draw(types(depth))
        default = draw(st.sampled_from(("required", "none", "alias")))
        if default == "none":
            fields[name] = (_optional(kind), None)
        elif default == "alias":
            fields[name] = (kind, Field(alias=f"{name}-said", description="by another name"))
        else:
            fields[name] = (kind, ...)
    return create_model(f"C{next(_number)}", **fields)

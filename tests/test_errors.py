from __future__ import annotations

import inspect
import pickle
import re

import pytest

from radixbackend import errors
from radixbackend.errors import ConstraintError, ContextLengthError, InvalidRequestError, OutputValidationError

TREE = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, BaseException)]


def drawn() -> dict[str, tuple[str, list[str]]]:
    """Name → (parent, further bases) as the module's docstring draws them."""
    found: dict[str, tuple[str, list[str]]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ((?:│   |    )*)(?:[├└]── )?(\w+Error)(?: \((\w+)\))?(?=\s|$)", line):
            depth = len(match[1]) // 4 + ("── " in line)
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else "Exception", [match[3]] if match[3] else [])
    return found


def test_drawing_is_the_tree() -> None:
    real = {e.__name__: (e.__bases__[0].__name__, [b.__name__ for b in e.__bases__[1:]]) for e in TREE}
    assert drawn() == real


@pytest.mark.parametrize("error", TREE, ids=lambda e: e.__name__)
def test_described(error: type[Exception]) -> None:
    assert error.__doc__


def test_details() -> None:
    assert InvalidRequestError("m", param="top_p").param == "top_p"
    assert ConstraintError("m", pointer="/not").pointer == "/not"
    assert ConstraintError("m").param == "constraint"
    error = ContextLengthError("too long", prompt_tokens=9, max_tokens=8)
    assert (error.prompt_tokens, error.max_tokens, error.param, str(error)) == (9, 8, "prompt", "too long")
    failed = OutputValidationError("m", keyword="type", path="/a", text="[]")
    assert (failed.keyword, failed.path, failed.text) == ("type", "/a", "[]")


@pytest.mark.parametrize("kind", TREE, ids=lambda e: e.__name__)
def test_survive_pickling(kind: type[Exception]) -> None:
    details = {
        ContextLengthError: {"prompt_tokens": 9, "max_tokens": 8},
        OutputValidationError: {"keyword": "type", "path": "/a", "text": "[]"},
    }
    error = kind("m", **details.get(kind, {}))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, "m", vars(error))

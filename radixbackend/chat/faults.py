"""From what goes wrong between us and a server to the errors of this package; the way back from `openai_api.faults`.

Rules. Every error of the SDK and of its HTTP library is mapped here, once. A ``code`` that our server sends gives the
very error that the model would have raised in this process, details included; other servers are understood by
status, and by words where they say a thing in words alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from types import ModuleType
from typing import Any

from radixbackend.chat.sdk import openai
from radixbackend.chat.wire import PARAMS
from radixbackend.errors import (
    AuthenticationError,
    CacheExhaustedError,
    ConstraintError,
    ContextLengthError,
    EngineClosedError,
    GrammarCompileError,
    InvalidRequestError,
    ModelNotFoundError,
    OutputValidationError,
    QueueFullError,
    RadixError,
    RemoteError,
    RequestAbortedError,
    RequestTimeoutError,
    ServerUnreachableError,
    StepError,
    UnsupportedByServerError,
    UnsupportedModelError,
)

Said = Mapping[str, Any]
"""The ``error`` object of an answer."""

MOST_TEXT = 2000
"""Characters of an error: what is in front of a server may answer with pages of HTML."""

Maker = Callable[[str, Said], RadixError]

_LONG = re.compile(r"context (?:length|size|window)|maximum (?:model|sequence|prompt) length", re.IGNORECASE)
_LIMIT = re.compile(r"(?:context|(?:model|sequence|prompt) length)\D{0,40}?(\d[\d,]*)", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d,]*")


@contextlib.contextmanager
def mapped(place: str, library: ModuleType, seconds: float | None = None) -> Iterator[None]:
    """Raise what goes wrong inside as an error of ours.

    Args:
        place: the URL, which messages name.
        library: the HTTP library in use; the SDK passes its errors on while a stream is being read.
        seconds: the timeout, if it is known.
    """
    errors: Any = library
    try:
        yield
    except openai.APITimeoutError as fault:
        raise _waited(fault.__cause__ or fault, place, errors, seconds) from fault
    except openai.APIConnectionError as fault:
        raise ServerUnreachableError(f"no answer from {place}: {fault.__cause__ or fault}") from fault
    except openai.APIError as fault:
        raise of_answer(fault.body, getattr(fault, "status_code", None), place, str(fault)) from fault
    except openai.OpenAIError as fault:
        raise RemoteError(f"{place}: {fault}") from fault
    except errors.TimeoutException as fault:
        raise _waited(fault, place, errors, seconds) from fault
    except errors.HTTPError as fault:
        raise ServerUnreachableError(f"the connection to {place} broke: {fault or type(fault).__name__}") from fault
    except (JSONDecodeError, UnicodeDecodeError) as fault:
        raise RemoteError(f"{place} answered what is not JSON: {fault}") from fault
    except RadixError:
        raise
    except (TypeError, ValueError, RecursionError) as fault:
        raise InvalidRequestError(f"the request cannot be written as JSON: {fault}") from fault


def of_answer(said: Any, status: int | None, place: str, text: str) -> RadixError:
    """The error that a server speaks of.

    Args:
        said: the ``error`` object, or whatever came instead.
        status: None in the middle of a stream.
        text: what to say if ``said`` has no message.
    """
    fields: Said = said if isinstance(said, Mapping) else {}
    message = fields.get("message") or fields.get("detail") or text
    message = (message if isinstance(message, str) else str(message))[:MOST_TEXT]
    for key in (fields.get("code"), fields.get("type")):
        if isinstance(key, str) and key in _CODES:
            return _CODES[key](message, fields)
    if _LONG.search(message) and status in (None, 400, 413, 422):
        return _too_long(message, fields)
    if status is None:  # some say the status as the code
        code = fields.get("code")
        status = code if isinstance(code, int) else 400 if fields.get("type") == "invalid_request_error" else None
    if status in _STATUSES:
        return _STATUSES[status](f"{place}: {message}" if status in (401, 403, 404, 405, 501) else message, fields)
    return RemoteError(f"{place} failed: {message}")


def _waited(fault: BaseException, place: str, errors: Any, seconds: float | None) -> RadixError:
    if isinstance(fault, errors.ConnectTimeout):
        return ServerUnreachableError(f"no answer from {place}: connecting took too long")
    within = "in time" if seconds is None else f"within {seconds:g} s"
    return RequestTimeoutError(f"{place} did not answer {within}; the request was aborted")


def _invalid(message: str, said: Said) -> InvalidRequestError:
    param = said.get("param")
    return InvalidRequestError(message, param=PARAMS.get(param, param) if isinstance(param, str) else None)


def _missing(message: str, said: Said) -> RadixError:
    """404 is for a model that is not there, or for a path."""
    if said.get("param") == "model" or re.search(r"\bmodel\b", str(said.get("message", "")), re.IGNORECASE):
        return ModelNotFoundError(message)
    return UnsupportedByServerError(message)


def _too_long(message: str, said: Said) -> ContextLengthError:
    """With the numbers that the server gives as such, or else in words; 0 where it gives none."""
    message = message.removesuffix(" (context_length_exceeded)")
    limit, prompt = (_number(said, *names) for names in (("max_tokens", "n_ctx"), ("prompt_tokens", "n_prompt_tokens")))
    if not limit and (found := _LIMIT.search(message)):
        limit = _int(found[1])
    if not prompt:
        prompt = max((n for n in map(_int, _NUMBER.findall(message)) if n > limit), default=0)
    return ContextLengthError(message, prompt_tokens=prompt, max_tokens=limit)


def _number(said: Said, *names: str) -> int:
    return next((value for name in names if isinstance(value := said.get(name), int)), 0)


def _int(digits: str) -> int:
    return int(digits.replace(",", ""))


def _string(said: Said, name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _plain(kind: type[RadixError]) -> Maker:
    return lambda message, said: kind(message)


def _constraint(message: str, said: Said) -> RadixError:
    return ConstraintError(message, pointer=_string(said, "pointer"))


def _broken(message: str, said: Said) -> RadixError:
    return OutputValidationError(
        message, keyword=_string(said, "keyword"), path=_string(said, "path"), text=_string(said, "text")
    )


_CODES: dict[str, Maker] = {
    "context_length_exceeded": _too_long,
    "exceed_context_size_error": _too_long,  # llama.cpp's type
    "invalid_constraint": _constraint,
    "invalid_value": _invalid,
    "grammar_compile_failed": _plain(GrammarCompileError),
    "unsupported_by_model": _plain(UnsupportedModelError),
    "model_not_found": _plain(ModelNotFoundError),
    "rate_limit_exceeded": _plain(QueueFullError),
    "request_timeout": _plain(RequestTimeoutError),
    "request_aborted": _plain(RequestAbortedError),
    "engine_closed": _plain(EngineClosedError),
    "cache_exhausted": _plain(CacheExhaustedError),
    "output_validation_failed": _broken,
    "model_failed": _plain(StepError),
}

_STATUSES: dict[int | None, Maker] = {
    **dict.fromkeys((400, 413, 415, 422), _invalid),
    **dict.fromkeys((401, 403), _plain(AuthenticationError)),
    404: _missing,
    **dict.fromkeys((405, 501), _plain(UnsupportedByServerError)),
    **dict.fromkeys((408, 504), _plain(RequestTimeoutError)),
    429: _plain(QueueFullError),
}

"""From exceptions to HTTP: one table, and the shape in which OpenAI says what is wrong.

Rules. Every error that a client sees comes from here: a status, and ``{"error": {message, type, param, code}}``.
What a client did wrong it is told in full; of what went wrong inside it is told no more than the kind, unless it
runs in this process (``reveal``). Asking again helps against a full queue and against nothing else, which
``x-should-retry`` says to OpenAI's SDK.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from radixbackend.errors import (
    CacheExhaustedError,
    ConstraintError,
    ContextLengthError,
    EngineClosedError,
    GrammarCompileError,
    InvalidRequestError,
    OutputValidationError,
    QueueFullError,
    RadixError,
    RequestAbortedError,
    RequestTimeoutError,
    StepError,
    UnsupportedModelError,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 1
"""When to ask again while the queue is full."""


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """OpenAI's shape, and beside it what the exception knows."""
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**self.details, **said}}

    def content(self) -> bytes:
        return json.dumps(self.body(), ensure_ascii=False).encode()


_TYPES = {401: "authentication_error", 429: "rate_limit_error", 408: "timeout_error"}


@dataclass(frozen=True)
class _Rule:
    """What one kind of exception becomes. ``message`` is what a client hears instead of the exception's own text."""

    status: int
    code: str | None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


_NO_RETRY = {"x-should-retry": "false"}
_INTERNAL = _Rule(500, "internal_error", "The server failed on this request.", _NO_RETRY)

# An exception falls under the nearest of its base classes.
_RULES: dict[type[BaseException], _Rule] = {
    ContextLengthError: _Rule(400, "context_length_exceeded"),
    ConstraintError: _Rule(400, "invalid_constraint"),
    InvalidRequestError: _Rule(400, "invalid_value"),
    GrammarCompileError: _Rule(400, "grammar_compile_failed"),
    UnsupportedModelError: _Rule(400, "unsupported_by_model"),
    QueueFullError: _Rule(
        429, "rate_limit_exceeded", "Too many requests are waiting.", {"retry-after": str(RETRY_SECONDS)}
    ),
    RequestTimeoutError: _Rule(408, "request_timeout", None, _NO_RETRY),
    RequestAbortedError: _Rule(503, "request_aborted", "The server is shutting down.", _NO_RETRY),
    EngineClosedError: _Rule(503, "engine_closed", "The server is shutting down.", _NO_RETRY),
    CacheExhaustedError: _Rule(503, "cache_exhausted", "No memory is left for this request.", _NO_RETRY),
    OutputValidationError: _Rule(500, "output_validation_failed", None, _NO_RETRY),
    StepError: _Rule(500, "model_failed", "The model failed on this request.", _NO_RETRY),
    RadixError: _INTERNAL,
    BaseException: _INTERNAL,
}

_DETAILS: dict[type[BaseException], tuple[str, ...]] = {
    ContextLengthError: ("prompt_tokens", "max_tokens"),
    ConstraintError: ("pointer",),
    OutputValidationError: ("keyword", "path", "text"),
}
"""What clients are told of an exception beside its text, for programs to read."""


def api_error(fault: BaseException, params: Mapping[str, str] | None = None, *, reveal: bool = False) -> ApiError:
    """What the client is told about ``fault``; faults of ours are logged.

    Args:
        params: what the endpoint calls the fields that `InvalidRequestError.param` names.
        reveal: tell all of it; for a client in this process.
    """
    if isinstance(fault, ApiError):
        return fault
    rule = next(_RULES[kind] for kind in type(fault).__mro__ if kind in _RULES)
    if rule.status >= 500 and rule.status != 503:
        log.error("a request failed: %s: %s", type(fault).__name__, fault, exc_info=fault)
    message = str(fault) if rule.message is None or reveal else rule.message
    if isinstance(fault, ContextLengthError):
        message += f" ({rule.code})"  # where frameworks look for it
    param = fault.param if isinstance(fault, InvalidRequestError) else None
    if param is not None:
        param = (params or {}).get(param, param)
    return ApiError(rule.status, message, code=rule.code, param=param, headers=rule.headers, details=_details(fault))


def _details(fault: BaseException) -> dict[str, Any]:
    names = next((names for kind, names in _DETAILS.items() if isinstance(fault, kind)), ())
    return {name: getattr(fault, name) for name in names}

"""The engine's errors as LangChain's: each is both, so that code which catches either goes on to work.

    radixbackend.errors                        langchain_core.exceptions
    ContextLengthError                         ContextOverflowError
    InvalidRequestError, ConstraintError,
    GrammarCompileError                        ModelInvalidRequestError
    ModelNotFoundError                         ModelNotFoundError
    QueueFullError                             ModelRateLimitError (retryable)
    RequestTimeoutError                        ModelTimeoutError (retryable)
    StepError, CacheExhaustedError,
    RequestAbortedError, OutputValidationError,
    EngineClosedError, IntegrityError          ModelAPIError (the first two retryable)
    RemoteError, UnsupportedByServerError      ModelAPIError (the first retryable)
    AuthenticationError                        ModelAuthenticationError
    ServerUnreachableError                     ModelConnectionError (retryable)

Rules. Mapped here and nowhere else. What is not in the table, such as `ConfigError`, passes as it is.
"""

from __future__ import annotations

from types import TracebackType

from langchain_core import exceptions as langchain

from radixbackend import errors as radix


class RadixContextOverflowError(radix.ContextLengthError, langchain.ContextOverflowError):
    """The prompt does not fit into the model's context."""


class RadixConstraintError(radix.ConstraintError, langchain.ModelInvalidRequestError):
    """A schema, regex, choice list or grammar was refused."""


class RadixInvalidRequestError(radix.InvalidRequestError, langchain.ModelInvalidRequestError):
    """Refused at the front door; nothing was computed."""


class RadixGrammarCompileError(radix.GrammarCompileError, langchain.ModelInvalidRequestError):
    """The grammar took too long, or its compiler failed."""


class RadixModelNotFoundError(radix.ModelNotFoundError, langchain.ModelNotFoundError):
    """No such folder, and no such model on the hub."""


class RadixQueueFullError(radix.QueueFullError, langchain.ModelRateLimitError):
    """Too many requests wait; try again later."""


class RadixTimeoutError(radix.RequestTimeoutError, langchain.ModelTimeoutError):
    """The caller's deadline passed."""


class RadixStepError(radix.StepError, langchain.ModelAPIError):
    """The model's forward failed on this request."""


class RadixCacheExhaustedError(radix.CacheExhaustedError, langchain.ModelAPIError):
    """No memory is left for this request."""


class RadixAbortedError(radix.RequestAbortedError, langchain.ModelAPIError):
    """The request was aborted, or the engine closed."""

    is_retryable = False


class RadixOutputValidationError(radix.OutputValidationError, langchain.ModelAPIError):
    """The finished answer breaks its schema."""

    is_retryable = False


class RadixClosedError(radix.EngineClosedError, langchain.ModelAPIError):
    """Used after it was closed."""

    is_retryable = False


class RadixIntegrityError(radix.IntegrityError, langchain.ModelAPIError):
    """A broken invariant of the engine."""

    is_retryable = False


class RadixRemoteError(radix.RemoteError, langchain.ModelAPIError):
    """The server failed, or answered nonsense."""


class RadixUnsupportedError(radix.UnsupportedByServerError, langchain.ModelAPIError):
    """The server does not offer what was asked for."""

    is_retryable = False


class RadixAuthenticationError(radix.AuthenticationError, langchain.ModelAuthenticationError):
    """The server refuses the key."""


class RadixConnectionError(radix.ServerUnreachableError, langchain.ModelConnectionError):
    """Nobody answers, or the connection broke."""


_TWINS: dict[type[radix.RadixError], type[radix.RadixError]] = {
    twin.__bases__[0]: twin
    for twin in (
        *(RadixContextOverflowError, RadixConstraintError, RadixInvalidRequestError, RadixGrammarCompileError),
        *(RadixModelNotFoundError, RadixQueueFullError, RadixTimeoutError, RadixStepError, RadixCacheExhaustedError),
        *(RadixAbortedError, RadixOutputValidationError, RadixClosedError, RadixIntegrityError),
        *(RadixRemoteError, RadixUnsupportedError, RadixAuthenticationError, RadixConnectionError),
    )
}


def langchain_error(fault: radix.RadixError) -> radix.RadixError:
    """The same error as one of LangChain's, too; itself where LangChain has no such kind."""
    kind = next((base for base in type(fault).__mro__ if base in _TWINS), None)
    if kind is None or isinstance(fault, langchain.ModelError):
        return fault
    twin = _TWINS[kind].__new__(_TWINS[kind], *fault.args)
    twin.__dict__.update(fault.__dict__)
    return twin


class Translated:
    """``with translated:`` raises the engine's errors as LangChain's. It has no state, so one is enough."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(fault, radix.RadixError) and (twin := langchain_error(fault)) is not fault:
            raise twin.with_traceback(trace) from fault.__cause__


translated = Translated()

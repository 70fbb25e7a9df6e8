"""Errors of the engine → what DSPy's engines raise; `dspy.lm15` errors become DSPy's public ones there.

Rules. Mapped once, here, by one table, with ``from``. What DSPy would retry (a full queue, a passed deadline, a failed
step) is a kind that it retries; what the same request would meet again is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dspy import lm15

from radixbackend import errors

_MAPPING: tuple[tuple[type[errors.RadixError], type[lm15.LM15Error]], ...] = (
    (errors.ContextLengthError, lm15.ContextLengthError),
    (errors.InvalidRequestError, lm15.InvalidRequestError),
    (errors.GrammarCompileError, lm15.InvalidRequestError),
    (errors.QueueFullError, lm15.RateLimitError),
    (errors.RequestTimeoutError, lm15.TimeoutError),
    (errors.StepError, lm15.ServerError),
    (errors.AuthenticationError, lm15.AuthError),
    (errors.ServerUnreachableError, lm15.TransportError),
    (errors.UnsupportedByServerError, lm15.UnsupportedFeatureError),
    (errors.RemoteError, lm15.ServerError),
    (errors.IntegrityError, lm15.ServerError),
    (errors.EngineClosedError, lm15.ConfigurationError),
    (errors.ConfigError, lm15.ConfigurationError),
    (errors.RadixError, lm15.ProviderError),
)
"""Specific classes before their parents."""


@contextmanager
def translated() -> Iterator[None]:
    """Let `RadixError`s out as `dspy.lm15` errors; everything else, cancellation included, passes as it is."""
    try:
        yield
    except errors.RadixError as fault:
        target = next(target for source, target in _MAPPING if isinstance(fault, source))
        raise target(str(fault), provider="radix", provider_code=type(fault).__name__) from fault

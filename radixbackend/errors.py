"""Every exception this package raises on purpose.

    RadixError
    ├── ConfigError (ValueError)             an engine option is wrong
    ├── MissingDependencyError (ImportError) an optional package is not installed
    ├── PluginError                          a plugin misbehaved at construction
    ├── ModelError                           the checkpoint cannot be served
    │   ├── ModelNotFoundError               no such folder or hub id
    │   ├── ModelLoadError                   missing, corrupt or truncated files
    │   ├── UnsafeCheckpointError            would run code or unpickle
    │   └── UnsupportedModelError            no exact way to serve this architecture
    ├── RequestError                         this request ended; every other one goes on
    │   ├── InvalidRequestError (ValueError) refused at the front door; nothing was computed
    │   │   ├── ContextLengthError           prompt does not fit the context
    │   │   └── ConstraintError              schema, regex or grammar refused
    │   ├── QueueFullError                   too many waiting; try again later
    │   ├── RequestAbortedError              the caller, or close(), ended it
    │   ├── RequestTimeoutError              the caller's deadline passed
    │   ├── CacheExhaustedError              no KV slots although nothing else runs
    │   ├── GrammarCompileError              its grammar took too long or failed to compile
    │   ├── OutputValidationError            finished, but breaks its schema
    │   ├── StepError                        the model's forward failed on it
    │   └── RemoteError                      the server of a remote model failed, or answered nonsense
    │       ├── AuthenticationError          it refuses the key
    │       ├── ServerUnreachableError (ConnectionError) nobody answers, or the connection broke
    │       └── UnsupportedByServerError     it cannot do this
    ├── EngineClosedError                    used after close(), or in a forked child
    └── IntegrityError                       a broken invariant of ours; please report it

Nothing here knows about HTTP: the server maps these to status codes, the adapters to their framework's errors.
"""

from __future__ import annotations


class RadixError(Exception):
    """Base of every exception this package raises on purpose. All of them can be pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls the class with ``args``, which knows nothing of keyword-only ones.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[RadixError], args: tuple[object, ...], state: dict[str, object]) -> RadixError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigError(RadixError, ValueError):
    """An engine option has a wrong value; the message names the option and what it accepts."""


class MissingDependencyError(RadixError, ImportError):
    """An optional package is missing; the message names the extra that installs it."""


class PluginError(RadixError):
    """A plugin implements an unknown hook or returned something unusable at construction."""


class ModelError(RadixError):
    """The checkpoint cannot be served."""


class ModelNotFoundError(ModelError):
    """No such folder, and no such model on the hub (or the hub cannot be reached), or on the server asked."""


class ModelLoadError(ModelError):
    """Files of the checkpoint are missing, corrupt or truncated."""


class UnsafeCheckpointError(ModelError):
    """Loading would execute code from the checkpoint; the message names the switch that allows it."""


class UnsupportedModelError(ModelError):
    """No path of the engine reproduces this model's own outputs; the message says what differs."""


class RequestError(RadixError):
    """This request ended with an error; the engine and every other request go on."""


class InvalidRequestError(RequestError, ValueError):
    """Refused at the front door: nothing was queued or computed.

    ``param`` names the offending field, in the spelling of `SamplingParams` or `GenerationRequest`.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit into the model's context or the KV pool."""

    def __init__(self, message: str, *, prompt_tokens: int, max_tokens: int) -> None:
        super().__init__(message, param="prompt")
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens


class ConstraintError(InvalidRequestError):
    """A schema, regex, choice list or grammar was refused.

    ``pointer`` is the JSON pointer of the offending keyword, or ``"@N"`` for a position in a regex or grammar.
    """

    def __init__(self, message: str, *, pointer: str = "") -> None:
        super().__init__(message, param="constraint")
        self.pointer = pointer


class QueueFullError(RequestError):
    """The waiting queue is at its limit (`EngineConfig.max_waiting`); nothing was queued."""


class RequestAbortedError(RequestError):
    """The request was aborted by its caller or because the engine closed."""


class RequestTimeoutError(RequestError):
    """The caller's deadline passed before the request finished."""


class CacheExhaustedError(RequestError):
    """No KV slot can be freed although this request runs alone (pinned prefixes hold them)."""


class GrammarCompileError(RequestError):
    """The grammar of this request took longer than allowed, or its compiler failed."""


class OutputValidationError(RequestError):
    """The finished output breaks its schema.

    ``keyword`` is the JSON-schema keyword that failed, ``path`` the JSON pointer of the failing value and
    ``text`` the whole output.
    """

    def __init__(self, message: str, *, keyword: str, path: str, text: str) -> None:
        super().__init__(message)
        self.keyword = keyword
        self.path = path
        self.text = text


class StepError(RequestError):
    """The model's forward failed while this request was the only one in it; ``__cause__`` is the fault."""


class RemoteError(RequestError):
    """A model is behind a server, and that failed in a way of its own, or answered what cannot be understood."""


class AuthenticationError(RemoteError):
    """The server wants another key, or does not let this one do what was asked."""


class ServerUnreachableError(RemoteError, ConnectionError):
    """Nobody answers at the server's URL, which the message names, or the connection broke."""


class UnsupportedByServerError(RemoteError):
    """The server does not offer what was asked for; the message says what it lacks."""


class EngineClosedError(RadixError):
    """The engine was closed, or this process is a fork of the one that started it."""


class IntegrityError(RadixError):
    """A broken invariant of the engine itself; it is logged and contained, and worth a bug report."""

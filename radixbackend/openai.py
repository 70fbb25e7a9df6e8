"""OpenAI's SDK without a server: its own client classes over a model in this process.

    from radixbackend.openai import OpenAI

    client = OpenAI(model="path-or-hub-id")
    client.chat.completions.create(model="…", messages=[…])

Rules. Everything the SDK does it does here: helpers, parsing, streaming, retries, ``with_options``. All that is ours
is the transport, and that the environment's keys and URLs are left out of it. Copies share the model; it is given
back when the last of them is closed or dropped.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from radixbackend.backend import Backend, get_backend
from radixbackend.chat.sdk import openai as sdk
from radixbackend.errors import ConfigError
from radixbackend.openai_api.api import Api, default_names
from radixbackend.openai_api.transport import DROP, AsyncTransport, Share, Transport

if TYPE_CHECKING:
    import os

__all__ = ["AsyncOpenAI", "OpenAI"]

LOCAL_URL = "http://radixbackend.invalid/v1"
"""Goes nowhere, should anything but the transport ever look at it."""

LOCAL_KEY = "in-process"

T = TypeVar("T")


class OpenAI(sdk.OpenAI):
    """OpenAI's client. With ``model`` or ``backend`` it answers in this process, with ``base_url`` it is the plain
    remote client.

    Args:
        model: what `get_backend` takes; clients, threads and frameworks that name the same model share one engine.
        backend: an engine of yours instead; closing the client leaves it open.
        names: what calls may give as ``model`` besides the name of the model itself.
        plugins: for `get_backend`.
        options: those of OpenAI's client, and for ``model`` the fields of `EngineConfig`.

    Raises:
        ConfigError, ModelError, PluginError: nothing is kept.
    """

    def __init__(
        self,
        *,
        model: str | os.PathLike[str] | None = None,
        backend: Backend | None = None,
        names: Sequence[str] = (),
        plugins: Sequence[object] = (),
        **options: Any,
    ) -> None:
        known, share = _resolve(sdk.OpenAI, model, backend, names, plugins, options)
        if share is not None:
            known["http_client"] = _Client(share)
        super().__init__(**known)

    def request(self, *args: Any, **kwargs: Any) -> Any:
        return _detached(super().request(*args, **kwargs))


class AsyncOpenAI(sdk.AsyncOpenAI):
    """OpenAI's asynchronous client, otherwise as `OpenAI`."""

    def __init__(
        self,
        *,
        model: str | os.PathLike[str] | None = None,
        backend: Backend | None = None,
        names: Sequence[str] = (),
        plugins: Sequence[object] = (),
        **options: Any,
    ) -> None:
        known, share = _resolve(sdk.AsyncOpenAI, model, backend, names, plugins, options)
        if share is not None:
            known["http_client"] = _AsyncClient(share)
        super().__init__(**known)

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        return _detached(await super().request(*args, **kwargs))


class _Client(sdk.DefaultHttpxClient):
    """Known by its class, so that a copy of a client finds the share to copy."""

    def __init__(self, share: Share) -> None:
        super().__init__(transport=Transport(share), trust_env=False)
        self.share = share


class _AsyncClient(sdk.DefaultAsyncHttpxClient):
    """The same."""

    def __init__(self, share: Share) -> None:
        super().__init__(transport=AsyncTransport(share), trust_env=False)
        self.share = share


def _resolve(
    kind: type,
    model: str | os.PathLike[str] | None,
    backend: Backend | None,
    names: Sequence[str],
    plugins: Sequence[object],
    options: dict[str, Any],
) -> tuple[dict[str, Any], Share | None]:
    """The SDK's own options, and a share of the model in this process if that is meant."""
    parameters = inspect.signature(kind).parameters
    known = {name: value for name, value in options.items() if name in parameters}
    ours = {name: value for name, value in options.items() if name not in parameters}
    given = known.get("base_url")
    local = given is None or str(given).rstrip("/") == LOCAL_URL
    client = known.get("http_client")
    if isinstance(client, _Client | _AsyncClient):
        del known["http_client"]
        if local:  # a copy
            return {**known, "base_url": LOCAL_URL}, client.share.again()
    if model is None and backend is None:
        if ours:
            raise ConfigError(f"unknown option {', '.join(sorted(ours))}; options of an engine need model=…")
        if given is None and not {"provider", "data_residency"} & known.keys():
            raise ConfigError("pass model=… or backend=… to answer in this process, or base_url=… of a server")
        return known, None
    if (given is not None and not local) or client is not None:
        raise ConfigError("pass model=… or backend=…, or base_url=… and http_client=… of a server, not both")
    known = {"api_key": LOCAL_KEY, **known, "base_url": LOCAL_URL}
    return known, _share(model, backend, names, plugins, ours)


def _share(
    model: str | os.PathLike[str] | None,
    backend: Backend | None,
    names: Sequence[str],
    plugins: Sequence[object],
    options: dict[str, Any],
) -> Share:
    if model is not None and backend is not None:
        raise ConfigError("pass model=… or backend=…, not both")
    if backend is not None:
        if options:
            raise ConfigError(f"unknown option {', '.join(sorted(options))}; a backend has its own already")
        return Share(_api(backend, names), lambda: None)
    assert model is not None
    shared = get_backend(model, plugins=plugins, **options)
    try:
        return Share(_api(shared, (*names, str(model))), shared.close)
    except BaseException:
        shared.close()
        raise


def _api(backend: Backend, names: Sequence[str]) -> Api:
    return Api(backend, names=(*default_names(backend.model_name), *names), reveal=True)


def _detached(result: T) -> T:
    """Let a dropped stream end at once.

    The SDK's streams are in a reference cycle with their own iterators, so a dropped one would go on until the
    garbage collector finds it. Here a twin is in the cycle instead, and the stream that the caller has is not.
    """
    if isinstance(result, sdk.Stream | sdk.AsyncStream) and (drop := result.response.extensions.get(DROP)):
        twin = copy.copy(result)
        twin._iterator = result._iterator = twin.__stream__()
        weakref.finalize(result, drop).atexit = False
    return result

"""Shared backends: one engine for all who ask the same, closed with its last user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from radixbackend import GenerationRequest, SamplingParams, errors, get_backend, hookimpl
from radixbackend.backend import SharedBackends

GREEDY = SamplingParams(max_tokens=4, temperature=0)


class Counted:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_one_is_built_for_many_who_ask_at_once_and_closed_with_the_last() -> None:
    shared, built = SharedBackends(), []

    def build() -> Counted:
        time.sleep(0.05)
        built.append(Counted())
        return built[-1]

    shares = []
    threads = [threading.Thread(target=lambda: shares.append(shared.get("k", build))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    for share in shares[:-1]:
        share.close()
        share.close()
    assert built[0].closed == 0
    shares[-1].close()
    assert built[0].closed == 1
    shared.get("k", build)
    assert len(built) == 2, "a closed backend is not handed out again"


class Interrupted(dict[object, object]):
    """Where a finalizer runs in the middle of an access, as the garbage collector may have it."""

    finalizer: Callable[[], None] | None = None

    def setdefault(self, key: object, default: object = None) -> object:
        finalizer, self.finalizer = self.finalizer, None
        if finalizer is not None:
            finalizer()
        return super().setdefault(key, default)


@pytest.mark.timeout(20)
def test_a_share_may_be_given_back_by_a_finalizer_at_any_moment() -> None:
    shared = SharedBackends()
    slots = shared._slots = Interrupted()  # type: ignore[assignment]
    own, other = shared.get("own", Counted), shared.get("other", Counted)
    first, elsewhere = own.backend, other.backend

    slots.finalizer = own.close
    again = shared.get("own", Counted)
    assert again.backend is first
    assert first.closed == 0, "its last user left while the next one came"

    slots.finalizer = other.close
    shared.get("third", Counted)
    assert elsewhere.closed == 1
    again.close()
    assert first.closed == 1


def test_a_failed_build_is_tried_again_by_the_next() -> None:
    shared = SharedBackends()

    def fail() -> Counted:
        raise errors.ModelNotFoundError("no")

    with pytest.raises(errors.ModelNotFoundError):
        shared.get("k", fail)
    assert shared.get("k", Counted).backend is not None


def test_equal_options_share_an_engine_and_others_do_not(tiny_checkpoint: Path) -> None:
    with (
        get_backend(tiny_checkpoint) as one,
        get_backend(str(tiny_checkpoint), dtype="auto") as two,
        get_backend(tiny_checkpoint, max_running=2) as three,
    ):
        assert one.backend is two.backend
        assert three.backend is not one.backend
        prompt = GenerationRequest(tuple(range(5, 40)), GREEDY)
        one.generate(prompt)
        assert two.generate(prompt).usage.cached_tokens == 34
    with pytest.raises(errors.EngineClosedError):
        one.generate(prompt)


def test_a_plugin_serves_a_name_instead_of_an_engine() -> None:
    class Elsewhere:
        asked: tuple[str, dict] | None = None

        @hookimpl
        def radix_create_backend(self, model, options):
            self.asked = (model, dict(options))
            return Counted() if model.startswith("far://") else None

    plugin = Elsewhere()
    share = get_backend("far://model", plugins=[plugin], api_key="k")
    assert plugin.asked == ("far://model", {"api_key": "k"})
    backend = share.backend
    share.close()
    assert isinstance(backend, Counted)
    assert backend.closed == 1


def test_unknown_options_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(errors.ConfigError, match="nonsense"):
        get_backend(tiny_checkpoint, nonsense=1)

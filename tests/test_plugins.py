from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from radixbackend import builtin_plugin
from radixbackend.errors import ConfigError, PluginError
from radixbackend.hookspecs import hookimpl
from radixbackend.plugins import BUILT_IN, Plugins
from radixbackend.types import AdapterInfo, EngineStats, RequestId, RequestRecord, StepRecord, Usage, WaitingView

STEP = StepRecord(1, 0.0, 0.0, 0.0, 0.0, 1, 1, 0, 0, EngineStats())
REQUEST = RequestRecord(RequestId(1), "stop", Usage(), 0, 0.0, 0.0, 0.0, 1.0, 0, EngineStats())


def waiting(cached: int = 0, steps: int = 0, priority: int = 0) -> WaitingView:
    return WaitingView(1000, cached, priority, steps, steps / 100)


def one_hook(name: str, answer: Any) -> object:
    """A plugin with one hook that returns or raises ``answer``, whatever it is called with."""

    def hook(self: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return type("OneHook", (), {name: hookimpl(hook)})()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a distribution with one module and one entry point that names it."""

    def _install(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[radixbackend]\nmain = {name}\n")

    monkeypatch.syspath_prepend(tmp_path)
    return _install


# -- registration ------------------------------------------------------------------------------------------------


def test_builtin_comes_in_like_anyone_else() -> None:
    first, *others = Plugins(discover=False).describe()
    assert first.name == BUILT_IN
    assert "radix_rank_waiting" in first.hooks
    assert others == []


def test_two_managers_share_nothing() -> None:
    Plugins([one_hook("radix_eviction_key", max)], discover=False)
    with pytest.raises(ConfigError):
        Plugins(discover=False).eviction_key("mine")


def test_misspelt_hook_is_named() -> None:
    with pytest.raises(PluginError, match="radix_rank_wating"):
        Plugins([one_hook("radix_rank_wating", None)], discover=False)


def test_wrong_parameter_is_named() -> None:
    class Wrong:
        @hookimpl
        def radix_rank_waiting(self, queue: Any) -> None: ...

    with pytest.raises(PluginError, match="queue"):
        Plugins([Wrong()], discover=False)


def test_object_without_a_hook_is_refused() -> None:
    class Unmarked:
        def radix_rank_waiting(self, waiting: Any) -> None: ...

    with pytest.raises(PluginError, match="hookimpl"):
        Plugins([Unmarked()], discover=False)


def test_same_object_twice_is_one_plugin() -> None:
    plugin = one_hook("radix_eviction_key", max)
    assert len(Plugins([plugin, plugin], discover=False).describe()) == 2


def test_two_of_a_class_are_two_plugins() -> None:
    @dataclass
    class Mine:  # not hashable, as dataclasses are
        name: str

        @hookimpl
        def radix_adapters(self) -> AdapterInfo:
            return AdapterInfo(self.name, "framework", "1", ())

    plugins = Plugins([Mine("a"), Mine("b")], discover=False)
    assert [adapter.name for _, adapter in plugins.adapters()] == ["b", "a"]


# -- installed packages ------------------------------------------------------------------------------------------

GOOD = """
from radixbackend import hookimpl

@hookimpl
def radix_eviction_key(policy):
    if policy == "mine":
        return lambda node: 0
"""


def test_installed_plugin_is_found(install: Any) -> None:
    install("radix_good", GOOD)
    plugins = Plugins()
    assert plugins.eviction_key("mine")(None) == 0  # type: ignore[arg-type]
    info = next(p for p in plugins.describe() if p.name == "radix_good:main")
    assert (info.version, info.hooks, info.fault) == ("2.5", ("radix_eviction_key",), None)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("x = 1", "no hook"),
        (GOOD.replace("radix_eviction_key", "radix_evict"), "radix_evict"),
        (GOOD.replace("(policy)", "(policies)").replace("policy ==", "policies =="), "policies"),
    ],
    ids=["import", "exit", "empty", "misspelt", "parameter"],
)
def test_broken_entry_point_kills_nothing(install: Any, caplog: Any, source: str, fault: str) -> None:
    install("radix_bad", source)
    install("radix_good", GOOD)
    with caplog.at_level(logging.WARNING):
        plugins = Plugins()
    assert "radix_bad" in caplog.text
    broken = next(p for p in plugins.describe() if p.name == "radix_bad:main")
    assert fault in (broken.fault or "")
    assert broken.hooks == ()
    assert plugins.eviction_key("mine")
    assert plugins.eviction_key("lru")


# -- construction ------------------------------------------------------------------------------------------------


def test_newest_is_asked_first_and_none_passes_on() -> None:
    nobody, older, newer = (one_hook("radix_eviction_key", key) for key in (None, min, max))
    assert Plugins([older, newer, nobody], discover=False).eviction_key("lru") is max


def test_unknown_names_say_what_there_is() -> None:
    plugins = Plugins([one_hook("radix_make_attention", None)], discover=False)
    with pytest.raises(ConfigError, match=r"attention takes one of auto, torch.*'nope'.*OneHook"):
        plugins.make_attention("nope", "cpu")
    with pytest.raises(ConfigError, match="grammar takes one of xgrammar, llguidance"):
        plugins.make_grammar("nope", None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"eviction takes one of lru, lfu, fifo, not 'nope'$"):
        plugins.eviction_key("nope")


def test_builtin_names_are_made() -> None:
    plugins = Plugins(discover=False)
    assert plugins.make_attention("auto", "cpu").name in ("native", "torch")
    assert plugins.make_attention("torch", "cpu").name == "torch"
    for name in {*builtin_plugin.ATTENTION_NAMES} - {"auto", "torch", "native"}:
        with pytest.raises(ConfigError, match=f"attention='{name}' takes an NVIDIA GPU"):
            plugins.make_attention(name, "cpu")
    assert plugins.make_attention("triton-deterministic", "cuda").deterministic  # type: ignore[attr-defined]
    keys = {name: plugins.eviction_key(name) for name in builtin_plugin.EVICTION_NAMES}
    assert len(set(keys.values())) == 3


def test_eviction_key_must_be_a_function() -> None:
    with pytest.raises(PluginError, match="radix_eviction_key returned 7"):
        Plugins([one_hook("radix_eviction_key", 7)], discover=False).eviction_key("lru")


def test_model_error_of_a_loader_reaches_the_builder() -> None:
    with pytest.raises(RuntimeError, match="mine"):
        Plugins([one_hook("radix_load_model", RuntimeError("mine"))], discover=False).load_model(None)  # type: ignore[arg-type]


def test_no_plugin_claims_a_backend() -> None:
    assert Plugins(discover=False).create_backend("some-model", {}) is None
    assert Plugins([one_hook("radix_create_backend", "mine")], discover=False).create_backend("x", {}) == "mine"


# -- the built-in policy -----------------------------------------------------------------------------------------

views = st.lists(
    st.builds(waiting, st.integers(0, 100_000), st.integers(0, 10_000), st.integers(-5, 5)), min_size=2, max_size=20
)


@given(views)
def test_policy_prefers_what_is_better_in_every_respect(queue: list[WaitingView]) -> None:
    order = list(Plugins(discover=False).rank_waiting(queue))
    assert sorted(order) == list(range(len(queue)))
    place = {i: order.index(i) for i in order}

    def merits(view: WaitingView) -> tuple[int, int, int]:
        return view.cached_tokens, view.waited_steps, view.priority

    for i, mine in enumerate(queue):
        for j, other in enumerate(queue):
            at_least = all(m >= o for m, o in zip(merits(mine), merits(other), strict=True))
            if at_least and (merits(mine) != merits(other) or i < j):
                assert place[i] < place[j]


@given(cached=st.integers(0, 1_000_000))
def test_nothing_starves(cached: int) -> None:
    """However many tokens newcomers find in the cache, a request that waited long enough is first."""
    bound = cached // builtin_plugin.AGEING + 1
    queue = [waiting(steps=bound), *[waiting(cached=cached)] * 5]
    assert Plugins(discover=False).rank_waiting(queue)[0] == 0


def test_one_level_of_priority_is_worth_a_thousand_steps() -> None:
    rank = Plugins(discover=False).rank_waiting
    assert list(rank([waiting(steps=1023), waiting(priority=1)])) == [1, 0]
    assert list(rank([waiting(steps=1025), waiting(priority=1)])) == [0, 1]


# -- containment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [[0], [0, 0], [0, 2], [1, 0, 2], "10", 3, RuntimeError("policy")], ids=lambda a: repr(a)[:12]
)
def test_bad_policy_gives_way_to_arrival(answer: Any, caplog: Any) -> None:
    plugins = Plugins([one_hook("radix_rank_waiting", answer)], discover=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert list(plugins.rank_waiting([waiting(0), waiting(500)])) == [0, 1]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("answer", [[1, 0], (1, 0), range(1, -1, -1), np.array([1, 0])], ids=lambda a: type(a).__name__)
def test_good_policy_is_followed(answer: Any) -> None:
    plugins = Plugins([one_hook("radix_rank_waiting", answer)], discover=False)
    assert list(plugins.rank_waiting([waiting(500), waiting(0)])) == [1, 0]


def test_policy_is_not_asked_about_one(caplog: Any) -> None:
    plugins = Plugins([one_hook("radix_rank_waiting", RuntimeError("asked"))], discover=False)
    assert list(plugins.rank_waiting([waiting()])) == [0]
    assert list(plugins.rank_waiting([])) == []
    assert not caplog.records


def test_observer_that_raises_spoils_nothing(caplog: Any) -> None:
    seen: list[object] = []

    class Watch:
        @hookimpl
        def radix_step_finished(self, record: StepRecord) -> None:
            seen.append(record)

        @hookimpl
        def radix_request_finished(self, record: RequestRecord) -> None:
            seen.append(record)

    class Faulty:
        @hookimpl
        def radix_step_finished(self) -> None:
            raise RuntimeError("step")

        @hookimpl
        def radix_request_finished(self) -> None:
            raise RuntimeError("request")

    plugins = Plugins([Watch(), Faulty(), Watch()], discover=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            plugins.step_finished(STEP)
            plugins.request_finished(REQUEST)
    assert seen == [STEP, STEP, REQUEST, REQUEST] * 3
    assert len(caplog.records) == 2
    assert all("Faulty" in record.getMessage() for record in caplog.records)


def test_commands_of_plugins_are_added_and_faults_contained() -> None:
    class Hello:
        @hookimpl
        def radix_cli(self, commands: typer.Typer) -> None:
            commands.command("hello")(lambda: None)

    app = typer.Typer()
    Plugins([Hello(), one_hook("radix_cli", RuntimeError("broken"))], discover=False).cli(app)
    assert [command.name for command in app.registered_commands] == ["hello"]

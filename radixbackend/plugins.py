"""The plugin manager: who is registered, and one typed method per hook.

Rules. Each `Plugins` has a manager of its own; nothing is global. The built-in plugin comes in through the same
door as everyone else's, and first, so that any other is asked before it. What the caller passes must be right
(`PluginError`); what merely happens to be installed must not break anything: it is logged, listed as broken and
left out. Plugins that observe or rank are contained; those that make a part of the engine raise to its builder.

It must not know how an engine works.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from radixbackend import __version__, builtin_plugin, hookspecs
from radixbackend.errors import ConfigError, PluginError
from radixbackend.types import AdapterInfo, ModelInfo, RequestRecord, StepRecord, WaitingView

if TYPE_CHECKING:
    import typer

    from radixbackend.backend import Backend
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat
    from radixbackend.engine.attention.base import AttentionBackend
    from radixbackend.engine.grammar.base import GrammarBackend, Vocabulary
    from radixbackend.engine.model_loader import LoadedModel, ModelSpec
    from radixbackend.engine.radix_tree import EvictionKey

log = logging.getLogger(__name__)

BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One registered plugin, or an entry point that could not become one (``fault`` says why)."""

    name: str
    version: str = ""
    hooks: tuple[str, ...] = ()
    fault: str | None = None


class Plugins:
    """The built-in plugin, installed ones (entry-point group ``radixbackend``), and ``extra`` objects of the caller.

    Plugins are asked in reverse order of registration: the last of ``extra`` first, the built-in one last.
    """

    def __init__(self, extra: Iterable[object] = (), *, discover: bool = True) -> None:
        """Raise `PluginError` where one of ``extra`` has no hook, a misspelt one or one with wrong parameters."""
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._complained: set[tuple[str, str]] = set()
        self._versions: dict[str, str] = {}
        self._broken: list[PluginInfo] = []
        self._register(builtin_plugin, BUILT_IN, __version__)
        for entry in _installed() if discover else ():
            self._register_installed(entry)
        for plugin in extra:
            if not self._manager.is_registered(plugin):
                self._register(plugin, self._free_name(plugin))

    # -- registration --------------------------------------------------------------------------------------------

    def _register(self, plugin: object, name: str, release: str = "") -> None:
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise ValueError(f"it implements no hook; mark its functions with {hookspecs.PROJECT}.hookimpl")
        except (pluggy.PluginValidationError, ValueError) as fault:
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            raise PluginError(f"plugin {name}: {fault}") from fault
        self._versions[name] = release

    def _register_installed(self, entry: EntryPoint) -> None:
        name = f"{_distribution(entry)}:{entry.name}"
        release = entry.dist.version if entry.dist else ""
        try:
            self._register(entry.load(), name, release)
        except (Exception, SystemExit) as fault:  # somebody else's code: anything can happen when it is imported
            trace = log.isEnabledFor(logging.DEBUG)
            log.warning("the installed plugin %s is broken and left out: %r", name, fault, exc_info=trace)
            self._broken.append(PluginInfo(name, release, fault=f"{type(fault).__name__}: {fault}"))

    def _free_name(self, plugin: object) -> str:
        name = getattr(plugin, "__name__", None) or type(plugin).__qualname__
        return name if self._manager.get_plugin(name) is None else f"{name}@{id(plugin):x}"

    def describe(self) -> tuple[PluginInfo, ...]:
        """Every plugin in order of registration, then the broken entry points."""
        working = [
            PluginInfo(name, self._versions[name], tuple(sorted(c.name for c in callers)))
            for name, plugin in self._manager.list_name_plugin()
            if (callers := self._manager.get_hookcallers(plugin))
        ]
        return (*working, *self._broken)

    # -- making the parts of an engine ---------------------------------------------------------------------------

    def create_backend(self, model: str, options: Mapping[str, Any]) -> Backend | None:
        """The backend some plugin has for this model, or None: nobody claims it."""
        backend: Backend | None = self._manager.hook.radix_create_backend(model=model, options=options)
        return backend

    def load_model(self, spec: ModelSpec) -> LoadedModel:
        """The loaded checkpoint; `ConfigError` where no plugin takes it."""
        model: LoadedModel | None = self._manager.hook.radix_load_model(spec=spec)
        if model is None:
            raise ConfigError(f"no plugin loads the model {spec.model!r}")
        return model

    def make_attention(self, name: str, device: str) -> AttentionBackend:
        """The attention kernel of this name; `ConfigError` where nobody makes it."""
        kernel: AttentionBackend | None = self._manager.hook.radix_make_attention(name=name, device=device)
        if kernel is None:
            raise self._nobody("attention", name, builtin_plugin.ATTENTION_NAMES, "radix_make_attention")
        return kernel

    def make_grammar(self, name: str, vocabulary: Vocabulary) -> GrammarBackend:
        """The grammar engine of this name; `ConfigError` where nobody makes it."""
        backend: GrammarBackend | None = self._manager.hook.radix_make_grammar(name=name, vocabulary=vocabulary)
        if backend is None:
            raise self._nobody("grammar", name, builtin_plugin.GRAMMAR_NAMES, "radix_make_grammar")
        return backend

    def eviction_key(self, policy: str) -> EvictionKey:
        """The key function of this policy; `ConfigError` where nobody has it, `PluginError` if it is no function."""
        key: EvictionKey | None = self._manager.hook.radix_eviction_key(policy=policy)
        if key is None:
            raise self._nobody("eviction", policy, builtin_plugin.EVICTION_NAMES, "radix_eviction_key")
        if not callable(key):
            raise PluginError(f"radix_eviction_key returned {key!r} for {policy!r}; it returns a function of a node")
        return key

    def tool_format(self, model: ModelInfo) -> ToolFormat | None:
        """How this model writes tool calls, or None: nobody knows."""
        format: ToolFormat | None = self._manager.hook.radix_tool_format(model=model)
        return format

    def reasoning_format(self, model: ModelInfo) -> ReasoningFormat | None:
        """How this model writes its reasoning, or None: it has none that anybody knows."""
        format: ReasoningFormat | None = self._manager.hook.radix_reasoning_format(model=model)
        return format

    def _nobody(self, option: str, name: str, builtin: Sequence[str], hook: str) -> ConfigError:
        others = [impl.plugin_name for impl in self._impls(hook) if impl.plugin_name != BUILT_IN]
        also = f"; {', '.join(others)} may know others" if others else ""
        return ConfigError(f"{option} takes one of {', '.join(builtin)}, not {name!r}{also}")

    # -- while it runs -------------------------------------------------------------------------------------------

    def rank_waiting(self, waiting: Sequence[WaitingView]) -> Sequence[int]:
        """Indices of ``waiting``, first to be admitted first; the order of arrival where the policy fails."""
        arrival = range(len(waiting))
        if len(waiting) < 2:
            return arrival
        try:
            order = self._manager.hook.radix_rank_waiting(waiting=waiting)
            if sorted(order) == list(arrival):
                return list(order)
            self._complain("scheduling policy", "radix_rank_waiting", f"{order!r} is not a permutation of {arrival!r}")
        except Exception as fault:
            self._complain("scheduling policy", "radix_rank_waiting", fault)
        return arrival

    def request_finished(self, record: RequestRecord) -> None:
        """Tell everyone who listens."""
        self._tell("radix_request_finished", record=record)

    @property
    def hears_steps(self) -> bool:
        """Whether anybody listens to `step_finished`."""
        return bool(self._manager.hook.radix_step_finished.get_hookimpls())

    def step_finished(self, record: StepRecord) -> None:
        """Tell everyone who listens."""
        self._tell("radix_step_finished", record=record)

    def adapters(self) -> list[tuple[str, AdapterInfo]]:
        """The name of each plugin that announces an adapter, and the adapter."""
        return self._tell("radix_adapters")

    def cli(self, commands: typer.Typer) -> None:
        """Let plugins add their commands."""
        self._tell("radix_cli", commands=commands)

    def _impls(self, hook: str) -> list[pluggy.HookImpl]:
        """Implementations in the order of calling: newest plugin first."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()[::-1]

    def _tell(self, hook: str, **values: Any) -> list[tuple[str, Any]]:
        """Call one plugin after the other, so that one that raises spoils nothing for the rest."""
        answers = []
        for impl in self._impls(hook):
            try:
                if impl.wrapper or impl.hookwrapper:
                    raise PluginError("this hook takes no wrappers")
                answer = impl.function(*(values[name] for name in impl.argnames))
                if answer is not None:
                    answers.append((impl.plugin_name, answer))
            except Exception as fault:
                self._complain(impl.plugin_name, hook, fault)
        return answers

    def _complain(self, plugin: str, hook: str, fault: object) -> None:
        """Log a fault, once for each plugin and hook: a policy that fails, fails in every step."""
        if (plugin, hook) not in self._complained:
            self._complained.add((plugin, hook))
            trace = fault if isinstance(fault, BaseException) else None
            log.warning("%s failed in %s and is ignored (logged once): %s", plugin, hook, fault, exc_info=trace)


def _installed() -> list[EntryPoint]:
    found = entry_points(group=hookspecs.PROJECT)
    return sorted(found, key=lambda entry: (_distribution(entry), entry.name))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"

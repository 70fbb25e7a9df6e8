"""Typed specifications of every hook; no implementations.

Rules. A plugin is any object (a module, an instance) whose functions marked with `hookimpl` carry these names; they
may leave out parameters they do not need. Hooks fire at construction, per request and per step, never per token or
layer. Where a spec says *first result*, plugins are asked from the newest to the built-in one and the first answer
that is not None counts; otherwise all of them are called. ``docs/hooks.md`` has an example of each.

It must not know who implements or calls the hooks; engine types appear in annotations alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from radixbackend.backend import Backend
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat
    from radixbackend.engine.attention.base import AttentionBackend
    from radixbackend.engine.grammar.base import GrammarBackend, Vocabulary
    from radixbackend.engine.model_loader import LoadedModel, ModelSpec
    from radixbackend.engine.radix_tree import EvictionKey
    from radixbackend.types import AdapterInfo, ModelInfo, RequestRecord, StepRecord, WaitingView

PROJECT = "radixbackend"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as the implementation of the hook it is named after."""


@hookspec(firstresult=True)
def radix_create_backend(model: str, options: Mapping[str, Any]) -> Backend | None:
    """Serve this model name or URL, instead of an engine in this process.

    First result; called in the thread of `get_backend`, once for each model and options. It may take as long as
    loading a model does.
    """


@hookspec(firstresult=True)
def radix_load_model(spec: ModelSpec) -> LoadedModel | None:
    """Load a checkpoint: the model, its tokenizer and what the engine must know of them.

    First result; called once, on the thread that will run the engine, which may change the model's layers in place:
    hand out one that nobody else uses. Raise a `ModelError` where the checkpoint is yours but cannot be served; return
    None where it is not yours.
    """


@hookspec(firstresult=True)
def radix_make_attention(name: str, device: str) -> AttentionBackend | None:
    """Make the attention kernel of this name (`EngineConfig.attention`; ``auto`` is the best for the device).

    First result; called once, on the thread that will run the engine. The object is then used by the engine's
    thread in every layer of every step, so what can be prepared once a step belongs into its ``begin``.
    """


@hookspec(firstresult=True)
def radix_make_grammar(name: str, vocabulary: Vocabulary) -> GrammarBackend | None:
    """Make the grammar engine of this name over this vocabulary.

    First result; called once for each name, on a worker thread, when a request first needs it; what it raises fails
    that request. The object compiles on worker threads, several at once.
    """


@hookspec(firstresult=True)
def radix_rank_waiting(waiting: Sequence[WaitingView]) -> Sequence[int] | None:
    """The scheduling policy: indices into ``waiting``, first to be admitted first.

    First result; called by the engine's thread, at most once a step and only when something waits, so it should
    take well under a millisecond. ``waiting`` is in order of arrival. An answer that is not a permutation of the
    indices is logged once and ignored. A policy without a term for waiting time can starve requests.
    """


@hookspec(firstresult=True)
def radix_eviction_key(policy: str) -> EvictionKey | None:
    """The key function of this eviction policy (`EngineConfig.eviction`): the smallest key is evicted first.

    First result; called once, on the thread that will run the engine. The function is then called by the
    engine's thread for each node that becomes evictable and must be a pure, cheap function of the node.
    """


@hookspec(firstresult=True)
def radix_tool_format(model: ModelInfo) -> ToolFormat | None:
    """How this model writes tool calls: a grammar for them, a parser, and a way to write them.

    First result; called once, on the thread that will run the engine. The object is then used by every thread that
    chats, so it must hold no state of an answer; its ``parser`` makes one for each.
    """


@hookspec(firstresult=True)
def radix_reasoning_format(model: ModelInfo) -> ReasoningFormat | None:
    """How this model writes what it thinks before it answers; None if it does not, or not in a way of its own.

    First result; called once, on the thread that will run the engine. As with `radix_tool_format`, the object is
    shared by every thread that chats.
    """


@hookspec
def radix_request_finished(record: RequestRecord) -> None:
    """A request ended: finished, aborted or failed.

    Called by the engine's thread, once for each request, between two steps: do not block. What it raises is logged
    once and changes nothing.
    """


@hookspec
def radix_step_finished(record: StepRecord) -> None:
    """A step ended.

    Called by the engine's thread after every step, so a few microseconds is what it may take. What it raises is
    logged once and changes nothing.
    """


@hookspec
def radix_adapters() -> AdapterInfo | None:
    """Announce an adapter to a framework, for ``radix plugins``.

    Called in the main thread of that command. Must not import the framework.
    """


@hookspec
def radix_cli(commands: typer.Typer) -> None:
    """Add commands to the ``radix`` program: ``commands.command()(function)``.

    Called in the main thread at every start of the program, so import what is slow inside the command.
    """

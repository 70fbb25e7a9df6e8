"""The built-in hook implementations, registered like anyone else's and asked last.

Rules. Everything heavy is imported inside the function that needs it. An implementation that does not know a name
answers None, so that the caller can say what there is.

The scheduling policy gives each waiting sequence a score and admits the highest first::

    cached_tokens + AGEING * waited_steps + PRIORITY * priority

Longest cached prefix first uses what is in the tree before it is evicted (SGLang, arXiv 2312.07104, theorem 3.1).
Waiting counts linearly and without bound while cached tokens are bounded by the context, so nothing starves: a
newcomer of the same priority with C more cached tokens overtakes a sequence for C / AGEING steps at most.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from radixbackend.config import EVICTION_POLICIES
from radixbackend.errors import ConfigError, MissingDependencyError
from radixbackend.hookspecs import hookimpl

if TYPE_CHECKING:
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat
    from radixbackend.engine.attention.base import AttentionBackend
    from radixbackend.engine.grammar.base import GrammarBackend, Vocabulary
    from radixbackend.engine.model_loader import LoadedModel, ModelSpec
    from radixbackend.engine.radix_tree import EvictionKey
    from radixbackend.types import ModelInfo, WaitingView

log = logging.getLogger(__name__)

ATTENTION_NAMES = ("auto", "torch", "native", "triton", "triton-deterministic", "flashinfer")
EVICTION_NAMES = EVICTION_POLICIES
GRAMMAR_NAMES = ("xgrammar", "llguidance", "llguidance-lenient")

AGEING = 16
"""One step of waiting counts as much as this many cached tokens."""

PRIORITY = 1024 * AGEING
"""One level of priority counts as much as having waited 1024 steps."""


@hookimpl
def radix_load_model(spec: ModelSpec) -> LoadedModel:
    from radixbackend.engine.model_loader import load_model

    return load_model(spec)


@hookimpl
def radix_make_attention(name: str, device: str) -> AttentionBackend | None:
    if name not in ATTENTION_NAMES:
        return None
    if name == "auto" and device == "cuda":
        from radixbackend.engine.attention.choice import FirstThatServes

        return FirstThatServes(_kernels(CUDA_NAMES, device))
    if name == "auto" and device == "cpu":
        from radixbackend.engine.attention.choice import FirstThatServes

        return FirstThatServes(_kernels(CPU_NAMES, device))
    if name in ("auto", "torch"):
        from radixbackend.engine.attention.torch_native import TorchAttention

        return TorchAttention()
    if name == "native":
        if device != "cpu":
            raise ConfigError(f"attention={name!r} runs on a CPU, not on device={device!r}; attention='auto' fits any")
        from radixbackend.engine.attention.native import NativeAttention

        return NativeAttention()
    if device != "cuda":
        raise ConfigError(f"attention={name!r} takes an NVIDIA GPU, not device={device!r}; attention='auto' fits any")
    if name == "flashinfer":
        from radixbackend.engine.attention import flashinfer

        return flashinfer.make()
    try:
        from radixbackend.engine.attention.deterministic import DeterministicAttention
        from radixbackend.engine.attention.triton_paged import TritonAttention
    except ImportError as fault:
        raise MissingDependencyError(f"attention={name!r} needs triton: pip install triton ({fault})") from fault
    return TritonAttention() if name == "triton" else DeterministicAttention()


CPU_NAMES = ("native", "torch")
CUDA_NAMES = ("flashinfer", "triton", "torch")
"""Fastest first."""


def _kernels(names: Sequence[str], device: str) -> list[AttentionBackend]:
    """Those of which everything they need is installed; a word in the log about others."""
    kernels: list[AttentionBackend] = []
    for name in names:
        try:
            kernel = radix_make_attention(name, device)
        except (ConfigError, MissingDependencyError) as fault:
            log.info("attention: no %s: %s", name, fault)
        else:
            assert kernel is not None
            kernels.append(kernel)
    return kernels


@hookimpl
def radix_make_grammar(name: str, vocabulary: Vocabulary) -> GrammarBackend | None:
    if name == "xgrammar":
        from radixbackend.engine.grammar.xgrammar import XGrammarBackend

        return XGrammarBackend(vocabulary)
    if name in GRAMMAR_NAMES:
        from radixbackend.engine.grammar.llguidance import LLGuidanceBackend

        return LLGuidanceBackend(vocabulary, lenient=name == "llguidance-lenient")
    return None


@hookimpl
def radix_rank_waiting(waiting: Sequence[WaitingView]) -> Sequence[int]:
    scores = [w.cached_tokens + AGEING * w.waited_steps + PRIORITY * w.priority for w in waiting]
    return sorted(range(len(waiting)), key=lambda i: -scores[i])  # stable: ties stay in order of arrival


@hookimpl
def radix_eviction_key(policy: str) -> EvictionKey | None:
    if policy not in EVICTION_NAMES:
        return None
    from radixbackend.engine import radix_tree

    return {"lru": radix_tree.lru, "lfu": radix_tree.lfu, "fifo": radix_tree.fifo}[policy]


@hookimpl
def radix_tool_format(model: ModelInfo) -> ToolFormat:
    from radixbackend.chat.tools import find

    return find(model)


@hookimpl
def radix_reasoning_format(model: ModelInfo) -> ReasoningFormat | None:
    from radixbackend.chat.reasoning import find

    return find(model)

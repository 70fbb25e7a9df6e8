"""The only composition root: from a configuration to a running engine's parts.

Rules. Every choice that depends on the machine is made here (device memory, step budget), every pluggable part is
made here through its hook, and nothing is constructed anywhere else. It knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from radixbackend.config import EngineConfig
from radixbackend.engine.embedder import Embedder
from radixbackend.engine.executor import ModelExecutor
from radixbackend.engine.grammar.base import Vocabulary
from radixbackend.engine.grammar.service import GrammarService
from radixbackend.engine.image_check import image_desk
from radixbackend.engine.intake import FrontDesk, ModelLimits
from radixbackend.engine.loop import EngineLoop
from radixbackend.engine.model_loader import LoadedModel, ModelSpec
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.prepack import prepack
from radixbackend.engine.probe import text_part
from radixbackend.engine.runner import Runner
from radixbackend.engine.sampler import Sampler
from radixbackend.engine.scheduler import Limits, Scheduler
from radixbackend.engine.self_check import choose_runner
from radixbackend.errors import ConfigError
from radixbackend.plugins import Plugins
from radixbackend.structured import FrontDoor
from radixbackend.tokenizer import Tokenizer
from radixbackend.types import ImagePolicy, ModelInfo

if TYPE_CHECKING:
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat

log = logging.getLogger(__name__)

STEP_TOKENS_CPU = 256
"""A CPU computes prompts no faster in larger chunks, and a decode waits for at most one of them."""

STEP_TOKENS_GPU = 8192

CONTEXTS = 8
"""Full contexts that the KV pool has room for if its size is not given and memory allows: more is seldom used."""

MOST_TOKENS_CPU = 1 << 18
"""Size of the KV pool on a CPU at most, if it is not given."""


@dataclass(frozen=True)
class Parts:
    """What an `Engine` is made of."""

    config: EngineConfig
    plugins: Plugins
    model: LoadedModel
    tokenizer: Tokenizer | None
    cache: PrefixCache
    scheduler: Scheduler
    grammars: GrammarService | None
    limits: ModelLimits
    desk: FrontDesk
    embedder: Embedder
    loop: EngineLoop
    tool_format: ToolFormat | None
    reasoning_format: ReasoningFormat | None
    images: ImagePolicy


def build(config: EngineConfig, plugins: Iterable[object] = ()) -> Parts:
    """Load, check and start; raises `ModelError`, `ConfigError` or `PluginError` and leaves nothing behind."""
    hooks = Plugins(plugins)
    eviction_key = hooks.eviction_key(config.eviction)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = hooks.load_model(ModelSpec.of(config))
    info = _describe(model)
    formats = hooks.tool_format(info), hooks.reasoning_format(info)
    embedder = Embedder(model, text_part(model.model).config._attn_implementation)
    prepack(model)
    kernel = hooks.make_attention(config.attention, model.device.type)
    with contextlib.ExitStack() as resources:
        runner = choose_runner(model, kernel, self_check=config.self_check)
        resources.callback(runner.close)
        images, refusal = image_desk(model, runner, most=config.max_images, self_check=config.self_check)
        capacity = _capacity(config, model, runner)
        runner.allocate(capacity)
        tokenizer = None if model.tokenizer is None else Tokenizer(model.tokenizer)
        grammars = _grammars(config, hooks, model, tokenizer)
        if grammars is not None:
            resources.callback(grammars.close)
        cache = PrefixCache(
            capacity, eviction_key=eviction_key, enabled=config.prefix_cache and runner.traits.shares_prefixes
        )
        executor = ModelExecutor(runner, Sampler(model.vocab_size, model.end_tokens))
        scheduler = Scheduler(
            cache,
            Limits(config.max_running, config.max_step_tokens or _step_tokens(model.device)),
            traits=executor.traits,
            end_tokens=model.end_tokens,
            rank=hooks.rank_waiting,
            on_leave=executor.forget,
            compile_seconds=(lambda: grammars.seconds) if grammars else (lambda: 0.0),
            encoded_images=lambda: runner.encoded_images,
            jump_forward=config.jump_forward,
        )
        max_context = min(config.max_context or model.max_context, model.max_context)
        limits = ModelLimits(model.vocab_size, max_context, capacity)
        place = "" if images is None else images.placeholder
        policy = ImagePolicy(refusal, config.max_images, place, config.allowed_image_hosts)
        desk = FrontDesk(limits, tokenizer, FrontDoor(), grammars, config.grammar, model.end_tokens, images, refusal)
        loop = EngineLoop(
            scheduler,
            executor,
            hooks,
            max_open=config.max_running + config.max_waiting,
            on_exit=resources.pop_all().close,
        )
    return Parts(
        config, hooks, model, tokenizer, cache, scheduler, grammars, limits, desk, embedder, loop, *formats, policy
    )


def _describe(model: LoadedModel) -> ModelInfo:
    template = getattr(model.tokenizer, "chat_template", None) or ""
    added = getattr(model.tokenizer, "added_tokens_decoder", {}).values()
    return ModelInfo(
        name=model.name,
        model_type=getattr(model.config, "model_type", ""),
        chat_template=template if isinstance(template, str) else "\n".join(template.values()),
        added_tokens=frozenset(str(token) for token in added),
    )


def _grammars(
    config: EngineConfig, hooks: Plugins, model: LoadedModel, tokenizer: Tokenizer | None
) -> GrammarService | None:
    if tokenizer is None:
        return None
    vocabulary = Vocabulary(tokenizer.inner, model.vocab_size, model.end_tokens, tokenizer.fingerprint)
    return GrammarService(lambda name: hooks.make_grammar(name, vocabulary), timeout=config.grammar_timeout)


def _step_tokens(device: torch.device) -> int:
    return STEP_TOKENS_GPU if device.type == "cuda" else STEP_TOKENS_CPU


def _capacity(config: EngineConfig, model: LoadedModel, runner: Runner) -> int:
    """Slots of the KV pool."""
    free = int(_free_memory(model.device) * config.memory_fraction)
    affordable = free // max(runner.bytes_per_slot, 1)
    if config.kv_cache_tokens is not None:
        if config.kv_cache_tokens * runner.bytes_per_slot > _free_memory(model.device):
            raise ConfigError(
                f"kv_cache_tokens={config.kv_cache_tokens} takes "
                f"{config.kv_cache_tokens * runner.bytes_per_slot / 2**30:.1f} GiB; about {affordable} fit"
            )
        return config.kv_cache_tokens
    if affordable < 1:
        raise ConfigError("no memory is left for the KV pool after loading the model; free some or use a smaller model")
    if model.device.type != "cpu":
        return affordable
    context = min(config.max_context or model.max_context, model.max_context)
    capacity = min(affordable, max(CONTEXTS * context, 16_384), max(MOST_TOKENS_CPU, context))
    if capacity < context:
        log.warning("the KV pool holds %d tokens, less than the context of %d", capacity, context)
    return capacity


def _free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)

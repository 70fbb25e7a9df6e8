"""The only composition root: from a configuration to a running engine's parts.

Rules. Every choice that depends on the machine is made here (device memory, step budget), every pluggable part is
made here through its hook, and nothing is constructed anywhere else. It knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from radixbackend.config import DETERMINISTIC, FP8, EngineConfig
from radixbackend.engine import kv_store
from radixbackend.engine.contention import watch_contention
from radixbackend.engine.draw import choose_draw
from radixbackend.engine.embedder import Embedder
from radixbackend.engine.executor import ModelExecutor
from radixbackend.engine.fuse import fuse, join
from radixbackend.engine.grammar.base import Vocabulary
from radixbackend.engine.grammar.service import GrammarService
from radixbackend.engine.image_check import image_desk
from radixbackend.engine.intake import FrontDesk, ModelLimits
from radixbackend.engine.linear import load_linear_kernels
from radixbackend.engine.loop import EngineLoop
from radixbackend.engine.memory import max_context, pool_size, step_tokens
from radixbackend.engine.model_loader import LoadedModel, ModelSpec
from radixbackend.engine.prefix_cache import PrefixCache
from radixbackend.engine.prepack import prepack
from radixbackend.engine.probe import text_part
from radixbackend.engine.quantize import quantize
from radixbackend.engine.runner import Runner
from radixbackend.engine.sampler import Sampler
from radixbackend.engine.scheduler import Limits, Scheduler
from radixbackend.engine.self_check import choose_runner
from radixbackend.errors import ConfigError, UnsupportedModelError
from radixbackend.plugins import Plugins
from radixbackend.structured import FrontDoor
from radixbackend.tokenizer import Tokenizer
from radixbackend.types import ImagePolicy, ModelInfo

if TYPE_CHECKING:
    from radixbackend.chat.formats.base import ToolFormat
    from radixbackend.chat.reasoning import ReasoningFormat
    from radixbackend.engine.images import ImageDesk


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


@contextlib.contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Loading makes a million objects that stay; looking for garbage among them takes half a second."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


@_no_search_for_garbage()
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
    layers = fuse(model) if config.fused_layers else []
    kernels = load_linear_kernels(model.device)
    if config.quantization is None:
        prepack(model, kernels)
        join(layers, kernels)
    with contextlib.ExitStack() as resources:
        runner = _runner(config, hooks, model)
        resources.callback(runner.close)
        if config.quantization is not None:  # whether paging is exact is better seen before
            quantize(model, kernels)
            join(layers, kernels)
        images, refusal = _images(config, model, runner)
        sampler = Sampler(model.vocab_size, model.end_tokens, choose_draw(model.device))
        contention = watch_contention(model.device, torch.get_num_threads())
        if contention is not None:
            resources.callback(contention.close)
        executor = ModelExecutor(runner, sampler, contention)
        capacity, longest = pool_size(config, model, runner, executor), max_context(config, model)
        runner.allocate(capacity)
        if config.cuda_graphs:
            runner.capture_decodes(config.max_running, min(longest, capacity))
        tokenizer = None if model.tokenizer is None else Tokenizer(model.tokenizer)
        grammars = _grammars(config, hooks, model, tokenizer)
        if grammars is not None:
            resources.callback(grammars.close)
        cache = PrefixCache(
            capacity, eviction_key=eviction_key, enabled=config.prefix_cache and runner.traits.shares_prefixes
        )
        scheduler = Scheduler(
            cache,
            Limits(config.max_running, step_tokens(config, model.device)),
            traits=executor.traits,
            end_tokens=model.end_tokens,
            rank=hooks.rank_waiting,
            on_leave=executor.forget,
            compile_seconds=(lambda: grammars.seconds) if grammars else (lambda: 0.0),
            encoded_images=lambda: runner.encoded_images,
            jump_forward=config.jump_forward,
            overlap=config.overlaps(model.device.type),
        )
        limits = ModelLimits(model.vocab_size, longest, capacity)
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


def _runner(config: EngineConfig, hooks: Plugins, model: LoadedModel) -> Runner:
    stored = kv_store.FP8 if config.kv_cache_dtype == FP8 else None
    try:
        kernel = hooks.make_attention(DETERMINISTIC if config.deterministic else config.attention, model.device.type)
        return choose_runner(model, kernel, self_check=config.self_check, same_bits=config.deterministic, stored=stored)
    except (ConfigError, UnsupportedModelError) as fault:
        if config.deterministic:
            raise ConfigError(f"deterministic=True cannot be kept here: {fault}") from fault
        if stored is not None and isinstance(fault, UnsupportedModelError):
            raise ConfigError(
                f"kv_cache_dtype={FP8!r} cannot be had here: {fault}; leave it out, or take attention='auto'"
            ) from fault
        raise


def _images(config: EngineConfig, model: LoadedModel, runner: Runner) -> tuple[ImageDesk | None, str]:
    if config.deterministic and model.processor is not None:
        return None, "a vision tower is not deterministic, and deterministic=True was asked for"
    return image_desk(model, runner, most=config.max_images, self_check=config.self_check)


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

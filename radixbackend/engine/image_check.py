"""Whether and how a model's images can be served exactly, found by measuring when it loads.

Rules. Where attention looks ahead is read from the very mask functions that the plain model builds for a prompt with
an image. Then a prompt with two images, computed in chunks beside one without, must have the logits of transformers'
own forward; where it has them only with both images taken as one, they are. A model that fails is served as text, and
whoever sends it an image is told why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from radixbackend.engine.images import BlockRule, ImageDesk, ImageTraits, runs
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import Blocks, IntArray, PromptImages, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.probe import register_attention, takes_index, text_part, unregister_attention
from radixbackend.engine.runner import Runner
from radixbackend.engine.self_check import Difference, plain_attention
from radixbackend.errors import RadixError, UnsupportedModelError
from radixbackend.types import SamplingParams

log = logging.getLogger(__name__)

SIZES = ((96, 64), (64, 64))
"""Of the pictures looked at, in pixels: different, so that what belongs to one cannot be mistaken for the other's."""

LONGEST = 2048
"""Tokens of the longest prompt that both are compared in; where they take more, one is, and they count as one."""

COMPARED = 6
"""Rows at the end of the prompt whose logits are compared; all images lie before them."""


def image_desk(
    loaded: LoadedModel, runner: Runner, *, most: int, self_check: bool = True
) -> tuple[ImageDesk | None, str]:
    """The desk for a model's images and ``""``; or None, and why it is served without."""
    if loaded.processor is None:
        return None, loaded.no_processor
    if not isinstance(runner, ModelRunner):
        return None, "images need the paged path, and this model runs on the sequential one"
    try:
        token = _image_token(loaded)
        grid = getattr(loaded.model.base_model, "get_rope_index", None)
        traits = ImageTraits(token, grid=grid)
        desk = ImageDesk(loaded.processor, loaded.tokenizer, traits, most=most)
        traits = replace(traits, blocks=_block_rule(loaded, desk))
        if not self_check:
            return ImageDesk(loaded.processor, loaded.tokenizer, traits, most=most), ""
        both = _inputs(loaded, desk, len(SIZES))["input_ids"].shape[1] <= LONGEST
        for tried in (traits, replace(traits, apart=False))[not both :]:
            desk = ImageDesk(loaded.processor, loaded.tokenizer, tried, most=most)
            try:
                with _unrounded(loaded, runner) as exact:
                    difference = _compare(loaded, exact, desk, len(SIZES) if both else 1)
            except (RuntimeError, ValueError, IndexError, TypeError) as fault:
                log.info("%s: a prompt with images: %s: %s", loaded.name, type(fault).__name__, fault)
                reason = f"its images fail with {type(fault).__name__}"
                continue
            if difference.acceptable:
                return desk, ""
            reason = str(difference)
    except Exception as fault:  # whatever a processor or a tower stumbles over, text is served
        log.warning("%s is served without images", loaded.name, exc_info=True)
        return None, str(fault) if isinstance(fault, RadixError) else f"its images fail with {type(fault).__name__}"
    log.warning("%s is served without images: %s", loaded.name, reason)
    return None, reason


@contextmanager
def _unrounded(loaded: LoadedModel, runner: ModelRunner) -> Iterator[ModelRunner]:
    """The runner, or one like it that stores keys and values as they are: rounded ones hide small mistakes."""
    if runner.stored is None:
        yield runner
        return
    exact = ModelRunner(loaded, runner.attention)
    try:
        yield exact
    finally:
        exact.close()


def _image_token(loaded: LoadedModel) -> int:
    config = loaded.model.config
    for name in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, name, None), int) and 0 <= token < loaded.vocab_size:
            return token
    raise UnsupportedModelError("its configuration names no image token")


def _text(desk: ImageDesk, count: int) -> str:
    return f"Look at {' and '.join([desk.placeholder] * count)}. What is there to see?"


def _pictures(count: int) -> list[Any]:
    from PIL import Image

    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES[:count]]


def _inputs(loaded: LoadedModel, desk: ImageDesk, count: int) -> dict[str, torch.Tensor]:
    """What transformers' own forward takes."""
    found: Mapping[str, Any] = desk.process(_text(desk, count), _pictures(count))
    dropped = ("labels", "text_replacement_offsets", "attention_mask")
    tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in found.items() if name not in dropped}
    return {
        name: tensor.to(loaded.device, loaded.dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }


def _block_rule(loaded: LoadedModel, desk: ImageDesk) -> BlockRule:
    """Where the plain model's masks look ahead in a prompt with an image."""
    functions: list[Any] = []
    used: set[int] = set()
    inputs = _inputs(loaded, desk, 1)
    length = inputs["input_ids"].shape[1]

    def attention(
        module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any = None, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None:
            used.add(int(attention_mask.flatten()[0]))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    def mask(*_: Any, mask_function: Any, **__: Any) -> torch.Tensor:
        """A mask that names its function, from 0."""
        functions.append(mask_function)
        return torch.full((1, 1, length, length), float(len(functions) - 1), device=loaded.device)

    part, name = text_part(loaded.model), f"radixbackend_images_{id(loaded):x}"
    before = part.config._attn_implementation
    register_attention(name, attention, mask)
    try:
        part.set_attn_implementation(name)
        with torch.inference_mode():
            loaded.model(**inputs, use_cache=False, **_few_logits(loaded))
    finally:
        part.set_attn_implementation(before)
        unregister_attention(name)
    ids = inputs["input_ids"][0].cpu().numpy()
    places = np.flatnonzero(ids == desk.traits.token).astype(np.int32)
    index = torch.arange(length, device=loaded.device)
    later = index > index[:, None]
    zero = index.new_zeros(())
    ahead = [(functions[i](zero, zero, index[:, None], index) & later).cpu().numpy() for i in used]
    rules: dict[BlockRule, Blocks] = {"none": (), "images": runs(places), "prompt": ((0, length),)}
    for rule, blocks in rules.items():
        expected = np.zeros((length, length), bool)
        for start, stop in blocks:
            expected[start:stop, start:stop] = True
        if all(np.array_equal(seen, np.triu(expected, 1)) for seen in ahead):
            return rule
    raise UnsupportedModelError("its attention looks ahead in a way that is not served")


def _few_logits(loaded: LoadedModel) -> dict[str, int]:
    """All of a long prompt's would take more memory than the model."""
    return {"logits_to_keep": COMPARED} if takes_index(loaded.model) else {}


def _compare(loaded: LoadedModel, runner: ModelRunner, desk: ImageDesk, count: int) -> Difference:
    """A prompt with images beside one without, in chunks and in slots of any order, next to plain forwards."""
    inputs, few = _inputs(loaded, desk, count), _few_logits(loaded)
    ids, images = desk.read(_text(desk, count), _pictures(count))
    if ids != inputs["input_ids"][0].tolist():
        raise UnsupportedModelError("its processor does not write the same tokens twice")
    seen, words = np.array(ids, np.int32), np.array(ids[-2 * COMPARED :], np.int32)
    found = _run(runner, seen, words, images)
    with plain_attention(loaded.model, runner), torch.no_grad():
        with_images = loaded.model(**inputs, use_cache=False, **few).logits[0, -COMPARED:].float()
        tokens = torch.from_numpy(words.astype(np.int64))[None].to(loaded.device)
        without = loaded.model(input_ids=tokens, use_cache=False, **few).logits[0, -COMPARED:].float()
    plain = torch.cat((with_images, without))
    errors = (found - plain).norm(dim=-1) / (plain - plain.mean(-1, keepdim=True)).norm(dim=-1).clamp_min(1e-6)
    errors = errors.nan_to_num(nan=float("inf"))
    halves = errors.split(COMPARED)
    return Difference(max(float(half.median()) for half in halves), float(errors.max()), loaded.dtype)


def _run(runner: ModelRunner, seen: IntArray, words: IntArray, images: PromptImages) -> torch.Tensor:
    total = len(seen) + len(words)
    slots = np.random.default_rng(1).permutation(total).astype(np.int32)
    prompts = ((seen, slots[: len(seen)], images), (words, slots[len(seen) :], None))
    ends = [_ends(len(seen), images), _ends(len(words), None)]
    done = [0, 0]
    rows: list[torch.Tensor] = [torch.empty(0)] * 2
    runner.allocate(total)
    try:
        for step in range(max(map(len, ends))):
            plans, which = [], []
            for i, (tokens, own, pictures) in enumerate(prompts):
                if step < len(ends[i]):
                    start, stop = done[i], ends[i][step]
                    plans.append(_plan(i, tokens, own, start, stop, pictures))
                    which.append(i)
                    done[i] = stop
            logits = runner.run(StepPlan(step, tuple(plans)))
            for position, i in enumerate(which):
                rows[i] = logits.of(position)
    finally:
        runner.allocate(0)
        if runner.vision is not None:
            runner.vision.clear()
    return torch.cat(rows)


def _ends(length: int, images: PromptImages | None) -> list[int]:
    """Where chunks end: two or three of them, the last with all rows that are compared."""
    ends: list[int] = []
    for end in (length // 3, 2 * length // 3):
        start = ends[-1] if ends else 0
        end = start + (images.chunk(start, end - start) if images is not None else end - start)
        if start < end <= length - COMPARED:
            ends.append(end)
    return [*ends, length]


def _plan(
    number: int, tokens: IntArray, slots: IntArray, start: int, stop: int, images: PromptImages | None
) -> SequencePlan:
    spec = None
    if stop == len(tokens):
        drafts = tuple(int(token) for token in tokens[stop - COMPARED + 1 :])
        history = tokens[: stop - COMPARED + 1]
        spec = SampleSpec(SamplingParams(), 0, history, len(history), drafts, None, COMPARED)
    return SequencePlan(SequenceId(number), tokens[start:stop], start, slots[:stop], spec, images=images)

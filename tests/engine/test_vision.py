"""Images through the whole engine: greedy tokens in float32 equal ``transformers.generate``, whatever is shared."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from radixbackend import Engine, GenerationRequest, SamplingParams, hookimpl
from radixbackend.engine import image_check, images
from radixbackend.engine.images import ImageDesk, open_picture, runs
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.plan import PromptImages, StepPlan
from radixbackend.engine.probe import text_part
from radixbackend.engine.vision import Features, Vision
from radixbackend.errors import InvalidRequestError
from tests import vision_zoo
from tests.vision_zoo import Zoo, picture

NEW_TOKENS = 8
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)


class InMemory:
    """A plugin that serves a copy of a model, with its processor; the original is compared with."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo

    @hookimpl
    def radix_load_model(self) -> LoadedModel:
        return LoadedModel.of(copy.deepcopy(self.zoo.model), self.zoo.tokenizer, processor=self.zoo.processor)


@contextmanager
def serving(name: str, **options: Any) -> Iterator[tuple[Zoo, Engine]]:
    zoo = vision_zoo.build(name)
    common = {"max_step_tokens": 16, "max_running": 4, "kv_cache_tokens": 600, "self_check": False}
    with Engine(name, plugins=[InMemory(zoo)], **common | options) as engine:
        assert not engine.images.refusal
        yield zoo, engine


def asked(text: str, *pictures: Image.Image, sampling: SamplingParams = GREEDY, **more: Any) -> GenerationRequest:
    return GenerationRequest(text, sampling, images=pictures, **more)


def reference(zoo: Zoo, request: GenerationRequest) -> list[int]:
    """By transformers alone."""
    zoo.model.generation_config.eos_token_id = None
    if request.images:
        inputs = zoo.processor(text=request.prompt, images=list(request.images), return_tensors="pt")
    else:
        inputs = {"input_ids": torch.tensor([zoo.tokenizer.encode(request.prompt)])}
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    options = {"max_new_tokens": request.sampling.max_tokens, "do_sample": False, "pad_token_id": 0}
    out = zoo.model.generate(**inputs, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def references(zoo: Zoo, requests: list[GenerationRequest]) -> list[list[int]]:
    """One by one, by the plainest attention there is; an engine that serves the model meanwhile has nothing to do."""
    decoder = text_part(zoo.model)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        return [reference(zoo, request) for request in requests]
    finally:
        decoder.set_attn_implementation(before)


def tokens(results: list[Any]) -> list[list[int]]:
    return [list(result.token_ids) for result in results]


def mixed(image: str) -> list[GenerationRequest]:
    """Two images with the same text, two images in one prompt, and no image."""
    return [
        asked(f"Look: {image} What is it?", picture(1, 40, 24)),
        asked("Nothing to see here, go on and on and on."),
        asked(f"Look: {image} and {image}, compare", picture(1, 40, 24), picture(2)),
        asked(f"Look: {image} What is it?", picture(3, 40, 24)),
        asked("Look"),
    ]


@pytest.mark.parametrize("name", list(vision_zoo.ARCHITECTURES))
def test_equals_transformers(name: str) -> None:
    """Cold and warm, in chunks, beside each other and beside text."""
    zoo = vision_zoo.build(name)
    requests = mixed(zoo.image)
    expected = references(zoo, requests)
    assert expected[0] != expected[3], "the model does not look at its images, so nothing is tested"
    with serving(name, self_check=True) as (_, engine):
        assert tokens(engine.generate(requests)) == expected
        # The first image in two prompts, the second and the third. An image with another beside it may be another.
        assert 3 <= engine.stats().encoded_images <= 4
        encoded = engine.stats().encoded_images
        warm = engine.generate(requests)
        assert tokens(warm) == expected
        assert [r.usage.cached_tokens for r in warm] == [r.usage.prompt_tokens - 1 for r in warm]
        assert engine.stats().encoded_images == encoded


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_retracted_requests_go_on_as_if_nothing_had_been(name: str) -> None:
    sampling = GREEDY.replace(max_tokens=26)
    zoo = vision_zoo.build(name)
    requests = [asked(f"{zoo.image} {i}", picture(i, 24, 24), sampling=sampling) for i in range(3)]
    requests.append(asked("no image", sampling=sampling))
    expected = references(zoo, requests)
    longest = max(len(zoo.processor(text=r.prompt, images=list(r.images))["input_ids"][0]) for r in requests[:3])
    with serving(name, max_step_tokens=8, kv_cache_tokens=longest + 45) as (_, engine):
        assert tokens(engine.generate(requests)) == expected
        assert engine.stats().retractions > 0
        assert engine.stats().slots_held == 0


def test_equal_images_share_and_are_computed_once() -> None:
    with serving("qwen2_vl") as (zoo, engine):
        first = asked(f"Look: {zoo.image} What is it?", picture(1, 40, 24))
        other = asked(f"Look: {zoo.image} And now?", picture(1, 40, 24))
        engine.generate(first)
        assert engine.stats().encoded_images == 1
        result = engine.generate(other)
        assert result.usage.cached_tokens >= 5 + 15, "the prefix with the image was computed again"
        assert engine.stats().encoded_images == 1
        assert tokens([result]) == references(zoo, [other])
        # Of a prompt with an image more, the tower computes that one alone, cache or no cache.
        both = asked(f"Look: {zoo.image} And {zoo.image}?", picture(1, 40, 24), picture(2, 24, 24))
        assert tokens([engine.generate(both)]) == references(zoo, [both])
        assert engine.stats().encoded_images == 2
        engine.flush_cache()
        assert engine.generate(both).usage.cached_tokens == 0
        assert engine.stats().encoded_images == 2


@pytest.mark.parametrize("name", ["llava", "gemma3", "mistral3"])
def test_other_images_never_match(name: str) -> None:
    with serving(name) as (zoo, engine):
        text = f"Look: {zoo.image} What is it?"
        requests = [asked(text, picture(seed, 24, 24)) for seed in range(6)]
        expected = references(zoo, requests)
        assert len({tuple(e) for e in expected}) > 2
        for request, one in zip(requests, expected, strict=True):
            result = engine.generate(request)
            assert list(result.token_ids) == one
            assert result.usage.cached_tokens <= len("Look: ") + 3
        assert tokens(engine.generate(requests)) == expected


def test_a_salt_keeps_images_apart() -> None:
    with serving("llava") as (zoo, engine):
        for number, salt in enumerate((None, "a", "b"), start=1):
            result = engine.generate(asked(f"{zoo.image} hm", picture(1), cache_salt=salt))
            assert result.usage.cached_tokens == 0
            assert engine.stats().encoded_images == number


def test_usage_counts_what_images_take() -> None:
    with serving("llava") as (zoo, engine):
        request = asked(f"{zoo.image} hm", picture(1))
        usage = engine.generate(request).usage
        assert usage.prompt_tokens == 16 + len(" hm")
        assert engine.generate(request.prompt, GREEDY, images=request.images).usage.cached_tokens == 18


def test_token_ids_are_as_the_processor_makes_them() -> None:
    with serving("qwen2_vl") as (zoo, engine):
        request = asked(f"Look: {zoo.image} and {zoo.image}", picture(1, 40, 24), picture(2))
        inputs = zoo.processor(text=request.prompt, images=list(request.images))
        ids = [int(token) for token in inputs["input_ids"][0]]
        result = engine.generate(ids, GREEDY, images=request.images)
        assert result.prompt_token_ids == tuple(ids)
        assert tokens([result]) == references(zoo, [request])
        assert engine.generate(request).usage.cached_tokens == len(ids) - 1
        with pytest.raises(InvalidRequestError, match=r"has 0 image tokens .* need 15; in a text each"):
            engine.generate([5, 6, 7], GREEDY, images=[picture(1, 40, 24)])


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_no_chunk_and_no_hit_ends_where_tokens_look_ahead(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[StepPlan] = []
    with serving(name, max_step_tokens=5) as (zoo, engine):
        executor = engine._parts.loop._executor
        launch = executor.launch
        monkeypatch.setattr(executor, "launch", lambda plan: plans.append(plan) or launch(plan))
        requests = [asked(f"a{zoo.image}bc{zoo.image}def", picture(1), picture(i)) for i in range(3)]
        requests.append(requests[0])
        assert tokens(engine.generate(requests)) == references(zoo, requests)
        engine.generate(requests)
    assert plans
    for sequence in (s for plan in plans for s in plan.sequences):
        for low, high in sequence.images.blocks:
            assert not low < sequence.context < high, "a chunk ends within a block"
            assert not low < sequence.start < high - 1, "a hit ends within a block"


def test_a_grammar_that_is_compiled_meanwhile_waits_for_its_block() -> None:
    """The last token waits for its mask; where all of the prompt is one block, so does all of the prompt."""
    from radixbackend import Constraint

    with serving("paligemma") as (zoo, engine):
        request = GenerationRequest(
            f"{zoo.image}a", GREEDY, constraint=Constraint.choice(["yes", "no"]), images=(picture(1),)
        )
        assert engine.generate(request).text in ("yes", "no")
        assert engine.generate(request).text in ("yes", "no")


def test_prompt_logprobs_are_the_models_own() -> None:
    with serving("qwen3_vl") as (zoo, engine):
        request = asked(f"Look: {zoo.image} so", picture(1, 24, 24), sampling=GREEDY.replace(prompt_logprobs=0))
        result = engine.generate(request)
        inputs = zoo.processor(text=request.prompt, images=list(request.images), return_tensors="pt")
    with torch.no_grad():
        logits = zoo.model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    plain = logits[:-1].gather(1, ids[1:, None])[:, 0]
    found = torch.tensor([entry.logprob for entry in result.prompt_logprobs[1:]])
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)


def test_streams_and_awaited_requests_take_images() -> None:
    import asyncio

    with serving("llava") as (zoo, engine):
        request = asked(f"{zoo.image} hm", picture(1))
        expected = references(zoo, [request])[0]
        assert [t for event in engine.stream(request) for t in event.token_ids] == expected
        assert list(asyncio.run(engine.agenerate(request)).token_ids) == expected


def test_embeddings_leave_the_tower_alone() -> None:
    with serving("llava") as (zoo, engine):
        ids = zoo.tokenizer.encode("some text")
        with torch.no_grad():
            states = references_of(zoo, ids)
        np.testing.assert_allclose(engine.embed(ids).vectors[0], states / np.linalg.norm(states), atol=1e-5)
        request = asked(f"{zoo.image} hm", picture(1))
        assert tokens([engine.generate(request)]) == references(zoo, [request])


def references_of(zoo: Zoo, ids: list[int]) -> np.ndarray[Any, Any]:
    """The last token's final hidden state, by a model of its own."""
    states: np.ndarray[Any, Any] = Zoo(zoo.name).model.base_model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
    return states


def test_many_threads_read_images_at_once() -> None:
    with serving("qwen2_vl", kv_cache_tokens=2000) as (zoo, engine):
        requests = [asked(f"Look: {zoo.image} {i}", picture(i % 5, 24 + 8 * (i % 3), 24)) for i in range(16)]
        expected = references(zoo, requests)
        with ThreadPoolExecutor(8) as pool:
            assert tokens(list(pool.map(engine.generate, requests))) == expected
        assert engine.stats().encoded_images == len({(i % 5, i % 3) for i in range(16)})


def test_a_checkpoint_in_a_folder_brings_its_processor(tmp_path: Path) -> None:
    zoo = vision_zoo.build("qwen2_vl")
    request = asked(f"Look: {zoo.image} What is it?", picture(1, 40, 24))
    folder = zoo.save(tmp_path / "model")
    with Engine(folder, kv_cache_tokens=200) as engine:
        if "torchvision" in engine.images.refusal:
            pytest.skip(engine.images.refusal)
        assert engine.images.refusal == ""
        assert tokens([engine.generate(request)]) == references(zoo, [request])
    with Engine(folder, kv_cache_tokens=200, max_images=0) as engine:
        assert engine.generate("text", GREEDY).token_ids
        with pytest.raises(InvalidRequestError, match="takes no images: max_images is 0"):
            engine.generate(request)


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(zoo: Zoo) -> tuple[str, list[int]]:
    """Why a model is served without images, and what it says to a text."""
    with Engine("broken", plugins=[InMemory(zoo)], kv_cache_tokens=200) as engine:
        with pytest.raises(InvalidRequestError, match="takes no images") as caught:
            engine.generate(f"{zoo.image}", GREEDY, images=[picture(1)])
        assert caught.value.param == "images"
        return engine.images.refusal, list(engine.generate("text", GREEDY).token_ids)


@pytest.mark.parametrize(
    ("name", "attribute", "wrong"),
    [
        ("llava", "_encode", lambda f: lambda self, image: Features(torch.zeros_like(f(self, image).rows), ())),
        ("qwen3_vl", "_encode", lambda f: lambda self, image: Features(f(self, image).rows, ())),
        ("qwen2_vl", "positions", lambda f: lambda self, plan: f(self, plan)[:1].expand(3, -1, -1)),
    ],
)
def test_a_model_that_would_be_shown_wrongly_is_served_as_text(
    name: str, attribute: str, wrong: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = vision_zoo.build(name)
    monkeypatch.setattr(Vision, attribute, wrong(getattr(Vision, attribute)))
    reason, words = refused(zoo)
    assert "logits differ" in reason
    assert [words] == references(zoo, [asked("text")])


def test_blocks_that_are_not_seen_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "_block_rule", lambda *_: "none")
    assert "logits differ" in refused(vision_zoo.build("gemma3"))[0]


def test_images_that_cannot_be_told_apart_are_taken_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    split = images._split
    monkeypatch.setattr(images, "_split", lambda tensors, counts: split(tensors, counts)[::-1])
    with serving("llava", self_check=True) as (zoo, engine):
        assert not engine._parts.desk._images.traits.apart
        request = asked(f"{zoo.image} and {zoo.image}, compare", picture(1), picture(2))
        assert tokens([engine.generate(request)]) == references(zoo, [request])


@pytest.mark.parametrize("name", ["qwen3_vl", "paligemma"])
def test_keys_in_eight_bits_serve_images_that_are_checked_without(name: str) -> None:
    with serving(name, self_check=True, kv_cache_dtype="fp8") as (zoo, engine):
        assert engine._parts.desk._images.traits.apart
        requests = mixed(zoo.image)
        cold = tokens(engine.generate(requests))
        assert tokens(engine.generate(requests)) == cold
        assert cold[0] != cold[3]


def test_images_too_long_to_compare_two_of_are_taken_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "LONGEST", 60)
    with serving("llava", self_check=True) as (zoo, engine):
        assert not engine._parts.desk._images.traits.apart
        request = asked(f"{zoo.image} and {zoo.image}, compare", picture(1), picture(2))
        assert tokens([engine.generate(request)]) == references(zoo, [request])


def test_a_model_without_vision_says_so(tiny_checkpoint: Path) -> None:
    with Engine(tiny_checkpoint, kv_cache_tokens=200) as engine:
        with pytest.raises(InvalidRequestError, match="this model takes no images: it has no vision"):
            engine.generate("look", images=[picture(1)])
        assert engine.images.refusal == "it has no vision"


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_bad_images_are_refused_and_cost_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    png = encoded(picture(1), "PNG")
    with serving("llava", max_images=2) as (zoo, engine):
        text = f"{zoo.image} hm"

        def refusal(*given: Any, prompt: str = text) -> str:
            with pytest.raises(InvalidRequestError) as caught:
                engine.generate(prompt, GREEDY, images=given)
            assert caught.value.param == "images"
            return str(caught.value)

        assert "images[0] is no PNG or" in refusal(b"not an image")
        assert "images[1] cannot be read" in refusal(png, png[: len(png) // 2])
        assert "images[0] cannot be read" in refusal(tmp_path / "nowhere.png")
        assert "images[0] is str" in refusal("image.png")
        assert "images[0] is no PNG or" in refusal(encoded(picture(1), "TIFF"))
        assert "more than the 2" in refusal(png, png, png)
        assert "in a text each image has the place of one '<image>'" in refusal(png, png)
        assert "in a text each image has the place of one '<image>'" in refusal(png, prompt="no place")
        monkeypatch.setattr(images, "MOST_PIXELS", 300)
        assert "images[1] has 16 x 16 pixels" in refusal(png, png)
        with pytest.raises(InvalidRequestError, match="belong to one prompt"):
            engine.generate([text, text], GREEDY, images=[png])
        with pytest.raises(InvalidRequestError, match="a list of images"):
            engine.generate(text, GREEDY, images=png)
        assert engine.stats().prompt_tokens == 0
        assert engine.stats().encoded_images == 0


def test_a_bomb_is_not_decoded() -> None:
    """A header that promises 2.5 gigapixels, and nothing behind it."""
    bomb = b"BM" + (0).to_bytes(8, "little") + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    bomb += (50_000).to_bytes(4, "little") * 2 + b"\x01\x00\x18\x00" + bytes(24)
    with pytest.raises(InvalidRequestError, match=r"50000 x 50000 pixels|decompression bomb"):
        open_picture(bomb)


def test_files_are_read_as_pictures_are(tmp_path: Path) -> None:
    """Lossless formats, paths, bytes and Pillow images come to the same; photographs are turned upright."""
    (tmp_path / "a.png").write_bytes(encoded(picture(1), "PNG"))
    with serving("llava") as (zoo, engine):
        text = f"{zoo.image} hm"
        for number, given in enumerate((picture(1), tmp_path / "a.png", encoded(picture(1), "BMP"))):
            result = engine.generate(text, GREEDY, images=[given])
            assert result.usage.cached_tokens == (result.usage.prompt_tokens - 1 if number else 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    out = io.BytesIO()
    picture(1, 32, 16).save(out, "JPEG", exif=exif)
    assert open_picture(out.getvalue()).size == (16, 32)
    assert open_picture(encoded(Image.new("RGBA", (4, 4)), "PNG")).mode == "RGB"


# -- the values ------------------------------------------------------------------------------------------------------


def test_chunks_and_hits_around_blocks() -> None:
    keys = np.zeros(20, np.int32)
    prompt = PromptImages((), keys, blocks=((3, 8), (8, 12)))
    # Cut before a block, or taken whole where the chunk begins with it; a block's end is no border within one.
    assert [prompt.chunk(0, n) for n in (2, 3, 4, 7, 8, 9, 12, 13)] == [2, 3, 3, 3, 8, 8, 12, 13]
    assert [prompt.chunk(3, n) for n in (1, 4, 5, 6, 9)] == [5, 5, 5, 5, 9]
    assert [prompt.usable(n) for n in (0, 2, 3, 4, 7, 8, 9, 12, 13)] == [0, 2, 3, 3, 3, 8, 8, 12, 13]
    assert runs(np.array([2, 3, 4, 8, 9, 11], np.int32)) == ((2, 5), (8, 10), (11, 12))
    assert runs(np.array([], np.int32)) == ()


def test_an_image_is_known_by_what_it_holds() -> None:
    zoo = vision_zoo.build("idefics3")
    traits = images.ImageTraits(zoo.model.config.image_token_id)
    desk = ImageDesk(zoo.processor, zoo.tokenizer, traits, most=4)

    def keys(*pictures: Image.Image, salt: str | None = None) -> list[int]:
        _, found = desk.read(zoo.image * len(pictures), pictures, salt)
        return [image.key for image in found.images]

    one, two = picture(1, 40, 24), picture(2, 40, 24)
    first = keys(one)
    assert first[0] < 0
    assert keys(one, two, one) == [first[0], keys(two)[0], first[0]]
    assert keys(one, salt="s") != first
    ids, found = desk.read(f"a{zoo.image}b{zoo.image}", [one, two])
    assert sorted({int(k) for k in found.keys if k < 0}) == sorted({*first, *keys(two)})
    assert [t for t, k in zip(ids, found.keys.tolist(), strict=True) if t != k] == [traits.token] * 40

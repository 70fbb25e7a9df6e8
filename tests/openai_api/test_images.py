"""Images over OpenAI's API: in process and over HTTP, sync and async, chat and responses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from radixbackend import Engine, SamplingParams
from tests.chat.test_images import EITHER
from tests.openai_api.clients import KINDS, Client, serve
from tests.vision_zoo import Zoo, picture

LIMITS: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True}}


def url(seed: int, kind: str = "PNG") -> str:
    out = io.BytesIO()
    picture(seed).save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def message(*urls: str, words: str = "What is it?", **more: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": u, **more}} for u in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": words}]}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A model with vision, from its folder."""
    zoo = Zoo("llava")
    zoo.tokenizer.chat_template = EITHER
    folder = zoo.save(tmp_path_factory.mktemp("seeing") / "tiny")
    settings = zoo.processor.to_dict()
    keep = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "processor_class")
    (folder / "processor_config.json").write_text(json.dumps({name: settings[name] for name in keep}))
    with Engine(folder, kv_cache_tokens=2000, max_images=2, self_check=False) as engine:
        if "torchvision" in engine.images.refusal:
            pytest.skip(engine.images.refusal)
        assert engine.images.refusal == ""
        yield engine


@pytest.fixture(scope="module")
def eyes(seeing: Engine, loop: asyncio.AbstractEventLoop) -> Iterator[dict[str, Client]]:
    with serve(seeing) as served:
        made = {kind: Client.make(kind, seeing, served.url, loop) for kind in KINDS}
        yield made
        for client in made.values():
            client.close()


@pytest.fixture(params=KINDS)
def eye(request: pytest.FixtureRequest, eyes: dict[str, Client]) -> Client:
    """Each face in turn, over a model with vision."""
    return eyes[request.param]


def expected(engine: Engine, *seeds: int) -> str:
    """What the engine itself says to the prompt that the template makes."""
    prompt = f"user: {'<image>' * len(seeds)}What is it?assistant:"
    sampling = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    return engine.generate(prompt, sampling, images=[picture(seed) for seed in seeds]).text


def test_chat_completions(eye: Client, seeing: Engine) -> None:
    result = eye.call("chat.completions.create", messages=[message(url(1), detail="low")], **LIMITS)
    assert result.choices[0].message.content == expected(seeing, 1)
    assert result.usage.prompt_tokens == len("user: What is it?assistant:") + 16
    other = eye.call("chat.completions.create", messages=[message(url(4))], **LIMITS)
    assert other.choices[0].message.content == expected(seeing, 4)
    assert other.choices[0].message.content != result.choices[0].message.content


def test_several_images(eye: Client, seeing: Engine) -> None:
    result = eye.call("chat.completions.create", messages=[message(url(1), url(3, "BMP"))], **LIMITS)
    assert result.choices[0].message.content == expected(seeing, 1, 3)


def test_streams(eye: Client, seeing: Engine) -> None:
    chunks = eye.stream("chat.completions.create", messages=[message(url(1))], **LIMITS)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected(seeing, 1)


def test_responses(eye: Client, seeing: Engine) -> None:
    parts = [
        {"type": "input_image", "image_url": url(1), "detail": "auto"},
        {"type": "input_text", "text": "What is it?"},
    ]
    limits = {"temperature": 0, "max_output_tokens": 6, "extra_body": {"ignore_eos": True}}
    result = eye.call("responses.create", input=[{"role": "user", "content": parts}], **limits)
    assert result.output_text == expected(seeing, 1)
    bad = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    with pytest.raises(openai.BadRequestError, match=r"images\[0\] is no PNG") as caught:
        eye.call("responses.create", input=[{"role": "user", "content": bad}])
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (["data:image/png;base64,AAAA"], r"images\[0\] is no PNG"),
        (["data:text/plain;base64,AAAA"], r"messages\[0\] has a data: URL of type 'text/plain'"),
        (["data:image/png;base64,?"], r"messages\[0\] has an image that is not base64"),
        (
            ["https://example.org/a.png"],
            r"messages\[0\] has an image on 'example.org', from where images are not fetched",
        ),
        (["http://127.0.0.1:1/a.png"], r"messages\[0\] has an image on '127.0.0.1:1', from where"),
        (["file:///etc/hostname"], r"messages\[0\] has an image whose URL begins neither with data:"),
        (["/etc/hostname"], r"messages\[0\] has an image whose URL begins neither with data:"),
        ([url(1), url(1), url(1)], r"messages\[0\] has more images than the 2"),
        ([url(1)[:-40]], r"images\[0\] cannot be read|not base64"),
    ],
)
def test_bad_images_are_bad_requests(eye: Client, urls: list[str], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        eye.call("chat.completions.create", messages=[message(*urls)], **LIMITS)
    assert caught.value.status_code == 400
    assert caught.value.param == "messages"
    assert caught.value.code == "invalid_value"


def test_a_model_without_vision_says_its_name_and_not_its_place(client: Client, checkpoint: Path) -> None:
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\] has an image, and tiny takes none") as caught:
        client.call("chat.completions.create", messages=[message(url(1))])
    assert str(checkpoint.parent) not in str(caught.value)
    assert caught.value.param == "messages"

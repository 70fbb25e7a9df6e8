"""Images in conversations: where templates put them, what is read and fetched, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import http.server
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from radixbackend import Engine, SamplingParams
from radixbackend.chat import images
from radixbackend.chat.images import read_image
from radixbackend.chat.message import ImagePart, Message, TextPart
from radixbackend.chat.request import ChatRequest
from radixbackend.chat.service import ChatService
from radixbackend.chat.template import PromptTemplate
from radixbackend.errors import InvalidRequestError
from radixbackend.tokenizer import Tokenizer
from radixbackend.types import ImagePolicy
from tests import vision_zoo
from tests.chat.fake import TEMPLATE, FakeBackend, describe, make_tokenizer
from tests.engine.test_vision import InMemory
from tests.vision_zoo import picture

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)

PARTS_ONLY = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def png(seed: int, width: int = 16, height: int = 16) -> bytes:
    out = io.BytesIO()
    picture(seed, width, height).save(out, "PNG")
    return out.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(data)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


# -- where they go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [PARTS_ONLY, EITHER, TEMPLATE, None])
def test_every_kind_of_template_has_images_in_their_places(template: str | None) -> None:
    inner = make_tokenizer(template)
    from radixbackend.chat import tools

    prompts = PromptTemplate(Tokenizer(inner), tools.find(describe(inner)), "<image>")
    history = [
        {"role": "user", "content": [text("First "), image(png(1)), text(" and "), image(png(2)), text(" end")]},
        {"role": "assistant", "content": "I see"},
        {"role": "user", "content": "and now?"},
    ]
    prompt = prompts.render(ChatRequest.of(history))
    assert "First <image> and <image> end" in prompt
    assert prompt.index("end") < prompt.index("I see") < prompt.index("and now?")
    assert "type" not in prompt


@pytest.mark.parametrize("template", [PARTS_ONLY, EITHER, TEMPLATE])
def test_tools_are_explained_to_templates_that_want_parts(template: str) -> None:
    from radixbackend.chat import tools
    from radixbackend.chat.request import Tool

    inner = make_tokenizer(template)
    prompts = PromptTemplate(Tokenizer(inner), tools.find(describe(inner)), "<image>")
    asked = ChatRequest.of([{"role": "user", "content": [image(png(1)), text("go")]}], tools=[Tool("look", "Look.")])
    prompt = prompts.render(asked)
    assert "look" in prompt
    assert "<image>go" in prompt


# -- what is read ----------------------------------------------------------------------------------------------------


def test_data_urls() -> None:
    data = png(1)
    assert read_image(ImagePart(url(data)), ()) == data
    assert read_image(ImagePart("DATA:image/PNG;charset=x;base64," + base64.b64encode(data).decode()), ()) == data
    assert read_image(ImagePart("data:image/gif,%47%49F"), ()) == b"GIF"
    wrapped = base64.encodebytes(data).decode()
    assert read_image(ImagePart("data:image/png;base64," + wrapped), ()) == data


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("data:image/png;base64", "without a comma"),
        ("data:text/html;base64,AAAA", "of type 'text/html'"),
        ("data:,AAAA", "of type 'text/plain'"),
        ("data:image/png;base64,A", "not base64"),
        ("data:image/png;base64,AA*A", "not base64"),
        ("file:///etc/hostname", "neither with data: nor"),
        ("/etc/hostname", "neither with data: nor"),
        ("ftp://example.org/a.png", "neither with data: nor"),
        ("", "neither with data: nor"),
        ("https://example.org/a.png", "'example.org', from where images are not fetched"),
        ("http://[::1", "cannot be read"),
        ("https://example.com:99999/", "cannot be read"),
        ("https:///a.png", "on 'no host'"),
        ("https://allowed.example@example.org/a.png", "'example.org', from where"),
        ("https://user:secret@allowed.example/a.png", "not fetched"),
        ("https://allowed.example:8443/a.png", "'allowed.example:8443', from where"),
    ],
)
def test_urls_that_are_refused(bad: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_image(ImagePart(bad), ("allowed.example",))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    for part in (ImagePart(url(bytes(101))), ImagePart(url(bytes(1000))), ImagePart(data=bytes(101))):
        with pytest.raises(InvalidRequestError, match=r"has an image of .* bytes"):
            read_image(part, ())


class Site(http.server.BaseHTTPRequestHandler):
    """A web site on this machine that misbehaves as its paths say."""

    def do_GET(self) -> None:
        kind = self.path[1:]
        if kind.startswith("to:"):
            self.send_response(302)
            self.send_header("Location", kind[3:])
            self.end_headers()
            return
        self.send_response(404 if kind == "missing" else 200)
        self.end_headers()
        for _ in range(20 if kind == "slow" else 1):
            self.wfile.write(b"x" * 200 if kind == "large" else b"image")
            self.wfile.flush()
            if kind == "slow":
                time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Host and port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # readers leave early
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_images_are_fetched_from_allowed_hosts(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(path: str, *hosts: str) -> bytes:
        return read_image(ImagePart(f"http://{site}/{path}"), hosts or (site,))

    assert fetched("a.png") == b"image"
    assert fetched("to:/a.png") == b"image"

    def refusal(path: str, *hosts: str) -> str:
        with pytest.raises(InvalidRequestError) as caught:
            fetched(path, *hosts)
        return str(caught.value)

    port = site.partition(":")[2]
    assert "from where images are not fetched" in refusal("a.png", "127.0.0.1")
    assert f"'localhost:{port}', from where" in refusal(f"to:http://localhost:{port}/a.png")
    assert "from where images are not fetched" in refusal("to:file:///etc/hostname")
    assert "could not be fetched (404)" in refusal("missing")
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    assert "more than 100 bytes" in refusal("large")
    monkeypatch.setattr(images, "FETCH_SECONDS", 0.3)
    assert "longer than 0.3 seconds" in refusal("slow")
    assert "could not be fetched" in refusal("a.png\x00")


def test_a_loop_of_redirects_ends(site: str) -> None:
    path = "x"
    for _ in range(6):
        path = f"to:/{path}"
    with pytest.raises(InvalidRequestError, match="redirects more than 3 times"):
        read_image(ImagePart(f"http://{site}/{path}"), (site,))


def test_parts_of_messages(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    part = ImagePart.of_file(tmp_path / "a.png")
    assert part.data == png(1)
    assert "data" not in repr(part)
    assert part.as_url == url(png(1))
    assert ImagePart(data=b"\xff\xd8\xff").as_url.startswith("data:image/jpeg;")
    with pytest.raises(InvalidRequestError, match=r"nowhere.png' cannot be read: No such file"):
        ImagePart.of_file(tmp_path / "nowhere.png")
    message = Message.of({"role": "user", "content": [{"type": "image", "data": b"12"}, text("t"), image(b"3")]})
    assert [p.data for p in message.images] == [b"12", None]
    assert message.as_dict()["content"][0] == {"type": "image_url", "image_url": {"url": ImagePart(data=b"12").as_url}}
    with pytest.raises(InvalidRequestError, match="by file_id"):
        Message.of({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]})


# -- conversations with a model --------------------------------------------------------------------------------------


@contextmanager
def chatting(name: str, template: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[ChatService]:
    zoo = vision_zoo.build(name)
    for holder in (zoo.tokenizer, zoo.processor):
        monkeypatch.setattr(holder, "chat_template", template.replace("<image>", zoo.image))
    common = {"kv_cache_tokens": 600, "max_step_tokens": 16, "self_check": False}
    with Engine(name, plugins=[InMemory(zoo)], **common | options) as engine:
        yield ChatService(engine)


def reference(name: str, content: list[dict[str, Any]]) -> list[int]:
    """By transformers' own chat template, processor and generate."""
    zoo = vision_zoo.build(name)
    asked = [{"role": "user", "content": content}]
    inputs = zoo.processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    zoo.model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = zoo.model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("name", "template"), [("llava", PARTS_ONLY), ("qwen2_vl", EITHER), ("gemma3", EITHER)])
def test_a_conversation_is_what_transformers_makes_of_it(
    name: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chatting(name, template, monkeypatch) as chat:
        content = [image(png(1, 40, 24)), text(" and "), image(png(2)), text("?")]
        request = ChatRequest.of([{"role": "user", "content": content}], sampling=GREEDY)
        result = chat.complete(request)
        again = asyncio.run(chat.acomplete(request))
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        streamed = [token for delta in chat.stream(request) for token in delta.token_ids]
    shown = [{"type": "image", "image": picture(1, 40, 24)}, text(" and "), {"type": "image", "image": picture(2)}]
    expected = reference(name, [*shown, text("?")])
    assert list(result.choices[0].token_ids) == expected
    assert list(again.choices[0].token_ids) == streamed == expected


def test_a_second_turn_goes_on_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with chatting("llava", EITHER, monkeypatch) as chat:
        first = {"role": "user", "content": [image(png(1)), text("What?")]}
        answer = chat.complete(ChatRequest.of([first], sampling=GREEDY))
        history = [first, answer.message, {"role": "user", "content": "Why?"}]
        second = chat.complete(ChatRequest.of(history, sampling=GREEDY))
        assert second.usage.cached_tokens >= answer.usage.prompt_tokens
        assert chat.backend.stats().encoded_images == 1


def test_files_and_bytes_come_from_this_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    with chatting("llava", EITHER, monkeypatch) as chat:
        for number, part in enumerate((ImagePart(url(png(1))), ImagePart.of_file(tmp_path / "a.png"))):
            result = chat.complete(ChatRequest((Message("user", (part, TextPart("?"))),), sampling=GREEDY))
            assert bool(result.usage.cached_tokens) == bool(number)
        for given in (str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()):
            content = [{"type": "image_url", "image_url": {"url": given}}]
            with pytest.raises(InvalidRequestError, match=r"messages\[0\] has an image whose URL begins neither"):
                chat.complete(ChatRequest.of([{"role": "user", "content": content}]))


def test_what_is_wrong_is_said_of_its_message(monkeypatch: pytest.MonkeyPatch, site: str) -> None:
    with chatting("llava", EITHER, monkeypatch, max_images=2, allowed_image_hosts=[site]) as chat:

        def refusal(*contents: list[dict[str, Any]]) -> InvalidRequestError:
            with pytest.raises(InvalidRequestError) as caught:
                chat.complete(ChatRequest.of([{"role": "user", "content": content} for content in contents]))
            return caught.value

        fault = refusal([text("hi")], [image(png(1)), image(png(1)), image(png(1))])
        assert str(fault) == "messages[1] has more images than the 2 that a request may have"
        assert fault.param == "messages"
        assert str(refusal([image(b"no image")])).startswith("images[0] is no PNG")
        fetched = {"type": "image_url", "image_url": {"url": f"http://{site}/a.png"}}
        assert str(refusal([fetched])).startswith("images[0] is no PNG")  # it was fetched, and is no image
        fault = refusal([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])
        assert "messages[0] has an image on 'example.org'" in str(fault)
        assert "each image has the place of one" in str(refusal([image(png(1)), text("a second <image>")]))
        with pytest.raises(InvalidRequestError, match="not tokenized"):
            chat.tokenize(ChatRequest.of([{"role": "user", "content": [image(png(1))]}]))
        assert chat.backend.stats().prompt_tokens == 0


def test_a_model_without_vision_is_named() -> None:
    request = ChatRequest.of([{"role": "user", "content": [image(png(1))]}])
    with pytest.raises(InvalidRequestError, match=r"messages\[0\] has an image, and fake takes none: it has no vision"):
        ChatService(FakeBackend(["x"])).complete(request)
    backend = FakeBackend(["x"], images=ImagePolicy("", 4, "<image>"))
    assert ChatService(backend).complete(request).content == "x"

"""From messages to prompts: what templates see, what models without one get, and what a refusal says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from radixbackend.chat.request import ChatRequest, Tool
from radixbackend.chat.service import ChatService
from radixbackend.chat.template import PromptTemplate
from radixbackend.errors import InvalidRequestError
from radixbackend.tokenizer import Tokenizer
from tests.chat.fake import TEMPLATE, FakeBackend, describe, make_tokenizer

LOOK = Tool("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}})
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "a door", "tool_call_id": "c1"},
]


def render(template: str | None, messages: list[dict[str, Any]], **fields: Any) -> str:
    inner = make_tokenizer(template)
    from radixbackend.chat import tools

    return PromptTemplate(Tokenizer(inner), tools.find(describe(inner))).render(ChatRequest.of(messages, **fields))


def test_the_models_own_template() -> None:
    prompt = render(TEMPLATE, HISTORY, tools=[LOOK])
    assert prompt.startswith("<|im_start|>system\nTools:" + json.dumps(LOOK.as_dict()))
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>' in prompt
    assert prompt.endswith("<|im_start|>tool\na door<|im_end|>\n<|im_start|>assistant\n")
    assert render(TEMPLATE, HISTORY[:1], add_generation_prompt=False).endswith("hi<|im_end|>\n")


def test_variables_of_the_template() -> None:
    user = HISTORY[:1]
    assert render(TEMPLATE, user, chat_template_kwargs={"enable_thinking": True}).endswith("<think>\n")
    assert render(TEMPLATE, user, chat_template_kwargs={"enable_thinking": False}).endswith("</think>\n\n")
    assert render(TEMPLATE, user, reasoning_effort="none").endswith("</think>\n\n")
    assert render("{{ reasoning_effort }}", user, reasoning_effort="high") == "high"
    for name in ("tokenize", "chat_template", "add_generation_prompt"):
        with pytest.raises(InvalidRequestError, match=name) as fault:
            render(TEMPLATE, user, chat_template_kwargs={name: True})
        assert fault.value.param == "chat_template_kwargs"


def test_a_final_message_is_continued() -> None:
    messages = [*HISTORY[:1], {"role": "assistant", "content": "Well, I"}]
    assert render(TEMPLATE, messages, continue_final_message=True).endswith("assistant\nWell, I")
    assert render(None, messages, continue_final_message=True).endswith("assistant\nWell, I")


def test_a_model_without_a_template_gets_chatml_if_it_has_its_tokens() -> None:
    assert render(None, HISTORY[:1]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_model_without_a_template_gets_paragraphs() -> None:
    inner = make_tokenizer(None)
    vocabulary = {token: index for token, index in inner.get_vocab().items() if not token.startswith("<|im")}
    inner.get_vocab = lambda: vocabulary
    from radixbackend.chat.tools import DEFAULT

    template = PromptTemplate(Tokenizer(inner), DEFAULT)
    messages = [{"role": "system", "content": "Be brief."}, *HISTORY[:1]]
    assert template.render(ChatRequest.of(messages)) == "System: Be brief.\n\nUser: hi\n\nAssistant:"
    said = [*messages, {"role": "assistant", "content": "Well"}]
    continued = template.render(ChatRequest.of(said, continue_final_message=True))
    assert continued == "System: Be brief.\n\nUser: hi\n\nAssistant: Well"


def test_a_template_that_knows_no_tools_has_them_explained() -> None:
    prompt = render(None, HISTORY, tools=[LOOK])
    assert prompt.startswith("<|im_start|>system\nYou may call functions")
    assert json.dumps(LOOK.as_dict()["function"]) in prompt
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>' in prompt
    assert "<|im_start|>user\n<tool_response>\na door\n</tool_response>" in prompt
    with_system = render(None, [{"role": "system", "content": "Be brief."}, *HISTORY], tools=[LOOK])
    assert with_system.startswith("<|im_start|>system\nBe brief.\n\nYou may call")


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ messages[1].tool_calls[0].function.arguments | tojson }}", '{"at": "é"}'),
        ("{{ '!' + messages[1].tool_calls[0].function.arguments + '!' }}", '!{"at":"é"}!'),
        ("{{ messages[1].tool_calls[0].function.arguments ~ '!' }}", '{"at":"é"}!'),
        ("{{ messages[1].tool_calls[0].function.arguments }}", '{"at":"é"}'),
        ("{% for k, v in messages[1].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "at=é"),
        ("{{ messages[1].content == '' }}{{ messages[1].tool_calls | length }}", "True1"),
        ("{{ messages[0].tool_calls is defined }}", "False"),
        (
            "{% set m = messages[1] %}{% if m['content'] is not none and m['content'] %}?{% endif %}"
            "{{ m.tool_calls[0].function.arguments | tojson }}",
            '{"at": "é"}',
        ),
    ],
)
def test_arguments_and_absent_content_are_what_a_template_expects(template: str, written: str) -> None:
    assert render(template + "{# tool_calls tools #}", HISTORY, tools=[LOOK]) == written


def test_ids_of_calls_are_as_the_family_wants_them() -> None:
    """Mistral's templates refuse ids of other lengths, which a history from elsewhere has."""
    template = (
        "{# tools [TOOL_CALLS] #}{% set id = messages[1].tool_calls[0].id %}"
        "{% if id | length != 9 or messages[2] and messages[2].tool_call_id != id %}"
        "{{ raise_exception('bad id') }}{% endif %}"
        "{{ messages[1].tool_calls[0].function.arguments | tojson }}"
    )
    assert render(template, HISTORY, tools=[LOOK]) == '{"at": "é"}'


def test_developers_are_systems_where_a_template_does_not_know_them() -> None:
    messages = [{"role": "developer", "content": "d"}, *HISTORY[:1]]
    assert render(TEMPLATE, messages).startswith("<|im_start|>system\nd")
    assert render("{# developer #}{{ messages[0].role }}", messages) == "developer"


def test_a_templates_refusal_is_the_requests_fault() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match="roles must alternate") as fault:
        render(template, HISTORY)
    assert fault.value.param == "messages"
    with pytest.raises(InvalidRequestError, match="chat template refuses"):
        render("{{ messages[0].content.nope.nope }}", HISTORY)


def test_special_tokens_are_not_added_twice() -> None:
    backend = FakeBackend(["x"])
    backend.inner.add_bos_token = True
    service = ChatService(backend)
    request = ChatRequest.of(HISTORY[:1])
    assert backend.inner.decode(service.tokenize(request)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert service.count_tokens(HISTORY[:1]) == len(service.tokenize(request))
    assert service.count_tokens(HISTORY[:1], [LOOK]) > service.count_tokens(HISTORY[:1]) + 20

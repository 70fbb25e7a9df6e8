"""From messages to the prompt: the model's own chat template, or a plain default.

Rules. A template sees what its author expected: arguments of calls as objects where it looks into them and as JSON
text where it joins them to text, no content where it asks for none, no tools and calls where it knows nothing of them
(then they are explained and written as text), parts of content where it looks at nothing else, and the model's own
placeholder in the text where it knows nothing of images. Whatever a template raises is the request's fault.

A model without a template gets ChatML if it has ChatML's tokens, else each message as a paragraph that begins with
its role: ``System: …``, ``User: …``, ``Assistant: …``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from radixbackend.chat.formats.base import ToolFormat
from radixbackend.chat.request import ChatRequest, Message, TextPart, Tool, ToolCall
from radixbackend.chat.tools import instructions
from radixbackend.errors import InvalidRequestError
from radixbackend.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARAGRAPHS = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

RESERVED = frozenset(
    (
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "sanitize_control_tokens"),
    )
)
"""What chat_template_kwargs may not set: it is said elsewhere, or changes what the template's renderer returns."""

_PROBE = "what is to be seen here"
"""A text to look for in what a template writes."""

_ASKS_FOR_NO_CONTENT = re.compile(r"content['\"]?\]?\s+is\s+(not\s+)?none")


@dataclass(frozen=True, slots=True)
class _CallStyle:
    """How a template expects a message that calls: arguments as JSON text or objects, what stands for no content."""

    as_text: bool
    no_content: str | None

    def apply(self, fields: dict[str, Any]) -> dict[str, Any]:
        for call in fields["tool_calls"]:
            if not self.as_text:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return {**fields, "content": fields["content"] or self.no_content}


class PromptTemplate:
    """Renders one model's prompts; safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, tool_format: ToolFormat, placeholder: str = "") -> None:
        self._tokenizer = tokenizer
        self._placeholder = placeholder
        self._format = tool_format
        own = getattr(tokenizer.inner, "chat_template", None)
        self._default = None if own else _default(tokenizer)
        text = "\n".join(own.values()) if isinstance(own, Mapping) else own or ""
        self._knows_tools = "tools" in text
        self._knows_calls = "tool_calls" in text
        self._knows_developer = "developer" in text
        self._may_want_none = bool(_ASKS_FOR_NO_CONTENT.search(text))

    def render(self, request: ChatRequest) -> str:
        """The prompt's text; `InvalidRequestError` with the template's own message where it refuses."""
        variables: dict[str, Any] = {}
        if request.reasoning_effort is not None:
            variables["reasoning_effort"] = request.reasoning_effort
            if request.reasoning_effort == "none":
                variables["enable_thinking"] = variables["thinking"] = False
        variables |= request.chat_template_kwargs
        if wrong := RESERVED & variables.keys():
            raise InvalidRequestError(f"chat_template_kwargs cannot set {min(wrong)!r}", param="chat_template_kwargs")
        tools = [tool.as_dict() for tool in request.tools] if request.tools and self._knows_tools else None
        try:
            return self._apply(
                self._messages(request.messages, request.tools),
                tools=tools,
                add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
                continue_final_message=request.continue_final_message,
                **variables,
            )
        except Exception as fault:  # a template can raise whatever its author and Jinja think of
            raise InvalidRequestError(
                f"the model's chat template refuses the messages: {str(fault) or type(fault).__name__}",
                param="messages",
            ) from fault

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids; the template wrote the special tokens itself."""
        return tuple(self._tokenizer.encode(prompt, add_special_tokens=False))

    def _apply(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        text: str = self._tokenizer.inner.apply_chat_template(
            messages, chat_template=self._default, tokenize=False, **variables
        )
        return text

    @cached_property
    def _call_style(self) -> _CallStyle:
        """Found out by rendering a call: what does not come out as it went in is not what the template expects."""
        styles = [
            _CallStyle(as_text, no_content)
            for as_text in (False, True)
            for no_content in ((None, "") if self._may_want_none else ("",))
        ]
        return next((style for style in styles if self._fits(style)), _CallStyle(False, ""))

    def _fits(self, style: _CallStyle) -> bool:
        call = ToolCall("a1b2c3d4e", "probe", '{"probe_key": "probe_value"}')
        messages = [{"role": "user", "content": "hi"}, style.apply(Message("assistant", tool_calls=(call,)).as_dict())]
        try:
            text = self._apply(messages, tools=[Tool("probe").as_dict()])
        except Exception:  # not this way, then; `render` reports what the template says of real messages
            return False
        return "probe_key" in text and "probe_value" in text and "'probe_key'" not in text and '\\"' not in text

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template writes an image's place for a part that is one; else it is written into the text."""
        text = self._probe([{"type": "image"}, {"type": "text", "text": _PROBE}])
        return text.count(self._placeholder) == 1 and text.count(_PROBE) == 1 and "'type'" not in text

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether all text must come as a part: some templates of models with vision look at nothing else."""
        return _PROBE not in self._probe(_PROBE) and _PROBE in self._probe([{"type": "text", "text": _PROBE}])

    def _probe(self, content: Any) -> str:
        try:
            return self._apply([{"role": "user", "content": content}])
        except Exception:  # not this way, then
            return ""

    def _text(self, message: Message) -> str:
        """The content as text, with a placeholder for each image."""
        if not message.images:
            return message.text
        return "".join(p.text if isinstance(p, TextPart) else self._placeholder for p in message.content or ())

    def _messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
        rendered = [self._message(message) for message in messages]
        if tools and not self._knows_tools:
            text = instructions(self._format, tools)
            if rendered[0]["role"] == "system" and isinstance(rendered[0]["content"], str):
                rendered[0]["content"] = f"{rendered[0]['content']}\n\n{text}"
            else:
                rendered.insert(0, {"role": "system", "content": text})
        if self._wants_parts:
            for fields in rendered:
                if isinstance(fields["content"], str):
                    fields["content"] = [{"type": "text", "text": fields["content"]}]
        return rendered

    def _message(self, message: Message) -> dict[str, Any]:
        fields = replace(message, content=self._text(message)).as_dict()
        if message.images and self._takes_parts:
            fields["content"] = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in message.content or ()
            ]
        if message.role == "developer" and not self._knows_developer:
            fields["role"] = "system"
        if not self._knows_calls and (message.tool_calls or message.role == "tool"):
            return self._as_text(message)
        if message.tool_calls:
            for call in fields["tool_calls"]:
                call["id"] = self._format.template_id(call["id"])
            fields = self._call_style.apply(fields)
        if message.tool_call_id is not None:
            fields["tool_call_id"] = self._format.template_id(message.tool_call_id)
        return fields

    def _as_text(self, message: Message) -> dict[str, Any]:
        if message.role == "tool":
            return {"role": "user", "content": f"<tool_response>\n{self._text(message)}\n</tool_response>"}
        calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
        written = self._format.write(calls)
        return {"role": "assistant", "content": f"{message.text}\n{written}" if message.text else written}


def _default(tokenizer: Tokenizer) -> str:
    tokens = tokenizer.inner.get_vocab()
    return CHATML if "<|im_start|>" in tokens and "<|im_end|>" in tokens else PARAGRAPHS

"""What the chat tests share: a tokenizer with a ChatML-like template, and a backend that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Bpe
from transformers import PreTrainedTokenizerFast

from radixbackend.chat import reasoning, tools
from radixbackend.chat.formats.base import ToolFormat
from radixbackend.chat.reasoning import ReasoningFormat
from radixbackend.tokenizer import TextStream, Tokenizer
from radixbackend.types import Choice, GenerationRequest, GenerationResult, ImagePolicy, ModelInfo, TokenEvent, Usage

END = "<|im_end|>"
TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
Call them in <tool_call></tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'nobody' %}{{ raise_exception('nobody may not speak') }}{% endif %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ '\n' if message.content or not loop.first }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% elif enable_thinking is defined %}<think>
{% endif %}{% endif %}"""

CORPUS = [
    TEMPLATE,
    '{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}',
    "The weather in Rome is fine. Let me look it up for you and think about it first.",
]


def make_tokenizer(
    template: str | None = TEMPLATE,
    specials: Sequence[str] = (),
    added: Sequence[str] = ("<tool_call>", "</tool_call>"),
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ``specials`` are special tokens, ``added`` are tokens of their own but ordinary text."""
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.add_special_tokens([AddedToken(text, special=True) for text in specials])
    bpe.add_tokens([AddedToken(text, special=False) for text in added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)
    tokenizer.chat_template = template
    return tokenizer


def describe(tokenizer: Any, name: str = "fake") -> ModelInfo:
    added = frozenset(str(token) for token in tokenizer.added_tokens_decoder.values())
    return ModelInfo(name, "", tokenizer.chat_template or "", added)


@dataclass
class FakeStream:
    """Events of one request, sync and async; remembers whether it was closed."""

    events: Iterator[TokenEvent]
    closed: bool = False

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> TokenEvent:
        return next(self.events)

    def close(self) -> None:
        self.closed = True

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> TokenEvent:
        await asyncio.sleep(0)
        try:
            return next(self.events)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.close()


@dataclass
class FakeBackend:
    """A `Backend` that answers each choice with the next of ``texts``, as many tokens at a time as ``chunks`` says."""

    texts: Sequence[str] = ()
    inner: Any = field(default_factory=make_tokenizer)
    chunks: Callable[[int], int] = lambda step: 1
    ends: bool = True  # whether the text was all, or was cut there
    tool_format: ToolFormat | None = None
    reasoning_format: ReasoningFormat | None = None
    model_name: str = "fake"
    max_context: int = 4096
    weights_hash: str = "f00d"
    images: ImagePolicy = field(default_factory=ImagePolicy)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer(self.inner)
        info = describe(self.inner)
        self.tool_format = self.tool_format or tools.find(info)
        self.reasoning_format = self.reasoning_format or reasoning.find(info)
        self.asked: list[GenerationRequest] = []
        self.streams: list[FakeStream] = []
        self._next = 0

    def _events(self, request: GenerationRequest) -> Iterator[TokenEvent]:
        self.asked.append(request)
        for index in range(request.sampling.n):
            yield from self._choice(request, index)

    def _choice(self, request: GenerationRequest, index: int) -> Iterator[TokenEvent]:
        text = self.texts[self._next % len(self.texts)]
        self._next += 1
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        end = self.inner.eos_token_id
        tokens = [*ids, end] if self.ends else ids
        stream = TextStream(
            self.tokenizer, skip_special_tokens=request.sampling.skip_special_tokens, hidden_tokens=[end]
        )
        usage = Usage(len(request.prompt), len(tokens), 2, 1)
        step = 0
        while tokens:
            count = max(1, self.chunks(step))
            now, tokens, step = tokens[:count], tokens[count:], step + 1
            event = TokenEvent(index, tuple(now), stream.feed(now).text)
            if not tokens:
                reason = "stop" if self.ends else "length"
                last = event.text + stream.finish()
                event = replace(event, text=last, finish_reason=reason, complete=self.ends, usage=usage)  # type: ignore[arg-type]
            yield event

    def generate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult:
        events = list(self._events(prompt))
        choices = []
        for index in range(prompt.sampling.n):
            own = [event for event in events if event.index == index]
            text, last = "".join(event.text for event in own), own[-1]
            tokens = tuple(token for event in own for token in event.token_ids)
            choices.append(Choice(index, text, tokens, last.finish_reason or "stop", complete=last.complete))
        usages = [event.usage for event in events if event.usage is not None]
        total = replace(
            usages[0], completion_tokens=sum(u.completion_tokens for u in usages), forced_tokens=len(usages)
        )
        return GenerationResult(tuple(choices), total, tuple(prompt.prompt))  # type: ignore[arg-type]

    async def agenerate(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> GenerationResult:
        await asyncio.sleep(0)
        return self.generate(prompt)

    def stream(self, prompt: GenerationRequest, /, *, timeout: float | None = None) -> Any:
        self.streams.append(FakeStream(self._events(prompt)))
        return self.streams[-1]

    astream = stream

    def stats(self) -> Any:
        raise NotImplementedError

    def flush_cache(self) -> int:
        return 0

    def close(self) -> None:
        pass

"""``radix chat``: a conversation in the terminal.

Rules. Answers go to stdout as they come; what is said about them, and what the model thinks before it answers, goes to
stderr. Ctrl-C ends the answer that is being written, and nothing else. What fails ends its turn: the conversation goes
on as if it had not been said. Input that does not come from a terminal is a script: the same lines, without prompts,
and exit code 1 if a turn failed.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixbackend.cli.options import (
    Choice,
    EngineOptions,
    Grammar,
    JsonObject,
    JsonSchema,
    Model,
    Regex,
    Seed,
    ServerKey,
    TopP,
    constraint,
    engine_options,
)
from radixbackend.errors import ContextLengthError, RequestError
from radixbackend.types import Constraint, SamplingParams, Usage

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from radixbackend.chat import Chat, ChatDelta, ChatRequest, Message

PROMPT = "you> "
BLOCK = '"""'
HELP = """\
/system TEXT   say who the model is; without TEXT, say nothing
/reset         begin a new conversation; the system prompt stays
/tree          draw what is in the radix cache
/exit          leave, as Ctrl-D does

Ctrl-C stops the answer that is being written. A message of several lines begins and ends with \"\"\"."""


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: TopP = 1.0,
    seed: Seed = None,
    json_schema: JsonSchema = None,
    json_object: JsonObject = False,
    regex: Regex = None,
    choice: Choice = None,
    grammar: Grammar = None,
    think: Annotated[bool, typer.Option(help="Let a model that can think do so before it answers.")] = True,
    url: Annotated[str | None, typer.Option(help="Talk to the model behind this server: http://…/v1")] = None,
    api_key: ServerKey = None,
    option: EngineOptions = None,
) -> None:
    """Chat with a model in the terminal, with the cache in view. Input from a pipe is read as a script."""
    from rich.console import Console

    from radixbackend.chat import open_chat

    settings = Settings(
        SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed),
        constraint(json_schema, json_object, regex, choice, grammar),
        think,
    )
    options = engine_options(option)
    notes = Console(stderr=True, markup=False, highlight=False)
    interactive = sys.stdin.isatty()
    with open_chat(model, base_url=url, api_key=api_key, **options) as opened:
        draw = None if url else lambda: _draw(model, options, notes.width)
        session = Session(opened, settings, notes, system, draw)
        if interactive:
            notes.print(_greeting(opened), style="dim")
        failures = session.run(_messages(interactive, notes))
    if failures and not interactive:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Settings:
    """What holds for every turn."""

    sampling: SamplingParams
    constraint: Constraint | None = None
    think: bool = True

    def request(self, messages: list[Message]) -> ChatRequest:
        from radixbackend.chat import ChatRequest

        effort = None if self.think else "none"
        return ChatRequest.of(
            messages, response_format=self.constraint, sampling=self.sampling, reasoning_effort=effort
        )


class Session:
    """One conversation.

    Args:
        notes: where everything goes that is not an answer.
        draw: what ``/tree`` shows; None where the cache cannot be looked at.
    """

    def __init__(
        self,
        chat: Chat,
        settings: Settings,
        notes: Console,
        system: str | None = None,
        draw: Callable[[], RenderableType] | None = None,
    ) -> None:
        self.system = system
        self.turns: list[Message] = []
        self._chat = chat
        self._settings = settings
        self._notes = notes
        self._draw = draw

    def run(self, lines: Iterator[str]) -> int:
        """Answer until the input ends or says so; returns how many turns failed."""
        failures = 0
        for line in lines:
            command = re.match(r"/([a-z]+)(?:\s+(.*))?$", line, re.DOTALL)
            if command is not None and command[1] in ("exit", "quit"):
                break
            with suppress(KeyboardInterrupt):  # one Ctrl-C too many ends no more than the first
                if command is None:
                    failures += not self.say(line)
                else:
                    self._command(command[1], command[2] or "")
        return failures

    def say(self, text: str) -> bool:
        """One turn; False where it failed, and then it was never said."""
        from radixbackend.chat import Message

        head = [Message("system", self.system)] if self.system else []
        question = Message("user", text)
        answer = Answer(self._notes)
        try:
            with self._chat.stream(self._settings.request([*head, *self.turns, question])) as deltas:
                for delta in deltas:
                    answer.read(delta)
        except KeyboardInterrupt:
            answer.stopped = True
        except RequestError as error:
            answer.end()
            way_out = ". /reset begins a new conversation" if isinstance(error, ContextLengthError) else ""
            self._notes.print(f"radix: {' '.join(str(error).split())}{way_out}", style="red", soft_wrap=True)
            return False
        answer.end()
        self._notes.print(answer.summary(), style="dim", soft_wrap=True)
        if answer.text or not answer.stopped:
            self.turns += [question, Message("assistant", answer.text, reasoning=answer.reasoning or None)]
        return answer.complete or answer.stopped

    def _command(self, name: str, rest: str) -> None:
        if name == "system":
            self.system = rest or None
            self._notes.print("The system prompt is set." if rest else "There is no system prompt.", style="dim")
        elif name == "reset":
            self.turns = []
            self._notes.print("A new conversation.", style="dim")
        elif name == "tree" and self._draw is not None:
            self._notes.print(self._draw())
        elif name == "tree":
            self._notes.print("The cache of a server cannot be seen from here.", style="dim")
        else:
            known = "" if name == "help" else f"There is no /{name}.\n"
            self._notes.print(known + HELP, style="dim")


@dataclass
class Answer:
    """One answer as it is written."""

    notes: Console
    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    stopped: bool = False
    cut: bool = False
    complete: bool = True
    usage: Usage | None = None
    started: float = field(default_factory=time.monotonic)
    first: float | None = None

    def read(self, delta: ChatDelta) -> None:
        """Write what is new."""
        if self.first is None and (delta.token_ids or delta.content or delta.reasoning):
            self.first = time.monotonic()
        self.cut = self.cut or delta.finish_reason == "length"
        self.tokens += len(delta.token_ids)
        self.complete = self.complete and delta.complete
        self.usage = delta.usage or self.usage
        if delta.reasoning:
            self.reasoning += delta.reasoning
            self.notes.print(printable(delta.reasoning), end="", style="dim italic", soft_wrap=True)
        if delta.content:
            if self.reasoning and not self.text:
                self.notes.print("\n")
            self.text += delta.content
            print(printable(delta.content) if sys.stdout.isatty() else delta.content, end="", flush=True)

    def end(self) -> None:
        """Close the last line."""
        if self.text and not self.text.endswith("\n"):
            print(flush=True)

    def summary(self) -> str:
        now = time.monotonic()
        seconds = now - (self.first or now)
        tokens = self.usage.completion_tokens if self.usage else self.tokens
        parts = []
        if self.usage is not None:
            parts.append(f"{self.usage.prompt_tokens} prompt tokens, {self.usage.cached_tokens} cached")
        if self.first is not None:
            parts.append(f"first token after {self.first - self.started:.2f} s")
        speed = f", {(tokens - 1) / seconds:.1f} tok/s" if tokens > 1 and seconds > 0 else ""
        parts.append(f"{tokens} new{speed}")
        if self.stopped:
            parts.append("stopped")
        elif self.cut:
            parts.append("cut by --max-tokens" if self.complete else "cut by --max-tokens before it was complete")
        return f"[{' · '.join(parts)}]"


def printable(text: str) -> str:
    """With control characters shown instead of obeyed: what a model writes must not move the cursor."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _greeting(chat: Chat) -> str:
    context = f", {chat.max_context} tokens of context" if chat.max_context else ""
    return f"{chat.model_name}{context}. /help says what else there is."


def _messages(interactive: bool, notes: Console) -> Iterator[str]:
    """What is typed, message by message, until the input ends."""
    if interactive:
        with suppress(ImportError):  # it gives `input` a history and arrow keys; not every system has it
            import readline  # noqa: F401
    prompt = PROMPT if interactive else ""
    while True:
        try:
            line = input(prompt).strip()
            if line.startswith(BLOCK):
                line = _block(line[len(BLOCK) :])
        except EOFError:
            if interactive:
                notes.print()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            notes.print("\n/exit or Ctrl-D leaves.", style="dim")
            continue
        if line:
            yield line


def _block(line: str) -> str:
    """The lines up to the closing mark, or to the end of the input."""
    lines = [line]
    with suppress(EOFError):
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(input())
    return "\n".join(lines).rstrip().removesuffix(BLOCK).strip()


def _draw(model: str, options: dict[str, Any], width: int) -> RenderableType:
    """The tree of the engine that this process shares under the same name and options."""
    from radixbackend.backend import get_backend
    from radixbackend.cache_view import view_cache
    from radixbackend.cli.tree import draw

    with get_backend(model, **options) as share:
        return draw(view_cache(share), width)

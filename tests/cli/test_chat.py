from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from radixbackend.chat import ChatDelta, ChatRequest
from radixbackend.cli.chat import Answer, Session, Settings, printable
from radixbackend.errors import OutputValidationError, StepError
from radixbackend.types import SamplingParams, Usage

OBJECT = {"type": "object", "required": ["a"], "additionalProperties": False}
GREEDY = SamplingParams(max_tokens=8, temperature=0)


class Recorded:
    """A chat that answers with what it is told to, and remembers what it was asked; an error is raised."""

    model_name, max_context = "recorded", 100

    def __init__(self, *answers: list[ChatDelta | BaseException]) -> None:
        self.requests: list[ChatRequest] = []
        self.closed = 0
        self._answers = iter(answers)

    @contextmanager
    def stream(self, request: ChatRequest) -> Iterator[Iterator[ChatDelta]]:
        self.requests.append(request)
        try:
            yield self._deltas()
        finally:
            self.closed += 1

    def _deltas(self) -> Iterator[ChatDelta]:
        for delta in next(self._answers):
            if isinstance(delta, BaseException):
                raise delta
            yield delta


def said(text: str, **rest: Any) -> list[ChatDelta | BaseException]:
    usage = Usage(prompt_tokens=9, completion_tokens=len(text), cached_tokens=4)
    return [*(ChatDelta(content=char) for char in text), ChatDelta(finish_reason="stop", usage=usage, **rest)]


class Run:
    """A session over a script."""

    def __init__(self, *answers: list[ChatDelta | BaseException], system: str | None = None) -> None:
        self.chat = Recorded(*answers)
        self.notes = Console(file=io.StringIO(), width=100, markup=False, highlight=False)
        self.session = Session(self.chat, Settings(GREEDY), self.notes, system)  # type: ignore[arg-type]

    def __call__(self, *lines: str) -> int:
        return self.session.run(iter(lines))

    @property
    def asked(self) -> list[list[tuple[str, str]]]:
        return [[(m.role, m.text) for m in request.messages] for request in self.chat.requests]

    @property
    def noted(self) -> str:
        return self.notes.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_turns_build_on_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(said("Hi!"), said("Ten."), system="Be kind.")
    assert run("Hello", "When?") == 0
    first = [("system", "Be kind."), ("user", "Hello")]
    assert run.asked == [first, [*first, ("assistant", "Hi!"), ("user", "When?")]]
    assert capsys.readouterr().out == "Hi!\nTen.\n"
    assert re.match(r"\[9 prompt tokens, 4 cached · first token after 0\.\d\d s · 3 new", run.noted)


def test_commands() -> None:
    run = Run(*(said("x") for _ in range(4)))
    run("a", "/system Be brief.", "b", "/reset", "c", "/system", "/reset", "d", "/exit", "e")
    assert run.asked[1] == [("system", "Be brief."), ("user", "a"), ("assistant", "x"), ("user", "b")]
    assert run.asked[2] == [("system", "Be brief."), ("user", "c")]
    assert run.asked[3:] == [[("user", "d")]]


def test_unknown_command_is_not_sent_and_explained() -> None:
    run = Run()
    assert run("/nope") == 0
    assert run.asked == []
    assert "There is no /nope" in run.noted
    assert "/reset" in run.noted


def test_text_that_begins_with_a_slash_is_sent() -> None:
    run = Run(said("x"))
    run("/etc/hosts is a file, isn't it?")
    assert len(run.asked) == 1


def test_stopped_answer_is_kept_as_far_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run([ChatDelta(content="Once", token_ids=(1, 2)), KeyboardInterrupt()], said("Yes."))
    assert run("Tell me", "Go on") == 0
    assert run.chat.closed == 2
    assert run.asked[1] == [("user", "Tell me"), ("assistant", "Once"), ("user", "Go on")]
    assert "2 new" in run.noted
    assert "stopped]" in run.noted
    assert capsys.readouterr().out == "Once\nYes.\n"


def test_answer_stopped_before_it_began_was_never_asked_for() -> None:
    run = Run([KeyboardInterrupt()], said("Yes."))
    run("Tell me", "Go on")
    assert run.asked[1] == [("user", "Go on")]


def test_a_second_interrupt_ends_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run([ChatDelta(content="Once"), KeyboardInterrupt()], said("Yes."))
    summary, again = Answer.summary, iter((KeyboardInterrupt(),))

    def hammered(answer: Answer) -> str:
        for interrupt in again:
            raise interrupt
        return summary(answer)

    monkeypatch.setattr(Answer, "summary", hammered)
    run("Tell me", "Go on")
    assert len(run.asked) == 2


@pytest.mark.parametrize("error", [StepError("boom"), OutputValidationError("no", keyword="k", path="", text="{")])
def test_failed_turn_was_never_said(error: Exception) -> None:
    run = Run([ChatDelta(content="Half"), error], said("Yes."))
    assert run("Tell me", "Go on") == 1
    assert run.asked[1] == [("user", "Go on")]
    assert f"radix: {error}" in run.noted


def test_cut_answers_are_told_from_broken_ones() -> None:
    run = Run(
        [ChatDelta(content="abc", finish_reason="length")],
        [ChatDelta(content='{"a', finish_reason="length", complete=False)],
    )
    assert run("a") == 0
    assert "cut by --max-tokens]" in run.noted
    assert run("b") == 1
    assert "before it was complete" in run.noted


def test_reasoning_is_not_part_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run([ChatDelta(reasoning="Hmm. "), ChatDelta(reasoning="Ten?"), *said("Ten.")], said("Yes."))
    run("When?", "Sure?")
    assert capsys.readouterr().out == "Ten.\nYes.\n"
    assert run.noted.startswith("Hmm. Ten?\n")
    assert run.chat.requests[1].messages[1].reasoning == "Hmm. Ten?"


def test_settings_reach_the_request() -> None:
    from radixbackend.types import Constraint

    messages = Run(said("")).session.turns
    request = Settings(GREEDY, Constraint.json_object(), think=False).request([*messages, _user("x")])
    assert request.sampling == GREEDY
    assert request.reasoning_effort == "none"
    assert request.response_format is not None
    assert request.response_format.constraint == Constraint.json_object()
    assert Settings(GREEDY).request([_user("x")]).reasoning_effort is None


def _user(text: str) -> Any:
    from radixbackend.chat import Message

    return Message("user", text)


def test_what_a_model_writes_moves_no_cursor() -> None:
    assert printable("a\x1b[2Jb\r\x07\x9bc\n\td") == "a\\x1b[2Jb\\x0d\\x07\\x9bc\n\td"


# -- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    def typed(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return typed


def test_script_from_a_pipe(radix: Any, script: Any, small: Any, tiny_checkpoint: Path) -> None:
    script("Hello", "", '"""When is', 'breakfast?"""', "/tree", "/exit", "not read")
    code, out, err = radix("chat", tiny_checkpoint, "--temperature", 0, "--max-tokens", 12, *small)
    assert code == 0
    assert out.strip()
    found = [(int(a), int(b)) for a, b in re.findall(r"\[(\d+) prompt tokens, (\d+) cached", err)]
    assert len(found) == 2
    assert found[0][1] == 0
    assert 0 < found[1][1] < found[1][0], "the second turn finds the first"
    assert "User: Hello" in err, "the tree shows what was said"
    assert "you>" not in out + err, "nobody is there to be prompted"


def test_system_prompt_and_schema(radix: Any, script: Any, small: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({**OBJECT, "properties": {"a": {"enum": [1]}}}))
    script("Which?", "And now?")
    args = ("--system", "Be brief.", "--json-schema", schema, "--no-think")
    code, out, _ = radix("chat", tiny_checkpoint, *args, *small)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [{"a": 1}, {"a": 1}]


def test_failed_turn_fails_the_script_and_not_the_next_turn(
    radix: Any, script: Any, small: Any, tiny_checkpoint: Path
) -> None:
    script("word " * 2000, "Hello")
    code, _, err = radix("chat", tiny_checkpoint, "--max-tokens", 3, *small)
    assert code == 1
    assert len(re.findall(r"^radix: .*context.*/reset", err, re.MULTILINE)) == 1
    assert "3 new" in err


def test_interrupt_ends_the_answer_and_not_the_program(small: Any, tiny_checkpoint: Path) -> None:
    """A real SIGINT, in the middle of an answer that would go on."""
    options = ["-o", "self_check=false", "-o", "kv_cache_tokens=4096"]
    command = [
        sys.executable,
        "-c",
        "from radixbackend.cli import main; main()",
        "chat",
        str(tiny_checkpoint),
        *options,
    ]
    with subprocess.Popen(
        [*command, "--max-tokens", "900", "--regex", "[0-9]{900}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Whatever runs these tests in the background ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(b"/system Be brief.\n/exit\n", timeout=60)
    assert process.returncode == 0, err
    assert b"stopped]" in err
    assert b"The system prompt is set." in err
    assert len(out.strip()) < 880, "it went on to its end"

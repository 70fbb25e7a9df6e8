"""The engine with overlap on CPU tensors, where a launch computes at once: the same answers as without."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixbackend import Constraint, Engine, GenerationRequest, SamplingParams, errors, hookimpl
from radixbackend.config import EngineConfig
from radixbackend.engine import draw as drawing
from radixbackend.engine import sampler
from radixbackend.engine.attention.torch_native import TorchAttention
from radixbackend.engine.draw import FEW
from radixbackend.engine.executor import ModelExecutor
from radixbackend.engine.model_loader import LoadedModel
from radixbackend.engine.model_runner import ModelRunner
from radixbackend.engine.plan import Sampled, SampleSpec, SequenceId, SequencePlan, StepPlan
from radixbackend.engine.runner import Logits
from radixbackend.engine.sampler import Drawn, Draws, Sampler
from radixbackend.engine.transfer import fill_in
from radixbackend.errors import IntegrityError
from radixbackend.types import StepRecord
from tests import zoo
from tests.engine.sampling import BrokenMatcher, FakeMatcher
from tests.engine.test_constrained import PERSON
from tests.engine.test_cuda_graphs import FakeDevice, Recorder


class Watch:
    """A plugin: the steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    @hookimpl
    def radix_step_finished(self, record: StepRecord) -> None:
        self.steps.append(record)

    @property
    def ahead(self) -> int:
        return sum(record.ahead for record in self.steps)


@contextmanager
def an_engine(checkpoint: Path, **options: Any) -> Iterator[tuple[Engine, Watch]]:
    watch = Watch()
    options = {"kv_cache_tokens": 700, "max_running": 6, "max_step_tokens": 32, "self_check": False} | options
    plugins = [watch, *options.pop("plugins", [])]
    with Engine(checkpoint, plugins=plugins, **options) as engine:
        yield engine, watch
        end = time.monotonic() + 10
        while (stats := engine.stats()).running or stats.waiting or stats.slots_held:
            assert time.monotonic() < end, f"something is left: {stats}"
            time.sleep(0.01)
        engine._parts.loop.call(engine._parts.cache.check).result()
        assert engine.stats().quarantines == 0


def asked() -> list[GenerationRequest]:
    """Everything that goes ahead, and some that does not."""
    rng = random.Random(3)
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "ignore_eos": True, "n": 3},
        {"seed": 1, "temperature": 1.5},
        {"seed": 2, "top_p": 0.8},
        {"seed": 3, "temperature": 100.0, "top_p": 0.99},
        {"seed": 4, "top_k": 5, "min_p": 0.01, "n": 2},
        {"seed": 5, "min_tokens": 10, "temperature": 3.0},
        {"seed": 6, "logit_bias": {70: 3.0}},
        {"seed": 7, "stop": ("e", "a"), "temperature": 2.0},
        {"seed": 8, "stop_token_ids": tuple(range(100, 140)), "temperature": 3.0},
        {"seed": 9, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "max_tokens": 8},
        {"temperature": 0, "logprobs": 2, "max_tokens": 8},
        {"temperature": 0, "prompt_logprobs": 0, "max_tokens": 8},
        {"seed": 10, "max_tokens": 1},
        {"max_tokens": 0},
    ]
    shared = [rng.randrange(5, 200) for _ in range(40)]
    requests = []
    for i, params in enumerate(options):
        own = [rng.randrange(5, 200) for _ in range(rng.randrange(1, 50))]
        requests.append(
            GenerationRequest(tuple(shared[: 7 * (i % 4)] + own), SamplingParams(**{"max_tokens": 24} | params))
        )
    requests.append(GenerationRequest((7, 8, 9), SamplingParams(seed=4, max_tokens=20), Constraint.regex("[ab]{3,9}")))
    return requests


def test_the_answers_are_the_same(tiny_checkpoint: Path) -> None:
    found = {}
    for overlap in (False, True):
        with an_engine(tiny_checkpoint, overlap=overlap) as (engine, watch):
            alone = [engine.generate(request) for request in asked()[:9]]
            together = engine.generate(asked())
            found[overlap] = [
                [(c.token_ids, c.text, c.finish_reason, c.stop_reason) for c in result.choices]
                for result in (*alone, *together)
            ]
            assert (watch.ahead > 60) if overlap else not watch.ahead
    assert found[True] == found[False]


FREE_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def asked_with_grammars() -> list[GenerationRequest]:
    """Grammars of every kind, beside sequences without."""
    rng = random.Random(4)
    person, text = Constraint.json_schema(PERSON), Constraint.json_schema(FREE_TEXT)
    regex = Constraint.regex(r"[a-f]{3}-(\d{2,4}|none at all)")
    options: list[tuple[Constraint | None, dict[str, Any]]] = [
        (person, {"temperature": 0}),
        (person, {"seed": 1, "n": 2}),
        (person, {"seed": 2, "top_p": 0.8, "temperature": 1.5}),
        (person, {"seed": 3, "stop": ('"age"', "re")}),
        (person, {"seed": 4, "stop_token_ids": tuple(range(100, 140))}),
        (person, {"seed": 5, "max_tokens": 9}),  # cut
        (person, {"seed": 6, "logprobs": 1}),  # has all wait
        (person, {"seed": 7, "frequency_penalty": 0.5}),
        (text, {"seed": 8, "max_tokens": 30}),  # closed by steering
        (text, {"seed": 9, "max_tokens": 40, "min_tokens": 35}),
        (text, {"temperature": 0, "max_tokens": 45, "n": 2}),
        (regex, {"seed": 10, "n": 3}),
        (regex, {"seed": 11, "min_tokens": 4}),
        (Constraint.regex("[ab]*"), {"seed": 12, "ignore_eos": True, "max_tokens": 20}),
        (Constraint.regex("x{0,6}"), {"seed": 13, "min_tokens": 9}),  # ends before
        (Constraint.choice(["yes", "no", "it depends on what is asked"]), {"seed": 14, "n": 4}),
        (Constraint.choice(["all of it is forced"]), {"seed": 18, "min_tokens": 50}),
        (Constraint.json_object(), {"seed": 15, "max_tokens": 40}),
        (None, {"temperature": 0, "ignore_eos": True, "max_tokens": 60}),
        (None, {"seed": 16, "top_p": 0.9}),
        (None, {"seed": 17, "temperature": 2.0, "stop": ("e",)}),
    ]
    return [
        GenerationRequest(
            tuple(rng.randrange(5, 200) for _ in range(rng.randrange(1, 50))),
            SamplingParams(**{"max_tokens": 110} | params),
            constraint,
        )
        for constraint, params in options
    ]


@pytest.mark.parametrize(("grammar", "jump_forward"), [("xgrammar", True), ("xgrammar", False), ("llguidance", True)])
def test_the_answers_of_grammars_are_the_same(tiny_checkpoint: Path, grammar: str, jump_forward: bool) -> None:
    found: dict[bool, list[Any]] = {}
    requests = asked_with_grammars()
    for overlap in (False, True):
        with an_engine(tiny_checkpoint, overlap=overlap, grammar=grammar, jump_forward=jump_forward) as (engine, watch):
            results = [engine.generate(request) for request in (requests[0], requests[8])]
            alone = watch.ahead
            results += engine.generate(requests)
            found[overlap] = [
                (c.token_ids, c.text, c.finish_reason, c.stop_reason, c.complete) for r in results for c in r.choices
            ]
            stats = engine.stats()
            assert (stats.drafted_tokens > 20) is jump_forward
            assert (stats.accepted_tokens > 20) is jump_forward
            assert (alone > 30 and watch.ahead > alone + 30) if overlap else not watch.ahead
    assert found[True] == found[False]
    ends = {(end, complete) for _, _, end, _, complete in found[True]}
    assert ends == {("stop", True), ("stop", False), ("length", True), ("length", False)}


def test_aborts_leave_the_grammars_beside_them_alone(tiny_checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=110, seed=3)
    constraint = Constraint.json_schema(PERSON)
    prompts = [[40 + i, 7, 8, 9] for i in range(8)]
    with an_engine(tiny_checkpoint, overlap=True) as (engine, watch):
        expected = [engine.generate(p, params, constraint=constraint).token_ids for p in prompts]
        found: dict[int, tuple[int, ...]] = {}

        def ask(i: int) -> None:
            with engine.stream(prompts[i], params, constraint=constraint) as stream:
                events = itertools.islice(stream, None if i % 2 else i + 1)
                found[i] = tuple(token for event in events for token in event.token_ids)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for i in range(8):
            assert found[i] == (expected[i] if i % 2 else expected[i][: len(found[i])])
        assert engine.stats().aborted
        assert watch.ahead > 100


def test_streams_dropped_midway_leave_the_others_alone(tiny_checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    prompts = [[40 + i, 7, 8, 9, *range(60, 60 + 3 * i)] for i in range(8)]
    with an_engine(tiny_checkpoint, overlap=True) as (engine, watch):
        expected = [engine.generate(p, params).token_ids for p in prompts]
        engine.flush_cache()
        found: dict[int, tuple[int, ...]] = {}

        def ask(i: int) -> None:
            if i % 2:
                found[i] = engine.generate(prompts[i], params).token_ids
                return
            with engine.stream(prompts[i], params) as stream:
                found[i] = tuple(t for event, _ in zip(stream, range(i + 1)) for t in event.token_ids)  # noqa: B905

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for i in range(8):
            assert found[i] == expected[i][: len(found[i])]
            assert len(found[i]) >= (60 if i % 2 else 1)
        assert watch.ahead > 100
        assert engine.generate(prompts, params)[3].token_ids == expected[3]  # from what they left in the cache


def test_a_model_that_raises_ends_the_one_it_raises_for(tiny_checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    with an_engine(tiny_checkpoint, overlap=True) as (engine, _):
        expected = engine.generate([7, 8, 9], params).token_ids

        def fail(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if (kwargs["input_ids"] == 222).any():
                raise RuntimeError("cannot read 222")

        model = engine._parts.model.model
        handle = model.register_forward_pre_hook(fail, with_kwargs=True)
        stream = iter(engine.stream([7, 8, 9], params))
        found = list(next(stream).token_ids)
        with pytest.raises(errors.StepError, match="cannot read 222"):
            engine.generate([9, 222, 9], params)
        handle.remove()
        found += [token for event in stream for token in event.token_ids]
        assert tuple(found) == expected
        assert engine.generate([9, 222, 9], params)


def test_by_graph(tiny_checkpoint: Path) -> None:
    prompts = [[40 + i, 7, 8, 9, *range(60, 60 + i)] for i in range(5)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    recorder = Recorder()
    options = {"attention": "fake", "plugins": [FakeDevice()], "max_running": 4}
    with an_engine(tiny_checkpoint, overlap=True, **options) as (engine, watch):
        expected = [r.token_ids for r in engine.generate(prompts, params)]
        engine.flush_cache()
        runner: ModelRunner = engine._parts.loop._executor._runner  # type: ignore[attr-defined]
        engine._parts.loop.call(lambda: runner.capture_decodes(4, 128, recorder)).result(60)
        assert [r.token_ids for r in engine.generate(prompts, params)] == expected
        assert watch.ahead > 30
    assert recorder.replayed >= 11


@pytest.mark.parametrize(
    ("asked", "device", "overlaps"),
    [(None, "cpu", False), (True, "cpu", True), (None, "cuda", True), (False, "cuda", False)],
)
def test_it_is_on_where_it_pays(asked: bool | None, device: str, overlaps: bool) -> None:
    assert EngineConfig("m", overlap=asked).overlaps(device) is overlaps


# -- executor and sampler ----------------------------------------------------------------------------------------------


def an_executor() -> ModelExecutor:
    runner = ModelRunner(LoadedModel.of(zoo.build("llama")), TorchAttention())
    runner.allocate(100)
    return ModelExecutor(runner, Sampler(zoo.VOCAB, ()))


def share(number: int, tokens: list[int], start: int, params: SamplingParams, **options: Any) -> SequencePlan:
    history = np.array(options.pop("history", tokens), np.int32)
    unknown = int(options.get("ahead") is not None)
    spec = SampleSpec(params, number, history, 3, (), options.pop("matcher", None), 8, unknown)
    slots = np.arange(20 * number, 20 * number + start + len(tokens), dtype=np.int32)
    return SequencePlan(SequenceId(number), np.array(tokens, np.int32), start, slots, spec, **options)


def test_tokens_are_taken_from_the_step_before() -> None:
    params = [SamplingParams(temperature=0), SamplingParams(temperature=2.0, top_p=0.9)]
    prompts = [[60, 61, 62], [63, 64, 65]]
    first = StepPlan(1, tuple(share(i, prompts[i], 0, params[i]) for i in range(2)))
    known = an_executor()
    drawn = [s.tokens[0] for s in known.launch(first).result().sampled]
    second = StepPlan(2, tuple(share(i, [drawn[i]], 3, params[i], history=[*prompts[i], drawn[i]]) for i in range(2)))
    expected = [s.tokens for s in known.launch(second).result().sampled]

    ahead = an_executor()
    early = ahead.launch(first)
    # In another order, and next to a prompt: each takes the token of its own row.
    turned = [share(i, [0], 3, params[i], history=prompts[i], ahead=i) for i in (1, 0)]
    late = ahead.launch(StepPlan(2, (turned[0], share(2, [70, 71], 0, params[0]), turned[1])))
    assert [s.tokens[0] for s in early.result().sampled] == drawn
    found = late.result().sampled
    assert [found[2].tokens, found[0].tokens] == expected


def test_behind_a_step_that_failed_there_is_nothing_to_take() -> None:
    executor = an_executor()
    params = SamplingParams(temperature=0)
    executor.launch(StepPlan(1, (share(0, [60, 61, 62], 0, params),))).result()
    with pytest.raises(IndexError):
        executor.launch(StepPlan(2, (share(0, [10**6], 3, params, history=[60, 61, 62, 10**6]),)))
    with pytest.raises(IntegrityError, match="no step before it draws"):
        executor.launch(StepPlan(3, (share(0, [0], 4, params, history=[60, 61, 62], ahead=0),)))


SIZE = 50


def some_of(accepted: tuple[int, ...]) -> set[int]:
    """What a grammar allows: it depends on every token before."""
    return {(sum(accepted) + 3 * len(accepted) + i) % SIZE for i in (0, 7, 20)}


def best(row: torch.Tensor, *accepted: int) -> int:
    return max(some_of(accepted), key=lambda token: row[token].item())


def masked(
    number: int,
    matcher: FakeMatcher | None,
    known: tuple[int, ...] = (),
    *,
    drafts: tuple[int, ...] = (),
    ahead: int | None = None,
    assumed: int = 0,
) -> SequencePlan:
    """Greedy, behind a prompt of three tokens and what is known of the output."""
    unknown = int(ahead is not None)
    history = np.array([1, 2, 3, *known], np.int32)
    remaining = 90 - len(known) - unknown
    greedy = SamplingParams(temperature=0)
    spec = SampleSpec(greedy, 0, history, 3, drafts, matcher, remaining, unknown, assumed)
    tokens = np.array([0, *drafts], np.int32)
    start = 2 + spec.num_generated
    slots = np.arange(start + len(tokens), dtype=np.int32)
    return SequencePlan(SequenceId(number), tokens, start, slots, spec, ahead=ahead)


def draw(sampling: Sampler, rows: torch.Tensor, before: Drawn | None, *shares: SequencePlan) -> Draws:
    offsets = np.cumsum([0, *(share.num_drawn for share in shares)]).tolist()
    return sampling.launch(StepPlan(1, shares), Logits(rows.clone(), tuple(offsets)), before)


def test_a_grammar_is_asked_behind_what_the_step_before_draws_and_stays_where_it_is() -> None:
    rows = torch.randn(2, 8, SIZE, generator=torch.Generator().manual_seed(0))
    matchers = [FakeMatcher(some_of, SIZE) for _ in range(5)]
    sampling = Sampler(SIZE, ())
    a, b = rows[0], rows[1]
    # In flight: the first has no drafts, the second two that are right, the third one that is not drawn, the fourth one
    # that its grammar refuses.
    plain = best(a[0])
    right = best(a[1]), best(a[2], best(a[1]))
    last = best(a[3], *right)
    wrong = min(some_of(()) - {best(a[4])})
    forbidden = min(set(range(SIZE)) - some_of(()))
    early = draw(
        sampling,
        a,
        None,
        masked(0, matchers[0]),
        masked(1, matchers[1], drafts=right),
        masked(2, matchers[2], drafts=(wrong,)),
        masked(4, matchers[4], drafts=(forbidden,)),
    )

    # Behind it, in another order and with two more between them: the first has a draft that is right now.
    foretold = best(b[3], plain)
    late = draw(
        sampling,
        b,
        early.drawn,
        masked(1, matchers[1], right, ahead=1, assumed=2),
        masked(5, None),
        masked(2, matchers[2], (wrong,), ahead=2, assumed=1),
        masked(0, matchers[0], ahead=0, drafts=(foretold,)),
        masked(3, matchers[3]),
        masked(4, matchers[4], (forbidden,), ahead=3, assumed=1),
    )
    assert [s.tokens for s in early.result().sampled] == [(plain,), (*right, last), (best(a[4]),), (best(a[6]),)]
    found = late.result().sampled
    assert found[0].tokens == (best(b[0], *right, last),)
    assert found[1].tokens == (b[1].argmax().item(),)
    assert found[2].error is None  # whatever it is
    assert found[3].tokens == (foretold, best(b[4], plain, foretold))
    assert found[4].tokens == (best(b[5]),)
    assert found[5].error is None
    assert not any(matcher.accepted for matcher in matchers)
    assert [matcher.remaining for matcher in matchers] == [
        [90, 89, 88],
        [90, 89, 88, 87],
        [90, 89, 88],
        [90],
        [90],
    ]


def test_those_that_wait_are_masked_last_and_keep_their_rows() -> None:
    rows = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(2))
    sampling = Sampler(SIZE, ())
    early = draw(sampling, rows[0, :2], None, *(masked(i, FakeMatcher(some_of, SIZE)) for i in range(2)))
    drawn = [best(row) for row in rows[0, :2]]
    late = draw(
        sampling,
        rows[1],
        early.drawn,
        masked(1, FakeMatcher(some_of, SIZE), ahead=1),
        masked(2, FakeMatcher(some_of, SIZE)),
        masked(0, FakeMatcher(some_of, SIZE), ahead=0),
    )
    found = [s.tokens[0] for s in late.result().sampled]
    assert found == [best(rows[1, 0], drawn[1]), best(rows[1, 1]), best(rows[1, 2], drawn[0])]


@pytest.mark.parametrize("method", ["fill_mask", "accept", "rollback"])
def test_a_grammar_that_fails_behind_the_step_before_ends_its_own_sequence(method: str) -> None:
    rows = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(1))
    sampling = Sampler(SIZE, ())
    good, broken = FakeMatcher(some_of, SIZE), BrokenMatcher(method)
    early = draw(sampling, rows[0], None, masked(0, good), masked(1, FakeMatcher(some_of, SIZE)), masked(2, None))
    late = draw(
        sampling, rows[1], early.drawn, masked(2, None, ahead=2), masked(1, broken, ahead=1), masked(0, good, ahead=0)
    )
    free, failed, constrained = late.result().sampled
    assert failed.error == "the grammar failed: dead end"
    assert free.tokens == (rows[1, 0].argmax().item(),)
    assert constrained.tokens == (best(rows[1, 2], best(rows[0, 0])),)
    # What the step before brought it is still to be taken in.
    assert method == "rollback" or not broken.accepted


def test_of_a_step_in_which_nothing_could_be_drawn_nothing_is_expected() -> None:
    sampling = Sampler(SIZE, ())
    early = draw(sampling, torch.zeros(1, SIZE), None, masked(0, BrokenMatcher("fill_mask")))
    late = draw(sampling, torch.zeros(1, SIZE), early.drawn, masked(0, BrokenMatcher("accept"), ahead=0))
    assert [draws.result().sampled[0].error for draws in (early, late)] == ["the grammar failed: dead end"] * 2


def test_a_grammar_waits_while_the_device_computes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    executor, log = an_executor(), []
    run, wait = executor._runner.run, sampler.Fetch.wait

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (log.append(name), function(*args))[1]

    monkeypatch.setattr(executor._runner, "run", note("run", run))
    monkeypatch.setattr(sampler.Fetch, "wait", note("wait", wait))
    params = SamplingParams(temperature=0)
    executor.launch(StepPlan(1, tuple(share(i, [60, 61, 62], 0, params) for i in range(2))))
    executor.launch(StepPlan(2, tuple(share(i, [0], 3, params, history=[60, 61, 62], ahead=i) for i in range(2))))
    assert log == ["run", "run"]
    matcher = FakeMatcher(lambda accepted: {7} if accepted else None, zoo.VOCAB)
    behind = [share(i, [0], 4, params, history=[60, 61, 62, 63], ahead=i, matcher=matcher) for i in range(2)]
    draws = executor.launch(StepPlan(3, tuple(behind)))
    assert log == ["run", "run", "run", "wait"]
    assert [s.tokens for s in draws.result().sampled] == [(7,), (7,)]


def test_a_nucleus_wider_than_what_was_sorted_is_drawn_again_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = -1e-4 * torch.arange(4 * FEW).repeat(8, 1)
    rows[7] *= 1e5  # steep
    plan = StepPlan(1, tuple(share(i, [1, 2, 3], 0, SamplingParams(top_p=0.9)) for i in range(8)))

    def launch(sampling: Sampler) -> tuple[list[int], tuple[Sampled, ...]]:
        draws = sampling.launch(plan, Logits(rows.clone(), tuple(range(9))))
        return draws.drawn.tokens.tolist(), draws.result().sampled

    sampling = Sampler(rows.shape[1], ())
    on_the_device, found = launch(sampling)
    assert [s.redrawn for s in found] == [a != s.tokens[0] for a, s in zip(on_the_device, found, strict=True)]
    assert sum(s.redrawn for s in found) > 3
    assert not found[7].redrawn
    on_the_device, again = launch(sampling)
    assert on_the_device == [s.tokens[0] for s in again]  # flat once, flat again: sorted in full at once
    assert not any(s.redrawn for s in again)
    monkeypatch.setattr(drawing, "FEW", rows.shape[1])
    alike = launch(Sampler(rows.shape[1], ()))[1]
    assert [s.tokens for s in found] == [s.tokens for s in again] == [s.tokens for s in alike]


def test_a_launch_does_not_look_at_what_the_device_computes() -> None:
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_p": 0.9},
        {"top_k": 5, "top_p": 0.5, "min_p": 0.1},
        {"min_tokens": 5, "stop_token_ids": (3,), "logit_bias": {4: 1.0}},
        {"frequency_penalty": 0.5, "repetition_penalty": 1.5},
        {"logprobs": 2},
    ]
    plan = StepPlan(1, tuple(share(i, [1, 2, 3], 0, SamplingParams(**o)) for i, o in enumerate(options)))
    unreadable = torch.empty(len(options), 50, device="meta")  # any look at a value of it raises
    draws = Sampler(50, (0,)).launch(plan, Logits(unreadable, tuple(range(len(options) + 1))))
    drawn = draws.drawn.tokens
    assert drawn.shape == (len(options),)
    ids = torch.empty(2, dtype=torch.long, device="meta")
    params = SamplingParams()
    fill_in(ids, StepPlan(2, tuple(share(i, [0], 3, params, history=[1, 2, 3], ahead=i) for i in (1, 0))), drawn)
    with pytest.raises(NotImplementedError, match="meta"):
        draws.result()

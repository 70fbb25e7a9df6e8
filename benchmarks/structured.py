"""Does "fits the schema" hold, and what does it cost? JSONSchemaBench schemas, side by side.

    python -m benchmarks.structured [--limit N] [--vocab 32k|128k] [--jsts] [--only NAME ...] [--show]

For each schema: compile, then walk every instance, written with ", " and ": ", through the grammar; "ours" is the
front door, its route over this project's grammar backends, and validation of what the grammar let pass. The bare
libraries run as they come (separators aside). A schema that compiles longer than --timeout is not served; each
system works in a process of its own, which is replaced when it dies or hangs.

Times are CPU times (of the process for compiling, of the thread for masks), so that a busy machine does not show.
"Every test right" counts an instance in the order of its own keys; grammars keep the schema's order, so "in order"
counts the same instances with their keys sorted as the schema lists them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from radixbackend.errors import RadixError
from radixbackend.structured import FrontDoor
from radixbackend.types import Constraint

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ROOM = 1 << 20
"""Tokens left in the budget: enough that no grammar steers towards its end."""


@dataclass
class Outcome:
    """What one system made of one schema. Times in seconds."""

    name: str
    refusal: str = ""
    door: float = 0.0
    compile: float = 0.0
    route: str = ""
    enforced: bool = False
    masks: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    accepted_in_order: list[bool] = field(default_factory=list)
    passed_grammar: list[bool] = field(default_factory=list)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def load(path: Path, limit: int | None) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["tests"]]
    return rows[:limit]


def in_order(value: Any, schema: Any, root: Any) -> Any:
    """``value`` with keys in the order of a schema that the front door wrote."""
    import jsonschema

    while isinstance(schema, dict) and "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if not isinstance(schema, dict):
        return value
    for branch in schema.get("anyOf", ()):
        if jsonschema.Draft202012Validator({**branch, "$defs": root.get("$defs", {})}).is_valid(value):
            return in_order(value, branch, root)
    if isinstance(value, dict):
        declared = schema.get("properties", {})
        names = [*(name for name in declared if name in value), *(name for name in value if name not in declared)]
        return {name: in_order(value[name], _property(schema, name), root) for name in names}
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        rest = [schema.get("items", {})] * max(0, len(value) - len(prefix))
        return [in_order(item, part, root) for item, part in zip(value, [*prefix, *rest], strict=False)]
    return value


def _property(schema: dict[str, Any], name: str) -> Any:
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    for pattern, child in schema.get("patternProperties", {}).items():
        if re.search(pattern, name):
            return child
    return schema.get("additionalProperties", {})


# Systems: text of a schema → a compiled grammar, and how to walk it

Walk = Callable[[Sequence[int], "list[float] | None"], bool]
"""Token ids, and where to note mask times → accepted."""


class XGrammar:
    def __init__(self, tokenizer: Any, *, strict: bool) -> None:
        import xgrammar

        self._library: Any = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._strict = strict
        self._mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    def compile(self, schema: str) -> Walk:
        grammar = self._compiler.compile_json_schema(
            schema, any_whitespace=False, separators=(", ", ": "), strict_mode=self._strict
        )
        return lambda tokens, times: self._walk(self._library.GrammarMatcher(grammar), tokens, times)

    def _walk(self, matcher: Any, tokens: Sequence[int], times: list[float] | None) -> bool:
        for token in tokens:
            if times is not None:
                start = time.thread_time()
                matcher.fill_next_token_bitmask(self._mask)
                times.append(time.thread_time() - start)
            if not matcher.accept_token(token):
                return False
        return bool(matcher.is_completed())


class LLGuidance:
    def __init__(self, tokenizer: Any, *, lenient: bool) -> None:
        import llguidance
        import llguidance.hf

        self._library: Any = llguidance
        self._tokens: Any = llguidance.hf.from_tokenizer(tokenizer)
        self._options = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
        self._lenient = lenient
        self._mask = np.zeros(-(-self._tokens.vocab_size // 32), dtype=np.int32)

    def compile(self, schema: str) -> Walk:
        options = {**self._options, "lenient": self._lenient}
        grammar = self._library.LLMatcher.grammar_from_json_schema(schema, overrides=options)
        root = self._library.LLMatcher(self._tokens, grammar, log_level=0)
        if root.is_error():
            raise ValueError(root.get_error())
        return lambda tokens, times: self._walk(root.deep_copy(), tokens, times)

    def _walk(self, matcher: Any, tokens: Sequence[int], times: list[float] | None) -> bool:
        for token in tokens:
            if times is not None:
                start = time.thread_time()
                matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
                times.append(time.thread_time() - start)
            if matcher.try_consume_tokens([token]) != 1:
                return False
        return bool(matcher.is_accepting())


class Ours:
    """The front door, its route over the project's backends, and validation."""

    def __init__(self, tokenizer: Any, *, prefer: str) -> None:
        from radixbackend.engine.grammar.base import Vocabulary
        from radixbackend.engine.grammar.llguidance import LLGuidanceBackend
        from radixbackend.engine.grammar.xgrammar import XGrammarBackend

        end = (tokenizer.eos_token_id,)
        vocabulary = Vocabulary(tokenizer, len(tokenizer), end, "benchmark")
        self._backends: dict[str, Any] = {
            "xgrammar": XGrammarBackend(vocabulary),
            "llguidance": LLGuidanceBackend(vocabulary),
            "llguidance-lenient": LLGuidanceBackend(vocabulary, lenient=True),
        }
        self._mask = np.zeros((1, -(-vocabulary.size // 32)), dtype=np.int32)
        self._prefer = prefer
        FrontDoor().check(Constraint.json_schema({}))  # imports what it needs

    def run(self, row: dict[str, Any], encode: Callable[[str], list[int]], note: Callable[[], None]) -> Outcome:
        outcome = Outcome(row["id"])
        start = time.process_time()
        checked = FrontDoor().check(Constraint.json_schema(row["schema"]), prefer=self._prefer)
        outcome.door = time.process_time() - start
        outcome.enforced = checked.report.enforced
        for name in checked.route:
            try:
                grammar = self._backends[name].compile(checked.constraint)
            except RadixError as fault:
                refusal = fault
                continue
            outcome.route = name
            break
        else:
            raise refusal
        outcome.compile = time.process_time() - start
        note()
        written = json.loads(checked.constraint.source)
        for test in row["tests"]:
            text = dumps(test["data"])
            times = outcome.masks if test["valid"] else None
            passed = self._walk(grammar.matcher(), encode(text), times)
            outcome.passed_grammar.append(passed)
            outcome.accepted.append(passed and self._fits(checked, text))
            text = dumps(in_order(test["data"], written, written))
            passed = passed or self._walk(grammar.matcher(), encode(text), None)
            outcome.accepted_in_order.append(passed and self._fits(checked, text))
        return outcome

    def _fits(self, checked: Any, text: str) -> bool:
        try:
            checked.validate(text)
        except RadixError:
            return False
        return True

    def _walk(self, matcher: Any, tokens: Sequence[int], times: list[float] | None) -> bool:
        for token in tokens:
            if times is not None:
                start = time.thread_time()
                matcher.fill_mask(self._mask, 0, ROOM)
                times.append(time.thread_time() - start)
            if not matcher.accept(token):
                return False
        return bool(matcher.is_complete())


SYSTEMS: dict[str, Callable[[Any], Any]] = {
    "ours": lambda tokenizer: Ours(tokenizer, prefer="xgrammar"),
    "ours, llguidance first": lambda tokenizer: Ours(tokenizer, prefer="llguidance"),
    "xgrammar strict": lambda tokenizer: XGrammar(tokenizer, strict=True),
    "xgrammar non-strict": lambda tokenizer: XGrammar(tokenizer, strict=False),
    "llguidance": lambda tokenizer: LLGuidance(tokenizer, lenient=False),
    "llguidance lenient": lambda tokenizer: LLGuidance(tokenizer, lenient=True),
}


def run_bare(system: Any, row: dict[str, Any], encode: Callable[[str], list[int]], note: Callable[[], None]) -> Outcome:
    outcome = Outcome(row["id"])
    start = time.process_time()
    walk = system.compile(dumps(row["schema"]))
    outcome.compile = time.process_time() - start
    note()
    for test in row["tests"]:
        tokens = encode(dumps(test["data"]))
        outcome.accepted.append(walk(tokens, outcome.masks if test["valid"] else None))
    outcome.passed_grammar = outcome.accepted
    return outcome


def work(name: str, vocab: Path, pipe: Any) -> None:
    """A worker: rows in; ``"compiled"`` and an `Outcome` out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries warn about every keyword they drop
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(vocab), eos_token="<|im_end|>")
    system = SYSTEMS[name](tokenizer)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    pipe.send("ready")
    while True:
        row = pipe.recv()
        try:
            run = system.run if isinstance(system, Ours) else lambda *rest: run_bare(system, *rest)
            outcome = run(row, encode, lambda: pipe.send("compiled"))
        except BaseException as fault:  # a panic in a library is no Exception
            outcome = Outcome(row["id"], refusal=f"{type(fault).__name__}: {fault}"[:300])
        pipe.send(outcome)


class Worker:
    """A process for one system, started anew when it dies or hangs."""

    def __init__(self, name: str, vocab: Path, timeout: float) -> None:
        self._arguments = (name, vocab)
        self._timeout = timeout
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(*self._arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def run(self, row: dict[str, Any]) -> Outcome:
        patience = self._timeout
        try:
            self._pipe.send(row)
            while self._pipe.poll(patience):
                answer = self._pipe.recv()
                if isinstance(answer, Outcome):
                    return answer
                patience = 120.0  # compiled; walking the instances is not timed
            refusal = "time-out"
        except (EOFError, OSError):
            refusal = "crash"
        self.close()
        self._start()
        return Outcome(row["id"], refusal=refusal)

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def summarize(rows: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The cells of one system, in the order of `COLUMNS`."""
    served = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if not outcome.refusal]
    yield f"{100 * len(served) / len(rows):.1f} %"
    yield _share(all(_agree(row, o.accepted, True)) for row, o in served)
    yield _share(not all(_agree(row, o.passed_grammar, False)) for row, o in served)
    yield _share(not all(_agree(row, o.accepted, False)) for row, o in served)
    right = sum(all(_agree(row, o.accepted)) for row, o in served)
    yield f"{100 * right / len(rows):.1f} %"
    ordered = sum(all(_agree(row, o.accepted_in_order)) for row, o in served if o.accepted_in_order)
    yield f"{100 * ordered / len(rows):.1f} %" if ordered else "-"
    compiles = np.array([outcome.compile for _, outcome in served]) * 1e3
    yield " / ".join(f"{value:.1f}" for value in np.percentile(compiles, [50, 95, 99, 100]))
    masks = np.array([mask for _, outcome in served for mask in outcome.masks]) * 1e6
    yield " / ".join(f"{value:.0f}" for value in np.percentile(masks, [50, 99, 100]))


def _agree(row: dict[str, Any], accepted: Sequence[bool], valid: bool | None = None) -> Iterator[bool]:
    """Test by test (those that are ``valid``, or all): is what was accepted what should be?"""
    for test, passed in zip(row["tests"], accepted, strict=True):
        if valid is None or test["valid"] is valid:
            yield test["valid"] == passed


def _share(flags: Iterator[bool]) -> str:
    listed = list(flags)
    return f"{100 * sum(listed) / max(1, len(listed)):.1f} %"


COLUMNS = (
    "compiled",
    "all valid accepted (of compiled)",
    "invalid past the grammar",
    "invalid accepted",
    "every test right (of all)",
    "… keys in schema order",
    "compile ms p50 / p95 / p99 / max",
    "mask µs p50 / p99 / max",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="schemas to run; all by default")
    parser.add_argument("--vocab", choices=("32k", "128k"), default="128k")
    parser.add_argument("--jsts", action="store_true", help="the official JSON-Schema-Test-Suite instead")
    parser.add_argument("--only", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds a schema may compile")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--show", action="store_true", help="print every schema that is not right")
    options = parser.parse_args()

    rows = load(options.data / ("jsts.jsonl" if options.jsts else "dev.jsonl"), options.limit)
    vocab = options.data / "tokenizers" / f"bpe{options.vocab}.json"
    console = Console(width=200)
    table = Table("", *options.only, title=f"{len(rows)} schemas, {options.vocab} vocabulary, CPU time")
    cells = []
    for name in options.only:
        worker = Worker(name, vocab, options.timeout)
        outcomes = [worker.run(row) for row in rows]
        worker.close()
        cells.append(list(summarize(rows, outcomes)))
        if name.startswith("ours"):
            report_routes(console, name, outcomes)
        if options.show:
            show(console, name, rows, outcomes)
    for index, column in enumerate(COLUMNS):
        table.add_row(column, *(cell[index] for cell in cells))
    console.print(table)


def report_routes(console: Console, name: str, outcomes: Sequence[Outcome]) -> None:
    served = [outcome for outcome in outcomes if not outcome.refusal]
    routes: dict[str, int] = {}
    for outcome in served:
        routes[outcome.route] = routes.get(outcome.route, 0) + 1
    doors = np.percentile(np.array([outcome.door for outcome in served]) * 1e3, [50, 95, 99, 100])
    enforced = sum(outcome.enforced for outcome in served)
    console.print(
        f"{name}: {', '.join(f'{count} by {route}' for route, count in sorted(routes.items()))}; "
        f"{100 * enforced / max(1, len(served)):.1f} % enforced by the grammar alone; "
        f"front door ms p50 / p95 / p99 / max: {' / '.join(f'{door:.1f}' for door in doors)}"
    )


def show(console: Console, name: str, rows: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> None:
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome.refusal:
            console.print(f"{name}: {row['id']}: {outcome.refusal}", markup=False)
        elif not all(_agree(row, outcome.accepted)):
            wrong = [index for index, fine in enumerate(_agree(row, outcome.accepted)) if not fine]
            tests = [f"{'valid' if row['tests'][index]['valid'] else 'INVALID'} {index}" for index in wrong]
            order = " (key order)" if outcome.accepted_in_order and all(_agree(row, outcome.accepted_in_order)) else ""
            console.print(f"{name}: {row['id']}: {', '.join(tests)}{order}", markup=False)


if __name__ == "__main__":
    main()

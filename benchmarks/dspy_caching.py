"""What the radix tree saves under DSPy: few-shot programs, random search and agents, with the cache on and off.

    python -m benchmarks.dspy_caching [--shape small|60m] [--threads 16] [--workloads few-shot,search,agent]

Real DSPy programs with `RadixLM` and `RadixAdapter` over random weights: the words mean nothing, but the prompts, their
order and their overlap are those that DSPy sends. Every workload starts from a cold cache and runs twice in this
process, over one checkpoint, with ``prefix_cache`` on and off. The share of prompt tokens from the cache hardly
depends on the machine; of the times, the ratio is what to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp(prefix="dspy-caching-"))

import dspy
import torch
from dspy_radix import RadixAdapter, RadixLM
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (
    *("harbour", "garden", "window", "traveller", "breakfast", "lantern", "staircase", "orchard", "letter", "captain"),
    *("the", "a", "of", "under", "between", "was", "has", "found", "left", "old", "quiet", "seven", "three", "north"),
)
CONTEXT = 16_384
SHAPES = {"small": (256, 704, 4, 8, 4), "60m": (512, 1536, 10, 8, 4)}
END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

Workload = Callable[[RadixLM, int], None]


def write_checkpoint(folder: Path, shape: str) -> None:
    """A random Llama with a vocabulary that writes DSPy's prompts in about as many tokens as real ones do."""
    import dspy.adapters.json_adapter
    import dspy.predict.react

    special = [END, "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = [dspy.adapters.json_adapter, dspy.adapters.chat_adapter, dspy.predict.react]
    texts = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in sources]
    bpe.train_from_iterator([*texts, " ".join(WORDS * 20)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    hidden, intermediate, layers, heads, groups = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


# -- workloads -----------------------------------------------------------------------------------------------------


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count)).capitalize() + "."


def question(rng: random.Random) -> dspy.Example:
    return dspy.Example(question=sentence(rng, 14)).with_inputs("question")


def few_shot(rng: random.Random, demos: int) -> Any:
    program = dspy.ChainOfThought("question -> answer")
    program.predict.demos = [
        dspy.Example(question=sentence(rng, 14), reasoning=sentence(rng, 35), answer=sentence(rng, 6))
        for _ in range(demos)
    ]
    return program


def run_few_shot(lm: RadixLM, threads: int) -> None:
    """One program with eight demos, fifty inputs."""
    program = few_shot(random.Random(1), 8)
    inputs = random.Random(2)
    dspy.Parallel(num_threads=threads, disable_progress_bar=True, timeout=0)(
        [(program, question(inputs)) for _ in range(50)]
    )


def run_search(lm: RadixLM, threads: int) -> None:
    """Random search: eight candidate programs of bootstrapped demos, each evaluated on thirty inputs."""
    rng = random.Random(3)
    examples = [
        dspy.Example(question=sentence(rng, 14), answer=sentence(rng, 6)).with_inputs("question") for _ in range(50)
    ]
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=lambda example, prediction, trace=None: prediction.answer is not None,
        max_bootstrapped_demos=4,
        max_labeled_demos=8,
        num_candidate_programs=5,  # and the program as it is, with labelled demos, and with bootstrapped ones
        num_threads=threads,
    )
    optimizer.compile(dspy.ChainOfThought("question -> answer"), trainset=examples[:20], valset=examples[20:])


def weather(city: str, day: int) -> str:
    """The weather forecast of a city for one of the next days."""
    return "Rain in the morning, then clear skies and a light wind from the north."


def convert(amount: float, currency: str) -> str:
    """Convert an amount of euros into another currency at today's rate."""
    return "1 EUR is 11.42 of it, so that makes 114.20."


def opening_hours(place: str) -> str:
    """When a museum, shop or restaurant is open, day by day."""
    return "Monday to Friday from nine to five, Saturday from ten to two, closed on Sunday."


def route(start: str, end: str) -> str:
    """How to get from one place to another by public transport."""
    return "Tram 11 to the harbour, change to the ferry, then eight minutes on foot."


def notes(topic: str) -> str:
    """Look a topic up in the guest book."""
    return "Three guests liked it, one found it too loud, two came back in winter."


def run_agent(lm: RadixLM, threads: int) -> None:
    """ReAct with five tools, twenty questions, four steps at most."""
    agent = dspy.ReAct("question -> answer", tools=[weather, convert, opening_hours, route, notes], max_iters=4)
    inputs = random.Random(4)
    dspy.Parallel(num_threads=threads, disable_progress_bar=True, timeout=0)(
        [(agent, question(inputs)) for _ in range(20)]
    )


WORKLOADS: dict[str, tuple[str, Workload]] = {
    "few-shot": ("ChainOfThought, 8 demos x 50 inputs", run_few_shot),
    "search": ("Random search, 8 candidates x 30 inputs", run_search),
    "agent": ("ReAct, 5 tools x 20 questions", run_agent),
}


# -- measuring -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress that optimizers print."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


class Measured(NamedTuple):
    share: float  # of prompt tokens from the cache
    prompt: float  # mean, in tokens
    seconds: float
    work: float  # seconds of processor time, which other programs on the machine do not change


def measure(folder: Path, run: Workload, threads: int, *, prefix_cache: bool) -> Measured:
    """Run the workload once, from a cold cache."""
    lm = RadixLM(folder, prefix_cache=prefix_cache, kv_cache_tokens=200_000, max_tokens=64, cache=False, seed=7)
    with lm, dspy.context(lm=lm, adapter=RadixAdapter()):
        lm("A first call, so that nothing is measured that happens once.")
        lm.flush_cache()
        before, began, worked = lm.stats(), time.perf_counter(), time.process_time()
        with quiet():
            run(lm, threads)
        after, seconds, work = lm.stats(), time.perf_counter() - began, time.process_time() - worked
    prompts = after.prompt_tokens - before.prompt_tokens
    calls = after.finished - before.finished
    return Measured((after.cached_tokens - before.cached_tokens) / prompts, prompts / calls, seconds, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    console = Console()
    console.print(f"DSPy on a random {options.shape} model, {options.threads} threads, cold start")
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            write_checkpoint(Path(folder), options.shape)
        for name in options.workloads.split(","):
            title, run = WORKLOADS[name]
            on = measure(Path(folder), run, options.threads, prefix_cache=True)
            off = measure(Path(folder), run, options.threads, prefix_cache=False)
            console.print(
                f"{title:42} {on.prompt:5.0f} tokens a prompt, {on.share:.1%} from the cache; without it "
                f"{off.seconds / on.seconds:.1f} times the time, {off.work / on.work:.1f} times the processor time",
                highlight=False,
                soft_wrap=True,
            )


if __name__ == "__main__":
    main()

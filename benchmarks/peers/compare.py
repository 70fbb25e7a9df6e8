"""One table: ours beside the others, in one run.

    benchmarks/peers/install.sh                      # once: a virtual environment for each
    python -m benchmarks.peers.compare --all [--shape 60m|0.5b|tiny] [--repeat 3]
    python -m benchmarks.peers.compare --peers vllm openvino [--workloads W2 W3]

Random bf16 weights of a known shape, the same token ids for everyone, greedy, end tokens ignored. ``tiny`` is the
model that ships, for JSON: random weights write a field's name in tokens that no trained model takes. Each engine runs
in a process of its own, one after the other; of the repeats the median counts and the spread is shown. ``--all``
measures every engine that is installed; without it and without ``--peers`` it is ours and transformers, which are there
already.
``same`` says how many answers are those of our engine, token for token (bf16 sums differ from kernel to kernel, and
random weights make close calls common, so it need not be all). Each engine is used as its async users have it: vLLM
runs in a process beside its caller's, the others in their caller's own. Everything is kept as JSON in
``benchmarks/results``, a file for each run. To try things out, ``--scale 0.05 --requests 2 --repeat 1`` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks import record
from benchmarks.peers.drive import OURS, speeds
from benchmarks.peers.workloads import workloads

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers"
SHIPPED = ROOT / "radixbackend" / "models" / "radix_tiny"
END = "<|im_end|>"
OTHERS = ("transformers", "vllm", "openvino", "llamacpp")
COLUMNS = ("workload", "engine", "tok/s", "spread", "TTFT p50 / p95 ms", "prefilled", "ideal", "same", "vs ours")


# -- the checkpoint --------------------------------------------------------------------------------------------------


def build(shape: str, tokenizer_file: Path | None, folder: Path) -> int:
    """Write a random checkpoint, once; returns how many token ids the workloads may draw from."""
    if shape == "tiny":
        shutil.rmtree(folder, ignore_errors=True)  # with what was made of another version
        shutil.copytree(SHIPPED, folder)
        return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    tokenizer = _tokenizer(tokenizer_file)
    if not (folder / "config.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        common = {"max_position_embeddings": 8192, "eos_token_id": tokenizer.token_to_id(END), "dtype": torch.bfloat16}
        model: Any
        if shape == "60m":
            model = LlamaForCausalLM._from_config(
                LlamaConfig(
                    vocab_size=32_000,
                    hidden_size=512,
                    intermediate_size=1536,
                    num_hidden_layers=10,
                    num_attention_heads=8,
                    num_key_value_heads=4,
                    **common,
                )
            )
        else:
            model = Qwen2ForCausalLM._from_config(
                Qwen2Config(
                    hidden_size=896,
                    intermediate_size=4864,
                    num_hidden_layers=24,
                    num_attention_heads=14,
                    num_key_value_heads=2,
                    vocab_size=151_936,
                    tie_word_embeddings=True,
                    **common,
                )
            )
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
        model.save_pretrained(folder)
    return min(tokenizer.get_vocab_size(), 32_000 if shape == "60m" else 151_936)


def _tokenizer(file: Path | None) -> Tokenizer:
    """A real one if there is one, else one learned from this repository's own text."""
    if file is not None:
        return Tokenizer.from_file(str(file))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8_000, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train([str(path) for path in sorted(ROOT.glob("radixbackend/**/*.py"))], trainer)
    return bpe


def convert(peer: str, folder: Path, threads: int) -> None:
    """The peer's own form of the checkpoint, beside it, once."""
    forms: dict[str, tuple[str, list[str | Path]]] = {
        "openvino": (
            "openvino",
            [
                *(PEERS / "openvino-convert" / "bin" / "optimum-cli", "export", "openvino", "--model", folder),
                *("--task", "text-generation-with-past", "--weight-format", "fp16"),
            ],
        ),
        "llamacpp": ("model.gguf", [_python("llamacpp"), "-m", "benchmarks.peers.to_gguf", folder]),
    }
    if peer not in forms or (folder / forms[peer][0]).exists():
        return
    name, command = forms[peer]
    unfinished = folder / f"unfinished-{name}"  # so that nobody takes half of one for all of it
    subprocess.run([*map(str, command), str(unfinished)], cwd=ROOT, env=environment(peer, threads), check=True)
    unfinished.rename(folder / name)


# -- each engine in its process --------------------------------------------------------------------------------------


def _python(peer: str) -> Path:
    return Path(sys.executable) if peer in (OURS, "transformers") else PEERS / peer / "bin" / "python"


def environment(peer: str, threads: int) -> dict[str, str]:
    """The same number of threads for everyone, whatever this shell says."""
    own = {}
    if peer == "vllm":
        own = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": ":".join(map(str, _preloads())),
        }
    common = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **common, **own}


def _preloads() -> list[Path]:
    """What vLLM's CPU build asks for: tcmalloc from the system, Intel's OpenMP from its own environment."""
    return [
        *list(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))[:1],
        *list((PEERS / "vllm").glob("lib/libiomp5.so"))[:1],
    ]


def measure(peer: str, checkpoint: Path, threads: int, arguments: Sequence[object]) -> dict[str, Any] | str:
    """What `benchmarks.peers.drive` found out of one engine, or why it did not."""
    if not _python(peer).exists():
        return f"{peer} is not installed: benchmarks/peers/install.sh {peer}"
    out = checkpoint / f"measured-{peer}.json"
    try:
        convert(peer, checkpoint, threads)
        command = [_python(peer), "-m", "benchmarks.peers.drive", peer, checkpoint, "--out", out, *arguments]
        subprocess.run([*map(str, command)], cwd=ROOT, env=environment(peer, threads), check=True)
    except subprocess.CalledProcessError as fault:
        return f"{peer} failed with exit code {fault.returncode}"
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


# -- what came out ---------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]], names: list[str], title: str) -> Table:
    drawn = Table(title=title)
    for column in COLUMNS:
        drawn.add_column(column, justify="left" if column in ("workload", "engine") else "right")
    ours = next((result for result in results if result["peer"] == OURS), None)
    for name in names:
        own = _of(ours, name) if ours else []
        for result in results:
            if runs := _of(result, name):
                drawn.add_row(name, result["peer"], *_cells(runs, own))
        drawn.add_section()
    return drawn


def _of(result: dict[str, Any], workload: str) -> list[dict[str, Any]]:
    return [run for run in result["runs"] if run["workload"] == workload]


def _cells(runs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> tuple[str, ...]:
    rates = speeds(runs)
    rate = statistics.median(rates)
    firsts = sorted(first for run in runs for first in run["first_token"])
    return (
        f"{rate:.1f}",
        f"{(max(rates) - min(rates)) / rate:.0%}",
        f"{1000 * firsts[len(firsts) // 2]:.0f} / {1000 * firsts[int(len(firsts) * 0.95)]:.0f}",
        "" if runs[0]["prefilled"] is None else f"{runs[0]['prefilled']:,}",
        f"{runs[0]['ideal_prefill']:,}",
        _same(runs, ours) if ours else "",
        f"{rate / statistics.median(speeds(ours)):.2f}x" if ours else "",
    )


def _same(runs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    pairs = [
        (one, other)
        for run, own in zip(runs, ours, strict=True)
        for one, other in zip(run["answers"], own["answers"], strict=True)
    ]
    return f"{sum(one == other for one, other in pairs)}/{len(pairs)}"


def _without_answers(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "runs": [{k: v for k, v in run.items() if k != "answers"} for run in result["runs"]]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("60m", "0.5b", "tiny"), default="60m")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--all", action="store_true", help="every engine that is installed")
    chosen.add_argument("--peers", nargs="*", choices=(OURS, *OTHERS), default=["transformers"], help="beside ours")
    parser.add_argument("--workloads", nargs="*", default=[], help="those whose names begin so")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of prompts and answers")
    parser.add_argument("--requests", type=int, help="of a workload at most")
    parser.add_argument("--threads", type=int, default=record.usable_cores(), help="of each engine")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; without it a small one is learned")
    parser.add_argument("--folder", type=Path, default=PEERS / "checkpoints", help="where checkpoints lie")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="where the JSON file goes")
    asked = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 130)
    checkpoint = asked.folder / asked.shape
    vocabulary = build(asked.shape, asked.tokenizer, checkpoint)
    setting: list[object] = ["--vocabulary", vocabulary, "--repeat", asked.repeat, "--scale", asked.scale]
    setting += ["--requests", asked.requests] if asked.requests else []
    results = []
    for peer in (OURS, *(peer for peer in (OTHERS if asked.all else asked.peers) if peer != OURS)):
        console.print(f"{peer} …")
        found = measure(peer, checkpoint, asked.threads, [*setting, "--workloads", *asked.workloads])
        if isinstance(found, str):
            console.print(found)
        else:
            results.append(found)
    if not results:
        sys.exit("nothing was measured")
    about = record.machine()
    names = [workload.name for workload in workloads(vocabulary, asked.workloads, asked.scale, 0, asked.requests)]
    title = f"{asked.shape} shape, bf16: output tokens per second, {asked.threads} threads on {about['cpu']}"
    console.print(table(results, names, title))
    for result in results:
        console.print(
            f"{result['peer']} ({', '.join(f'{name} {version}' for name, version in result['versions'].items())}): "
            f"loaded in {result['load_seconds']:.1f} s, first token after {result['first_token_seconds']:.1f} s, "
            f"at most {max(run['peak_memory'] for run in result['runs']):,.0f} MiB"
        )
    kept = {
        "benchmark": "peers",
        "shape": asked.shape,
        "threads": asked.threads,
        "scale": asked.scale,
        "requests": asked.requests,
        "repeat": asked.repeat,
        "results": [_without_answers(result) for result in results],
    }
    console.print(f"kept in {record.keep(f'peers-{asked.shape}', kept, asked.results)}")


if __name__ == "__main__":
    main()

"""One table: ours beside the others, in one run.

    benchmarks/peers/install.sh                      # once: a virtual environment for each
    python -m benchmarks.peers.compare [--shape 60m|0.5b] [--peers radix transformers vllm openvino] [--repeat 3]

Random bf16 weights of a known shape, the same token ids for everyone, greedy, end tokens ignored. Each engine runs in
a process of its own, one after the other; of the repeats the median counts and the spread is shown. ``same`` says how
many answers are those of our engine, token for token (bf16 sums differ from kernel to kernel, and random weights make
close calls common, so it need not be all). The results are kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.peers.workloads import workloads

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers"
END = "<|im_end|>"


def build(shape: str, tokenizer_file: Path | None, folder: Path) -> int:
    """Write a random checkpoint, once; returns how many token ids the workloads may draw from."""
    tokenizer = _tokenizer(tokenizer_file)
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        common = {"max_position_embeddings": 8192, "eos_token_id": tokenizer.token_to_id(END)}
        model: Any
        if shape == "60m":
            model = LlamaForCausalLM(
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
            model = Qwen2ForCausalLM(
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
        model.to(torch.bfloat16).save_pretrained(folder)
    return min(tokenizer.get_vocab_size(), 32_000 if shape == "60m" else 151_936)


def _tokenizer(file: Path | None) -> Tokenizer:
    """A real one if there is one, else one learned from this repository's own text."""
    if file is not None:
        return Tokenizer.from_file(str(file))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8_000, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train([str(path) for path in sorted(ROOT.glob("radixbackend/**/*.py"))], trainer)
    return bpe


def interpreter(peer: str) -> Path | None:
    if peer in ("radix", "transformers"):
        return Path(sys.executable)
    python = PEERS / peer / "bin" / "python"
    return python if python.exists() else None


def environment(peer: str) -> dict[str, str]:
    own = {}
    if peer == "vllm":
        own = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": ":".join(map(str, _preloads())),
        }
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # the same for everyone, whatever this shell says
    return {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **own}


def _preloads() -> list[Path]:
    """What vLLM's CPU build asks for: tcmalloc from the system, Intel's OpenMP from its own environment."""
    return [
        *list(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))[:1],
        *list((PEERS / "vllm").glob("lib/libiomp5.so"))[:1],
    ]


def convert(folder: Path) -> None:
    """OpenVINO's own form of the checkpoint, beside it."""
    target = folder / "openvino"
    if not target.exists():
        program = PEERS / "openvino-convert" / "bin" / "optimum-cli"
        command = [program, "export", "openvino", "--model", folder, "--task", "text-generation-with-past"]
        subprocess.run([*map(str, command), "--weight-format", "fp16", str(target)], check=True)


def table(results: list[dict[str, Any]], names: list[str]) -> Table:
    drawn = Table(title=f"output tokens per second on {platform.processor() or platform.machine()}")
    for column in (
        "workload",
        "engine",
        "tok/s",
        "spread",
        "TTFT p50 / p95 ms",
        "prefilled",
        "ideal",
        "same",
        "vs ours",
    ):
        drawn.add_column(column, justify="left" if column in ("workload", "engine") else "right")
    for name in names:
        ours: float | None = None
        for result in results:
            runs = [run for run in result["runs"] if run["workload"] == name]
            if not runs:
                continue
            rates = [run["output_tokens"] / run["seconds"] for run in runs]
            rate = statistics.median(rates)
            ours = rate if result["peer"] == "radix" else ours
            firsts = sorted(first for run in runs for first in run["first_token"])
            drawn.add_row(
                name,
                result["peer"],
                f"{rate:.1f}",
                f"{(max(rates) - min(rates)) / rate:.0%}",
                f"{1000 * firsts[len(firsts) // 2]:.0f} / {1000 * firsts[int(len(firsts) * 0.95)]:.0f}",
                "" if runs[0]["prefilled"] is None else f"{runs[0]['prefilled']:,}",
                f"{runs[0]['ideal_prefill']:,}",
                _same(runs, [run for run in results[0]["runs"] if run["workload"] == name]),
                f"{rate / ours:.2f}x" if ours else "",
            )
        drawn.add_section()
    return drawn


def _same(runs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    pairs = [
        (one, other)
        for run, own in zip(runs, ours, strict=True)
        for one, other in zip(run["answers"], own["answers"], strict=True)
    ]
    return f"{sum(one == other for one, other in pairs)}/{len(pairs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("60m", "0.5b"), default="60m")
    parser.add_argument("--peers", nargs="*", default=["transformers", "vllm", "openvino"])
    parser.add_argument("--workloads", nargs="*", default=[])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; without it a small one is learned")
    parser.add_argument("--folder", type=Path, default=PEERS / "checkpoints")
    asked = parser.parse_args()
    console = Console()
    checkpoint = asked.folder / asked.shape
    vocabulary = build(asked.shape, asked.tokenizer, checkpoint)
    results = []
    for peer in ["radix", *(peer for peer in asked.peers if peer != "radix")]:
        python = interpreter(peer)
        if python is None:
            console.print(f"{peer} is not installed: benchmarks/peers/install.sh {peer}")
            continue
        if peer == "openvino":
            convert(checkpoint)
        out = asked.folder / f"{asked.shape}-{peer}.json"
        command = [python, "-m", "benchmarks.peers.drive", peer, checkpoint, "--out", out, "--vocabulary", vocabulary]
        command += ["--repeat", asked.repeat, "--scale", asked.scale, "--workloads", *asked.workloads]
        console.print(f"running {peer} …")
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment(peer), check=False)
        if done.returncode:
            console.print(f"{peer} failed with exit code {done.returncode}")
            continue
        results.append(json.loads(out.read_text(encoding="utf-8")))
    names = [workload.name for workload in workloads(vocabulary, asked.workloads, asked.scale)]
    console.print(table(results, names))
    for result in results:
        console.print(
            f"{result['peer']}: loaded in {result['load_seconds']:.1f} s, first token after "
            f"{result['first_token_seconds']:.1f} s, at most {max(r['peak_memory'] for r in result['runs']):,.0f} MiB"
        )
    kept = ROOT / "benchmarks" / "results" / f"peers-{asked.shape}-{time.strftime('%Y-%m-%d')}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps([_without_answers(result) for result in results], indent=1), encoding="utf-8")


def _without_answers(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "runs": [{k: v for k, v in run.items() if k != "answers"} for run in result["runs"]]}


if __name__ == "__main__":
    main()

"""Everything the engine does, on a model made on the spot: two layers, random weights, so its words mean nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from radixbackend import Constraint, Engine, SamplingParams

END = "<|end|>"
SYSTEM = "You are the desk clerk of a small hotel by the sea. Answer every question of a guest in one sentence."
QUESTIONS = ("When is breakfast?", "Where may I park?", "Is the sauna open?")
SCHEMA = {
    "type": "object",
    "properties": {
        "room": {"type": "integer", "minimum": 1, "maximum": 40},
        "view": {"enum": ["sea", "garden"]},
        "breakfast": {"type": "boolean"},
    },
    "required": ["room", "view", "breakfast"],
    "additionalProperties": False,
}


def make_checkpoint(folder: Path) -> None:
    """Write a tiny Llama in transformers' format, as `save_pretrained` does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([SYSTEM, *QUESTIONS, json.dumps(SCHEMA)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def show(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=16, temperature=0)

    print("== One answer")
    result = engine.generate(f"{SYSTEM}\n{QUESTIONS[0]}\n", sampling)
    print(f"{result.text!r}\n{result.usage}")

    print("\n== Many at once: the system prompt is in the cache")
    for answer in engine.generate([f"{SYSTEM}\n{question}\n" for question in QUESTIONS], sampling):
        usage = answer.usage
        print(f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached: {answer.text!r}")

    print("\n== Streaming")
    for event in engine.stream("The sea is", sampling):
        print(repr(event.text), end=" ", flush=True)
    print()

    print("\n== An answer that fits its schema")
    booking = engine.generate(
        "Book me a room.", SamplingParams(max_tokens=64, seed=1), constraint=Constraint.json_schema(SCHEMA)
    )
    print(json.loads(booking.text), f"({booking.usage.forced_tokens} tokens forced)")

    print("\n== Counters")
    stats = engine.stats()
    print(f"{stats.cache_hit_rate:.0%} of {stats.prompt_tokens} prompt tokens came from the cache")
    print(stats)


def main() -> None:
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        with Engine(folder, kv_cache_tokens=4096) as engine:
            show(engine)


if __name__ == "__main__":
    main()

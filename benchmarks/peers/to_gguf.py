"""Writes the benchmark's checkpoint as GGUF, for llama.cpp: the same bf16 weights, the same token ids.

    python -m benchmarks.peers.to_gguf CHECKPOINT model.gguf

Rules. Standard library, numpy and ``gguf`` alone: this runs in llama.cpp's virtual environment. It knows the two shapes
that `benchmarks.peers.compare` builds, Llama and Qwen2, and refuses others. Matrices stay bf16; norms and biases become
float32, as llama.cpp wants them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}


def convert(checkpoint: Path, target: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        raise SystemExit(f"{checkpoint} is a {kind}; this writes {' and '.join(ARCHITECTURES)}")
    writer = gguf.GGUFWriter(target, kind)
    _shape(writer, config)
    _vocabulary(writer, checkpoint, config)
    names = gguf.get_tensor_name_map(ARCHITECTURES[kind], config["num_hidden_layers"])
    for name, rows in tensors(checkpoint):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_key_value_heads" if "k_proj" in name else "num_attention_heads"]
            rows = _interleaved(rows, heads)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise SystemExit(f"GGUF has no name for {name}")
        if rows.ndim == 1:
            writer.add_tensor(known, (rows.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(known, rows.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the checkpoint, its bf16 numbers as uint16."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        data = np.memmap(file, np.uint8, "r", offset=8 + size)
        for name, about in header.items():
            if name == "__metadata__":
                continue
            if about["dtype"] != "BF16":
                raise SystemExit(f"{name} is {about['dtype']}, not BF16")
            start, stop = about["data_offsets"]
            yield name, data[start:stop].view(np.uint16).reshape(about["shape"])


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs of a Llama side by side, as GGUF has them; transformers keeps each head's halves apart."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> None:
    """A byte-level BPE, filled up to the width of the model with entries that no text has."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{i}]" for i in range(config["vocab_size"])]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    added = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    for text, token in (tokenizer["model"]["vocab"] | added).items():
        if token < len(tokens):
            tokens[token] = text
            kinds[token] = gguf.TokenType.CONTROL if text in added else gguf.TokenType.NORMAL
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    convert(asked.checkpoint, asked.target)


if __name__ == "__main__":
    main()

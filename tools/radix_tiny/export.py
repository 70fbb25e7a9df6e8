"""Writes the model in the hub's plain format: what `transformers` and this package load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tools.radix_tiny.corpus import TEMPLATE
from tools.radix_tiny.model import TinyLlama


def export(model: TinyLlama, tokenizer: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    _write(folder / "config.json", model.shape.config())
    _write(folder / "generation_config.json", {"eos_token_id": 2, "pad_token_id": 0, "do_sample": False})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>"],
            "model_max_length": model.shape.context,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
        },
    )
    shutil.copy(tokenizer, folder / "tokenizer.json")
    shutil.copy(TEMPLATE, folder / "chat_template.jinja")


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

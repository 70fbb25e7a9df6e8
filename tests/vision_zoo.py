"""Tiny random vision-language models with their processors, seeded and in float32, as `zoo` has them for text.

Images are a few patches large. Every architecture differs in something that the engine must get right: positions in
three dimensions, spans that see themselves in both directions, features of deeper layers, images cut into tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from radixbackend.engine.processor import images_only
from tests import zoo

VOCAB = 320
PATCH = 4
SIDE = 16
END = "<end>"
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_channels": 3,
    "image_size": SIDE,
    "patch_size": PATCH,
}
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_IMAGES = {"patch_size": PATCH, "merge_size": 2, "min_pixels": 64, "max_pixels": 4096}


def tokenizer(**named: str) -> Any:
    """One token per byte, and the special ones of all architectures; ``named`` become attributes of it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokens = [
        *("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
        *("<|begin_of_video|>", "<|end_of_video|>", "<boi>", "<soft>", "<eoi>", "<img>", "</img>", "<ctx>"),
        *("[IMG]", "[IMG_BREAK]", "[IMG_END]", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
        *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
    ]
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token=END, bos_token="<bos>", pad_token="<pad>", extra_special_tokens=named
    )
    made.add_special_tokens({"additional_special_tokens": [t for t in tokens if t not in named.values()]})
    return made


class RowsProcessor(ProcessorMixin):
    """Stands in for transformers' processor of Pixtral, which is not there without torchvision: rows of tokens."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token = "[IMG]"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    def _process_images(self, images: Any, **options: Any) -> Any:
        return super()._process_images(images, **options | {"patch_size": 2 * PATCH})

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        height, width = (int(side) // (2 * PATCH) for side in image_inputs["image_sizes"][image_idx])
        return "[IMG_BREAK]".join(["[IMG]" * width] * height) + "[IMG_END]"


def _parts(model_type: str) -> tuple[Any, Any, Any]:
    """Classes of the configuration, the image processor (in Pillow) and the processor."""
    config = CONFIG_MAPPING[model_type]
    kind = RowsProcessor if model_type == "mistral3" else images_only(PROCESSOR_MAPPING[config])
    return config, IMAGE_PROCESSOR_MAPPING[config]["pil"], kind


def _llava(ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": {**VISION, "model_type": "clip_vision_model"},
            "text_config": {**TEXT, "model_type": "llama"},
            "image_token_index": ids("<image>"),
            "vision_feature_layer": -1,
        },
        "images": {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
        "processor": {
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    }


def _llava_onevision(ids: Callable[[str], int]) -> dict[str, Any]:
    grid = [[16, 16], [16, 32], [32, 16], [32, 32]]
    return {
        "config": {
            "vision_config": {**VISION, "model_type": "siglip_vision_model"},
            "text_config": {**TEXT, "model_type": "qwen2"},
            "image_token_index": ids("<image>"),
            "video_token_index": ids("<video>"),
            "image_grid_pinpoints": grid,
        },
        "images": {"size": {"height": SIDE, "width": SIDE}, "image_grid_pinpoints": grid},
        "processor": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    }


def _qwen(ids: Callable[[str], int], vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": {"patch_size": PATCH, "in_channels": 3, "depth": 2, "num_heads": 2, **vision},
            "text_config": {**TEXT, "rope_parameters": MROPE, **text},
            "image_token_id": ids("<|image_pad|>"),
            "video_token_id": ids("<|video_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
        },
        "images": QWEN_IMAGES,
        "prompt": "<|vision_start|><|image_pad|><|vision_end|>",
    }


def _qwen2_vl(ids: Callable[[str], int]) -> dict[str, Any]:
    return _qwen(ids, {"embed_dim": 16, "hidden_size": 32}, {})


def _qwen2_5_vl(ids: Callable[[str], int]) -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "window_size": 16}
    return _qwen(ids, {**vision, "fullatt_block_indexes": [1]}, {})


def _qwen3_vl(ids: Callable[[str], int]) -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "num_position_embeddings": 16}
    rope = {**MROPE, "mrope_interleaved": True}
    return _qwen(ids, {**vision, "deepstack_visual_indexes": [0, 1]}, {"rope_parameters": rope})


def _glm4v(ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": {
                **{"patch_size": PATCH, "in_channels": 3, "depth": 2, "num_heads": 2, "image_size": SIDE},
                **{"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32},
            },
            "text_config": {**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "partial_rotary_factor": 0.5}},
            "image_token_id": ids("<|image|>"),
            "video_token_id": ids("<|video|>"),
            "image_start_token_id": ids("<|begin_of_image|>"),
            "image_end_token_id": ids("<|end_of_image|>"),
            "video_start_token_id": ids("<|begin_of_video|>"),
            "video_end_token_id": ids("<|end_of_video|>"),
        },
        "images": {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 2048}},
        "prompt": "<|begin_of_image|><|image|><|end_of_image|>",
    }


def _gemma3(ids: Callable[[str], int]) -> dict[str, Any]:
    layers = ["sliding_attention", "full_attention"]
    return {
        "config": {
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
            "text_config": {
                **{**TEXT, "pad_token_id": 0, "query_pre_attn_scalar": 8},
                **{"layer_types": layers, "sliding_window": 6, "use_bidirectional_attention": False},
            },
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": False,
            "boi_token_index": ids("<boi>"),
            "eoi_token_index": ids("<eoi>"),
            "image_token_index": ids("<soft>"),
        },
        "images": {"size": {"height": SIDE, "width": SIDE}},
        "processor": {"image_seq_length": 4},
        "prompt": "<boi>",
    }


def _paligemma(ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
            "text_config": {**TEXT, "model_type": "gemma", "pad_token_id": 0, "num_image_tokens": 16},
            "image_token_index": ids("<image>"),
            "projection_dim": 32,
            "hidden_size": 32,
            "tie_word_embeddings": False,
        },
        "images": {"size": {"height": SIDE, "width": SIDE}, "image_seq_length": 16},
    }


def _internvl(ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": {**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            "text_config": {**TEXT, "model_type": "qwen2"},
            "image_token_id": ids("<ctx>"),
            "image_seq_length": 4,
        },
        "images": {"size": {"height": SIDE, "width": SIDE}, "crop_to_patches": True, "max_patches": 4},
        "processor": {"image_seq_length": 4},
        "prompt": "<ctx>",
    }


def _mistral3(ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": {**VISION, "model_type": "pixtral", "image_size": 64, "head_dim": 8},
            "text_config": {**TEXT, "model_type": "mistral", "sliding_window": None},
            "image_token_index": ids("[IMG]"),
            "spatial_merge_size": 2,
        },
        "images": {"patch_size": {"height": PATCH, "width": PATCH}, "size": {"longest_edge": 32}},
        "prompt": "[IMG]",
    }


def _idefics3(ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "config": {
            "vision_config": VISION,
            "text_config": {**TEXT, "model_type": "llama"},
            "image_token_id": ids("<image>"),
            "scale_factor": 2,
        },
        "images": {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}},
        "processor": {"image_seq_len": 4},
    }


ARCHITECTURES: dict[str, Callable[[Callable[[str], int]], dict[str, Any]]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "glm4v": _glm4v,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "mistral3": _mistral3,
    "idefics3": _idefics3,
}
NAMED_TOKENS: dict[str, dict[str, str]] = {
    "gemma3": {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"},
    "internvl": {
        **{"start_image_token": "<img>", "end_image_token": "</img>"},
        **{"context_image_token": "<ctx>", "video_token": "<video>"},
    },
}


SEEDS = {"gemma3": 3, "idefics3": 7, "mistral3": 1}
"""Of weights with which another image gives other words."""


class Zoo:
    """One architecture: its model, its processor, and what stands for an image in a prompt."""

    def __init__(self, name: str) -> None:
        made = tokenizer(**NAMED_TOKENS.get(name, {}))
        parts = ARCHITECTURES[name](made.convert_tokens_to_ids)
        config, images, processor = _parts(name)
        torch.manual_seed(SEEDS.get(name, 0))
        self.name = name
        self.image = parts.get("prompt", "<image>")
        self.tokenizer = made
        self.processor = processor(
            **{"image_processor": images(**parts["images"]), "tokenizer": made},
            **{"video_processor": None} if "video_processor" in processor.get_attributes() else {},
            **parts.get("processor", {}),
        )
        self.model: Any = AutoModelForImageTextToText.from_config(config(**parts["config"])).float().eval()
        zoo._spread(self.model)
        self.model.requires_grad_(False)

    def save(self, folder: Path) -> Path:
        """Write it as a checkpoint; the processor's parts one by one, since one without video cannot be saved whole."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)
        return folder


@cache
def build(name: str) -> Zoo:
    """The same one for everybody: whoever changes it, changes it back."""
    try:
        return Zoo(name)
    except ImportError as fault:  # idefics3 before transformers 5.23
        if "Torchvision" not in str(fault):
            raise
        pytest.skip(f"{name} needs torchvision in this transformers")


def picture(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Noise, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)

"""Tiny random models of every architecture the engine serves, seeded and in float32.

`PACKED` run over the paged pool, `SEQUENTIAL` one by one with a transformers cache. Weights are scaled so that the
logits are spread out (no near ties between the likeliest tokens) and depend on what attention reads; windows and
chunks are shorter than the tests' prompts, so a kernel that ignores them is noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from packaging import version
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 256
WINDOW = 8

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
"""Given to every configuration that has a field of the name."""

SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
LATENT: dict[str, Any] = {
    "kv_lora_rank": 24,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "head_dim": None,
}
EXPERTS: dict[str, Any] = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "long_factor": [2.0 + i / 4 for i in range(8)],
    "original_max_position_embeddings": 128,
    "factor": 4.0,
}

# name: (model type, what it takes beyond TINY); None drops a field of TINY
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3_rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama_yarn_tied": ("llama", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "ministral": ("ministral", {}),
    "ministral3": ("ministral3", {}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2_sliding": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16, "layer_types": SLIDING}),
    "gemma3n": (
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "pad_token_id": 0,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 32,
            "pad_token_id": 0,
        },
    ),
    "vaultgemma": ("vaultgemma", {"query_pre_attn_scalar": 16, "layer_types": SLIDING}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3_longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128, "sliding_window": None},
    ),
    "phi4_multimodal": (
        "phi4_multimodal",
        {
            "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "image_size": 28},
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 2,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "nemo_conv_channels": 8,
            },
        },
    ),
    "phimoe": ("phimoe", {}),
    "deepseek_v2": ("deepseek_v2", {**LATENT, **EXPERTS}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, **EXPERTS}),
    "youtu": ("youtu", LATENT),
    "minicpm3": ("minicpm3", LATENT),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", EXPERTS),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, **EXPERTS}),
    "gpt_oss": ("gpt_oss", {"layer_types": SLIDING}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"layer_types": SLIDING}),
    "olmoe": ("olmoe", {}),
    "flex_olmo": ("flex_olmo", {}),
    "granite": ("granite", {"attention_multiplier": 0.25, "logits_scaling": 2.0}),
    "granitemoe": ("granitemoe", {"attention_multiplier": 0.25}),
    "granitemoeshared": ("granitemoeshared", {"attention_multiplier": 0.25, "shared_intermediate_size": 32}),
    "granite_swa": ("granite_swa", {}),
    "cohere": ("cohere", {"logit_scale": 1.0}),
    "cohere2": ("cohere2", {"logit_scale": 1.0, "layer_types": SLIDING}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 1}),
    "biogpt": ("biogpt", {"pad_token_id": 1}),
    "smollm3": ("smollm3", {}),
    "exaone4": ("exaone4", {"layer_types": SLIDING}),
    "exaone_moe": ("exaone_moe", {**EXPERTS, "layer_types": SLIDING, "num_shared_experts": 1}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2}),
    "nemotron": ("nemotron", {}),
    "persimmon": ("persimmon", {}),
    "jetmoe": ("jetmoe", {"kv_channels": 16, "num_key_value_heads": 2}),
    "helium": ("helium", {}),
    "arcee": ("arcee", {}),
    "apertus": ("apertus", {}),
    "seed_oss": ("seed_oss", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "hunyuan_moe": ("hunyuan_v1_moe", {"moe_topk": 2}),
    "dots1": ("dots1", {**EXPERTS, "layer_types": SLIDING}),
    "minimax_m2": ("minimax_m2", {}),
    "bitnet": ("bitnet", {}),
    "llama4": (
        "llama4_text",
        {
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 1,
            "no_rope_layers": [1, 0, 1],
            "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        },
    ),
    "cwm": ("cwm", {"layer_types": SLIDING}),
    "afmoe": ("afmoe", {"layer_types": SLIDING}),
    "solar": ("solar_open", EXPERTS),
    "nanochat": ("nanochat", {}),
    "aria": ("aria_text", {"moe_num_experts": 4}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "hyperclovax": ("hyperclovax", {"attention_multiplier": 0.25}),
    "internlm3": ("internlm3", {}),
    "jais2": ("jais2", {}),
    "laguna": ("laguna", {"layer_types": SLIDING}),
    "mimo_v2": ("mimo_v2_flash", {"layer_types": SLIDING, "v_head_dim": 12, **EXPERTS}),
    "modernbert_decoder": (
        "modernbert-decoder",
        {"pad_token_id": 0, "local_attention": WINDOW, "layer_types": SLIDING},
    ),
    "diffllama": ("diffllama", {}),
    "granitemoe_swa": ("granitemoe_swa", {}),
    "cohere2_moe": ("cohere2_moe", {"logit_scale": 1.0, "layer_types": SLIDING}),
    "mellum": ("mellum", {"layer_types": SLIDING}),
    "kolibri1": ("kolibri1", {}),
    "flint": ("flint", {"layer_types": SLIDING}),
    "longcat_flash": (
        "longcat_flash",
        {
            **LATENT,
            "head_dim": 8,
            "num_layers": 2,
            "expert_ffn_hidden_size": 32,
            "ffn_hidden_size": 96,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    "axk1": ("axk1", {**LATENT, **EXPERTS}),
    "hy_v3": ("hy_v3", EXPERTS),
    "hrm_text": ("hrm_text", {}),
    "gemma4_unified": ("gemma4_unified_text", {}),
    "ctrl": ("ctrl", {"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 64}),
    "beam": ("beam", {}),
    "granite_attention_only": ("granitemoehybrid", {"layer_types": ["attention"] * 3}),
}


MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}
SEQUENTIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("falcon", {}),
    "falcon_alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    "bloom": ("bloom", {"n_layer": 3, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 8}),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 3,
            "num_heads": 4,
            "window_size": WINDOW,
            "attention_types": [[["global", "local", "global"], 1]],
        },
    ),
    "codegen": ("codegen", {**GPT, "rotary_dim": 8}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {"intermediate_multiple_size": 2}),
    "doge": ("doge", {"sliding_window": None}),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}),
    "qwen3_next": ("qwen3_next", LINEAR),
    "qwen3_5": ("qwen3_5_text", LINEAR),
    "qwen3_5_moe": ("qwen3_5_moe_text", LINEAR),
    "olmo_hybrid": ("olmo_hybrid", LINEAR),
    "bamba": ("bamba", {**MAMBA2, "attn_layer_indices": [1]}),
    "zamba2": (
        "zamba2",
        {
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "chunk_size": 8,
            "num_key_value_heads": 4,
            "adapter_rank": 8,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
        },
    ),
    "falcon_h1": ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 128}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**MAMBA2, "layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 32},
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "rwkv": ("rwkv", {"attention_hidden_size": 64}),
    "inkling": ("inkling_text", {}),
    "lfm3": ("lfm3", {}),
    "zamba": ("zamba", {"mamba_d_state": 8, "n_mamba_heads": 2}),
    "xglm": ("xglm", {"d_model": 64, "ffn_dim": 96, "num_layers": 3, "attention_heads": 4}),
    "kimi_linear": (
        "kimi_linear",
        {
            **LATENT,
            "q_lora_rank": None,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mlp_layer_types": ["dense", "sparse", "dense"],
        },
    ),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "recurrent_gemma": ("recurrent_gemma", {"attention_window_size": WINDOW, "lru_width": 64}),
    "minimax": (
        "minimax",
        {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "block_size": 8},
    ),
    # sparse attention that looks like any other at the lengths of a self-check
    "deepseek_v32": ("deepseek_v32", {**LATENT, **EXPERTS, "head_dim": 8, "index_head_dim": 16, "index_n_heads": 2}),
    "deepseek_v4": ("deepseek_v4", EXPERTS),
}
if version.parse(transformers.__version__) < version.parse("5.23"):  # continues its cache wrongly before
    REFUSED["doge"] = SEQUENTIAL.pop("doge")
if version.parse(transformers.__version__) >= version.parse("5.24"):  # attends by a function of one's choice since
    PACKED |= {name: SEQUENTIAL.pop(name) for name in ("gptj", "codegen")}
for _models in (PACKED, SEQUENTIAL, REFUSED):  # an older transformers knows fewer
    for _name in [name for name, (model_type, _) in _models.items() if model_type not in CONFIG_MAPPING]:
        del _models[_name]


def config(name: str) -> Any:
    """The configuration of a zoo name."""
    model_type, special = (PACKED | SEQUENTIAL | REFUSED)[name]
    kind = CONFIG_MAPPING[model_type]
    fields = getattr(kind, "__dataclass_fields__", {})
    common = {key: value for key, value in TINY.items() if key in fields and key not in special}
    return kind(**common, **{key: value for key, value in special.items() if value is not None or key in fields})


def build(name: str, seed: int = 0, **changes: int) -> Any:
    """A model with seeded weights, in evaluation mode, attention as transformers chooses; ``changes`` of its sizes."""
    torch.manual_seed(seed)
    its = config(name)
    for field, value in changes.items():
        setattr(its, field, value)
    model = AutoModelForCausalLM.from_config(its).float().eval()
    _spread(model)
    return model.requires_grad_(False)


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the model as a checkpoint and return its folder."""
    build(name, seed).save_pretrained(folder)
    return folder


@torch.no_grad()
def _spread(model: Any) -> None:
    """Weights that make logits differ: unit embeddings, projections that keep or raise the scale."""
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:
            if "sink" in key:
                parameter.normal_(0.0, 1.0)
            elif "bias" in key or "norm" in key or "ln_" in key:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.ndim == 2 and ("embed" in key or "wte" in key):
            parameter.normal_(0.0, 1.0)
        elif parameter.ndim in (2, 3):
            parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)

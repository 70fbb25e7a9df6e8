"""The Llama architecture in little, for training: same weights, names and results as transformers' `LlamaForCausalLM`.

Rules. Weights are float32, the products bfloat16 where that is fast. Nothing is masked but the future: a batch is
padded on the right, and what stands after a conversation's end is in no loss. Logits are made only where somebody asks
for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WRITTEN_OUT = 640
"""The longest rows whose attention is not left to the fused kernel."""


@dataclass(frozen=True, slots=True)
class Shape:
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 4096
    rope_theta: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """As config.json says it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "max_position_embeddings": self.context,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.epsilon,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }


def fast_type(device: torch.device) -> torch.dtype:
    """bfloat16, but on a CPU that does not multiply it: there it takes more than ten times as long as float32."""
    emulated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


class Linear(nn.Module):
    """A matrix, multiplied in the input's type."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = Linear(shape.hidden, shape.heads * shape.head)
        self.k_proj = Linear(shape.hidden, shape.kv_heads * shape.head)
        self.v_proj = Linear(shape.hidden, shape.kv_heads * shape.head)
        self.o_proj = Linear(shape.heads * shape.head, shape.hidden, scale=0.1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        query, key, value = (
            projection(x).view(rows, length, -1, self.shape.head).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        groups = self.shape.heads // self.shape.kv_heads
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin).repeat_interleave(groups, 1)
        mixed = _attend(query, key, value.repeat_interleave(groups, 1))
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention: written out for short rows, where the fused one's backward is several times slower on a CPU."""
    length = query.shape[-2]
    if length > WRITTEN_OUT or query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    future = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + future
    return torch.softmax(scores, dim=-1) @ value


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.feed_forward)
        self.up_proj = Linear(shape.hidden, shape.feed_forward)
        self.down_proj = Linear(shape.feed_forward, shape.hidden, scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden, shape.epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden, shape.epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.epsilon)


class TinyLlama(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head, 2) / shape.head)
        angles = torch.arange(shape.context)[:, None] * frequencies
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @torch.no_grad()
    def liken(self, twins: dict[int, int]) -> None:
        """Before training: each token that is another with a space before it begins as that other, a little apart."""
        table = self.model.embed_tokens.weight
        apart = torch.randn(table.shape[1]) * 0.01
        for twin, token in twins.items():
            table[twin] = table[token] + apart

    @torch.no_grad()
    def grow(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a model with as many layers or fewer, and compute what it computes.

        New layers stand behind the later of the old ones, whose copies they are, but that they add nothing at first
        (progressive stacking, with the function kept as in Net2Net, arXiv 1511.05641).
        """
        pattern = "model.layers.{}."
        old = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers."))
        more = self.shape.layers - old
        if more < 0:
            raise ValueError(f"a model of {old} layers does not fit into {self.shape.layers}: ask for as many or more")
        origin = sorted([*range(old), *(old - 2 - at % max(1, old - 1) for at in range(more))])
        grown = {name: value for name, value in weights.items() if not name.startswith("model.layers.")}
        for layer, source in enumerate(origin):
            is_copy = layer > 0 and origin[layer - 1] == source
            for name, value in weights.items():
                if name.startswith(pattern.format(source)):
                    ends = is_copy and name.endswith(("o_proj.weight", "down_proj.weight"))
                    grown[name.replace(pattern.format(source), pattern.format(layer))] = value * 0 if ends else value
        self.load_state_dict(grown)

    def hidden(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The last hidden states, (rows, length, hidden), for `logits`; by default in the type that is fast."""
        dtype = dtype or fast_type(ids.device)
        cos, sin = (table[: ids.shape[1]].to(dtype) for table in (self.cos, self.sin))
        x = self.model.embed_tokens(ids).to(dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """In float32, (positions, vocabulary)."""
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype)).float()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

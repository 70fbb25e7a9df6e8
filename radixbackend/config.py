"""The engine's configuration: one frozen value, each field with a default that is right for most.

Knows nothing of argument parsers or torch; what only the machine can tell (whether a device exists, how much
memory is free) is checked when the engine is built.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from radixbackend.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
EVICTION_POLICIES = ("lru", "lfu", "fifo")
DETERMINISTIC = "triton-deterministic"
"""The attention whose results do not depend on the batch."""
INT8 = "int8"
"""The one quantization there is."""
FP8 = "fp8"
"""The one type of keys and values beside the model's own."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to build an engine. Two engines of equal configuration are interchangeable.

    Attributes:
        model: folder of a checkpoint in transformers' format, a hub id, or the name of a model that a plugin serves.
        revision: branch, tag or commit of a hub id.
        dtype: of weights and KV cache; auto takes the checkpoint's (float32 instead of float16 on a CPU).
        device: auto takes CUDA where there is one, else the CPU.
        attention: name asked of the hook `radix_make_attention`; built in are torch, native (for a CPU, by C
            kernels that gcc compiles at first use), triton, triton-deterministic and flashinfer; auto takes the
            fastest that the device and what is installed allow.
        grammar: name asked of the hook `radix_make_grammar` first.
        kv_cache_tokens: size of the KV pool; None sizes it from ``memory_fraction``.
        kv_cache_dtype: "fp8" stores keys and values in 8 bits each (float8_e4m3fn) and computes in the model's type:
            half the memory of bfloat16 for a token, and not quite the model's own answers any more. auto is ``dtype``.
        memory_fraction: share that the KV pool may take of the memory that is free after loading and, on a GPU, after
            the largest step had what it computes in; None takes 0.9 on CUDA and 0.5 elsewhere.
        max_context: longest sequence served; None takes the model's own limit.
        max_running: sequences in a batch.
        max_step_tokens: tokens computed per step, so how long a decode can wait for a prefill; None chooses by
            device.
        max_waiting: choices queued before `QueueFullError`.
        prefix_cache: False computes every prompt in full (for measuring).
        eviction: name asked of the hook `radix_eviction_key`; built in are lru, lfu and fifo.
        jump_forward: propose what a grammar forces as drafts; the output is the same either way.
        cuda_graphs: replay decodes as CUDA graphs where attention and model allow it: less work for the CPU in each
            step, some seconds and some memory at load. Does nothing without a GPU.
        overlap: schedule and launch the next step while the device computes one, with tokens that only the device knows
            yet; the output is the same either way. None: on CUDA, where it pays. Sequences with penalties,
            log-probabilities or images have each step wait for the one before.
        deterministic: the same bits whatever else is in the batch, in the cache, or computed before; slower. Takes an
            NVIDIA GPU and a dense model on the paged path, text only; anything else is refused.
        fused_layers: compute decoder layers in fewer, larger operators where that gives the same numbers; False leaves
            transformers' modules as they are.
        quantization: "int8" computes linear layers in 8-bit integers, on a CPU: faster, less memory, and not quite the
            model's own answers any more.
        grammar_timeout: seconds a grammar may compile before its request fails.
        threads: of the engine's forward on a CPU; None leaves torch's own number.
        self_check: compare the paged path with the plain model at load.
        trust_remote_code: run modeling code that comes with the checkpoint.
        allow_pickle: load pickled weights when there are no safetensors.
        max_images: in one request; 0 serves a model with vision as text alone.
        allowed_image_hosts: from which conversations may have images fetched; ``data:`` URLs are always fine.
        progress: show a bar while weights load; None shows it where stderr is a terminal.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    grammar: str = "xgrammar"
    kv_cache_tokens: int | None = None
    kv_cache_dtype: str = "auto"
    memory_fraction: float | None = None
    max_context: int | None = None
    max_running: int = 64
    max_step_tokens: int | None = None
    max_waiting: int = 16384
    prefix_cache: bool = True
    eviction: str = "lru"
    jump_forward: bool = True
    cuda_graphs: bool = True
    overlap: bool | None = None
    deterministic: bool = False
    fused_layers: bool = True
    quantization: str | None = None
    grammar_timeout: float = 30.0
    threads: int | None = None
    self_check: bool = True
    trust_remote_code: bool = False
    allow_pickle: bool = False
    max_images: int = 16
    allowed_image_hosts: tuple[str, ...] = ()
    progress: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", os.fspath(self.model))
        if not self.model:
            raise ConfigError("model is empty; pass a folder, a hub id or the name of a model that ships")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype takes one of {', '.join(DTYPES)}, not {self.dtype!r}")
        for name in ("kv_cache_tokens", "max_context", "max_step_tokens", "threads"):
            if getattr(self, name) is not None:
                self._at_least_one(name)
        for name in ("max_running", "max_waiting"):
            self._at_least_one(name)
        if isinstance(self.max_images, bool) or not isinstance(self.max_images, int) or self.max_images < 0:
            raise ConfigError(f"max_images takes an integer of at least 0, not {self.max_images!r}")
        hosts: object = self.allowed_image_hosts
        if isinstance(hosts, str) or not isinstance(hosts, Iterable) or not all(isinstance(h, str) for h in hosts):
            raise ConfigError(f"allowed_image_hosts takes a list of host names, not {hosts!r}")
        object.__setattr__(self, "allowed_image_hosts", tuple(host.lower() for host in self.allowed_image_hosts))
        if self.memory_fraction is not None and not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"memory_fraction takes a number above 0 to 1, not {self.memory_fraction!r}")
        if self.deterministic and self.attention not in ("auto", DETERMINISTIC):
            raise ConfigError(f"deterministic takes attention 'auto' or {DETERMINISTIC!r}, not {self.attention!r}")
        if self.deterministic and self.quantization is not None:
            raise ConfigError("deterministic takes no quantization, whose products are not summed in a fixed order")
        if self.quantization not in (None, INT8):
            raise ConfigError(f"quantization takes None or {INT8!r}, not {self.quantization!r}")
        if self.kv_cache_dtype not in ("auto", FP8):
            raise ConfigError(f"kv_cache_dtype takes 'auto' (the model's type) or {FP8!r}, not {self.kv_cache_dtype!r}")
        if not self.grammar_timeout > 0:
            raise ConfigError(f"grammar_timeout takes seconds above 0, not {self.grammar_timeout!r}")

    def _at_least_one(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} takes an integer of at least 1, not {value!r}")

    def memory_share(self, device: str) -> float:
        """``memory_fraction``, or its default on this type of device."""
        if self.memory_fraction is not None:
            return self.memory_fraction
        return 0.9 if device == "cuda" else 0.5  # other memory is everybody's

    def overlaps(self, device: str) -> bool:
        """``overlap``, or its default on this type of device."""
        return device == "cuda" if self.overlap is None else self.overlap

    @classmethod
    def make(cls, model: str | os.PathLike[str], options: dict[str, Any]) -> EngineConfig:
        """From keyword options; unknown names raise `ConfigError` listing the known ones."""
        known = {f.name for f in fields(cls)} - {"model"}
        if unknown := sorted(set(options) - known):
            raise ConfigError(f"unknown engine option {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(model=os.fspath(model), **options)

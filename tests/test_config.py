from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from radixbackend.config import EngineConfig
from radixbackend.errors import ConfigError


def test_defaults_and_path() -> None:
    assert EngineConfig.make(Path("a") / "b", {}) == EngineConfig(model=str(Path("a") / "b"))
    assert hash(EngineConfig("m")) == hash(EngineConfig("m"))


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig("m").threads = 2  # type: ignore[misc]


def test_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown engine option kv_tokens; known are .*kv_cache_tokens"):
        EngineConfig.make("m", {"kv_tokens": 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "int8"),
        ("kv_cache_tokens", 0),
        ("max_context", 2.5),
        ("max_step_tokens", True),
        ("threads", "2"),
        ("max_running", 0),
        ("max_waiting", None),
        ("memory_fraction", 0),
        ("memory_fraction", 1.01),
        ("grammar_timeout", 0),
        ("kv_cache_dtype", "float8"),
        ("kv_cache_dtype", None),
    ],
)
def test_wrong_value_names_the_option(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        EngineConfig.make("m", {option: value})


def test_the_pool_takes_more_of_a_gpu() -> None:
    config = EngineConfig("m")
    assert (config.memory_share("cuda"), config.memory_share("cpu")) == (0.9, 0.5)
    given = EngineConfig("m", memory_fraction=0.3)
    assert (given.memory_share("cuda"), given.memory_share("cpu")) == (0.3, 0.3)


def test_deterministic_comes_with_its_own_attention() -> None:
    for attention in ("auto", "triton-deterministic"):
        assert EngineConfig("m", attention=attention, deterministic=True).deterministic
    with pytest.raises(ConfigError, match="'auto' or 'triton-deterministic', not 'torch'"):
        EngineConfig("m", attention="torch", deterministic=True)
    with pytest.raises(ConfigError, match="deterministic takes no quantization"):
        EngineConfig("m", quantization="int8", deterministic=True)


def test_empty_model() -> None:
    with pytest.raises(ConfigError, match="model is empty"):
        EngineConfig.make("", {})


def test_every_option_is_explained() -> None:
    described = re.findall(r"^    (\w+): ", inspect.getdoc(EngineConfig) or "", re.MULTILINE)
    assert described == [field.name for field in dataclasses.fields(EngineConfig)]

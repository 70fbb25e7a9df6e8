"""Every way a checkpoint can be wrong has its own clear error; a right one is loaded completely and quietly."""

from __future__ import annotations

import json
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from radixbackend.config import EngineConfig
from radixbackend.engine.model_loader import (
    LoadedModel,
    ModelSpec,
    find_device,
    load_model,
)
from radixbackend.engine.rope import UNLIMITED_CONTEXT
from radixbackend.errors import (
    ConfigError,
    MissingDependencyError,
    ModelLoadError,
    ModelNotFoundError,
    UnsafeCheckpointError,
)
from tests import zoo


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.save("llama", tmp_path_factory.mktemp("zoo") / "llama")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def load(folder: Path | str, **options: object) -> LoadedModel:
    return load_model(ModelSpec.of(EngineConfig.make(str(folder), {"device": "cpu", **options})))


def edit(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text())
    values.update(changes)
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_a_folder_is_loaded_whole(folder: Path) -> None:
    loaded = load(folder)
    model = zoo.build("llama")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer is None
    assert loaded.vocab_size == zoo.VOCAB
    assert loaded.max_context == 512
    assert loaded.dtype == torch.float32
    assert loaded.device == torch.device("cpu")
    assert loaded.name == str(folder)
    assert loaded.end_tokens == (2,)


def test_no_network_for_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(folder)


def add_tokenizer(folder: Path) -> None:
    letters = ByteLevel.alphabet()
    inner = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    last = sorted(letters)[-1]
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=last).save_pretrained(folder)


def test_a_tokenizer_comes_along(folder: Path) -> None:
    add_tokenizer(folder)
    loaded = load(folder)
    assert loaded.tokenizer.decode(loaded.tokenizer("radix tree").input_ids) == "radix tree"
    assert loaded.end_tokens == (2, 255)


def test_a_broken_tokenizer_is_not_left_out(folder: Path) -> None:
    add_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    with pytest.raises(ModelLoadError):
        load(folder)


def test_a_hub_id_is_downloaded_without_what_is_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load("owner/model", revision="v2")
    assert (loaded.name, loaded.folder) == ("owner/model", folder)
    assert (asked["name"], asked["revision"]) == ("owner/model", "v2")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not {"*.py", "*.bin"} & set(asked["allow_patterns"])
    load("owner/model", trust_remote_code=True, allow_pickle=True)
    assert {"*.py", "*.bin"} <= set(asked["allow_patterns"])


def test_end_tokens_are_those_of_every_source(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 9])
    edit(folder / "config.json", eos_token_id=11)
    loaded = load(folder)
    assert loaded.end_tokens == (7, 9, 11)
    loaded.model.generation_config.eos_token_id = [7, zoo.VOCAB + 5, -1]

    class OtherTokenizer:
        eos_token_id = 13

    # What no logit stands for cannot end anything.
    assert LoadedModel.of(loaded.model, OtherTokenizer()).end_tokens == (7, 11, 13)


@pytest.mark.parametrize("name", ["no/such", "no-such-model"])
def test_hub_ids_that_cannot_be_had(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no folder .* could not be had from the model hub .*pass the folder"):
        load(name)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here", "a/b/c"])
def test_folders_that_do_not_exist(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no folder .*; check the path"):
        load(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a file; pass the folder"):
        load(folder / "config.json")


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-type"}', "{}", '"text"'])
def test_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError):
        load(folder)


def test_a_config_that_does_not_fit_the_weights(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=32)
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -100])
def test_truncated_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelLoadError):
        load(folder)


def test_corrupt_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    with pytest.raises(ModelLoadError, match="corrupt or truncated"):
        load(folder)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.up_proj\.weight.*random"):
        load(folder)


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    loaded = load(zoo.save("llama_yarn_tied", tmp_path / "tied"))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="has no weights"):
        load(folder)


def test_pickled_weights_need_a_switch(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match="allow_pickle=True"):
        load(folder)
    assert load(folder, allow_pickle=True).vocab_size == zoo.VOCAB


def test_a_missing_shard(folder: Path) -> None:
    zoo.build("llama").save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(folder).vocab_size == zoo.VOCAB
    shards[0].unlink()
    with pytest.raises(ModelLoadError):
        load(folder)


def test_code_of_the_checkpoint_needs_a_switch(folder: Path) -> None:
    edit(
        folder / "config.json",
        model_type="my-own-kind",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    ran = folder / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
        "class Config(Config):\n    model_type = 'my-own-kind'\n"
        "class Model(Model):\n    config_class = Config\n"
    )
    with pytest.raises(UnsafeCheckpointError, match="trust_remote_code=True"):
        load(folder)
    assert not ran.exists()
    assert load(folder, trust_remote_code=True).vocab_size == zoo.VOCAB
    assert ran.exists()


def test_a_checkpoint_that_needs_another_package(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "awq", "bits": 4, "group_size": 16})
    with pytest.raises((MissingDependencyError, ModelLoadError), match="model"):
        load(folder)


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(ModelLoadError, match=r"cannot be read: .*Input/output error"):
        load(folder)


@pytest.mark.parametrize("name", ["foo", "cuda:99", "meta", "cuda:x", ""])
def test_devices_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device .* pass 'auto' or 'cpu'"):
        find_device(name)


def test_cuda_where_there_is_none(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(ConfigError, match="'cuda' cannot be used here"):
        load(folder, device="cuda")
    assert find_device("auto") == torch.device("cpu")


def test_dtypes(folder: Path, tmp_path: Path) -> None:
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    for stored, found in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        other = tmp_path / str(stored)
        zoo.build("llama").to(stored).save_pretrained(other)
        assert load(other).dtype == found
        edit(other / "config.json", dtype=..., torch_dtype=...)
        assert load(other).dtype == found
    assert load(tmp_path / "torch.float16", dtype="float16").dtype == torch.float16


def test_context() -> None:
    def context(name: str) -> int:
        return LoadedModel.of(zoo.build(name)).max_context

    assert context("gpt2") == context("dbrx") == context("mpt") == 512
    assert context("bloom") == context("mamba") == UNLIMITED_CONTEXT
    assert context("llama_yarn_tied") == 512
    assert context("phi3_longrope") == 128  # beyond, factors depend on the longest sequence of the batch


def test_fingerprint(folder: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    assert load(folder).weights_hash == load(twin).weights_hash
    edit(twin / "config.json", rms_norm_eps=1e-3)
    assert load(folder).weights_hash != load(twin).weights_hash
    tuned = Path(shutil.copytree(folder, tmp_path / "tuned"))
    weights = (tuned / "model.safetensors").read_bytes()
    kept = len(weights) * 3 // 4
    (tuned / "model.safetensors").write_bytes(weights[:kept] + bytes(len(weights) - kept))  # only what comes last
    assert load(folder).weights_hash != load(tuned).weights_hash
    bigger = Path(shutil.copytree(folder, tmp_path / "bigger"))
    zoo.build("llama").bfloat16().save_pretrained(bigger)
    assert load(folder).weights_hash != load(bigger).weights_hash
    a, b = LoadedModel.of(zoo.build("llama")), LoadedModel.of(zoo.build("llama"))
    assert a.weights_hash == a.weights_hash != b.weights_hash


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("progress", [True, False, None])
def test_the_bar_is_shown_as_asked_and_settings_are_put_back(
    folder: Path, capfd: pytest.CaptureFixture[str], progress: bool | None, before: bool
) -> None:
    switch = {True: transformers_logging.enable_progress_bar, False: transformers_logging.disable_progress_bar}
    verbosity = transformers_logging.get_verbosity()
    filters = list(warnings.filters)
    switch[before]()
    try:
        load(folder, progress=progress)
        assert transformers_logging.is_progress_bar_enabled() == before
    finally:
        switch[True]()
    out, err = capfd.readouterr()
    assert out == ""
    assert ("Loading weights" in err) == bool(progress)
    assert progress or err == ""
    assert transformers_logging.get_verbosity() == verbosity
    assert warnings.filters == filters

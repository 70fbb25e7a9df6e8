"""From a name to a model in memory: `ModelSpec` in, `LoadedModel` out.

Rules. Everything is loaded from one local folder: a hub id is first downloaded into the hub's cache. Weights come
from safetensors, nothing is unpickled and no code of the checkpoint runs unless its switch allows it, and a weight
that is missing is an error, never random numbers. Faults of transformers, safetensors and the disk become this
package's errors here, once, each with what to do. Knows nothing of attention, slots or requests.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from radixbackend.engine.processor import load_processor
from radixbackend.engine.rope import context_limit
from radixbackend.errors import (
    ConfigError,
    MissingDependencyError,
    ModelLoadError,
    ModelNotFoundError,
    RadixError,
    UnsafeCheckpointError,
)

if TYPE_CHECKING:
    from radixbackend.config import EngineConfig

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
HEADER_BYTES = 1 << 16
TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
SAMPLES, SAMPLE_BYTES = 256, 512
"""What a fingerprint reads of a file beyond its first bytes."""
SHIPPED = {"radix-tiny": Path(__file__).parents[1] / "models" / "radix_tiny"}
"""The models that come with the package, by name; a folder of that name in the working directory goes first."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to load and how; the fields are those of `EngineConfig`, and whether to load the processor for images."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    progress: bool | None = None
    max_context: int | None = None
    images: bool = True

    @classmethod
    def of(cls, config: EngineConfig) -> ModelSpec:
        return cls(
            model=config.model,
            revision=config.revision,
            dtype=config.dtype,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
            progress=config.progress,
            max_context=config.max_context,
            images=config.max_images > 0,
        )


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what the engine has to know about it.

    Attributes:
        model: the transformers model with its language-model head, in evaluation mode, without gradients.
        tokenizer: None when the checkpoint has none; prompts are token ids then.
        config: of the text part.
        end_tokens: every token that ends an output: of generation config, config and tokenizer together.
        vocab_size: logits per row; may exceed the tokenizer's entries.
        max_context: longest sequence the model computes exactly, see `radixbackend.engine.rope`.
        folder: where its files lie; None for a model made in memory.
        processor: of a model with vision, transformers' own.
        no_processor: why there is none.
    """

    model: Any
    tokenizer: Any
    config: Any
    generation_config: Any
    end_tokens: tuple[int, ...]
    vocab_size: int
    max_context: int
    dtype: torch.dtype
    device: torch.device
    name: str
    folder: Path | None = None
    processor: Any = None
    no_processor: str = ""

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any = None,
        *,
        name: str = "",
        folder: Path | None = None,
        max_context: int | None = None,
        processor: Any = None,
        no_processor: str = "it has no vision",
    ) -> LoadedModel:
        """From a transformers model in memory, which is switched to evaluation mode without gradients.

        ``max_context`` is what the caller would like to have, see `context_limit`.
        """
        model.eval().requires_grad_(False)
        config = model.config.get_text_config(decoder=True)
        generation_config = getattr(model, "generation_config", None)
        head = model.get_output_embeddings()
        vocab_size = config.vocab_size if head is None else head.weight.shape[0]
        if isinstance(head, nn.Linear):  # whose weight may be packed by an engine before this one
            vocab_size = head.out_features
        sources = (generation_config, model.config, config, tokenizer)
        return cls(
            model=model,
            tokenizer=tokenizer,
            config=config,
            generation_config=generation_config,
            end_tokens=_end_tokens(sources, vocab_size),
            vocab_size=vocab_size,
            max_context=context_limit(model, config, max_context),
            dtype=model.dtype,
            device=model.device,
            name=name or type(model).__name__,
            folder=folder,
            processor=processor,
            no_processor="" if processor is not None else no_processor,
        )

    @cached_property
    def weights_hash(self) -> str:
        """A cheap fingerprint of what answers depend on: weights, configuration, tokenizer, chat template.

        Of large files it reads samples from all over: a fine-tune may leave the layers that come first as they were.
        """
        digest = hashlib.sha256()
        files = [] if self.folder is None else sorted(self.folder.iterdir())
        for file in files:
            if file.suffix in (*WEIGHT_SUFFIXES, *PICKLE_SUFFIXES, *TEXT_SUFFIXES):
                size = file.stat().st_size
                digest.update(f"{file.name}:{size}:".encode())
                with file.open("rb") as opened:
                    digest.update(opened.read(HEADER_BYTES))
                    for part in range(1, SAMPLES if size > HEADER_BYTES else 0):
                        opened.seek(size * part // SAMPLES)
                        digest.update(opened.read(SAMPLE_BYTES))
        if not files:
            digest.update(repr((self.name, self.config.to_json_string(), id(self.model))).encode())
        return digest.hexdigest()


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load a checkpoint.

    Raises `ModelNotFoundError` (no such folder or hub id, or no network), `ModelLoadError` (missing, corrupt or
    truncated files), `UnsafeCheckpointError` (would run code or unpickle), `MissingDependencyError` (the checkpoint
    needs an optional package) and `ConfigError` (no such device).
    """
    device = find_device(spec.device)
    with _foreign_errors(spec.model), _quiet(spec.progress):
        folder = _folder(spec)
        _check_files(folder, spec)
        config = _load_config(folder, spec)
        model = _load_weights(folder, config, spec, device)
        tokenizer = _load_tokenizer(folder, spec)
        processor, reason = None, "max_images is 0"
        if spec.images:
            processor, reason = load_processor(folder, config, tokenizer, trust_remote_code=spec.trust_remote_code)
        if template := getattr(processor, "chat_template", None):
            tokenizer.chat_template = tokenizer.chat_template or template  # older checkpoints have it there alone
        model = model.to(device)
        return LoadedModel.of(
            model,
            tokenizer,
            name=spec.model,
            folder=folder,
            max_context=spec.max_context,
            processor=processor,
            no_processor=reason,
        )


def find_device(name: str) -> torch.device:
    """The device of that name, ``"auto"`` the best there is. Raises `ConfigError` where it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as fault:
        reason = str(fault).strip().splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); pass 'auto' or 'cpu'") from fault
    if device.type == "meta":
        raise ConfigError("device 'meta' holds no weights; pass 'auto' or 'cpu'")
    return device


def _folder(spec: ModelSpec) -> Path:
    path = Path(spec.model).expanduser()
    if path.is_dir():
        return path
    if spec.model in SHIPPED:
        return SHIPPED[spec.model]
    if path.is_file():
        raise ModelNotFoundError(f"{spec.model!r} is a file; pass the folder that holds config.json and the weights")
    parts = spec.model.split("/")
    looks_like_path = path.is_absolute() or spec.model.startswith((".", "~")) or len(parts) > 2 or os.sep != "/"
    if looks_like_path or not all(parts):
        raise ModelNotFoundError(f"there is no folder {spec.model!r}; check the path, or pass a hub id (owner/name)")
    return _download(spec)


def _download(spec: ModelSpec) -> Path:
    """The hub's cached snapshot of a model, completed over the network where something is missing."""
    from huggingface_hub import snapshot_download

    allowed = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    allowed += ["*.py"] if spec.trust_remote_code else []
    allowed += [f"*{suffix}" for suffix in PICKLE_SUFFIXES] if spec.allow_pickle else []
    skipped = ["original/*", "consolidated*", "onnx/*", "openvino/*"]
    try:
        folder = snapshot_download(spec.model, revision=spec.revision, allow_patterns=allowed, ignore_patterns=skipped)
    except Exception as fault:  # the hub client raises errors of several libraries; all mean that it is not to be had
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise ModelNotFoundError(
            f"there is no folder {spec.model!r}, and it could not be had from the model hub ({reason}). Check the "
            "name and the revision, log in if the model is gated, or download it first and pass the folder"
        ) from fault
    return Path(folder)


def _check_files(folder: Path, spec: ModelSpec) -> None:
    names = [file.name for file in folder.iterdir()]
    if "config.json" not in names:
        raise ModelLoadError(f"{folder} has no config.json; pass a folder that save_pretrained() has written")
    if any(name.endswith(WEIGHT_SUFFIXES) for name in names) or spec.allow_pickle:
        return
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        raise UnsafeCheckpointError(
            f"{folder} has only pickled weights, and unpickling runs code of whoever made them. Convert them to "
            "safetensors, or pass allow_pickle=True if you trust their source"
        )
    raise ModelLoadError(f"{folder} has no weights: no .safetensors file was found")


def _load_config(folder: Path, spec: ModelSpec) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=spec.trust_remote_code)
    except ValueError as fault:
        if "trust_remote_code" in str(fault):
            raise _remote_code(spec) from fault
        raise


def _load_weights(folder: Path, config: Any, spec: ModelSpec, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    dtype = spec.dtype
    if dtype == "auto" and device.type == "cpu" and config.get_text_config(decoder=True).dtype == torch.float16:
        dtype = "float32"
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not spec.images and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        sees = False  # often a smaller class, without the tower
    loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=None if spec.allow_pickle else True,
            output_loading_info=True,
        )
    except ValueError as fault:
        if "trust_remote_code" in str(fault):
            raise _remote_code(spec) from fault
        raise
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__} ({shown}); they would be random. The "
            "checkpoint is incomplete or belongs to another architecture"
        )
    if spec.dtype == "auto" and device.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return model


def _load_tokenizer(folder: Path, spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=spec.trust_remote_code)


def _remote_code(spec: ModelSpec) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{spec.model!r} comes with its own modeling code, which would run in this process; pass "
        "trust_remote_code=True if you trust its source"
    )


@contextmanager
def _foreign_errors(name: str) -> Iterator[None]:
    """The one place where faults of transformers, safetensors, torch and the disk become ours."""
    from safetensors import SafetensorError

    try:
        yield
    except RadixError:
        raise
    except ImportError as fault:
        raise MissingDependencyError(f"loading {name!r} needs a package that is not installed: {fault}") from fault
    except SafetensorError as fault:
        raise ModelLoadError(f"weights of {name!r} are corrupt or truncated ({fault}); download them again") from fault
    except torch.OutOfMemoryError as fault:
        raise ModelLoadError(f"the weights of {name!r} do not fit into the device's memory") from fault
    except OSError as fault:
        raise ModelLoadError(f"files of {name!r} cannot be read: {_first_line(fault)}") from fault
    except Exception as fault:  # tokenizers raises bare ones
        raise ModelLoadError(f"{name!r} cannot be loaded: {type(fault).__name__}: {_first_line(fault)}") from fault


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]


@contextmanager
def _quiet(progress: bool | None) -> Iterator[None]:
    """Show transformers' bar as asked and hold back its warnings for the while; its settings are put back."""
    from transformers.utils import logging as transformers_logging

    chatter: Any = transformers_logging
    wanted = sys.stderr.isatty() if progress is None else progress
    before, verbosity = chatter.is_progress_bar_enabled(), chatter.get_verbosity()
    switch = {True: chatter.enable_progress_bar, False: chatter.disable_progress_bar}
    if wanted != before:
        switch[wanted]()
    chatter.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(verbosity)
        if wanted != before:
            switch[before]()


def _end_tokens(sources: tuple[Any, ...], vocab_size: int) -> tuple[int, ...]:
    found: set[int] = set()
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        values = value if isinstance(value, list | tuple) else [value]
        found.update(int(token) for token in values if token is not None)
    return tuple(sorted(token for token in found if 0 <= token < vocab_size))

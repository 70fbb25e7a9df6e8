"""The checkpoint's processor: what turns images into a model's inputs, as transformers has it.

Rules. A checkpoint without one, or one that cannot be loaded here, is served as text: the reason is kept and told to
whoever sends an image. Videos are not served, so a processor whose video half needs torchvision is built without it;
images are then read by its Pillow half. Knows nothing of requests.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

Loaded = tuple[Any, str]
"""A processor and ``""``, or None and why there is none."""


def load_processor(folder: Path, config: Any, tokenizer: Any, *, trust_remote_code: bool = False) -> Loaded:
    """The processor of a checkpoint whose configuration has a vision part."""
    if getattr(config, "vision_config", None) is None:
        return None, "it has no vision"
    if tokenizer is None or not any((folder / name).exists() for name in PROCESSOR_FILES):
        return None, "its folder has no processor files (processor_config.json, preprocessor_config.json)"
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available, is_vision_available

    if not is_vision_available():
        return None, "Pillow is not installed; pip install 'radixbackend[vision]'"
    try:
        if is_torchvision_available():
            loader: Any = AutoProcessor
            found = loader.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        else:
            found = _of_parts(folder, config, tokenizer)
    except Exception as fault:  # whatever is wrong with it, text can be served
        log.warning("%s is served without images: its processor cannot be loaded: %s", folder, fault)
        if isinstance(fault, ImportError) and "torchvision" in str(fault).lower():
            return None, "its processor needs torchvision, which is not installed"
        return None, f"its processor cannot be loaded ({type(fault).__name__}, see the log)"
    return found, ""


def images_only(kind: type) -> type:
    """A processor class that takes None for its video half, whose class is not there without torchvision."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else kind.check_argument_for_proper_class(self, name, argument)  # type: ignore[attr-defined]

    # Under its own name, by which transformers looks things up.
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__init__": kind.__init__})  # type: ignore[misc]


def _of_parts(folder: Path, config: Any, tokenizer: Any) -> Any:
    from transformers import AutoImageProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = images_only(PROCESSOR_MAPPING[type(config)])
    reader: Any = AutoImageProcessor
    parts = {"tokenizer": tokenizer, "image_processor": reader.from_pretrained(folder, local_files_only=True)}
    if unknown := set(kind.get_attributes()) - {*parts, "video_processor"}:
        raise ValueError(f"it has a part that is not served: {min(unknown)}")
    settings, _ = kind.get_processor_dict(folder, local_files_only=True)
    return kind.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)

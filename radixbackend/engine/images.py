"""The front desk for images: from a prompt and pictures to tokens and what the vision tower takes.

Rules. Runs in the caller's thread: files are opened, bounded and checked here, and the checkpoint's processor writes
the image tokens and makes the tensors, so what a model sees is what transformers would show it. Whatever is wrong with
an image is said here. An image is known by what its tensors hold: equal pictures share cached prefixes and features,
and no two others ever do. Knows nothing of vision towers, slots or steps.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from radixbackend.engine.plan import Blocks, ImageInput, IntArray, PromptImages
from radixbackend.errors import InvalidRequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    from radixbackend.types import Image

MOST_PIXELS = 64_000_000
"""Of a prompt's pictures together, by their headers: nothing beyond is decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is opened; of an animation its first picture."""

REMEMBERED = 1 << 16
"""Images whose keys are kept; one seen again after that many others gets a new key and is computed again."""

OF_TEXT = frozenset(
    ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets")
)
"""What a processor returns about the text; everything else is about images."""

BlockRule = Literal["none", "images", "prompt"]
"""Where a model's attention looks ahead: nowhere, within each run of image tokens, within the whole prompt."""

Tensors = dict[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class ImageTraits:
    """How one model treats images.

    Attributes:
        token: stands for a piece of an image in token ids.
        blocks: where attention looks ahead.
        apart: whether the images of a prompt can be computed one by one; else they count as one.
        grid: its positions in three dimensions, as transformers' ``get_rope_index``; None where it has none.
    """

    token: int
    blocks: BlockRule = "none"
    apart: bool = True
    grid: Callable[..., Any] | None = field(default=None, repr=False)


class ImageDesk:
    """Reads prompts with images; safe to call from many threads at once."""

    def __init__(self, processor: Any, tokenizer: Any, traits: ImageTraits, *, most: int) -> None:
        self._processor = processor
        self._bos = getattr(tokenizer, "bos_token", None) or ""
        self._word = tokenizer.convert_ids_to_tokens(traits.token)
        self.traits = traits
        self._most = most
        self._names = _Names()

    @property
    def placeholder(self) -> str:
        """What a text has in the place of an image."""
        return getattr(self._processor, "image_token", None) or str(self._word)

    @property
    def _rule(self) -> str:
        return f"in a text each image has the place of one {self.placeholder!r}"

    def read(
        self, prompt: str | Sequence[int], images: Sequence[Image], salt: str | None = None
    ) -> tuple[list[int], PromptImages]:
        """Tokens and images of a prompt. Raises `InvalidRequestError`."""
        if len(images) > self._most:
            raise InvalidRequestError(
                f"{len(images)} images are more than the {self._most} that one request may have; see max_images",
                param="images",
            )
        pictures: list[PILImage] = []
        left = MOST_PIXELS
        for index, image in enumerate(images):
            pictures.append(open_picture(image, index, left))
            left -= pictures[-1].width * pictures[-1].height
        if isinstance(prompt, str):
            found = self.process(prompt, pictures)
            ids = np.asarray(found["input_ids"][0], np.int32)
        else:
            found = self.process(self.placeholder * len(pictures), pictures)
            ids = np.asarray(prompt, np.int32)
        replaced = found.get("text_replacement_offsets", [[]])[0]
        counts = [entry["replacement"].count(self._word) for entry in replaced if entry["type"] == "image"]
        places = np.flatnonzero(ids == self.traits.token).astype(np.int32)
        needed = int((np.asarray(found["input_ids"]) == self.traits.token).sum())
        if counts and len(counts) != len(pictures):
            raise InvalidRequestError(f"{len(pictures)} images for {len(counts)} places; {self._rule}", param="images")
        if len(places) != needed or not needed:
            raise InvalidRequestError(
                f"the prompt has {len(places)} image tokens ({self._word!r}) and its images need {needed}; {self._rule}"
                ", token ids are those that the model's processor makes of such a text",
                param="images",
            )
        if not self.traits.apart or len(counts) != len(pictures) or sum(counts) != needed:
            counts = [needed]
        return ids.tolist(), self._images(ids, places, counts, _tensors(found), salt)

    def process(self, text: str, pictures: list[PILImage]) -> Mapping[str, Any]:
        """What the processor makes of a text and its images; `InvalidRequestError` with its own words."""
        try:
            found: Mapping[str, Any] = self._processor(
                text=text,
                images=pictures,
                return_tensors="pt",
                return_text_replacement_offsets=True,
                # A chat template has written it already.
                add_special_tokens=not (self._bos and text.startswith(self._bos)),
            )
        except Exception as fault:  # of many libraries; all mean that this text and these images do not go together
            raise InvalidRequestError(
                f"the model's processor refuses the images: {str(fault) or type(fault).__name__}; {self._rule}",
                param="images",
            ) from fault
        return found

    def _images(
        self, ids: IntArray, places: IntArray, counts: list[int], tensors: Tensors, salt: str | None
    ) -> PromptImages:
        parts = np.split(places, np.cumsum(counts)[:-1])
        images, keys = [], ids.copy()
        for positions, own in zip(parts, _split(tensors, counts), strict=True):
            start, stop = int(positions[0]), int(positions[-1]) + 1
            key = self._names.of(_digest(ids[start:stop], own, salt))
            images.append(ImageInput(key, start, ids[start:stop], positions - np.int32(start), own))
            keys[positions] = key
        blocks = self._blocks(places, len(ids))
        for start, stop in blocks:  # each of its tokens depends on all of it
            keys[start:stop] = self._names.of(_digest(keys[start:stop], {}, salt))
        grid, shift = self._grid(ids, places, tensors)
        return PromptImages(tuple(images), keys, grid, shift, blocks)

    def _grid(self, ids: IntArray, places: IntArray, tensors: Tensors) -> tuple[IntArray | None, int]:
        if self.traits.grid is None:
            return None, 0
        import torch

        kinds = np.zeros((1, len(ids)), np.int64)
        kinds[0, places] = 1
        positions, deltas = self.traits.grid(
            input_ids=torch.from_numpy(ids.astype(np.int64))[None],
            mm_token_type_ids=torch.from_numpy(kinds),
            image_grid_thw=torch.from_numpy(tensors["image_grid_thw"]),
        )
        return positions[:, 0].numpy().astype(np.int32), int(deltas.flatten()[0])

    def _blocks(self, places: IntArray, length: int) -> Blocks:
        if self.traits.blocks == "prompt":
            return ((0, length),)
        return runs(places) if self.traits.blocks == "images" else ()


def open_picture(image: Image, index: int = 0, most: int = MOST_PIXELS) -> PILImage:
    """Decoded, upright and in RGB; ``most`` is in pixels. Raises `InvalidRequestError` naming the image."""
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    place = f"images[{index}]"
    if isinstance(image, Pillow.Image):
        return image.convert("RGB")
    if not isinstance(image, bytes | bytearray | memoryview | os.PathLike):
        raise InvalidRequestError(
            f"{place} is {type(image).__name__}; an image is the bytes of a file, a path or a Pillow image",
            param="images",
        )
    try:
        source: Any = io.BytesIO(image) if isinstance(image, bytes | bytearray | memoryview) else image
        with Pillow.open(source, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > most:
                raise InvalidRequestError(
                    f"{place} has {width} x {height} pixels; all images together may have {MOST_PIXELS:,}, make it "
                    "smaller",
                    param="images",
                )
            return ImageOps.exif_transpose(opened).convert("RGB")
    except InvalidRequestError:
        raise
    except UnidentifiedImageError as fault:  # whose text names an object in memory
        raise InvalidRequestError(f"{place} is no {' or '.join(FORMATS)} file", param="images") from fault
    except Exception as fault:  # Pillow raises whatever a decoder stumbles over
        raise InvalidRequestError(
            f"{place} cannot be read: {str(fault) or type(fault).__name__}", param="images"
        ) from fault


def _digest(tokens: IntArray, tensors: Tensors, salt: str | None) -> bytes:
    digest = hashlib.sha256(repr((salt, tokens.tolist())).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype}:{array.shape}:".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.digest()


class _Names:
    """A number below 0 for every content, the same for the same one, never given twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self._next = itertools.count(1)

    def of(self, content: bytes) -> int:
        with self._lock:
            if content not in self._known:
                self._known[content] = -next(self._next)
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
            self._known.move_to_end(content)
            return self._known[content]


def runs(places: IntArray) -> Blocks:
    """Stretches of positions that follow each other, from and to."""
    if not len(places):
        return ()
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(places, breaks))


def _tensors(found: Mapping[str, Any]) -> Tensors:
    return {name: np.asarray(value) for name, value in found.items() if name not in OF_TEXT}


def _split(tensors: Tensors, counts: list[int]) -> list[Tensors]:
    """The tensors of each image, of which ``counts`` are the image tokens.

    Images lie along the first dimension: one row each, or rows in proportion to their tokens (patches, tiles), which
    may be wrapped in a batch of one. What fits neither concerns all of them.
    """
    if len(counts) == 1:
        return [tensors]
    parts: list[Tensors] = [{} for _ in counts]
    for name, array in tensors.items():
        axis, sizes = 0, _rows(array.shape[:1], counts)
        if sizes is None and array.shape[:1] == (1,):
            axis, sizes = 1, _rows(array.shape[1:2], counts)
        ends = None if sizes is None else np.cumsum(sizes)[:-1]
        pieces = [array] * len(counts) if ends is None else np.split(array, ends, axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return parts


def _rows(shape: tuple[int, ...], counts: list[int]) -> list[int] | None:
    if not shape or shape[0] < len(counts):
        return None
    if shape[0] == len(counts):
        return [1] * len(counts)
    shares = [shape[0] * count for count in counts]
    return None if any(share % sum(counts) for share in shares) else [share // sum(counts) for share in shares]

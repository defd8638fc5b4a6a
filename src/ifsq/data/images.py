"""What the rest of the package sees of images: a config, a source of labelled pictures, and one kind of error.

A source is a pure function of (index, seed), so that a run can stop and continue anywhere and give the same pictures.
`ifsq.data.open_images` makes one; `sampler` reads it.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ifsq.config import InputError

BUNDLED = ("bundled:photos", "bundled:digits", "bundled:shapes")
SPLITS = ("train", "val")
CROPS = ("center", "random", "five", "resized")
BROKEN = ("refuse", "skip")
MOST_RANGE = 4.0
HUGE = 89_478_485
"""Pixels above which Pillow suspects a decompression bomb."""
Size = int | tuple[int, int]
"""Pixels a side of a square, or the height and the width of a rectangle."""


class DataError(InputError):
    """Images cannot be used as given. The message is one line and names the folder, image or value."""


def check_channels(channels: int) -> None:
    """Raises DataError unless pictures have so many."""
    if channels not in (1, 3):
        raise DataError(f"in_channels={channels}: expected 1 (luminance) or 3 (RGB), as pictures have")


class BrokenImageError(DataError):
    """One image that cannot be read, or is too large. The only error that ``broken = "skip"`` passes over."""


def height_width(size: Size) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def size_text(size: Size) -> str:
    """``32``, or ``16x32`` for a height of 16 and a width of 32: as ``--size`` takes it."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are brought to one size.

    source      ``bundled:photos``, ``bundled:digits`` or ``bundled:shapes``; the path of a folder of images; of a list
                (.txt, .csv, .tsv, .jsonl: see ``listed``); of .tar shards, a pattern of them or a folder of them (see
                ``shards``); ``hf:NAME`` or ``hf:FOLDER``, a data set of Hugging Face (see ``hf``)
    size        pixels a side; or ``[height, width]``, which is the same where both are equal
    flip        mirror half of the training images; validation images never
    crop        of training images: ``center``; ``random``, a part of the picture after it was brought to the least size
                that covers size to crop_range times size; ``five``, the middle or a corner of the picture at the least
                size that covers crop_range times size; ``resized``, a part of random area and shape, stretched to the
                size. Validation images are always cropped at the centre; bundled sources have their own recipe
    crop_range  ``random``, ``five``: how much more than the size is covered, as a factor
    scale       ``resized``: least and greatest area of the part, as a fraction of the picture's
    ratio       ``resized``: least and greatest width over height of the part, in units of those of the size
    val_source  where validation images come from; "": the source's own ``val``, or a twentieth of it that names decide
    label_column  where labels are, for lists, tables and shards that do not say it themselves (see
                ``labels.choose_column``): the name of a column, a key, or an ending of files; ``none``: the images have
                no classes
    broken      an image that cannot be read or is too large: ``refuse`` ends the run with its name; ``skip`` leaves it
                out of its batch and names it there (see ``sampler.ImageBatches``)
    max_pixels  width times height above which an image is too large
    stream      read ``hf:`` sources from front to back, without a copy on disk (see ``hf``)
    block       ``stream``: images that are shuffled among each other; each loading process holds that many files
    """

    source: str = "bundled:photos"
    size: Size = 32
    flip: bool = False
    crop: str = "center"
    crop_range: float = 1.25
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    val_source: str = ""
    label_column: str = ""
    broken: str = "refuse"
    max_pixels: int = HUGE
    stream: bool = False
    block: int = 1024

    def __post_init__(self) -> None:
        if not self.source or (self.source.startswith("bundled:") and self.source not in BUNDLED):
            raise DataError(f"source={self.source!r}: expected one of {', '.join(BUNDLED)} or a folder")
        self._check_size()
        if self.crop not in CROPS:
            raise DataError(f"crop={self.crop!r}: expected one of {', '.join(CROPS)}")
        if self.broken not in BROKEN:
            raise DataError(f"broken={self.broken!r}: expected one of {', '.join(BROKEN)}")
        self._check_ranges()
        self._check_sources()

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return height_width(self.size)

    def _check_size(self) -> None:
        low, high = (16, 256) if self.source in BUNDLED else (8, 4096)
        if not all(low <= side <= high for side in self.sides):
            told = self.size if isinstance(self.size, int) else list(self.size)
            raise DataError(f"size={told}: expected {low} to {high} pixels for {self.source}")
        height, width = self.sides
        # Said in two ways, a square is still one: equal configs, hashes and fingerprints.
        object.__setattr__(self, "size", height if height == width else (height, width))

    def _check_ranges(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"scale={list(self.scale)}: expected 0 < least <= greatest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise DataError(f"ratio={list(self.ratio)}: expected 0 < least <= greatest")
        if not 1 <= self.crop_range <= MOST_RANGE:
            raise DataError(f"crop_range={self.crop_range:g}: expected 1 to {MOST_RANGE:g}")
        if not 1 <= self.max_pixels <= HUGE:
            raise DataError(f"max_pixels={self.max_pixels}: expected 1 to {HUGE}, where Pillow suspects a bomb")
        if self.block < 1:
            raise DataError(f"block={self.block}: expected at least one image")

    def _check_sources(self) -> None:
        if self.val_source and "bundled:" in (self.source[:8], self.val_source[:8]):
            raise DataError(f"val_source={self.val_source!r}: bundled images have their own validation images")
        if self.label_column and self.source in BUNDLED:
            raise DataError(f"label_column={self.label_column!r}: {self.source} has classes of its own")
        if self.stream and not all(s.startswith("hf:") for s in (self.source, self.val_source) if s):
            raise DataError(f"stream=true: expected a source hf:NAME, found {self.val_source or self.source!r}")

    def for_split(self, split: str) -> "DataConfig":
        """The config that a split follows: only training images are augmented."""
        return self if split == "train" else replace(self, flip=False, crop="center")


@dataclass(frozen=True)
class Reading:
    """How images are read that a run was not trained on; what is None stays as it is for the run.

    val_source, label_column, broken, max_pixels  see `DataConfig`
    workers                                       processes that read ahead
    """

    val_source: str | None = None
    label_column: str | None = None
    broken: str | None = None
    max_pixels: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise DataError(f"workers {self.workers}: expected at least 0")

    def options(self) -> dict[str, Any]:
        """The fields of `DataConfig` that are given."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "workers"}


class ImageSource(ABC):
    """Labelled images of one shape.

    classes      names; a label is a position in it
    fingerprint  SHA-256 (hex) over everything that decides the pixels, but not where they lie: equal fingerprints give
                 equal images. Of files it covers names, sizes in bytes and labels, not the bytes: an edit that keeps
                 all three goes unseen. Of a stream it covers the source's name and the count alone
    shape        height, width and channels of every image
    broken       what happens to an image whose `load` raises `BrokenImageError`: ``refuse`` or ``skip``
    labels       of every image, where they are known before it is read
    untouched    names of the splits that lie beside those for training and validation
    unread       what to call the pictures that ``broken = "skip"`` leaves out because they are of no kind that is read
    block        0: any image is as near as any other; else they are read in order, and only inside of a block of so
                 many may they be shuffled
    """

    classes: tuple[str, ...]
    fingerprint: str
    shape: tuple[int, int, int]
    broken: str = "refuse"
    labels: Sequence[int] | None = None
    untouched: tuple[str, ...] = ()
    unread: Sequence[str] = ()
    block: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Images in an epoch."""

    @abstractmethod
    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W c"], int]:
        """Image 0 <= index < len and its label. The seed (0 to 2**63 - 1) decides crop and flip in training only.

        Raises `BrokenImageError` where this image alone cannot be used.
        """

    def name(self, index: int) -> str:
        """What the image is called, as the path of a file below its source; its place in the split without a name."""
        return str(index)


def fingerprint(config: DataConfig, split: str, recipe: str, contents: Iterable[bytes], channels: int) -> str:
    """SHA-256 (hex) of how images are made (not of the path they lie under) and of what they are made from."""
    how: dict[str, Any] = {
        "size": config.size,
        "flip": config.flip,
        "crop": config.crop,
        "split": split,
        "recipe": recipe,
    }
    if channels != 3:
        how |= {"channels": channels}
    if config.crop == "resized":
        how |= {"scale": config.scale, "ratio": config.ratio}
    if config.crop == "five" or (config.crop == "random" and config.crop_range != DataConfig.crop_range):
        how |= {"crop_range": config.crop_range}
    if config.broken == "skip":  # decides which images there are
        how |= {"broken": config.broken, "max_pixels": config.max_pixels}
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()

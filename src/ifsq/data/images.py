"""What the rest of the package sees of images: a config, a source of labelled pictures, and one kind of error.

A source is a pure function of (index, seed), so that a run can stop and continue anywhere and give the same pictures.
`ifsq.data.open_images` makes one; `sampler` reads it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from ifsq.config import InputError

BUNDLED = ("bundled:photos", "bundled:digits", "bundled:shapes")
SPLITS = ("train", "val")
CROPS = ("center", "random")


class DataError(InputError):
    """Images cannot be used as given. The message is one line and names the folder, image or value."""


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are brought to one size.

    source  ``bundled:photos``, ``bundled:digits``, ``bundled:shapes`` or the path of a folder of images
    size    height and width in pixels
    flip    mirror half of the training images; validation images never
    crop    ``center`` or ``random``: training crop of a folder's images; bundled sources have their own recipe
    """

    source: str = "bundled:photos"
    size: int = 32
    flip: bool = False
    crop: str = "center"

    def __post_init__(self) -> None:
        if not self.source or (self.source.startswith("bundled:") and self.source not in BUNDLED):
            raise DataError(f"source={self.source!r}: expected one of {', '.join(BUNDLED)} or a folder")
        low, high = (16, 256) if self.source in BUNDLED else (8, 4096)
        if not low <= self.size <= high:
            raise DataError(f"size={self.size}: expected {low} to {high} pixels for {self.source}")
        if self.crop not in CROPS:
            raise DataError(f"crop={self.crop!r}: expected one of {', '.join(CROPS)}")

    def for_split(self, split: str) -> "DataConfig":
        """The config that the split follows: validation has no augmentation. Raises DataError on an unknown split."""
        if split not in SPLITS:
            raise DataError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        return self if split == "train" else replace(self, flip=False, crop="center")


class ImageSource(ABC):
    """Labelled images of one size.

    classes      names; a label is a position in it
    fingerprint  SHA-256 (hex) over everything that decides the pixels: equal fingerprints give equal images
                 (of a folder: names and sizes in bytes, so an edit that keeps both goes unseen)
    """

    classes: tuple[str, ...]
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """Images in an epoch."""

    @abstractmethod
    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
        """Image 0 <= index < len and its label. The seed (0 to 2**63 - 1) decides crop and flip in training only."""


def fingerprint(config: DataConfig, split: str, recipe: str, contents: Iterable[bytes]) -> str:
    """SHA-256 (hex) of how images are made (not of the path they lie under) and of what they are made from."""
    how = {"size": config.size, "flip": config.flip, "crop": config.crop, "split": split, "recipe": recipe}
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()

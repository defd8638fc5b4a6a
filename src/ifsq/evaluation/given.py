"""Anybody's images, whatever holds them: an .npz in ADM's layout, a data source, or a generator that draws them.

Each is read in batches of numbers, so that processes can share it and no set is ever whole in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.data import DataConfig, DataError, ImageSource, open_images, sample_order, split_called, splits_of
from ifsq.data.images import BUNDLED, Reading, Size, size_text
from ifsq.data.labels import NO_LABEL
from ifsq.data.npz import Npz
from ifsq.data.sampler import iterate_bytes
from ifsq.data.transforms import RESIZE_KERNEL
from ifsq.data.unresized import open_unresized
from ifsq.evaluation.generator import Part

AS_THEY_ARE = "none"
"""Crop and kernel of images that nothing was done to."""
IMAGES, LABELS = "arr_0", "arr_1"
"""Arrays of an .npz in ADM's layout: uint8 (n, H, W, 3), and, where there are labels, integers (n,)."""


class GivenImages(ABC):
    """Images of one size, by number.

    name         what cards call them
    fingerprint  equal ones mean equal images
    shape        height, width and channels
    crop         how they reached their size, and with which kernel: `AS_THEY_ARE` where nothing was done
    told         more fields of a `ProtocolCard`, as of the sampling
    skipped      a line about each image that was left out so far
    """

    name: str
    fingerprint: str
    shape: tuple[int, int, int]
    crop: str = AS_THEY_ARE
    kernel: str = AS_THEY_ARE
    told: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.skipped: list[str] = []

    @abstractmethod
    def __len__(self) -> int:
        """Images there are."""

    @abstractmethod
    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """The images of each batch of numbers. Raises DataError; images that are left out are missing in their part."""

    @property
    def size(self) -> Size:
        """Pixels a side, or height and width."""
        height, width = self.shape[:2]
        return height if height == width else (height, width)

    def chosen(self, count: int) -> list[int]:
        """``count`` of the numbers, drawn over the set, always the same ones, in the order of measurement."""
        return sorted(sample_order(0, 0, len(self))[:count].tolist())


class ArrayImages(GivenImages):
    """The images of an .npz in ADM's layout. Raises DataError, in one line, for any other file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file, self.name = Npz(path), str(path)
        if IMAGES not in self.file:
            held = ", ".join(sorted(self.file.members)) or "no arrays"
            raise DataError(f"{path}: holds {held}; expected {IMAGES}, images as uint8 (n, H, W, 3)")
        images = self.file.members[IMAGES]
        if images.dtype != np.uint8:
            raise DataError(f"{path}: {IMAGES}: is of {images.dtype}; expected uint8, 0 to 255")
        if len(images.shape) != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise DataError(f"{path}: {IMAGES}: is of shape {images.shape}; expected (n, H, W, 3), or one channel")
        self.count, self.fingerprint = images.shape[0], self.file.fingerprint
        self.shape = images.shape[1], images.shape[2], images.shape[3]
        self.labels = self._labels()

    def __len__(self) -> int:
        return self.count

    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        for numbers, images in zip(batches, self.file.rows(IMAGES, batches), strict=True):
            yield Part(images, self.labels[torch.tensor(list(numbers), dtype=torch.int64)], numbers)

    def _labels(self) -> Int[Tensor, "n"]:
        if LABELS not in self.file:
            return torch.full((self.count,), NO_LABEL)
        member = self.file.members[LABELS]
        where = f"{self.name}: {LABELS}"
        if member.shape != (self.count,) or member.dtype.kind not in "iu":
            raise DataError(
                f"{where}: is of shape {member.shape} and {member.dtype}; expected an integer label for each of the"
                f" {self.count} images"
            )
        labels = self.file.array(LABELS)
        if (low := int(labels.min())) < 0 or int(labels.max()) > 2**31:
            raise DataError(f"{where}: labels from {low} to {labels.max()}; expected 0 and above")
        return torch.from_numpy(labels.astype(np.int64))


class SourceImages(GivenImages):
    """The images of a data source.

    images   of one split
    name     what cards call them
    config   how they were made; None: they are as they are
    workers  processes that read ahead
    """

    def __init__(self, images: ImageSource, name: str, config: DataConfig | None = None, workers: int = 0) -> None:
        super().__init__()
        self.images, self.name, self.workers = images, name, workers
        self.fingerprint, self.shape = images.fingerprint, images.shape
        if config is not None:
            self.crop = "the bundled recipe" if config.source in BUNDLED else config.crop
            self.kernel = "bicubic (Pillow)" if config.source in BUNDLED else RESIZE_KERNEL

    def __len__(self) -> int:
        return len(self.images)

    def chosen(self, count: int) -> list[int]:
        """See `GivenImages.chosen`. In a random order, since folders are sorted by class; a stream's from its front."""
        drawn = sample_order(0, 0, len(self))[:count].tolist()
        return sorted(drawn) if self.images.block else drawn

    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        for read in iterate_bytes(self.images, batches, self.workers):
            self.skipped += read.skipped
            yield Part(read.images.numpy(), read.labels, read.indices)


class DrawnImages(GivenImages):
    """Images that are drawn when they are asked for.

    name, fingerprint  of what decides them
    shape              height, width and channels
    count              how many there are
    draw               what draws batches of numbers that follow each other
    told               fields of a `ProtocolCard` about the sampling
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        shape: tuple[int, int, int],
        count: int,
        draw: Callable[[Iterable[Sequence[int]]], Iterator[Part]],
        told: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.name, self.fingerprint, self.shape = name, fingerprint, shape
        self.count, self.draw, self.told = count, draw, told

    def __len__(self) -> int:
        return self.count

    def parts(self, batches: Iterable[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        yield from self.draw(batches)


def open_source(
    source: str, split: str, size: Size, own: Size, reading: Reading, prefer: Sequence[str] = ("val", "test")
) -> SourceImages:
    """The images of a data source.

    split   of it; empty: the first of ``prefer`` that it has, or all of a source without splits
    size    they are brought to, by our own transforms; 0: they are as they are
    own     size for what has none of its own, bundled images and streams; 0: expected in ``size``

    Raises DataError.
    """
    options = reading.options()
    fixed = source in BUNDLED or bool(options.get("stream"))
    config = DataConfig(source, size or (own if fixed and own else 32), **options)
    split = split_called(config, split) if split else _usual_split(config, prefer)
    workers = reading.workers or 0
    if size or (fixed and own):
        images: ImageSource = open_images(config, split, labels=False)
        return SourceImages(images, f"{source} {split}", config.for_split("val"), workers)
    return SourceImages(open_unresized(config, split), f"{source} {split}", None, workers)


def refuse_other_size(images: GivenImages, size: Size) -> None:
    """Raise DataError where a size is asked for that images of an .npz have not."""
    if size and images.size != size:
        raise DataError(
            f"{images.name}: is of {size_text(images.size)} pixels, which --size {size_text(size)} cannot change;"
            " expected a folder or another data source"
        )


def _usual_split(config: DataConfig, prefer: Sequence[str]) -> str:
    splits = splits_of(config)
    for split in prefer:
        if split in splits:
            return split
    if splits:
        raise DataError(f"{config.source}: has the splits {', '.join(splits)}; say which of them is meant")
    return "all"

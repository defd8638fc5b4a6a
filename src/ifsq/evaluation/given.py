"""Anybody's images, whatever holds them: an .npz in ADM's layout, a data source, or a generator that draws them.

Each is read in batches of numbers, so that processes can share it and no set is ever whole in memory.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.config import InputError, build, read_json
from ifsq.data import (
    DataConfig,
    DataError,
    ImageSource,
    open_images,
    sample_order,
    split_called,
    splits_of,
    to_float,
    to_uint8,
)
from ifsq.data.image_sets import CARD, is_card
from ifsq.data.images import BUNDLED, Reading, Size, size_text
from ifsq.data.labels import NO_LABEL
from ifsq.data.npz import Npz
from ifsq.data.sampler import AT_ONCE, iterate_bytes, max_batch
from ifsq.data.transforms import RESIZE_KERNEL
from ifsq.data.unresized import open_unresized
from ifsq.evaluation.samples import Part, SamplesCard, at_once, image_shape, sample_parts
from ifsq.generators import Generator, Sampling
from ifsq.tokenizer.model import Tokenizer

AS_THEY_ARE = "none"
"""Crop and kernel of images that nothing was done to."""
PIXELS_AT_ONCE = 1 << 22  # of images that are read
GLIMPSED = 16  # images that tell sets of the same names and sizes apart
IMAGES, LABELS = "arr_0", "arr_1"
"""Arrays of an .npz in ADM's layout: uint8 (n, H, W, 3), and, where there are labels, integers (n,)."""


OF_SAMPLING = (
    *("seed", "labels", "guidance", "sampler", "function_evaluations", "dtype"),
    *("generator_hash", "tokenizer_hash"),
)
"""Fields that a `SamplesCard` and a `ProtocolCard` share."""


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
    def at_once(self) -> int:
        """Images that a batch may have."""
        return max(1, min(AT_ONCE, PIXELS_AT_ONCE // (self.shape[0] * self.shape[1])))

    @property
    def size(self) -> Size:
        """Pixels a side, or height and width."""
        height, width = self.shape[:2]
        return height if height == width else (height, width)

    def glimpse(self) -> str:
        """SHA-256 (hex) of a few of the images, where the fingerprint is not made of their bytes; else empty."""
        return ""

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
        self.labels, self.told = self._labels(), told_beside(path, self.count)

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
    place    where they lie, perhaps with the card of samples of ours
    """

    def __init__(
        self,
        images: ImageSource,
        name: str,
        config: DataConfig | None = None,
        workers: int = 0,
        place: Path | None = None,
    ) -> None:
        super().__init__()
        self.images, self.name, self.workers = images, name, workers
        self.fingerprint, self.shape = images.fingerprint, images.shape
        self.told = told_beside(place, len(images)) if place is not None and place.is_dir() else {}
        if config is not None:
            self.crop = "the bundled recipe" if config.source in BUNDLED else config.crop
            self.kernel = "bicubic (Pillow)" if config.source in BUNDLED else RESIZE_KERNEL

    def __len__(self) -> int:
        return len(self.images)

    def chosen(self, count: int) -> list[int]:
        """See `GivenImages.chosen`. In a random order, since folders are sorted by class; a stream's from its front."""
        drawn = sample_order(0, 0, len(self))[:count].tolist()
        return sorted(drawn) if self.images.block else drawn

    def glimpse(self) -> str:
        """See `GivenImages.glimpse`: other images may have the same names and sizes in bytes."""
        few = range(min(GLIMPSED, len(self))) if self.images.block else SourceImages.chosen(self, GLIMPSED)
        seen = hashlib.sha256()
        for read in iterate_bytes(self.images, [few]):
            seen.update(read.images.numpy().tobytes())
        return seen.hexdigest()

    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        for read in iterate_bytes(self.images, batches, self.workers):
            self.skipped += read.skipped
            yield Part(read.images.numpy(), read.labels, read.indices)


class DrawnImages(GivenImages):
    """Images that a generator draws when they are asked for, in batches of numbers that follow each other.

    labels             one an image
    name, fingerprint  of what decides them
    told               fields of a `ProtocolCard` about the sampling
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        labels: Int[Tensor, "n"],
        seed: int,
        sampling: Sampling,
        name: str = "",
        fingerprint: str = "",
        told: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.tokenizer, self.labels = generator, tokenizer, labels
        self.seed, self.sampling = seed, sampling
        self.name, self.fingerprint, self.told = name, fingerprint, told or {}
        self.shape = image_shape(generator, tokenizer)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def at_once(self) -> int:
        """See `GivenImages.at_once`."""
        return at_once(self.generator, self.tokenizer)

    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        yield from sample_parts(self.generator, self.tokenizer, self.labels, self.seed, self.sampling, batches)


class ReconstructedImages(GivenImages):
    """The images of a source through a tokenizer: the best that a generator of its codes can do."""

    def __init__(self, source: SourceImages, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.source, self.tokenizer = source, tokenizer
        self.name, self.fingerprint, self.shape = source.name, source.fingerprint, source.shape
        self.skipped = source.skipped

    def __len__(self) -> int:
        return len(self.source)

    @property
    def at_once(self) -> int:
        """See `GivenImages.at_once`."""
        return max_batch(*self.shape[:2])

    def chosen(self, count: int) -> list[int]:
        """See `GivenImages.chosen`."""
        return self.source.chosen(count)

    @torch.no_grad()
    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        device = next(self.tokenizer.parameters()).device
        for part in self.source.parts(batches):
            if len(part.images):  # else none of them could be read
                again = to_uint8(self.tokenizer(to_float(part.images).to(device)).images)
                yield Part(again, part.labels, part.numbers)
            else:
                yield part


def told_beside(place: Path, count: int) -> dict[str, Any]:
    """What the card beside samples of ours says of their sampling, as fields of a `ProtocolCard`; nothing without one.

    place  an .npz or a folder
    count  of the images that are there

    Raises InputError where the card is damaged or of other samples.
    """
    path = place / CARD if place.is_dir() else place.with_suffix(".json")
    if not path.is_file() or not is_card(path):
        return {}
    card = build(SamplesCard, read_json(path), str(path))
    if card.count != count:
        raise InputError(f"{path}: is the card of {card.count} samples, and {place} holds {count}; remove one of them")
    return told_of(card)


def told_of(card: SamplesCard) -> dict[str, Any]:
    """The fields that the card of a measurement has from that of its samples."""
    return {name: getattr(card, name) for name in OF_SAMPLING}


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
    place = Path(source) if split == "all" else None  # a part of samples of ours is not what their card is of
    if size or (fixed and own):
        images: ImageSource = open_images(config, split, labels=False)
        return SourceImages(images, f"{source} {split}", config.for_split("val"), workers, place)
    return SourceImages(open_unresized(config, split), f"{source} {split}", None, workers, place)


def is_npz(source: str) -> bool:
    """Whether a source is an .npz, by its name."""
    return source.lower().endswith(".npz")


def refuse_split(source: str, split: str) -> None:
    """Raise DataError where a split is asked for of what has none: an .npz, and what a run draws."""
    if split:
        raise DataError(f"split {split}: is of a folder or another data source, and {source} has none")


def refuse_other_size(images: GivenImages, size: Size) -> None:
    """Raise DataError where a size is asked for that images of an .npz, or of a run, have not."""
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

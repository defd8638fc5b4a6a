"""Encoded image files in a fixed order, whatever holds them: a folder, a list, tar shards, a table.

A kind of source says in a `Catalogue` which files there are; `EncodedImages` owns everything else that they share:
who is held out, what the classes are, reading, cropping, flipping. Made by `ifsq.data.open_images`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import UInt8

from ifsq.data.decode import decoding, read_image
from ifsq.data.draws import Draws
from ifsq.data.formats import KNOWN
from ifsq.data.images import BrokenImageError, DataConfig, DataError, ImageSource, fingerprint, size_text
from ifsq.data.labels import NO_CLASSES, NO_LABEL, number_classes, plain_label
from ifsq.data.splits import VAL, Part
from ifsq.data.transforms import RESIZE_KERNEL, center_crop, five_crop, random_crop, resized_crop, to_channels

VAL_SHARE = 0.05
"""Part of the images that validation takes when the source has no split of its own; at least one."""


class Catalogue(ABC):
    """Which files there are.

    place   what to call the whole in a message
    recipe  kind and version, for the fingerprint
    names   one a file; they decide who is held out, so they do not say where the whole lies
    sizes   bytes
    labels  the class of each file in words, or None where there are no classes
    unread  what to call the pictures that lie there and are not read
    """

    place: str
    recipe: str
    names: Sequence[str]
    sizes: Sequence[int]
    labels: Sequence[str] | None
    unread: Sequence[str] = ()

    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return NO_CLASSES if self.labels is None else number_classes(self.labels, self.place)

    @abstractmethod
    def read(self, position: int) -> Path | bytes:
        """A file, by path or by content. Raises DataError."""

    def where(self, position: int) -> str:
        """What to call a file in a message."""
        return f"{self.place}: {self.names[position]}"

    def where_label(self, position: int) -> str:
        """What to call its label in a message."""
        assert self.labels is not None
        return f"{self.where(position)}: label {self.labels[position]!r}"

    def identity(self, position: int) -> bytes:
        """What the fingerprint knows of a file."""
        label = "" if self.labels is None else self.labels[position]
        return f"{self.names[position]}\0{self.sizes[position]}\0{label}\n".encode()


class EncodedImages(ImageSource):
    """The images of one split, in the catalogue that holds them.

    labels    whether they matter; see `ifsq.data.open_images`
    channels  3 for RGB, 1 for the luminance

    Raises DataError when a split is empty or, where labels matter, an image has a class that no training image has.
    """

    def __init__(self, config: DataConfig, part: Part[Catalogue], labels: bool = True, channels: int = 3) -> None:
        self.config, self.shape, self.broken = config.for_split(part.split), (*config.sides, channels), config.broken
        self.catalogue, self.untouched = part.held, part.untouched
        self.unread = self.catalogue.unread
        self._latest: tuple[int, UInt8[np.ndarray, "H W c"]] | None = None
        if self.unread and self.broken == "refuse":
            refuse_unread(self.unread)
        names = self.catalogue.names
        self.kept = drawn_by_name(names, part.split, self.catalogue.place) if part.drawn else range(len(names))
        if not self.kept:
            raise DataError(f"{self.catalogue.place}: expected images, found none")
        self.classes = part.train.classes()
        self.labels: list[int] = self._labels(part.train, labels)
        self.fingerprint = fingerprint(
            self.config,
            part.split,
            f"{part.train.recipe}, {RESIZE_KERNEL}, {self.classes}{decoding(self.names, self.broken)}",
            (self.catalogue.identity(position) for position in self.kept),
            channels,
        )

    @property
    def names(self) -> list[str]:
        """What the catalogue calls the images, in order."""
        return [self.catalogue.names[position] for position in self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W c"], int]:
        """See `ImageSource.load`."""
        position = self.kept[index]
        where = self.catalogue.where(position)
        if self._latest is None or self._latest[0] != index:  # several crops of an image need it once
            self._latest = None
            image = read_channels(self.catalogue.read(position), where, self.config, self.shape[2])
        else:
            image = self._latest[1]
        if self.config.crop in ("random", "five"):
            self._latest = index, image
        return to_shape(image, where, self.config, seed), self.labels[index]

    def name(self, index: int) -> str:
        """See `ImageSource.name`."""
        return self.catalogue.names[self.kept[index]]

    def _labels(self, train: Catalogue, matter: bool) -> list[int]:
        if train.labels is None:
            return [0] * len(self.kept)
        if self.catalogue.labels is None:
            if matter:
                raise DataError(f"{self.catalogue.place}: has no classes, expected those of {train.place}")
            return [NO_LABEL] * len(self.kept)
        number = {plain_label(name): number for number, name in enumerate(self.classes)}
        labels = [number.get(plain_label(self.catalogue.labels[position]), NO_LABEL) for position in self.kept]
        if matter and NO_LABEL in labels:
            wrong = self.kept[labels.index(NO_LABEL)]
            raise DataError(f"{self.catalogue.where_label(wrong)}: expected a class that {train.place} has too")
        return labels


def read_channels(file: Path | bytes, name: str, config: DataConfig, channels: int) -> UInt8[np.ndarray, "H W c"]:
    """A whole picture as RGB (3 channels) or its luminance (1). Raises BrokenImageError."""
    path, content = (name, file) if isinstance(file, bytes) else (file, None)
    return to_channels(read_image(path, content, config.max_pixels), channels)


def to_shape(image: UInt8[np.ndarray, "H W c"], name: str, config: DataConfig, seed: int) -> UInt8[np.ndarray, "h w c"]:
    """Crop and flip a picture as the config of its split says; small ones are enlarged.

    seed  decides both; its remainder by 5 is the number of a part of `five_crop`

    Raises BrokenImageError for a picture so narrow that it would have more than ``max_pixels`` once enlarged.
    """
    draws = Draws(seed)
    if config.crop == "resized":
        cropped = resized_crop(image, config.size, config.scale, config.ratio, draws)
    elif _is_too_narrow(image, config):
        raise BrokenImageError(
            f"image {name} cannot be used: {image.shape[1]} x {image.shape[0]} pixels are too narrow for size"
            f" {size_text(config.size)}"
        )
    elif config.crop == "random":
        cropped = random_crop(image, config.size, draws.below, config.crop_range)
    elif config.crop == "five":
        cropped = five_crop(image, config.size, seed % 5, config.crop_range)
    else:
        cropped = center_crop(image, config.size)
    if config.flip and draws.below(2):
        cropped = cropped[:, ::-1]
    return np.ascontiguousarray(cropped)


def _is_too_narrow(image: UInt8[np.ndarray, "H W c"], config: DataConfig) -> bool:
    """Whether the picture has more than ``max_pixels`` where it just covers the size, which a thin strip has."""
    (height, width), (down, across) = image.shape[:2], config.sides
    # The side that has most to grow decides; the other one grows with it.
    side, other, target = (height, width, down) if down * width >= across * height else (width, height, across)
    return target * target * other > side * config.max_pixels


def refuse_unread(unread: Sequence[str]) -> NoReturn:
    """Raise DataError naming the first picture that is not read."""
    more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
    raise DataError(
        f"{unread[0]}{more}: no picture that is read ({KNOWN}); convert or remove it, or give broken 'skip'"
    )


def drawn_by_name(names: Sequence[str], split: str, place: str) -> list[int]:
    """Positions of a split when names decide: those that hash into the lowest `VAL_SHARE` are validation images."""
    if len(names) < 2:
        raise DataError(f"{place}: expected at least two images, one to train on and one held out, found {len(names)}")
    points = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names]
    ordered = sorted(range(len(names)), key=lambda position: (points[position], names[position]))
    count = min(max(sum(point < VAL_SHARE for point in points), 1), len(names) - 1)
    return sorted(ordered[:count] if split == VAL else ordered[count:])

"""A Hugging Face data set that is read from front to back, without a copy on disk.

No row can be had without those before it. So an epoch shuffles inside of blocks of ``data.block`` neighbours only, the
blocks stay in their order, and how well images mix depends on how they were stored. Every process that loads (each
worker of each rank) passes over the whole stream and decodes only the pictures of its own batches; a run that goes on
passes over what was read before. Batches are a function of (seed, step) all the same: an image has a number, its place
in the stream.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ifsq.data.containers.hf import Columns, classes_of, find_columns, label_of, read_errors, undecoded
from ifsq.data.containers.hf_files import file_of
from ifsq.data.decode import DECODING
from ifsq.data.encoded import read_channels, to_shape
from ifsq.data.images import DataConfig, DataError, ImageSource, fingerprint
from ifsq.data.labels import NO_CLASSES, NO_LABEL, plain_label
from ifsq.data.splits import VAL, Part
from ifsq.data.transforms import RESIZE_KERNEL

_COUNTED_AT_ONCE = 256


class Stream(ImageSource):
    """The images of one split, in the order of the stream; `load` is quick only where it goes on in block after block.

    part      what to call a data set, and the data set, of the split and of training
    labels    whether they matter; see `ifsq.data.open_images`
    channels  3 for RGB, 1 for the luminance

    The number of images is what the data set states, or else is counted, in one pass over the stream. Holds the files
    of one block. Raises DataError when its classes are not stated.
    """

    def __init__(self, config: DataConfig, part: Part[tuple[str, Any]], labels: bool = True, channels: int = 3) -> None:
        self.config, self.shape = config.for_split(part.split), (*config.sides, channels)
        self.broken, self.block = config.broken, config.block
        self.untouched, self.labels_matter = part.untouched, labels
        self.place, dataset = part.held
        if part.drawn and part.split == VAL:
            raise DataError(f"{self.place}: has no split val; a stream cannot be split, give val_source")
        self.classes = _classes(part.train[0], find_columns(*part.train, config.label_column))
        self.number = {plain_label(name): number for number, name in enumerate(self.classes)}
        self.columns = find_columns(self.place, dataset, config.label_column)
        if labels and _classes(self.place, self.columns) != self.classes:
            raise DataError(f"{self.place}: has other classes than {part.train[0]}, or none")
        self.rows = undecoded(dataset, self.columns).select_columns([name for name in self.columns[:2] if name])
        self.length = _count(self.place, dataset, self.columns)
        self.fingerprint = fingerprint(
            self.config,
            part.split,
            f"stream 1, {RESIZE_KERNEL}, {self.classes}, {DECODING}",
            [f"{self.place}\0{self.length}".encode()],
            channels,
        )
        self._reader: _Reader | None = None

    def __len__(self) -> int:
        return self.length

    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W c"], int]:
        """See `ImageSource.load`."""
        where = f"{self.place}: row {index}"
        with read_errors(where):
            row = self._reading().row(index)
            file = file_of(where, row[self.columns.image], self.place)
        label = 0 if self.classes == NO_CLASSES else self._label(where, row)
        return to_shape(read_channels(file, where, self.config, self.shape[2]), where, self.config, seed), label

    def _label(self, where: str, row: dict[str, Any]) -> int:
        word = None if self.columns.label is None else label_of(where, row[self.columns.label], self.columns)
        number = NO_LABEL if word is None else self.number.get(plain_label(word), NO_LABEL)
        if number == NO_LABEL and self.labels_matter:
            raise DataError(f"{where}: has no label, expected one in every row")
        return number

    def _reading(self) -> "_Reader":
        if self._reader is None or self._reader.process != os.getpid():  # a worker starts a pass of its own
            self._reader = _Reader(self.rows, self.block)
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}


class _Reader:
    """A pass over a stream, one block in memory."""

    def __init__(self, rows: Any, block: int) -> None:
        self.rows, self.block, self.process = rows, block, os.getpid()
        self.number = -1
        self.held: dict[str, list[Any]] = {}
        self.blocks: Iterator[dict[str, list[Any]]] = iter(())

    def row(self, index: int) -> dict[str, Any]:
        number, place = divmod(index, self.block)
        if number < self.number or self.number < 0:
            # `iter` takes every row in every process; iterating plainly, the library deals them out among workers.
            self.blocks = self.rows.skip(number * self.block).iter(self.block)
            self.number = number - 1
        while self.number < number:
            self.held, self.number = next(self.blocks, {}), self.number + 1
        if place >= len(next(iter(self.held.values()), ())):
            raise DataError(f"the stream ends before row {index}")
        return {name: values[place] for name, values in self.held.items()}


def _classes(place: str, columns: Columns) -> tuple[str, ...]:
    if columns.label is None:
        return NO_CLASSES
    if columns.classes is None:
        raise DataError(f"{place}: column {columns.label} states no classes; a stream needs a ClassLabel")
    return classes_of(place, columns.classes)


def _count(place: str, dataset: Any, columns: Columns) -> int:
    stated = (dataset.info.splits or {}).get(str(dataset.split))
    if stated is not None and stated.num_examples:
        return stated.num_examples
    name = columns.label or columns.image
    with read_errors(place):
        rows = undecoded(dataset, columns).select_columns([name]).iter(_COUNTED_AT_ONCE)
        count = sum(len(part[name]) for part in rows)
    if not count:
        raise DataError(f"{place}: expected images, found none")
    return count

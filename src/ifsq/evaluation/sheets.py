"""Pictures of what was measured: sheets of reconstructions, of samples and of real images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8

from ifsq.data import DataError, image_grid, iterate_once, to_uint8, write_png
from ifsq.data.images import BrokenImageError, ImageSource
from ifsq.data.sampler import max_batch
from ifsq.store.files import make_folder
from ifsq.tokenizer.model import Tokenizer

SHEET_COLUMNS, SHEET_ROWS = 16, 4  # originals on the sheet of reconstructions
SHEET_WIDTH = 2048  # pixels that a row of large images may take
SHEET_CLASSES = 20  # rows at most
CLASS_COLUMNS, REAL_COLUMNS = 6, 3  # images a class on the sheets of samples and of real images
PAIR_COLUMNS = 3  # samples a class beside their nearest training images


@dataclass(frozen=True)
class Pairs:
    """8-bit originals and their reconstructions, as many of each."""

    originals: UInt8[np.ndarray, "n H W c"]
    reconstructions: UInt8[np.ndarray, "n H W c"]


def shown_pairs(tokenizer: Tokenizer, images: ImageSource, device: torch.device, indices: Sequence[int]) -> Pairs:
    """The images at the first ``indices``, as many as the sheets show, through the tokenizer."""
    originals, again = [], []
    height, width, _ = images.shape
    shown = indices[: SHEET_ROWS * _columns(width)]
    shown = sorted(shown) if images.block else shown  # a stream passes over all that lies before an image
    for batch in iterate_once(images, max_batch(height, width), indices=shown):
        if not len(batch.images):  # none of them could be read
            continue
        originals.append(to_uint8(batch.images))
        again.append(to_uint8(tokenizer.reconstruct(batch.images.to(device))))
    if not originals:
        raise DataError(f"none of the {len(shown)} images to show could be read")
    return Pairs(np.concatenate(originals), np.concatenate(again))


def pair_sheet(pairs: Pairs) -> np.ndarray:
    """Originals in the odd rows, their reconstructions below them."""
    return _rows(pairs.originals, pairs.reconstructions)


@dataclass(frozen=True)
class Differences:
    """A sheet, and how many times larger than they are its differences are drawn."""

    sheet: UInt8[np.ndarray, "H W c"]
    scale: int


def difference_sheet(pairs: Pairs) -> Differences:
    """Originals, reconstructions below them, and below these the size of the difference, black where there is none.

    Drawn larger by the largest power of two, 64 at most, under which one value of a hundred at most is cut off at 255.
    """
    drawn, scale = magnified_difference(pairs)
    return Differences(_rows(pairs.originals, pairs.reconstructions, drawn), scale)


def magnified_difference(pairs: Pairs) -> tuple[UInt8[np.ndarray, "n H W c"], int]:
    """The size of the difference of every pair, and how many times larger than it is it is drawn."""
    difference = np.abs(pairs.originals.astype(np.int64) - pairs.reconstructions)
    typical = max(1.0, float(np.quantile(difference, 0.99)))
    scale = 2 ** int(np.clip(np.floor(np.log2(255 / typical)), 0, 6))
    return np.minimum(difference * scale, 255).astype(np.uint8), scale


def _columns(width: int) -> int:
    """Images of this width side by side: a sheet is not much wider than `SHEET_WIDTH`."""
    return max(4, min(SHEET_COLUMNS, SHEET_WIDTH // width))


def _rows(*kinds: UInt8[np.ndarray, "n H W c"]) -> np.ndarray:
    """As many images in a row as a sheet is wide. Rows alternate: each kind in turn, then each with the next images."""
    count, width = len(kinds[0]), kinds[0].shape[2]
    columns = min(count, _columns(width))
    blank = np.full((-count % columns, *kinds[0].shape[1:]), 255, np.uint8)
    full = [np.concatenate([images, blank]) for images in kinds]
    starts = range(0, count, columns)
    return image_grid(np.concatenate([images[at : at + columns] for at in starts for images in full]), columns)


def class_sheet(images: UInt8[np.ndarray, "n H W c"], labels: Int[np.ndarray, "n"], shown: Sequence[int]) -> np.ndarray:
    """The first images of each class of ``shown``, a class a row, white where a class has fewer than others."""
    rows = [images[labels == label][:CLASS_COLUMNS] for label in shown]
    columns = max(map(len, rows))
    blank = np.full((columns, *images.shape[1:]), 255, np.uint8)
    return image_grid(np.concatenate([np.concatenate([row, blank[len(row) :]]) for row in rows]), columns)


def neighbour_sheet(
    images: UInt8[np.ndarray, "n H W c"],
    nearest: UInt8[np.ndarray, "n H W c"],
    labels: Int[np.ndarray, "n"],
    shown: Sequence[int],
) -> np.ndarray:
    """Samples, each with the image nearest to it at its right, a class of ``shown`` a row, white where some lack."""
    pairs = np.stack([images, nearest], axis=1).reshape(-1, *images.shape[1:])
    return class_sheet(pairs, labels.repeat(2), shown)


def real_sheet(images: ImageSource, counts: Mapping[int, int]) -> np.ndarray:
    """A few real images of some classes, a class a row.

    counts  how many images of a class there are, by its label; the search ends when these are found
    """
    wanted = {label: min(REAL_COLUMNS, count) for label, count in counts.items()}
    pictures, labels = [], []
    for index in range(len(images)):
        if images.labels is not None and not wanted.get(images.labels[index]):
            continue  # a folder is sorted by class: what nobody shows need not be decoded
        try:
            picture, label = images.load(index, index)
        except BrokenImageError:
            if images.broken == "refuse":
                raise
            continue
        if wanted.get(label):
            wanted[label] -= 1
            pictures.append(picture)
            labels.append(label)
        if not any(wanted.values()):
            break
    return class_sheet(np.stack(pictures), np.array(labels), list(counts))


def write_pairs(folder: Path, suffix: str, pairs: Pairs) -> None:
    """The sheets of reconstructions and of differences; an older sheet of differences may have had another scale."""
    make_folder(folder)
    write_png(pair_sheet(pairs), folder / f"reconstructions{suffix}.png")
    drawn = difference_sheet(pairs)
    for older in folder.glob(f"differences_x*{suffix}.png"):
        if older.stem.removesuffix(suffix).removeprefix("differences_x").isdigit():
            older.unlink(missing_ok=True)  # another evaluation of this run may be at it
    write_png(drawn.sheet, folder / f"differences_x{drawn.scale}{suffix}.png")

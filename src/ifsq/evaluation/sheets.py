"""Pictures of what was measured: sheets of reconstructions, of samples and of real images. Called by ``pipeline``."""

from typing import Any

import numpy as np
import torch

from ifsq.data import image_grid, iterate_once, to_uint8
from ifsq.data.images import ImageSource
from ifsq.evaluation.protocol import spread
from ifsq.tokenizer.model import Tokenizer

SHEET_COLUMNS, SHEET_ROWS = 16, 4  # originals on the sheet of reconstructions
SHEET_CLASSES = 20  # rows at most
CLASS_COLUMNS, REAL_COLUMNS = 6, 3  # images a class on the sheets of samples and of real images


def reconstruction_sheet(tokenizer: Tokenizer, images: ImageSource, device: torch.device) -> np.ndarray:
    """Held-out originals in the odd rows, their reconstructions below them."""
    shown = min(len(images), SHEET_ROWS * SHEET_COLUMNS)
    batch = next(iterate_once(images, shown, indices=spread(images, shown)))
    again = tokenizer.reconstruct(batch.images.to(device)).cpu()
    rows = []
    for start in range(0, shown, SHEET_COLUMNS):
        rows += [batch.images[start : start + SHEET_COLUMNS], again[start : start + SHEET_COLUMNS]]
    return image_grid(to_uint8(torch.cat(rows)), min(shown, SHEET_COLUMNS))


def class_sheet(images: np.ndarray, classes: int, shown: int) -> np.ndarray:
    """The first ``shown`` classes, one a row; the images come class after class in turn, as `evenly` gives them."""
    columns = min(CLASS_COLUMNS, len(images) // classes)
    by_class = images[: columns * classes].reshape(columns, classes, *images.shape[1:]).swapaxes(0, 1)[:shown]
    return image_grid(by_class.reshape(-1, *images.shape[1:]), columns)


def real_rows(images: ImageSource, shown: int) -> np.ndarray:
    """A few real images of the first classes, class after class in turn."""
    found: dict[int, list[Any]] = {label: [] for label in range(shown)}
    for index in range(len(images)):
        picture, label = images.load(index, index)
        if label < shown and len(found[label]) < REAL_COLUMNS:
            found[label].append(picture)
        if all(len(pictures) == REAL_COLUMNS for pictures in found.values()):
            break
    blank = np.full((picture.shape), 255, np.uint8)  # a class may have fewer images
    columns = [pictures + [blank] * (REAL_COLUMNS - len(pictures)) for pictures in found.values()]
    return np.stack([pictures[row] for row in range(REAL_COLUMNS) for pictures in columns])

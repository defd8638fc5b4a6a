"""A folder of images as an `ImageSource`: ``CLASS/.../x.jpg`` with class folders, or images without any.

Subfolders ``train`` and ``val``, each laid out like that, are the splits; without them the names decide: an image whose
relative path hashes into the lowest twentieth is held out. Made by `ifsq.data.open_images`.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ifsq.data.draws import Draws
from ifsq.data.images import DataConfig, DataError, ImageSource, fingerprint
from ifsq.data.transforms import RESIZE_KERNEL, center_crop, random_crop, read_image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HELD_OUT = 0.05
"""Part of the images that validation takes when the folder has no split of its own; at least one."""


class FolderImages(ImageSource):
    """Images of one split of a folder, by relative path. A broken image raises DataError when it is loaded.

    Raises DataError when the folder is missing, holds no image, or mixes class folders with images beside them.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.split = config.for_split(split), split
        root = Path(config.source)
        if not root.is_dir():
            raise DataError(f"{root}: expected a folder of images, found {'a file' if root.exists() else 'nothing'}")
        own_split = (root / "train").is_dir() and (root / "val").is_dir()
        self.root = root / split if own_split else root
        images = _scan(self.root)
        self.classes = _classes(_scan(root / "train") if own_split else images, root)
        self.names = sorted(images if own_split else _split(sorted(images), split, root))
        self.labels = self._labels()
        sizes = (f"{name}\0{images[name]}\n".encode() for name in self.names)
        self.fingerprint = fingerprint(self.config, split, f"folder 1, {RESIZE_KERNEL}, {self.classes}", sizes)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
        """See `ImageSource.load`. Shorter side to the size before any crop; small images are enlarged."""
        image, draws = read_image(self.root / self.names[index]), Draws(seed)
        if self.config.crop == "random":
            square = random_crop(image, self.config.size, draws.below)
        else:
            square = center_crop(image, self.config.size)
        if self.config.flip and draws.below(2):
            square = square[:, ::-1]
        return np.ascontiguousarray(square), self.labels[index]

    def _labels(self) -> list[int]:
        if self.classes == ("all",):
            return [0] * len(self.names)
        label = {name: number for number, name in enumerate(self.classes)}
        folders = [name.split("/")[0] for name in self.names]
        for folder in folders:
            if folder not in label:
                raise DataError(f"{self.root / folder}: expected a class that {self.root.parent / 'train'} has too")
        return [label[folder] for folder in folders]


def _scan(root: Path) -> dict[str, int]:
    """Relative POSIX path -> bytes, of every image below the folder. Hidden files are not images."""
    images = dict(_walk(str(root), ""))
    if not images:
        raise DataError(f"{root}: expected images ({', '.join(e[1:] for e in EXTENSIONS)}), found none")
    return images


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.stat().st_size


def _classes(names: dict[str, int], root: Path) -> tuple[str, ...]:
    beside = sorted(name for name in names if "/" not in name)
    if len(beside) == len(names):
        return ("all",)
    if beside:
        raise DataError(f"{root / beside[0]}: lies beside class folders, expected all images in class folders or none")
    return tuple(sorted({name.split("/")[0] for name in names}))


def _split(names: list[str], split: str, root: Path) -> list[str]:
    if len(names) < 2:
        raise DataError(f"{root}: expected at least two images, one to train on and one held out, found {len(names)}")
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names}
    ordered = sorted(names, key=lambda name: (place[name], name))
    held_out = sum(place[name] < HELD_OUT for name in names)
    held_out = min(max(held_out, 1), len(names) - 1)
    return ordered[:held_out] if split == "val" else ordered[held_out:]

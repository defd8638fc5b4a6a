"""A folder of images: ``CLASS/.../x.jpg`` with class folders, or images without any.

Subfolders ``train`` and ``val``, each laid out like that, are the splits; without them the names decide: an image whose
relative path hashes into the lowest twentieth is held out. Called by `ifsq.data.open_images`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ifsq.data.encoded import Catalogue
from ifsq.data.formats import EXTENSIONS
from ifsq.data.images import DataError
from ifsq.data.paths import is_plain

SPLIT_WORDS = frozenset({"train", "val", "test", "valid", "validation", "dev"})


class Folder(Catalogue):
    """Images below a folder, by relative path. Hidden files are not images.

    Raises DataError when the folder holds no image, or mixes class folders with images beside them.
    """

    recipe = "folder 1"

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)
        images = _scan(root)
        self.names = sorted(images)
        self.sizes = [images[name] for name in self.names]
        beside = [name for name in self.names if "/" not in name]
        if beside and len(beside) < len(self.names):
            raise DataError(
                f"{root / beside[0]}: lies beside class folders, expected all images in class folders or none"
            )
        self.labels = None if beside else [name.split("/")[0] for name in self.names]

    def read(self, position: int) -> Path:
        """See `Catalogue.read`."""
        return self.root / self.names[position]

    def where_label(self, position: int) -> str:
        """The class folder."""
        return str(self.root / self.names[position].split("/")[0])

    def identity(self, position: int) -> bytes:
        """Name and size; the name says the class."""
        return f"{self.names[position]}\0{self.sizes[position]}\n".encode()


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Where the training and the validation images lie; one folder for both where it has no splits.

    ``train`` alone is that one folder. Raises DataError when the folder is missing, or names its splits otherwise.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images, found {'a file' if root.exists() else 'nothing'}")
    try:
        seen = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error.strerror}") from error
    folders = {entry.name for entry in seen if entry.is_dir()}
    if {"train", "val"} <= folders:
        return root / "train", root / "val"
    if folders == {"train"} and not any(entry.name.lower().endswith(EXTENSIONS) for entry in seen):
        return root / "train", None
    if folders and folders <= SPLIT_WORDS and folders & {"train", "val"}:
        raise DataError(f"{root}: holds {' and '.join(sorted(folders))}; expected train and val, or classes")
    return root, None


def images_below(root: Path) -> list[str]:
    """Relative POSIX paths of every image below a folder, sorted. Raises DataError when there is none."""
    return sorted(_scan(root))


def _scan(root: Path) -> dict[str, int]:
    """Relative POSIX path -> bytes, of every image below the folder."""
    try:
        images = dict(_walk(str(root), ""))
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror}") from error
    if not images:
        raise DataError(f"{root}: expected images ({', '.join(e[1:] for e in EXTENSIONS)}), found none")
    return images


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not is_plain(entry.name):
                raise DataError(f"{folder}: name {entry.name!r}: expected UTF-8 on one line; rename it")
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.stat().st_size

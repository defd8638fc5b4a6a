"""A folder of images: ``CLASS/.../x.jpg`` with class folders, or images without any.

Subfolders ``train``, ``val`` and ``test`` (`splits` says what else they are called), each laid out like that, are the
splits; without ``val`` the names decide: an image of ``train`` whose relative path hashes into the lowest twentieth is
held out.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ifsq.data.encoded import Catalogue, refuse_unread
from ifsq.data.formats import EXTENSIONS, KNOWN, NOT_READ, is_image
from ifsq.data.images import DataError
from ifsq.data.labels import has_classes
from ifsq.data.paths import is_plain
from ifsq.data.splits import folders_by_split, in_order, refuse_splits_below, split_of, split_within


class Folder(Catalogue):
    """Images below a folder, by relative path. Hidden files are not images.

    label_column  ``none`` where class folders are none, else ""

    Raises DataError when the folder holds no image, or mixes class folders with images beside them.
    """

    recipe = "folder 1"

    def __init__(self, root: Path, label_column: str = "") -> None:
        self.root, self.place = root, str(root)
        images, self.unread = _scan(root)
        self.names = sorted(images)
        self.sizes = [images[name] for name in self.names]
        beside = [name for name in self.names if "/" not in name]
        if beside and len(beside) < len(self.names):
            raise DataError(
                f"{root / beside[0]}: lies beside class folders, expected all images in class folders or none"
            )
        refuse_splits_below(str(root), self.names, deepest=1)
        labelled = has_classes(self.place, label_column, "a folder") and not beside
        self.labels = [name.split("/")[0] for name in self.names] if labelled else None

    def read(self, position: int) -> Path:
        """See `Catalogue.read`."""
        return self.root / self.names[position]

    def where_label(self, position: int) -> str:
        """The class folder."""
        return str(self.root / self.names[position].split("/")[0])

    def identity(self, position: int) -> bytes:
        """Name and size; the name says the class."""
        return f"{self.names[position]}\0{self.sizes[position]}\n".encode()


def find_splits(root: Path) -> dict[str, Path]:
    """Where the images of each split lie; nothing for a folder without splits.

    Folders without images or shards in them, such as ``annotations``, are neither splits nor classes. Raises DataError
    when the folder is missing, or something lies beside its splits.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of images, found {'a file' if root.exists() else 'nothing'}")
    with read_errors(root):
        seen = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
        folders = [name for name in seen if (root / name).is_dir()]
        if not any(map(split_within, folders)):
            return {}
        holding = [name for name in folders if _holds_images(root / name)]
    found = folders_by_split(str(root), holding)
    beside = [name for name in seen if name not in folders and name.lower().endswith((*EXTENSIONS, ".tar"))]
    if found and beside:
        raise DataError(
            f"{root / beside[0]}: lies beside the splits {' and '.join(found.values())}, expected it in one"
        )
    if found:  # an empty val is said when it is opened
        found = {split_of(name) or name: name for name in folders if split_of(name)} | found
    return {split: root / found[split] for split in in_order(found)}


def _holds_images(folder: Path) -> bool:
    return next(_walk(str(folder), "", (*EXTENSIONS, *NOT_READ, ".tar")), None) is not None


def images_below(root: Path) -> list[str]:
    """Relative POSIX paths of all images below a folder, sorted. Raises DataError for none, or one that is not read."""
    images, unread = _scan(root)
    if unread:
        refuse_unread(unread)
    return sorted(images)


def _scan(root: Path) -> tuple[dict[str, int], list[str]]:
    """Relative POSIX path -> bytes, of every image below the folder; and pictures that are not read, with their folder.

    Such a picture beside an image of its name, as cameras keep it, is another form of that.
    """
    with read_errors(root):
        found = dict(_walk(str(root), "", (*EXTENSIONS, *NOT_READ)))
    images = {name: size for name, size in found.items() if is_image(name)}
    if not images and not found:
        raise DataError(f"{root}: expected images ({KNOWN}), found none")
    if not images:
        refuse_unread(sorted(str(root / name) for name in found))
    named = {name.rpartition(".")[0] for name in images}
    unread = sorted(name for name in found if name not in images and name.rpartition(".")[0] not in named)
    return images, [str(root / name) for name in unread]


@contextmanager
def read_errors(root: Path) -> Iterator[None]:
    """What the system refuses, as a DataError of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror}") from error


def _walk(folder: str, prefix: str, endings: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not is_plain(entry.name):
                raise DataError(f"{folder}: name {entry.name!r}: expected UTF-8 on one line; rename it")
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", endings)
            elif entry.name.lower().endswith(endings):
                state = entry.stat()
                if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for, a device might never end
                    raise DataError(f"{entry.path}: expected an image, found no regular file")
                yield prefix + entry.name, state.st_size

"""WebDataset shards: images in uncompressed tar files, read at any place and in any order.

A source is one ``x.tar``; a pattern with ``{000..146}``, ``{a,b}``, ``*``, ``?`` or ``[..]`` that ends in ``.tar``;
or a folder of tar files. Its subfolders ``train``, ``val`` and ``test``, or such words in the names of the shards, are
the splits (see `splits`). Without ``val`` the paths in the shards decide who is held out. The samples keep the order of
the shards, as the pattern or else the alphabet gives them.

A label is the sample's ``.cls`` file, else ``label``, ``cls`` or ``class`` in its ``.json`` file, else a file or a key
called as labels are (``.label``, ``.cls.txt``, ``class_name``), or the folder it lies in inside of the shard; one of
these for all samples. Where several could be meant, ``data.label_column`` says which.
"""

import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ifsq.data.containers.tar_index import KEYS, Sample, index_shard
from ifsq.data.encoded import Catalogue
from ifsq.data.formats import EXTENSIONS, KNOWN
from ifsq.data.images import DataError
from ifsq.data.labels import FOLDER, LABEL_COLUMNS, NO_COLUMN, ask
from ifsq.data.paths import shown
from ifsq.data.splits import in_order, names_by_split, refuse_splits_below

OPEN_AT_ONCE = 64
"""Shards that a process keeps open; the system may allow a thousand files to all of it."""
MOST_SHARDS = 1_000_000
_BRACE = re.compile(r"\{([^{}]*)\}")
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")


class Shards(Catalogue):
    """The images of some tar files.

    source  what a person called them
    shards  the files, in order

    Raises DataError when a shard is missing or damaged, none holds an image, or some samples only have a label.
    """

    recipe = "shards 1"

    def __init__(self, source: str, shards: Sequence[Path], label_column: str = "") -> None:
        self.place = source
        indexes = [index_shard(path, label_column) for path in shards]
        self.shards = list(shards)
        self.samples = [sample for index in indexes for sample in index.samples]
        self.shard_of = [number for number, index in enumerate(indexes) for _ in index.samples]
        self.unread = [f"{path}: {name}" for path, index in zip(shards, indexes, strict=True) for name in index.unread]
        if not self.samples:
            raise DataError(f"{source}: expected images ({KNOWN}) in it, found none")
        refuse_splits_below(source, (sample.name.removeprefix("./") for sample in self.samples))
        self.names = [
            f"{shards[number].name}/{sample.name}" for number, sample in zip(self.shard_of, self.samples, strict=True)
        ]
        self.sizes = [sample.size for sample in self.samples]
        self.labels = self._labels(label_column)
        self._files = _Files()

    def read(self, position: int) -> bytes:
        """See `Catalogue.read`."""
        sample, shard = self.samples[position], self.shards[self.shard_of[position]]
        content = self._files.read(shard, sample.offset, sample.size)
        if len(content) < sample.size:
            raise DataError(f"{shard}: has become shorter since it was opened")
        return content

    def where(self, position: int) -> str:
        """The shard and the path in it."""
        return f"{self.shards[self.shard_of[position]]}: {self.samples[position].name}"

    def _labels(self, wanted: str) -> list[str] | None:
        kind = self._kind(wanted)
        if kind is None:
            return None
        labels = [_folder(sample) if kind == FOLDER else sample.labels.get(kind) for sample in self.samples]
        if None in labels:
            what = "folder" if kind == FOLDER else f"{kind} file" if kind[0] == "." else f"{kind!r} in a .json file"
            raise DataError(f"{self.where(labels.index(None))}: has no {what}, as other samples have")
        return [label for label in labels if label is not None]

    def _kind(self, wanted: str) -> str | None:
        """Where the labels are: an ending of files, a key of .json files, or the folders."""
        found = dict.fromkeys(kind for sample in self.samples for kind in sample.labels)
        folders = {_folder(sample) for sample in self.samples}
        if wanted and wanted not in (NO_COLUMN, FOLDER) and not found:
            raise DataError(
                f"{self.place}: data.label_column {shown(wanted)}: expected a file or a key of a .json file"
            )
        if wanted:
            return {NO_COLUMN: None, FOLDER: FOLDER}.get(wanted, next(iter(found), None))
        sure = next((kind for kind in (".cls", KEYS[0]) if kind in found), None)
        if sure:
            return sure
        could = [*found, *([FOLDER] if len(folders) > 1 else [])]
        known = [kind for kind in could if kind.strip(".").removesuffix(".txt") in (*LABEL_COLUMNS, FOLDER)]
        if len(could) > 1 or known != could:
            ask(self.place, [kind.strip(".") for kind in could])
        return could[0] if could else None if folders == {None} else FOLDER


def _folder(sample: Sample) -> str | None:
    """The folder in the shard that an image lies in."""
    return sample.name.removeprefix("./").rpartition("/")[0].rpartition("/")[2] or None


class _Files:
    """Open files of this process. Reads say where, so that a forked process may share them."""

    def __init__(self) -> None:
        self.open: dict[Path, int] = {}

    def read(self, path: Path, offset: int, size: int) -> bytes:
        try:
            if path not in self.open:
                if len(self.open) == OPEN_AT_ONCE:
                    os.close(self.open.pop(next(iter(self.open))))
                self.open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self.open[path], size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def __getstate__(self) -> dict[str, dict[Path, int]]:
        return {"open": {}}  # a spawned process opens its own

    def __del__(self) -> None:
        for number in self.open.values():
            os.close(number)


def are_shards(source: str) -> bool:
    """Whether a source ends as tar files do, one or a pattern of them. Raises DataError for compressed ones."""
    if Path(source).is_dir():
        return False
    if _COMPRESSED.search(source.lower()):
        raise DataError(f"{source}: expected uncompressed .tar files: these cannot be read at any place")
    return source.lower().endswith(".tar")


def split_shards(source: str, shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Tar files by the split that their names say; nothing where they say none."""
    found = names_by_split(source, [str(path) for path in shards])
    return {split: [Path(name) for name in found[split]] for split in in_order(found) if split}


def expand(pattern: str) -> list[Path]:
    """Files that a pattern names, braces in their order and then what ``*`` finds sorted. Raises DataError."""
    texts = _BRACE.split(pattern)  # text, inside of braces, text, inside of braces, ..., text
    if any("{" in text or "}" in text for text in texts[::2]):
        raise DataError(f"{pattern}: expected every brace to be closed, and none inside of another")
    choices = [_choices(inside, pattern) for inside in texts[1::2]]
    if (count := math.prod(map(len, choices))) > MOST_SHARDS:
        raise DataError(f"{pattern}: names {count} shards, expected at most {MOST_SHARDS}")
    paths = []
    for chosen in itertools.product(*choices):
        plain = texts[0] + "".join(one + text for one, text in zip(chosen, texts[2::2], strict=True))
        found = sorted(glob.glob(plain)) if glob.has_magic(plain) else [plain]
        if not found:
            raise DataError(f"{plain}: expected tar shards, found none")
        paths += [Path(path) for path in found]
    return paths


def _choices(inside: str, pattern: str) -> Sequence[str]:
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside, re.ASCII)
    if span is None:
        if "," not in inside:
            raise DataError(f"{pattern}: {{{inside}}}: expected {{first..last}} or {{one,another}}")
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    if last < first:
        raise DataError(f"{pattern}: {{{inside}}}: expected the last to be no smaller than the first")
    if last - first >= MOST_SHARDS:
        raise DataError(f"{pattern}: {{{inside}}}: expected at most {MOST_SHARDS} shards")
    return [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]


def tars_in(folder: Path) -> list[Path]:
    """The tar files in a folder, sorted. Raises DataError where images or compressed shards lie beside them."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    tars = [folder / name for name in names if name.lower().endswith(".tar")]
    if not tars:
        return []
    for name in names:
        if _COMPRESSED.search(name.lower()):
            raise DataError(f"{folder / name}: expected uncompressed .tar files: this cannot be read at any place")
        if name.lower().endswith(EXTENSIONS):
            raise DataError(f"{folder / name}: lies beside tar shards, expected shards or images, not both")
    return tars

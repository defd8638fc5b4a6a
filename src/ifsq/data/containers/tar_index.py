"""Where the images of a tar shard and their labels lie: found once, by reading its headers, and kept in a cache folder.

As in WebDataset, files that share a name are a sample. There a name ends at its first dot, so ``photo 1.0.jpg`` would
be the field ``0.jpg`` of ``photo 1``. Here an image is one of its own wherever that can be meant: see `_choose_images`.
"""

import hashlib
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ifsq.config import InputError, digest, parse_json, read_json
from ifsq.data.formats import is_image, is_unread
from ifsq.data.images import DataError
from ifsq.data.labels import FOLDER, LABEL_COLUMNS, LONGEST_LABEL, NO_COLUMN, could_be_label, label_text
from ifsq.data.paths import file_state, is_plain, shown
from ifsq.store import files
from ifsq.store.files import CACHE, WriteError, reason, write_text

FORMAT = 3  # 2: without a digest of itself
LARGEST_LABEL, LARGEST_JSON = 4 * LONGEST_LABEL, 2**20
"""Bytes of a file that holds a label, and of a ``.json`` file beside an image."""
KEYS = ("label", "cls", "class")
"""Keys of a ``.json`` file that can hold nothing but a label, which is noted under the first of them."""
_BLOCK = 512  # bytes that every part of a tar file fills up
_LIKE_A_LABEL = re.compile("label|class|categor|target|species|synset|wnid")
_FIELD = re.compile(r"[a-z_][\w-]*(\.[a-z_][\w-]*)*", re.IGNORECASE)  # seg, left.depth; but not 0 or "2 of 3"
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)
"""What Python's reader raises for headers that are none, or that ask for impossible sizes."""


class Sample(NamedTuple):
    """An image in a shard.

    name          its path in the shard
    offset, size  of its bytes
    labels        what is said where: by endings of files beside it (``.cls``), by keys of its ``.json`` (``label``)
    """

    name: str
    offset: int
    size: int
    labels: dict[str, str]


class Index(NamedTuple):
    """The images of a shard, in its order, and the pictures in it that are not read."""

    samples: list[Sample]
    unread: list[str]


def index_shard(path: Path, label_column: str = "") -> Index:
    """What an uncompressed tar file holds.

    label_column  as in `DataConfig`

    An index that is damaged, or not of this very file as it is now, is made anew. Raises DataError when the shard is
    missing or damaged, or an index cannot be written.
    """
    state = file_state(path, str(path), "a tar shard")
    stamp = {
        "format": FORMAT,
        "label_column": label_column,
        "bytes": state.st_size,
        # A copy that keeps size and time of change (cp -p, rsync -t) has another place and time of its status.
        "file": [state.st_ino, state.st_mtime_ns, state.st_ctime_ns],
    }
    name = hashlib.sha256(os.fsencode(path.resolve()) + label_column.encode()).hexdigest()
    kept = cache_folder() / f"{name}.json"
    known = _read_index(kept, stamp)
    if known is None:
        known = _scan(path, state.st_size, label_column)
        index = {"stamp": stamp, "samples": known.samples, "unread": known.unread}
        _write_index(kept, {**index, "digest": digest(index)})
    return known


def cache_folder() -> Path:
    """Where indexes are kept."""
    return files.cache_folder("shards")


def _read_index(path: Path, stamp: dict[str, Any]) -> Index | None:
    """The index that is kept; None where there is none of this stamp, or it is not as it was written."""
    if not path.is_file():
        return None
    try:
        table = read_json(path)
    except InputError:  # it is made anew
        return None
    if not isinstance(table, dict) or table.pop("digest", None) != digest(table) or table.get("stamp") != stamp:
        return None
    return Index([Sample(*sample) for sample in table["samples"]], table["unread"])


def _write_index(path: Path, index: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(index))  # other processes may be at it too: each writes the same
    except (OSError, WriteError) as error:
        why = error.why if isinstance(error, WriteError) else reason(error)
        raise DataError(f"{path.parent}: index of shards cannot be written ({why}); set {CACHE}") from error


def _scan(path: Path, size: int, label_column: str) -> Index:
    images: list[tarfile.TarInfo] = []
    unread: list[tarfile.TarInfo] = []
    beside: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)  # name of the sample -> ending -> file
    endings = _label_endings(label_column)
    try:
        with tarfile.open(path, "r:") as shard:
            for member in _files(path, size, shard):
                if is_image(member.name):
                    images.append(member)
                elif is_unread(member.name):
                    unread.append(member)
                elif ending := next((e for e in endings if member.name.lower().endswith(e)), None):
                    beside[_plain(member.name)[: -len(ending)]][ending] = member
            _check_end(path, shard)
            chosen = _choose_images(path, images)
            samples = [
                Sample(
                    member.name,
                    member.offset_data,
                    member.size,
                    _labels(path, shard, _beside(beside, *names), label_column),
                )
                for member, names in chosen
            ]
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged, or no uncompressed tar file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    named = {name for _, names in chosen for name in names}
    return Index(samples, [member.name for member in unread if _plain(member.name).rpartition(".")[0] not in named])


def _files(path: Path, size: int, shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of a shard that are not hidden; what they say of their size is checked before it is used."""
    for member in shard:
        if not member.isreg():
            continue
        if member.issparse():
            raise DataError(f"{path}: {shown(member.name)}: is stored with holes, expected all of its bytes")
        if not 0 <= member.size <= size - member.offset_data:
            raise DataError(f"{path}: damaged: {shown(member.name)} says {member.size} bytes and has fewer")
        if _plain(member.name).rpartition("/")[2].startswith("."):
            continue
        if not is_plain(member.name):
            raise DataError(f"{path}: name {member.name!r}: expected UTF-8 on one line")
        yield member


def _choose_images(path: Path, images: list[tarfile.TarInfo]) -> list[tuple[tarfile.TarInfo, tuple[str, ...]]]:
    """Which images are samples, and by what names the files beside them may be called.

    ``0.png`` is one, and ``0.seg.png`` beside it a field of it. Of ``photo 1.0.jpg`` and ``photo 1.1.jpg`` each is one.
    ``0.left.jpg`` is one where it is alone; where ``0.left.jpg`` and ``0.right.jpg`` are there, and of other names as
    well, it is not clear which is meant. Raises DataError for that, and for two images of one name.
    """
    named: dict[str, tarfile.TarInfo] = {}
    for member in images:
        name = _plain(member.name).rpartition(".")[0]
        if name in named:
            raise DataError(f"{path}: {member.name}: a second image of the sample {named[name].name}")
        named[name] = member
    of: dict[str, list[str]] = defaultdict(list)  # name up to its first dot -> full names that are no field of it
    for name in named:
        first, field = _at_first_dot(name)
        if not (field and first in named and _FIELD.fullmatch(field)):
            of[first].append(name)
    often = Counter(_at_first_dot(name)[1] for names in of.values() for name in names)
    chosen = []
    for first, names in of.items():
        fields = [name for name in names if _FIELD.fullmatch(_at_first_dot(name)[1])]
        if len(fields) > 1 and any(often[_at_first_dot(name)[1]] > 1 for name in fields):
            both = " and ".join(named[name].name for name in fields[:2])
            raise DataError(f"{path}: {both}: two images of the sample {first}; expected one, or names without a dot")
        chosen += [(name, (name, first) if len(names) == 1 else (name,)) for name in names]
    place = {name: number for number, name in enumerate(named)}
    return [(named[name], names) for name, names in sorted(chosen, key=lambda pair: place[pair[0]])]


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _at_first_dot(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return f"{folder}{slash}{stem}", field


def _label_endings(label_column: str) -> tuple[str, ...]:
    """Endings of the files that may say a label, long ones first: ``.cls.txt`` is no caption."""
    if label_column in (NO_COLUMN, FOLDER):
        return ()
    if label_column:
        return (f".{label_column.lower().lstrip('.')}", ".json")
    named = tuple(f".{name}" for name in LABEL_COLUMNS)
    return (*(f"{ending}.txt" for ending in named), *named, ".json")


def _beside(beside: dict[str, dict[str, tarfile.TarInfo]], *names: str) -> dict[str, tarfile.TarInfo]:
    return next((beside[name] for name in names if name in beside), {})


def _labels(path: Path, shard: tarfile.TarFile, files: dict[str, tarfile.TarInfo], label_column: str) -> dict[str, str]:
    """What the files beside an image say that may be its label; nothing else is read where there is a ``.cls``."""
    found: dict[str, str | None] = {}
    if ".cls" in files and not label_column:
        files = {".cls": files[".cls"]}
    for ending, member in files.items():
        where = f"{path}: {member.name}"
        if ending == ".json":
            found |= _labels_in(where, _text(where, shard, member, LARGEST_JSON), label_column)
        elif label_column or ending == ".cls":
            found[ending] = label_text(where, _text(where, shard, member, LARGEST_LABEL))
        elif member.size <= LARGEST_LABEL and could_be_label(text := _text(where, shard, member, LARGEST_LABEL)):
            found[ending] = label_text(where, text)
    return {kind: label for kind, label in found.items() if label is not None}


def _text(where: str, shard: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> str:
    if member.size > most:
        raise DataError(f"{where}: {member.size} bytes: expected a label in at most {most}")
    file = shard.extractfile(member)
    assert file is not None  # a regular file
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected a label: {error}") from error


def _labels_in(where: str, text: str, label_column: str) -> dict[str, str | None]:
    """Keys of a ``.json`` file that may hold a label, and what they hold."""
    try:
        table = parse_json(text, where)
    except InputError as error:
        raise DataError(str(error)) from error
    if not isinstance(table, dict):
        return {}
    if label_column:
        return {label_column: label_text(where, table[label_column])} if label_column in table else {}
    sure = next((label_text(where, table[key]) for key in KEYS if table.get(key) is not None), None)
    if sure is not None:
        return {KEYS[0]: sure}
    return {
        key: label_text(where, value)
        for key, value in table.items()
        if _LIKE_A_LABEL.search(key.lower()) and could_be_label(value)
    }


def _check_end(path: Path, shard: tarfile.TarFile) -> None:
    """Python's reader takes a damaged header for the end; the true end is a block of zeros."""
    assert shard.fileobj is not None
    shard.fileobj.seek(shard.offset)
    block = shard.fileobj.read(_BLOCK)
    if len(block) < _BLOCK or any(block):
        what = "a damaged header" if block else "the end of the file"
        raise DataError(f"{path}: damaged: {what} at byte {shard.offset}, expected the mark that ends a tar file")

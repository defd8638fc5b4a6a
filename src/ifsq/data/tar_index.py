"""Where the samples of a tar shard lie: found once, by reading its headers, and kept in a cache folder.

A sample is what WebDataset calls one: files that share a path up to the first dot of their name. Called by ``shards``.
"""

import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ifsq.data.formats import EXTENSIONS
from ifsq.data.images import DataError
from ifsq.data.labels import label_text
from ifsq.data.paths import is_plain
from ifsq.store.files import WriteError, reason, write_text

CACHE = "IFSQ_CACHE"
"""Environment variable: the folder of the indexes; default ``~/.cache/ifsq``."""
FORMAT = 1
_BLOCK = 512  # bytes that every part of a tar file fills up


@dataclass(frozen=True)
class Sample:
    """An image in a shard.

    name          its path in the shard
    offset, size  of its bytes
    cls           text of its ``.cls`` file
    json_label    label in its ``.json`` file
    """

    name: str
    offset: int
    size: int
    cls: str | None
    json_label: str | None


def index_shard(path: Path) -> list[Sample]:
    """The images of an uncompressed tar file, in its order.

    An index whose size and time of change are no longer those of the file is made anew. Raises DataError when the shard
    is missing or damaged, or an index cannot be written.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: expected a tar shard, {error.strerror}") from error
    stamp = {"format": FORMAT, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
    kept = cache_folder() / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    known = _read_index(kept)
    if known is None or known["stamp"] != stamp:
        known = {"stamp": stamp, "samples": [asdict(sample) for sample in _scan(path)]}
        _write_index(kept, known)
    return [Sample(**sample) for sample in known["samples"]]


def cache_folder() -> Path:
    """Where indexes are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "ifsq") / "shards"


def _read_index(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: index of a shard cannot be read ({error}); remove it") from error


def _write_index(path: Path, index: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(index))  # other processes may be at it too: each writes the same
    except (OSError, WriteError) as error:
        why = error.why if isinstance(error, WriteError) else reason(error)
        raise DataError(f"{path.parent}: index of shards cannot be written ({why}); set {CACHE}") from error


def _scan(path: Path) -> list[Sample]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, dict[str, str]] = {".cls": {}, ".json": {}}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                key, extension = _key_of(member.name)
                if not member.isreg() or key.rpartition("/")[2].startswith("."):
                    continue
                if not is_plain(member.name):
                    raise DataError(f"{path}: name {member.name!r}: expected UTF-8 on one line")
                if extension in EXTENSIONS:
                    if key in images:
                        raise DataError(f"{path}: {member.name}: a second image of the sample {images[key].name}")
                    images[key] = member
                elif extension in labels:
                    label = _label_in(f"{path}: {member.name}", shard, member)
                    if label is not None:
                        labels[extension][key] = label
            _check_end(path, shard)
    except tarfile.TarError as error:
        raise DataError(f"{path}: damaged, or no uncompressed tar file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return [
        Sample(member.name, member.offset_data, member.size, labels[".cls"].get(key), labels[".json"].get(key))
        for key, member in images.items()
    ]


def _key_of(name: str) -> tuple[str, str]:
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".") if not base.startswith(".") else (base, "", "")
    return f"{folder}{slash}{stem}", f"{dot}{extension}".lower()


def _label_in(name: str, shard: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    file = shard.extractfile(member)
    assert file is not None  # a regular file
    try:
        text = file.read().decode()
        table = json.loads(text) if name.lower().endswith(".json") else {"label": text}
    except ValueError as error:
        raise DataError(f"{name}: expected a label: {error}") from error
    found = [table[key] for key in ("label", "cls", "class") if key in table] if isinstance(table, dict) else []
    return label_text(name, found[0]) if found else None


def _check_end(path: Path, shard: tarfile.TarFile) -> None:
    """Python's reader takes a damaged header for the end; the true end is a block of zeros."""
    assert shard.fileobj is not None
    shard.fileobj.seek(shard.offset)
    block = shard.fileobj.read(_BLOCK)
    if len(block) < _BLOCK or any(block):
        what = "a damaged header" if block else "the end of the file"
        raise DataError(f"{path}: damaged: {what} at byte {shard.offset}, expected the mark that ends a tar file")

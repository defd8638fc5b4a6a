"""The one place that writes a partial file and renames it, and that takes the SHA-256 of a file.

A reader sees the old file or the new one, never a part, also after a power cut: the bytes are on the disk before they
get their name, and the name before the call returns. What the system refuses (no space left, no permission) is an
`InputError` of one line that names the file.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ifsq.config import InputError

CACHE = "IFSQ_CACHE"
"""Environment variable: the folder of what is kept to save time; default ``~/.cache/ifsq``."""
PARTIAL = ".partial_"
"""How the names of unfinished files and folders begin."""
LOCK = ".lock"
"""The file in a folder by which one process holds it, see `ifsq.store.lock`."""
UNFLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
"""What network file systems say that cannot flush a folder, and folders that may be written but not read."""
NOT_OURS = ("lost+found",)
"""Entries of a volume that has just been made."""
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


class WriteError(InputError):
    """``path`` could not be written.

    why  the system's reason
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: cannot be written: {why}")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[type["WriteError"], tuple[Path, str]]:
        return WriteError, (self.path, self.why)  # it goes from process to process


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a regular file's bytes, read piece by piece. Raises InputError when it cannot be read."""
    if path.exists() and not path.is_file():  # a pipe would wait, a device might never end
        raise InputError(f"{path}: is no regular file")
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def sha256_of(handle: int, path: Path) -> str:
    """SHA-256 (hex) of an open file, ``path`` being what to call it. Raises InputError when it cannot be read."""
    try:
        with os.fdopen(os.dup(handle), "rb") as stream:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def record(path: Path) -> dict[str, Any]:
    """What vouches for a file: its size in bytes and its SHA-256. Raises InputError."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def make_folder(path: Path) -> bool:
    """Make a folder with its parents, also where a link leads; whether it was not there. Raises InputError."""
    place = Path(os.path.realpath(path))
    if place.is_dir():
        return False
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path, reason(error)) from error
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all; its folder must exist. Raises InputError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; its folder must exist. Raises InputError."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; its folder must exist. Raises InputError.

    tensors   contiguous
    metadata  text by name, for the file's header
    """
    with whole_file(path) as partial:
        save_file(dict(tensors), partial, metadata)


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 at the end of a file: all of it, or nothing where that cannot be. Raises InputError."""
    left = text.encode()
    with writing(path), path.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            while left:  # what fits is written, and only the next call is refused
                left = left[stream.write(left) :]
        except OSError:
            os.truncate(path, before)
            raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, whose name it takes at the end; where anything is raised it goes.

    A link keeps leading where it leads, and the file there is replaced. Raises InputError.
    """
    place = Path(os.path.realpath(path))
    partial = _beside(place)
    if place.exists() and not place.is_file():  # a device or a pipe must not become a file
        raise WriteError(path, "is a folder" if place.is_dir() else "is no regular file")
    with writing(path):
        try:
            partial.touch(exist_ok=False)
            mode = partial.stat().st_mode
            yield partial
            if partial.stat().st_mode != mode:
                partial.chmod(mode)  # safetensors writes for the owner alone
            flush(partial)
            os.replace(partial, place)
            flush(place.parent)
        finally:
            partial.unlink(missing_ok=True)


def move(path: Path, place: Path) -> None:
    """Put a whole file into its place, on the same file system, in place of what is there. Raises WriteError."""
    with writing(place):
        os.replace(path, place)
        flush(place.parent)


def cache_folder(what: str) -> Path:
    """Where things of a kind are kept that can be made again; it may not be there yet. Raises InputError."""
    if not (place := os.environ.get(CACHE)):
        place = os.path.expanduser("~/.cache/ifsq")
        if place.startswith("~"):
            raise InputError(f"no home folder is known here for {place}; expected HOME or {CACHE} to name a folder")
    return Path(place) / what


def is_free(folder: Path) -> bool:
    """Whether nothing is there, or a folder that holds no more than what `entries_of` leaves out."""
    return not folder.exists() or (folder.is_dir() and not entries_of(folder))


def entries_of(folder: Path) -> list[Path]:
    """What a folder holds besides unfinished files, its lock and what a new volume holds."""
    return sorted(e for e in folder.iterdir() if not e.name.startswith(PARTIAL) and e.name not in (LOCK, *NOT_OURS))


def check_free(out: Path) -> None:
    """Raise InputError when ``out`` is a file or a folder that holds anything."""
    if not is_free(out):
        raise InputError(f"{out}: exists; expected a new folder")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name ``path`` in what goes wrong while it is written. Raises WriteError in place of errors that name no file.

    An error that names a file of its own, as one of reading, passes through.
    """
    try:
        yield
    except WriteError as error:  # a file of a folder that is written
        raise WriteError(path, error.why) from error
    except OSError as error:
        if error.filename is not None and not _is_ours(Path(str(error.filename))):
            raise
        raise WriteError(path, reason(error)) from error
    except SafetensorError as error:
        raise WriteError(path, reason(error)) from error
    except RuntimeError as error:  # torch.save hides what the stream raised
        if not isinstance(error.__context__, OSError):
            raise
        raise WriteError(path, reason(error.__context__)) from error


def reason(error: Exception) -> str:
    """Why the system refused, in words: ``no space left on device``."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (match := SYSTEM_ERROR.search(str(error))):
        number = int(match[1])
    text = os.strerror(number) if number else str(error) or type(error).__name__
    return text[:1].lower() + text[1:] if number else text


def first_line(error: BaseException) -> str:
    """What an error says, for the line that says what came of it; its name where it says nothing."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def flush(path: Path) -> None:
    """Return when a file's bytes, or a folder's names where its file system can do that, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in UNFLUSHED or not path.is_dir():
            raise


def flush_below(folder: Path) -> None:
    """`flush` a folder and everything in it."""
    for entry in [*folder.rglob("*"), folder]:
        flush(entry)


def _is_ours(path: Path) -> bool:
    """Whether a person knows nothing of this path."""
    return any(part.startswith(PARTIAL) or part == LOCK for part in path.parts)


def _beside(place: Path) -> Path:
    """A name of this process's own: two that write the same file at once each write a whole one."""
    return place.with_name(f"{PARTIAL}{place.name[:200]}_{secrets.token_hex(4)}")

"""Arrays in an .npz file, read row by row: never whole in memory, never by pickle.

An .npz is a zip of .npy members. A stored member is read where its bytes lie; a deflated one is a stream, from its
front on.
"""

import hashlib
import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Shaped

from ifsq.data.images import DataError
from ifsq.store.files import first_line, reason

_LOCAL = struct.Struct(
    "<26xHH"
)  # of a member's own header: lengths of its name and of what else stands before its bytes
_Stream = io.RawIOBase | io.BufferedIOBase
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error)
"""What Python's reader raises for what is no zip, was cut off, or is packed in a way that it does not read."""


@dataclass(frozen=True)
class Member:
    """An array of the file, by its header.

    start  of its first number: in the file where it is stored, in its stream where it is deflated
    stored whether its bytes lie in the file as they are
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    stored: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize  # of any lengths, as a damaged header may say them


class Npz:
    """The arrays of a file by name, known by their headers alone.

    fingerprint  SHA-256 (hex) over the names, sizes and checksums (CRC-32) that the zip states of its members

    Raises DataError, in one line, where it is no .npz, is cut off, or an array is of pickled objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}; expected an .npz")
        self.members: dict[str, Member] = {}
        stated = hashlib.sha256()
        with self._reading(), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    member = self._member(archive, info)
                    self.members[member.name] = member
                    stated.update(f"{info.filename}\0{info.file_size}\0{info.CRC}\n".encode())
        self.fingerprint = stated.hexdigest()

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def array(self, name: str) -> Shaped[np.ndarray, "..."]:
        """A small array, whole; its checksum is compared. Raises DataError."""
        member = self.members[name]
        size = member.row_bytes * member.shape[0] if member.shape else member.dtype.itemsize
        with self._reading(), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
            found = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1) or found.nbytes != size:  # reading to the end compares the checksum
                raise zipfile.BadZipFile(f"{name}: has other bytes than its header says")
            return found

    def rows(self, name: str, batches: Sequence[Sequence[int]]) -> Iterator[Shaped[np.ndarray, "b ..."]]:
        """The rows of an array at some places, batch by batch; one batch is in memory.

        Of a deflated array the places must not go back. Raises DataError.
        """
        member = self.members[name]
        with self._reading():
            if member.stored:
                yield from self._stored(member, batches)
            else:
                yield from self._deflated(member, batches)

    def _stored(self, member: Member, batches: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        with self.path.open("rb", buffering=0) as file:  # no memory map: its pages would count as this process's memory
            for places in batches:
                read = np.empty((len(places), *member.shape[1:]), member.dtype)
                for at, place, run in _runs(places):
                    _fill(file, read[at : at + run], member.start + place * member.row_bytes)
                yield read

    def _deflated(self, member: Member, batches: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self.path) as archive, _opened(archive, member) as stream:
            _pass_over(stream, member.start)
            behind = 0  # rows
            for places in batches:
                read = np.empty((len(places), *member.shape[1:]), member.dtype)
                for at, place, run in _runs(places):
                    if place < behind:
                        raise ValueError(f"rows {place} after {behind - 1} of a stream: expected an ascending order")
                    _pass_over(stream, (place - behind) * member.row_bytes)
                    _fill(stream, read[at : at + run])
                    behind = place + run
                yield read

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, fortran, dtype = read(stream)
            except (ValueError, KeyError, tokenize.TokenError) as error:
                raise DataError(f"{self.path}: {name}: is no array that is read ({first_line(error)})") from error
            start = stream.tell()
        if min(shape, default=0) < 0:
            raise DataError(f"{self.path}: {name}: is of shape {shape}; expected no length below 0")
        if dtype.hasobject:
            raise DataError(f"{self.path}: {name}: holds pickled objects, which may run any code; expected numbers")
        if fortran and len(shape) > 1:
            raise DataError(f"{self.path}: {name}: is stored column by column; expected C order (np.ascontiguousarray)")
        stored = info.compress_type == zipfile.ZIP_STORED
        member = Member(name, shape, dtype, start + (self._offset(info) if stored else 0), stored)
        said = start + (member.row_bytes * shape[0] if shape else dtype.itemsize)
        if info.file_size != said:
            raise DataError(f"{self.path}: {name}: has {info.file_size} bytes, {said} by its header; copy it again")
        return member

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where a stored member's bytes begin."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            return info.header_offset + _LOCAL.size + sum(_LOCAL.unpack(file.read(_LOCAL.size)))

    def _reading(self) -> "_Reading":
        return _Reading(self.path)


class _Reading:
    """What goes wrong while a file is read, as a DataError of one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, _DAMAGED):
            raise DataError(
                f"{self.path}: is no whole .npz, it is damaged or was cut off ({first_line(error)})"
            ) from error
        if isinstance(error, OSError):
            raise DataError(f"{self.path}: cannot be read: {reason(error)}") from error


def _opened(archive: zipfile.ZipFile, member: Member) -> io.BufferedIOBase:
    return cast(io.BufferedIOBase, archive.open(f"{member.name}.npy"))  # a ZipExtFile, which is one


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbours that follow each other, read at once: their position in ``places``, the first place, how many."""
    start = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] != places[at - 1] + 1:
            yield start, places[start], at - start
            start = at


def _fill(file: _Stream, rows: np.ndarray, offset: int | None = None) -> None:
    """Read as many bytes as the rows have, from ``offset`` or from where the stream stands. Raises EOFError."""
    left = rows.reshape(-1).view(np.uint8).data
    if offset is not None:
        file.seek(offset, os.SEEK_SET)
    while len(left):
        count = file.readinto(left)
        if not count:
            raise EOFError("its bytes end before its rows")
        left = left[count:]


def _pass_over(stream: _Stream, count: int) -> None:
    while count:
        got = len(stream.read(min(count, 1 << 20)) or b"")
        if not got:
            raise EOFError("its bytes end before its rows")
        count -= got

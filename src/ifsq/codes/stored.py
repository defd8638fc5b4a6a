"""Tensors of a split that stay in their shards: rows are read when they are asked for.

By ``pread``, not through a memory map: pages of a map count as resident memory of the process that has touched them, a
random order touches all, and where a mapped file is cut short or its server forgets it, the process dies by a signal. A
read only fails, and the system keeps what is read often in its own memory, for all processes together.
"""

import os
import resource
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Num
from torch import Tensor

from ifsq.codes.checks import FileState
from ifsq.config import InputError
from ifsq.store.files import reason

MOST_OPEN = 1024


@dataclass
class Shard:
    """A shard that was checked.

    path    of the file
    count   images in it
    starts  where each of its tensors begins, in bytes
    state   in which it was found good
    """

    path: Path
    count: int
    starts: dict[str, int]
    state: FileState


class ShardFiles:
    """The shards of a split, opened as they are read.

    verify  of an open file that is in another state than it was checked in: raises InputError unless its bytes are
            still those that the manifest names

    A shard that is removed is read on while it is open; one that is exchanged or cut is refused at its next row.
    """

    def __init__(self, shards: Sequence[Shard], verify: Callable[[Shard, int], None]) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.shards, self.verify = list(shards), verify
        self.ends = np.cumsum([shard.count for shard in shards])
        # A quarter of what the process may open: sockets, logs and what torch opens need some too.
        self.most = max(8, min(MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, number: int, start: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes of a shard from ``start`` on. Raises InputError."""
        shard = self.shards[number]
        handle = self._handle(number)
        try:
            while len(into):
                count = os.preadv(handle, [into], start)
                if not count:
                    raise InputError(f"{shard.path}: ends before it should; it was cut while it is read")
                into, start = into[count:], start + count
        except OSError as error:  # as of a server that has forgotten the file
            raise InputError(f"{shard.path}: cannot be read: {reason(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files: in another process their numbers are of others."""
        return {**vars(self), "_open": OrderedDict()}

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _handle(self, number: int) -> int:
        shard = self.shards[number]
        handle = self._open.pop(number, None)
        if handle is None:
            while len(self._open) >= self.most:
                os.close(self._open.popitem(last=False)[1])
            handle = open_regular(shard.path)
        self._open[number] = handle  # the last one to be closed
        state = state_of(handle, shard.path)
        if state != shard.state:
            self.verify(shard, handle)
            shard.state = state
        return handle


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, to be read. Raises InputError for anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for who writes it
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path}: is no regular file; expected a shard")
    return handle


def state_of(handle: int, path: Path) -> FileState:
    """The state of an open file, ``path`` being what to call it. Raises InputError."""
    try:
        return FileState.of(os.fstat(handle))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


class StoredRows:
    """A tensor (n, ...) whose rows lie in the shards of a split, or (n * several, ...) of as many an image.

    ``rows[3]``, ``rows[10:20]``, ``rows[:]`` and ``rows[indices]`` are tensors in memory; ``len(rows)`` is n.

    name   of the tensor in each shard
    shape  of a row
    """

    def __init__(
        self, files: ShardFiles, name: str, shape: tuple[int, ...], dtype: torch.dtype, several: int = 1
    ) -> None:
        self.files, self.name, self.row, self.dtype, self.several = files, name, shape, dtype, several
        self._ends = files.ends * several
        self._bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> torch.Size:
        """(n, ...)."""
        return torch.Size((len(self), *self.row))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence[int] | Int[Tensor, "b"]) -> Num[Tensor, "..."]:
        if isinstance(rows, int):
            return self._take(np.array([range(len(self))[rows]]))[0]
        if isinstance(rows, slice):
            return self._take(np.arange(len(self))[rows])
        return self._take(np.asarray(rows, dtype=np.int64))

    def _take(self, rows: Int[np.ndarray, "b"]) -> Num[Tensor, "b ..."]:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()}: expected 0 to {len(self) - 1}")
        taken = torch.empty(len(rows), *self.row, dtype=self.dtype)
        place = taken.numpy().reshape(-1).view(np.uint8).data
        shards = np.searchsorted(self._ends, rows, side="right")
        # In the order of the shards each is opened once; neighbours that are asked for in turn are one read.
        order = np.argsort(shards, kind="stable")
        follows = (np.diff(rows[order]) == 1) & (np.diff(order) == 1) & (np.diff(shards[order]) == 0)
        for run in np.split(order, np.flatnonzero(~follows) + 1) if len(rows) else ():
            number = int(shards[run[0]])
            shard = self.files.shards[number]
            first = int(rows[run[0]]) - (int(self._ends[number]) - shard.count * self.several)
            at = int(run[0]) * self._bytes
            into = place[at : at + len(run) * self._bytes]
            self.files.read(number, shard.starts[self.name] + first * self._bytes, into)
        return taken

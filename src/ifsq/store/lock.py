"""A lock on a folder: one process at a time works there.

The lock is the system's (``flock``) on a file, so it ends with the process that holds it, however that ends. It reaches
over hosts where the file system does: NFS does, and one that knows no locks is said to.
"""

import errno
import fcntl
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ifsq.config import InputError
from ifsq.store.files import writing

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LOOK_EVERY = 0.2  # seconds, while another process is waited for
_held: set[int] = set()


class BusyError(InputError):
    """Another process holds the lock."""


@contextmanager
def lock(file: Path, say: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Hold the lock on ``file``, usually `ifsq.store.files.LOCK` in a folder; it is there only meanwhile.

    say   is told in a sentence what this waits for, and that a file system has no locks
    wait  for a process that holds it; else this raises BusyError, which names the process

    Raises OSError, which names the file, where it cannot be made: its folder must exist.
    """
    handle = _take(file, say)
    if handle is None and not wait:
        raise BusyError(
            f"{file.parent}: {_holder(file)} is at work there; wait until it ends, or choose another folder"
        )
    if handle is None:
        say(f"{file.parent}: waits for {_holder(file)}, which is at work there")
        while handle is None:
            time.sleep(LOOK_EVERY)
            handle = _take(file, say)
    _forget_in_children()
    _held.add(handle)
    try:
        with writing(file):
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if _is(handle, file):  # a folder that was moved took its lock along, and another may lie here now
            file.unlink()
        _held.discard(handle)
        os.close(handle)


def _take(file: Path, say: Callable[[str], None]) -> int | None:
    """The locked file, open; None where another process holds it."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise OSError(error.errno, error.strerror, str(file)) from error
            say(f"{file.parent}: its file system has no locks ({error.strerror}); start nothing else there meanwhile")
            return handle
        if _is(handle, file):
            return handle
        os.close(handle)  # its holder has ended and removed it since it was opened


def _is(handle: int, file: Path) -> bool:
    try:
        there = file.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _holder(file: Path) -> str:
    try:
        return file.read_text() or "another process"
    except FileNotFoundError:  # it ended just now
        return "another process"


@functools.cache
def _forget_in_children() -> None:
    """A lock lasts until the last copy of its file is closed: a child that outlives this process must not hold it."""
    os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()

"""Folders that appear whole or not at all, one process at a time."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ifsq.store.files import LOCK, PARTIAL, flush, flush_below, make_folder, writing
from ifsq.store.lock import BusyError, lock


@contextmanager
def whole_folder(out: Path, last: str, say: Callable[[str], None] = warnings.warn) -> Iterator[Path]:
    """A folder to fill, whose content becomes that of ``out`` at the end; where anything is raised it goes.

    last  the file that makes ``out`` what it is. Where ``out`` exists (it may be a volume, which cannot be renamed) an
          old one is removed first and the new one moved last: cut short, it is no such folder, never one of two halves
    say   as of `lock`

    That ``out`` can be written shows before there is anything to write. Raises InputError.
    """
    place = Path(os.path.realpath(out))
    inside = place.is_dir()
    partial = (place if inside else place.parent) / f"{PARTIAL}{place.name}"
    with writing(out):
        make_folder(partial.parent)
        with _alone(out, place / LOCK if inside else partial.with_name(partial.name + LOCK), say):
            shutil.rmtree(partial, ignore_errors=True)  # what a kill left
            try:
                partial.mkdir()
                yield partial
                flush_below(partial)
                if inside:
                    (place / last).unlink(missing_ok=True)
                    move_content(partial, place, last)
                else:
                    os.replace(partial, place)
                    flush(place.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def move_content(source: Path, target: Path, last: str) -> None:
    """Move everything in ``source`` into ``target`` on the same disk, the entry ``last`` after all others."""
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name == last):
        if entry.name == last:
            flush(target)  # a power cut must not leave it alone
        os.replace(entry, target / entry.name)
    flush(target)


@contextmanager
def _alone(out: Path, file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The lock on ``file``, whose holder is at work on ``out``."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(file, say))
        except BusyError as error:
            raise BusyError(
                f"{out}: another process writes it; wait until it ends, or choose another folder"
            ) from error
        yield

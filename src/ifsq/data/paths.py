"""Names and paths that people and data sets give: said on one line, regular files, and where they may lie."""

import os
import re
import stat
from pathlib import Path

from ifsq.data.images import DataError

_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # ends of lines, and what moves a cursor
_SHOWN = 80  # characters of a value in a message


def is_plain(name: str) -> bool:
    """Whether a name can stand in a message, a fingerprint and a path: UTF-8 on one line, without control codes."""
    try:
        name.encode()
    except UnicodeEncodeError:  # how Python keeps bytes of a name that are no UTF-8
        return False
    return bool(name) and _CONTROL.search(name) is None


def shown(value: object) -> str:
    """A value for a message: as Python writes it, in ASCII and cut short."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def at_home(source: str) -> str:
    """The source with a leading ``~`` or ``~user`` in its full form. Raises DataError where there is no such home."""
    prefix, name = ("hf:", source[3:]) if source.startswith("hf:") else ("", source)
    if not name.startswith("~"):
        return source
    full = os.path.expanduser(name)
    if full.startswith("~"):
        raise DataError(f"{source}: has no home folder {name.split('/')[0]} on this machine")
    return prefix + full


def file_state(path: Path, where: str, what: str) -> os.stat_result:
    """What the system knows of a regular file; a pipe would be waited for, a device might never end.

    where, what  for the message: who names the file, and what it should be

    Raises DataError when it is missing or something else.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{where}: expected {what}, {error.strerror}") from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{where}: expected {what}, found no regular file")
    return state

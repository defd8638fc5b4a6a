"""What ``torch.save`` wrote, read without code that a pickle may hold, and with the checksums that torch ignores."""

import re
import zipfile
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from ifsq.config import InputError
from ifsq.store.files import first_line, reason

FOUND = (re.compile(r"WeightsUnpickler error:\s*(\S.*)"), re.compile(r"trusted source\.\s*(\S.*)"))
"""Where torch says what it found, behind advice to load the file all the same."""


def read_pickle(path: Path) -> Any:
    """Tensors, on the CPU, in dicts, lists and plain values; the arguments of a command too, as LlamaGen's trainer has.

    They are mapped: what is not used takes no memory, but all is read once for the archive's checksums. Files of torch
    before 1.6 have none, and are loaded. Raises InputError when the file is missing, damaged, or holds code.
    """
    if not path.is_file():
        told = "is no regular file" if path.exists() else "no such file"
        raise InputError(f"{path}: {told}; expected a file of torch.save")
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            _check_sums(path)
        with torch.serialization.safe_globals([Namespace]):  # it holds values and does nothing
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except InputError:
        raise
    except OSError as error:  # of the disk, or of zipfile where an archive says that it begins before the file
        raise InputError(f"{path}: cannot be read: {reason(error)}; expected a file of torch.save") from error
    except Exception as error:  # a damaged or foreign pickle raises whatever it likes
        found = next((match[1] for pattern in FOUND if (match := pattern.search(str(error)))), first_line(error))
        told = "".join(c for c in found[:120] if c.isprintable())
        raise InputError(
            f"{path}: cannot be read with weights_only=True ({told}); expected tensors and plain values"
        ) from error


def _check_sums(path: Path) -> None:
    """Raise InputError naming the first part whose CRC-32 is not that of its bytes; torch.load looks at none."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise InputError(f"{path}: is compressed; expected a file as torch.save writes it")
        try:
            damaged = archive.testzip()  # a megabyte at a time
        except (zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{path}: damaged: {error}") from error
    if damaged is not None:
        raise InputError(f"{path}: damaged: the checksum of {damaged} is not that of its bytes; copy it again")

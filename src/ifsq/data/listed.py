"""A text file that lists images, with labels or without: .txt, .csv, .tsv or .jsonl.

.txt    a path a line; what follows it after a tab or spaces is its label
.csv    path and label in the first two columns; or a first line that names them (`PATH_KEYS`, `LABEL_KEYS`)
.tsv    the same with tabs
.jsonl  an object a line, with one of these names as keys

Paths are relative to the list's folder. Empty lines are passed over. Labels are words, or integers from 0.
Called by `ifsq.data.open_images`.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ifsq.data.encoded import Catalogue
from ifsq.data.formats import EXTENSIONS
from ifsq.data.images import DataError
from ifsq.data.labels import all_or_none, label_text
from ifsq.data.paths import is_plain

LISTS = (".txt", ".csv", ".tsv", ".jsonl")
PATH_KEYS = ("path", "file", "file_name", "filename", "image")
LABEL_KEYS = ("label", "class")
_LINE = re.compile(rf"(.+(?:{'|'.join(re.escape(e) for e in EXTENSIONS)}))(?:\s+(\S.*))?", re.IGNORECASE)

Row = tuple[int, str, Any]
"""Number of a line, the path and the label on it."""


class Listed(Catalogue):
    """The images of a list, in its order. A path may be listed more than once.

    Raises DataError naming the line when it cannot be understood, its file is missing, or it alone has no label.
    """

    recipe = "list 1"

    def __init__(self, path: Path) -> None:
        self.place, self.folder = str(path), path.parent
        rows = list(_rows(path))
        if not rows:
            raise DataError(f"{path}: expected a list of images, found no path in it")
        self.lines = [line for line, _, _ in rows]
        self.names = [name for _, name, _ in rows]
        for line, name, _ in rows:
            if not is_plain(name):
                raise DataError(f"{path}: line {line}: name {name!r}: expected UTF-8 on one line")
        labels = [label_text(f"{path}: line {line}", label) for line, _, label in rows]
        self.labels = all_or_none(labels, self.where, "line")
        self.sizes = [self._size(position) for position in range(len(rows))]

    def read(self, position: int) -> Path:
        """See `Catalogue.read`."""
        return self.folder / self.names[position]

    def where(self, position: int) -> str:
        """The line."""
        return f"{self.place}: line {self.lines[position]}"

    def _size(self, position: int) -> int:
        path = self.read(position)
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise DataError(f"{self.where(position)}: {path}: expected an image, {error.strerror}") from error
        return size


def _rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: expected a list of images, found nothing") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found other bytes at {error.start}") from error
    readers = {".txt": _text_rows, ".csv": _table_rows, ".tsv": _table_rows, ".jsonl": _json_rows}
    return readers[path.suffix.lower()](path, text)


def _text_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            known = ", ".join(extension[1:] for extension in EXTENSIONS)
            raise DataError(f"{path}: line {number}: {line.strip()!r}: expected the path of an image ({known})")
        yield number, found[1], found[2]


def _table_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    columns: tuple[int, int | None] | None = None
    try:
        for cells in reader:
            if not any(cells):
                continue
            if columns is None:
                columns = _columns(cells)
                if not cells[0].lower().endswith(EXTENSIONS):
                    columns = _named_columns(path, cells)
                    continue
            if any(column is not None and column >= len(cells) for column in columns):
                raise DataError(f"{path}: line {reader.line_num}: {len(cells)} columns, expected as many as before")
            yield reader.line_num, cells[columns[0]], None if columns[1] is None else cells[columns[1]]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error


def _columns(cells: list[str]) -> tuple[int, int | None]:
    return 0, 1 if len(cells) > 1 else None


def _named_columns(path: Path, header: list[str]) -> tuple[int, int | None]:
    names = [cell.strip().lower() for cell in header]
    paths, labels = ([names.index(key) for key in keys if key in names] for keys in (PATH_KEYS, LABEL_KEYS))
    if not paths:
        raise DataError(f"{path}: line 1: {header[0]!r}: expected the path of an image or a column {PATH_KEYS[0]!r}")
    return paths[0], labels[0] if labels else None


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number}: no JSON: {error}") from error
        names = [row[key] for key in PATH_KEYS if key in row] if isinstance(row, dict) else []
        if not names or not isinstance(names[0], str):
            raise DataError(f"{path}: line {number}: expected an object with a key {PATH_KEYS[0]!r}")
        labels = [row[key] for key in LABEL_KEYS if row.get(key) is not None]
        yield number, names[0], labels[0] if labels else None

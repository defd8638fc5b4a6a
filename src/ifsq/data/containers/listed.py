"""A text file that lists images, with labels or without: .txt, .csv, .tsv or .jsonl.

.txt    a path a line; what follows it after a tab or spaces is its label
.csv    path and label in the first two columns; or a first line that names them
.tsv    the same with tabs
.jsonl  an object a line, with such names as keys

The path is in the column ``path`` (or another of `PATH_COLUMNS`), the label where `labels.choose_column` says. A column
``split`` (or another of `SPLIT_COLUMNS` that holds nothing but words as train and test) says the split of a row. Paths
are relative to the list's folder. Empty lines are passed over. Labels are words, or integers from 0.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ifsq.config import InputError, parse_json
from ifsq.data.encoded import Catalogue
from ifsq.data.formats import EXTENSIONS, KNOWN
from ifsq.data.images import DataError
from ifsq.data.labels import LABEL_COLUMNS, all_or_none, choose_column, has_classes, label_text
from ifsq.data.paths import file_state, is_plain, shown
from ifsq.data.splits import ALL, split_of

LISTS = (".txt", ".csv", ".tsv", ".jsonl")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "filepath", "file_path", "filepaths", "image_path")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data set", "data_set", "dataset", "usage")
_LINE = re.compile(rf"(.+(?:{'|'.join(re.escape(e) for e in EXTENSIONS)}))(?:\s+(\S.*))?", re.IGNORECASE)

Columns = dict[str, list[Any]]
"""A list by its columns, all of one length."""


class Row(NamedTuple):
    """A line of a list, its label as it is written there."""

    line: int
    path: str
    label: Any


class Listed(Catalogue):
    """Images of a list, in its order. A path may be listed more than once.

    rows  the lines to take; see `read_list`

    Raises DataError naming the line when its file is missing, or it alone has no label.
    """

    recipe = "list 1"

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self.place, self.folder = str(path), path.parent
        self.lines = [row.line for row in rows]
        self.names = [row.path for row in rows]
        labels = [label_text(f"{path}: line {row.line}", row.label) for row in rows]
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
        return file_state(path, f"{self.where(position)}: {path}", "an image").st_size


def read_list(path: Path, label_column: str = "") -> dict[str, list[Row]]:
    """The rows of every split that a list names; all of them as ``all`` where it names none.

    label_column  as in `DataConfig`

    Raises DataError naming the line that cannot be understood.
    """
    readers = {".txt": _text_columns, ".csv": _table_columns, ".tsv": _table_columns, ".jsonl": _json_columns}
    lines, columns = readers[path.suffix.lower()](path, _read_text(path), label_column)
    if not lines:
        raise DataError(f"{path}: expected a list of images, found no path in it")
    names = _column(columns, PATH_COLUMNS)
    if names is None:
        first = shown(next(iter(columns)))
        raise DataError(f"{path}: line 1: {first}: expected the path of an image or a column {PATH_COLUMNS[0]!r}")
    splits = next((name for name in columns if _says_splits(name, columns[name])), None)
    could = [name for name in columns if name not in (names, splits) and _could_be_labels(name, columns[name])]
    labels = choose_column(str(path), could, label_column)
    found: dict[str, list[Row]] = {}
    for at, (line, name) in enumerate(zip(lines, columns[names], strict=True)):
        if not isinstance(name, str) or not is_plain(name):
            raise DataError(f"{path}: line {line}: path {shown(name)}: expected UTF-8 on one line")
        split = ALL if splits is None else _split(f"{path}: line {line}", columns[splits][at])
        found.setdefault(split, []).append(Row(line, name, None if labels is None else columns[labels][at]))
    return found


def _read_text(path: Path) -> str:
    if not path.exists():
        raise DataError(f"{path}: expected a list of images, found nothing")
    file_state(path, str(path), "a list of images")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found other bytes at {error.start}") from error


def _text_columns(path: Path, text: str, label_column: str) -> tuple[list[int], Columns]:
    labelled = has_classes(str(path), label_column, "a .txt list")
    lines, names, labels = [], [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise DataError(f"{path}: line {number}: {shown(line.strip())}: expected the path of an image ({KNOWN})")
        lines.append(number)
        names.append(found[1])
        labels.append(found[2])
    return lines, {"path": names} | ({"label": labels} if labelled else {})


def _table_columns(path: Path, text: str, label_column: str) -> tuple[list[int], Columns]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    if not rows:
        return [], {}
    header = [cell.strip() for cell in rows[0][1]]
    if header[0].lower().endswith(EXTENSIONS):
        labelled = has_classes(str(path), label_column, "a list without a line of names")
        header = ["path", "label"][: len(header) if labelled else 1]
    else:
        rows = rows[1:]
    for number, cells in rows:
        if len(cells) < len(header):
            raise DataError(f"{path}: line {number}: {len(cells)} columns, expected as many as before")
    at = {name: header.index(name) for name in header}
    return [number for number, _ in rows], {name: [cells[at[name]] for _, cells in rows] for name in at}


def _json_columns(path: Path, text: str, _: str) -> tuple[list[int], Columns]:
    lines, objects = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"{path}: line {number}")
        except InputError as error:
            raise DataError(str(error)) from error
        if not isinstance(row, dict) or _column(row, PATH_COLUMNS) is None:
            raise DataError(f"{path}: line {number}: expected an object with a key {PATH_COLUMNS[0]!r}")
        lines.append(number)
        objects.append(row)
    names = dict.fromkeys(name for row in objects for name in row)
    return lines, {name: [row.get(name) for row in objects] for name in names}


def _column(columns: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names, as it is written in the list."""
    written = {name.lower(): name for name in columns}
    return next((written[name] for name in wanted if name in written), None)


def _says_splits(name: str, values: Sequence[Any]) -> bool:
    if name.lower() == SPLIT_COLUMNS[0]:
        return True
    return name.lower() in SPLIT_COLUMNS and all(isinstance(value, str) and split_of(value) for value in values)


def _split(where: str, value: Any) -> str:
    if not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where}: split {shown(value)}: expected a word, as other lines have")
    return split_of(str(value)) or str(value).strip()


def _could_be_labels(name: str, values: Sequence[Any]) -> bool:
    """Objects and arrays of a .jsonl list are something else, unless they are called labels."""
    return name.lower() in LABEL_COLUMNS or all(isinstance(value, str | int | float | None) for value in values)

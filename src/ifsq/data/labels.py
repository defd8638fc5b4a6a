"""Labels of files: the number of a class, by one rule for folders, lists, shards and tables.

Whole numbers are numbers, however they are written (``7``, ``007``, `` 7``, ``7.0``): the class of a label is the
label, and there are as many classes as the greatest asks for. Anything else is a word, and words are numbered in
their sorted order.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from ifsq.data.images import DataError
from ifsq.data.paths import is_plain, shown

NO_CLASSES = ("all",)
NO_LABEL = -1
"""What a picture has in the place of a label where labels are not asked for and it has none."""
MOST_CLASSES = 1_000_000
LONGEST_LABEL = 1000  # characters
NO_COLUMN = "none"
"""As ``data.label_column``: the images have no classes, whatever lies beside them."""
FOLDER = "folder"
"""As ``data.label_column`` of shards: the class is the folder in them that an image lies in."""
LABEL_COLUMNS = (
    *("label", "labels", "cls", "class", "classes", "target", "targets", "category", "categories"),
    *(f"{what}_{how}" for what in ("label", "class", "category") for how in ("id", "idx", "index", "name")),
    *("class_label", "classname"),
)
"""What a column of labels is called, whatever the case."""
OTHER_COLUMNS = (
    *("", "id", "idx", "index", "key", "__key__", "__url__", "uid", "image_id", "img_id", "hash", "md5", "sha256"),
    *("width", "height", "w", "h", "channels", "size", "bytes", "mode", "format", "original_width", "original_height"),
    *("text", "caption", "captions", "prompt", "description", "title", "alt", "url", "source", "license", "author"),
    *("split", "status", "error_message", "exif", "date", "timestamp", "file_name", "filename", "path", "file"),
)
"""What is no label."""
_TOLD = 8  # names in a message
_WHOLE = re.compile(r"\s*([+-]?\d{1,18})(?:\.0*)?\s*", re.ASCII)


def number_classes(labels: Iterable[str], place: str) -> tuple[str, ...]:
    """Classes in the order of their numbers: of words, sorted; of integers, every integer from 0 to the greatest."""
    words = sorted({plain_label(label) for label in labels})
    if not are_numbers(words):
        return tuple(words)
    numbers = sorted(int(word) for word in words)
    if numbers[0] < 0 or numbers[-1] >= MOST_CLASSES:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        expected = f"integers from 0 to {MOST_CLASSES - 1}, or words; or data.label_column {NO_COLUMN!r}"
        raise DataError(f"{place}: label {wrong}: expected {expected}")
    return tuple(str(number) for number in range(numbers[-1] + 1))


def are_numbers(labels: Sequence[str]) -> bool:
    """Whether every label is a whole number."""
    return all(_WHOLE.fullmatch(label) for label in labels)


def plain_label(label: str) -> str:
    """The label as it is compared: whole numbers without zeros, signs and spaces that say nothing."""
    found = _WHOLE.fullmatch(label)
    return str(int(found[1])) if found else label


def label_text(where: str, value: Any) -> str | None:
    """A label as text; None where there is none. Raises DataError for what is neither a word nor a whole number."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: label {shown(value)}: expected a word or an integer")
    text = str(value).strip()
    if text and not _is_word(text):
        raise DataError(f"{where}: label {shown(text)}: expected at most {LONGEST_LABEL} characters on one line")
    return text or None


def could_be_label(value: Any) -> bool:
    """Whether `label_text` takes a value that is something."""
    whole = isinstance(value, float) and value.is_integer()
    text = value.strip() if isinstance(value, str) else ""
    return whole or (isinstance(value, int) and not isinstance(value, bool)) or _is_word(text)


def all_or_none(labels: Sequence[str | None], where: Callable[[int], str], others: str) -> list[str] | None:
    """The labels, or None where no file has one.

    where   what to call a file in a message
    others  what else is labelled, for the message: ``rows``

    Raises DataError naming the first file without a label where others have one.
    """
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise DataError(f"{where(list(labels).index(None))}: has no label, expected one on every {others} or on none")
    return known or None


def ask(place: str, candidates: Sequence[str]) -> NoReturn:
    """Raise DataError naming the places where labels may be."""
    names = [shown(name) for name in candidates[:_TOLD]] + ["another"] * (len(candidates) > _TOLD)
    raise DataError(f"{place}: is the label {' or '.join(names)}? Give data.label_column, {NO_COLUMN!r} for no labels")


def choose_column(place: str, columns: Sequence[str], wanted: str, of_classes: Collection[str] = ()) -> str | None:
    """The column that holds the labels; None where there are none.

    columns     those that could hold labels
    wanted      ``data.label_column``: "", the name of a column, or ``none``
    of_classes  columns that hold classes by their type

    Unless told it is ``label``, or else the only one that labels are known by (`LABEL_COLUMNS`) or that is of classes.
    Raises DataError naming the candidates where that is not clear: a column that is not known to be something else
    (`OTHER_COLUMNS`) may hold labels, and is not passed over in silence.
    """
    if wanted == NO_COLUMN:
        return None
    plain = {column.strip().casefold(): column for column in reversed(columns)}
    if wanted:
        if wanted.casefold() not in plain:
            told = ", ".join(shown(column) for column in columns[:_TOLD]) or "none, as there are no columns"
            raise DataError(f"{place}: data.label_column {shown(wanted)}: expected one of {told}")
        return plain[wanted.casefold()]
    if "label" in plain:
        return plain["label"]
    known = [column for column in columns if column.strip().casefold() in LABEL_COLUMNS or column in of_classes]
    if len(known) == 1:
        return known[0]
    may = known or [column for column in columns if column.strip().casefold() not in OTHER_COLUMNS]
    if may:
        ask(place, may)
    return None


def has_classes(place: str, wanted: str, what: str) -> bool:
    """Whether the classes of something without columns are wanted. Raises DataError where a column is."""
    if wanted not in ("", NO_COLUMN):
        raise DataError(
            f"{place}: data.label_column {shown(wanted)}: {what} has no columns, expected {NO_COLUMN!r} or none"
        )
    return wanted != NO_COLUMN


def _is_word(text: str) -> bool:
    return len(text) <= LONGEST_LABEL and is_plain(text)

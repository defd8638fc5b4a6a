"""Labels of files: the number of a class, by one rule for folders, lists, shards and tables.

Whole numbers are numbers, however they are written (``7``, ``007``, `` 7``, ``7.0``): the class of a label is the
label, and there are as many classes as the greatest asks for. Anything else is a word, and words are numbered in
their sorted order.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ifsq.data.images import DataError
from ifsq.data.paths import is_plain, shown

NO_CLASSES = ("all",)
NO_LABEL = -1
"""What a picture has in the place of a label where labels are not asked for and it has none."""
MOST_CLASSES = 1_000_000
LONGEST_LABEL = 1000  # characters
_WHOLE = re.compile(r"\s*([+-]?\d{1,18})(?:\.0*)?\s*", re.ASCII)


def number_classes(labels: Iterable[str], place: str) -> tuple[str, ...]:
    """Classes in the order of their numbers: of words, sorted; of integers, every integer from 0 to the greatest."""
    words = sorted({plain_label(label) for label in labels})
    if not are_numbers(words):
        return tuple(words)
    numbers = sorted(int(word) for word in words)
    if numbers[0] < 0 or numbers[-1] >= MOST_CLASSES:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise DataError(f"{place}: label {wrong}: expected integers from 0 to {MOST_CLASSES - 1}, or words")
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
    if len(text) > LONGEST_LABEL or (text and not is_plain(text)):
        raise DataError(f"{where}: label {shown(text)}: expected at most {LONGEST_LABEL} characters on one line")
    return text or None


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

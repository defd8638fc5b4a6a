"""What a generator was trained on, kept with its weights; classes by number and by name."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ifsq.config import InputError


@dataclass(frozen=True)
class Origin:
    """What a generator was trained on. An imported one may name no tokenizer until it is to decode.

    classes           class names; a label is a position in them
    tokenizer         folder of the tokenizer, as the experiment gave it
    tokenizer_digest  its weights' SHA-256
    codes_digest      SHA-256 of the code cache's manifest
    sampling          how it is sampled where nothing else is said: options of the kind's sampling class
    """

    classes: tuple[str, ...]
    tokenizer: str = ""
    tokenizer_digest: str = ""
    codes_digest: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)

    def labels(self, wanted: Sequence[str | int]) -> list[int]:
        """Labels of classes given by number or by name. Raises InputError naming the first that is neither, or both.

        A text that is the number of one class and the name of another is refused; ``number:3`` and ``name:3`` say
        which is meant.
        """
        return [_label_of(given, self.classes) for given in wanted]


def _label_of(given: str | int, classes: Sequence[str]) -> int:
    kind, colon, text = str(given).partition(":")
    if not colon or kind not in ("number", "name") or given in classes:
        kind, text = "either", str(given)
    found = set()
    if kind != "name" and text.isascii() and text.isdigit() and len(text) < 20 and int(text) < len(classes):
        found.add(int(text))
    if kind != "number" and not isinstance(given, int) and text in classes:
        found.add(classes.index(text))
    if len(found) == 1:
        return found.pop()
    if found:
        raise InputError(
            f"label {text}: is the number of the class {classes[int(text)]!r} and the name of class number"
            f" {classes.index(text)}; expected number:{text} or name:{text}"
        )
    expected = f"label {text}: expected 0 to {len(classes) - 1}"
    if all(name == str(i) for i, name in enumerate(classes)):
        raise InputError(expected)
    known = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:12]))
    near = "".join(f"; did you mean {name!r}?" for name in difflib.get_close_matches(text, classes, n=1))
    raise InputError(f"{expected} ({known}), or one of these names{near}")

"""Values of a trainer's config by type, and numbers and shapes by the names of tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ifsq.config import InputError


class Reader:
    """Values of a config by type. Raises InputError."""

    def __init__(self, where: str) -> None:
        self.where = f"{where}: config"

    def whole(self, section: dict[Any, Any], key: str) -> int | None:
        """A positive integer, or None where there is none."""
        value = section.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{self.where}: {key}: {value!r}; expected a positive integer")
        return value

    def number(self, section: dict[Any, Any], key: str, default: float) -> float:
        """A finite number."""
        value = section.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"{self.where}: {key}: {value!r}; expected a number")
        return float(value)


def section(config: dict[Any, Any], name: str) -> dict[Any, Any]:
    """A table of a config, empty where it has none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def shape_of(table: Mapping[str, Tensor], key: str, axes: int, of: str, where: str) -> tuple[int, ...]:
    """The shape of a tensor. Raises InputError where it is missing or has another number of axes.

    of  whose tensors they should be, in words
    """
    if key not in table:
        raise InputError(f"{where}: tensor {key!r} is missing; expected those of {of}")
    if table[key].ndim != axes:
        told = {1: "one axis", 2: "two axes"}.get(axes, f"{axes} axes")
        raise InputError(f"{where}: tensor {key!r} has shape {tuple(table[key].shape)}, expected {told}")
    return tuple(table[key].shape)


def count(table: Mapping[str, Tensor], pattern: str) -> int:
    """How many are numbered, by the greatest number that so many tensors can have."""
    found = [int(match[1]) for key in table if (match := re.match(pattern, key))]
    return 1 + max((number for number in found if number < len(table)), default=-1)

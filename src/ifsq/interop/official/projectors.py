"""REPA's projectors in official checkpoints: out of a table of weights, and what a config says of them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ifsq.config import InputError
from ifsq.generators.repa.kept import PART
from ifsq.interop.official.reader import Reader, section
from ifsq.store.weights import HALVES

PROJECTORS = f"{PART}."
LAYERS = re.compile(rf"{PART}\.(\d{{1,6}})\.([024])\.(weight|bias)")
DEPTH = 8
"""Blocks in front of them where the official trainer's config does not say it."""


def projectors_of(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """REPA's projectors by their bare names, float32 where they are halves."""
    found = {key: value for key, value in table.items() if key.startswith(PROJECTORS)}
    return {key: (value.float() if value.dtype in HALVES else value).contiguous() for key, value in found.items()}


def depth_told(found: Any, where: str) -> int | None:
    """Blocks behind which a checkpoint's projectors read the states; None where it has no trainer's config.

    Raises InputError for a config that says no number.
    """
    config = found.get("config") if isinstance(found, dict) else None
    if not isinstance(config, dict):
        return None
    depth = Reader(where).number(section(config, "model"), "encoder_depth", float(DEPTH))
    if depth < 0 or not depth.is_integer():
        raise InputError(f"{where}: config: encoder_depth: {depth:g}; expected a number of blocks")
    return int(depth)


def unknown_there(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are projectors that the official classes have not: theirs are three linear layers."""
    return any(LAYERS.fullmatch(name) is None for name in tensors)


def projector_arguments(tensors: Mapping[str, Tensor], depth: int | None) -> dict[str, Any]:
    """What the official config says of projectors: the numbers in a feature, their width inside, and their depth."""
    numbers = sorted({int(match[1]) for name in tensors if (match := LAYERS.fullmatch(name))})
    if not numbers:
        return {"z_dims": None}
    told = {
        "z_dims": [len(tensors[f"{PROJECTORS}{number}.4.weight"]) for number in numbers],
        "projector_dim": len(tensors[f"{PROJECTORS}{numbers[0]}.0.weight"]),
    }
    return told if depth is None else {**told, "encoder_depth": depth}

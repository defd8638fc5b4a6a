"""Checkpoints of the official trainer: what is in them, and their weights by bare names."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError
from ifsq.interop.files import bare_name


def is_of_the_trainer(found: Any) -> bool:
    """Whether a checkpoint is laid out as the official trainer does it, not a plain table of tensors."""
    return not _is_table(found) and not (isinstance(found, dict) and _is_table(found.get("state_dict")))


def find_weights(found: Any, weights: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a model by their bare names.

    weights  ``ema`` or ``raw``, of a checkpoint of the trainer

    A plain table, or one under ``state_dict``, is taken as it is. Raises InputError when there are none, or a name
    stands twice once what wrapped it is gone.
    """
    if is_of_the_trainer(found):
        place = "ema_state_dict" if weights == "ema" else "state_dict.gen_model"
        table = _place(found, place, path)
    else:
        place, table = ("", found) if _is_table(found) else ("state_dict", found["state_dict"])
    where = f"{path}: {place}".rstrip(": ")
    bare: dict[str, Tensor] = {}
    for key, value in table.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{where}: {key!r} is a {type(value).__name__}; expected a floating-point tensor")
        name = bare_name(key)
        if name in bare:
            raise InputError(f"{where}: {key!r} stands twice, with and without its prefix; expected it once")
        bare[name] = value
    return bare


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _place(found: Any, place: str, path: Path) -> dict[Any, Any]:
    for name in place.split("."):
        if not isinstance(found, dict) or name not in found:
            inside = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else type(found).__name__
            raise InputError(
                f"{path}: holds no {place} (but {inside}); expected a file of the official tokenizer trainer"
            )
        found = found[name]
    if not isinstance(found, dict):
        raise InputError(f"{path}: {place} is a {type(found).__name__}; expected tensors by name")
    if not found:
        untrained = place == "ema_state_dict"
        raise InputError(
            f"{path}: {place} is empty; "
            + (
                "it was trained without EMA; expected tensors, take the raw weights"
                if untrained
                else "expected tensors"
            )
        )
    return found

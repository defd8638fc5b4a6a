"""Checkpoints of the official trainers and of LlamaGen's: what is in them, and their weights by bare names."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ifsq.config import InputError
from ifsq.interop.files import bare_name

KINDS = {
    "llamagen": "cls_embedding.embedding_table.weight",
    "llamagen t2i": "cls_embedding.uncond_embedding",
    "llamagen vq": "encoder.conv_blocks.0.res.0.conv1.weight",
    "dit": "t_embedder.mlp.0.weight",
}
"""What a file may be besides a tokenizer of the official trainer, by a tensor that no other has."""
RAW = ("model", "module", "state_dict")
"""Where weights as trained lie: DDP's and the official trainers' place, DeepSpeed's, Lightning's."""


class Found(NamedTuple):
    """Weights by their bare names.

    place  where in the file they lie; empty where they are the file
    """

    place: str
    table: dict[str, Tensor]


def kind_of(found: Any) -> str:
    """One of `KINDS`, or ``tokenizer``."""
    inside = [found, *(found.get(place) for place in (*RAW, "ema"))] if isinstance(found, dict) else []
    tables = [table for table in inside if isinstance(table, dict) and _is_table(table)]
    names = {bare_name(key) for table in tables for key in table if isinstance(key, str)}
    return next((kind for kind, name in KINDS.items() if name in names), "tokenizer")


def choose_weights(found: Any, weights: str | None, path: Path) -> Found:
    """The weights of a file that is a table of tensors, or holds one as `RAW` or ``ema``.

    weights  ``ema`` or ``raw``; None: the averaged ones where there are any, else those as trained

    Raises InputError when there are none such, or a name stands twice.
    """
    if _is_table(found):
        if weights == "ema":
            raise InputError(f"{path}: is a table of tensors, with no averaged ones beside it; leave --weights out")
        return Found("", _bare(found, str(path)))
    if weights == "raw" or (weights is None and "ema" not in found):
        place = next((name for name in RAW if name in found), RAW[0])
    else:
        place = "ema"
    return Found(place, _bare(_place(found, place, path), f"{path}: {place}"))


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
    return _bare(table, f"{path}: {place}".rstrip(": "))


def _bare(table: dict[Any, Any], where: str) -> dict[str, Tensor]:
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
            raise InputError(f"{path}: holds no {place} (but {inside}); expected a file of an official trainer")
        found = found[name]
    if not isinstance(found, dict):
        raise InputError(f"{path}: {place} is a {type(found).__name__}; expected tensors by name")
    if not found:
        untrained = place in ("ema_state_dict", "ema")
        raise InputError(
            f"{path}: {place} is empty; "
            + (
                "it was trained without EMA; expected tensors, take the raw weights"
                if untrained
                else "expected tensors"
            )
        )
    return found

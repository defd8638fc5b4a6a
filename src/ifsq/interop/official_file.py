"""Files of tensors as the official trainer writes them, and plain ones: opened, checked and found by bare names."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError
from ifsq.store.pickles import read_pickle
from ifsq.store.weights import read_tensors

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that ``torch.compile``, FSDP and activation checkpointing put before what they wrap, at any depth."""
REPLICATED = "module."  # of DistributedDataParallel, around the whole; inside of a name it may be a module's own


def read_checkpoint(path: Path) -> Any:
    """What a file holds: safetensors by their ending, else what ``torch.save`` wrote of tensors and plain values.

    Raises InputError when it is missing, damaged, or holds code.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder; expected one file (torch.distributed.checkpoint.format_utils makes one of a sharded)"
        )
    return read_pickle(path)


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


def bare_name(key: str) -> str:
    """A tensor's name without what wrappers of modules add."""
    name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    while name.startswith(REPLICATED):
        name = name.removeprefix(REPLICATED)
    return name


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

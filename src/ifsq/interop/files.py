"""Files of tensors as other projects write them, opened and checked; names of tensors without their wrappers."""

from pathlib import Path
from typing import Any

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


def bare_name(key: str) -> str:
    """A tensor's name without what wrappers of modules add."""
    name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    while name.startswith(REPLICATED):
        name = name.removeprefix(REPLICATED)
    return name

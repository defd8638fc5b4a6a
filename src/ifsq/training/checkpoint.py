"""Checkpoints: ``checkpoints/step_N/`` of safetensors and JSON, written whole or not at all. Called by ``loop``.

A checkpoint is written into a hidden folder beside its place, flushed to disk and then renamed: a process killed at any
moment leaves either the old state or the new one. Nothing is pickled.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ifsq.config import InputError, read_json

STEP = re.compile(r"step_(\d+)")


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step_N`` and remove all but the ``keep`` newest. ``tensors``: one safetensors file a name."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step}"
    if target.exists():  # training is a function of the step, so what lies there is the same state
        return target
    partial = folder / f".partial_step_{step}"
    for leftover in folder.glob(".partial_*"):
        shutil.rmtree(leftover)
    partial.mkdir()
    for name, table in tensors.items():
        save_file(
            {key: value.detach().contiguous().cpu() for key, value in table.items()}, partial / f"{name}.safetensors"
        )
    (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for file in partial.iterdir():
        _flush(file)
    _flush(partial)
    partial.rename(target)
    _flush(folder)
    for _, old in steps_in(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := STEP.fullmatch(path.name))]
    return sorted(found)


def load(path: Path, name: str) -> dict[str, Tensor]:
    """One tensor file of a checkpoint. Raises InputError when it is missing or damaged."""
    try:
        return load_file(path / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path / name}.safetensors cannot be read: {error}") from error


def load_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint. Raises InputError when it is missing or damaged."""
    return read_json(path / "state.json")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as one flat table: ``<parameter number>.<name>``; hyper-parameters live in the config."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Inverse of `flatten_optimizer`.

    A fused optimizer walks a parameter and its momenta side by side in memory, so these take the parameter's strides.
    """
    current = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        laid = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        state.setdefault(int(number), {})[name] = laid
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load every tensor of the model and no other. Raises InputError naming the first key that does not fit."""
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        if key not in weights or key not in own:
            raise InputError(f"{where}: tensor {key!r} is {'missing' if key in own else 'not part of this model'}")
        if own[key].shape != weights[key].shape:
            raise InputError(
                f"{where}: tensor {key!r} has shape {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"
            )
    model.load_state_dict(weights)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over the names, shapes and bytes of all tensors of a model: its identity in manifests and cards."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

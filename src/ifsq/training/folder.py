"""A run is a folder, and its ``config.json`` says whose. Called by ``loop``, ``pipeline`` and ``bench``.

A folder that is not ours, or that holds another configuration, is refused: nothing of somebody else's is overwritten.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ifsq.config import InputError, differences, read_json
from ifsq.training import checkpoint

CONFIG = "config.json"
LAYOUT = ("experiment.train.engine.", "experiment.engine.", "experiment.out ")


def check_run(folder: Path, config: dict[str, Any]) -> bool:
    """Whether ``folder`` already holds this very run (True) or is free (False).

    Where a run lies and how its work is laid out on machines may change, and is not compared. Raises InputError when it
    is a file, holds something else, or holds a run of another configuration.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the run")
    entries = [path for path in folder.iterdir() if not path.name.startswith(".partial")] if folder.is_dir() else []
    if not entries:
        return False
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: is not empty and holds no run of ifsq ({entries[0].name}); choose another folder")
    found = read_config(folder)
    if found.get("kind") == config["kind"] and {entry.name for entry in entries} <= {CONFIG, "metrics.jsonl"}:
        return found == config  # it stopped before its first checkpoint: there is nothing to lose
    different = [told for told in differences(found, config) if not told.startswith(LAYOUT)]
    if different:
        raise InputError(f"{folder}: holds another run ({different[0]}); choose another folder or remove it")
    return True


def create_run(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder with its ``config.json``, written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a run. Raises InputError when there is none or it is damaged."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run of ifsq")
    if not path.is_file():
        raise InputError(f"{folder}: holds no {CONFIG}; expected a run of ifsq")
    found = read_json(path)
    if not isinstance(found, dict) or "kind" not in found:
        raise InputError(f"{path}: is not a run of ifsq; expected a JSON object with a kind")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def save_model(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write ``model.safetensors`` and then ``config.json``. Raises InputError for the folder of a training run."""
    if (folder / CONFIG).is_file() and read_config(folder)["kind"] != "model":
        raise InputError(f"{folder}: holds a training run; save the model in another folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    write_text(folder / CONFIG, json.dumps({"kind": "model", "model": described}, indent=1) + "\n")


@dataclass(frozen=True)
class Weights:
    """Where a trained model lies: its description, and a file of tensors."""

    described: dict[str, Any]
    file: Path

    def load(self) -> dict[str, Tensor]:
        """The tensors. Raises InputError when the file is missing or damaged."""
        return checkpoint.load(self.file.parent, self.file.stem)


def find_weights(folder: Path) -> Weights:
    """The averaged weights of a run's newest checkpoint, or those of a folder that ``save_pretrained`` wrote.

    Raises InputError when the folder holds neither.
    """
    config = read_config(folder)
    if config["kind"] == "model":
        if "model" not in config:
            raise InputError(f"{folder / CONFIG}: describes no model; write it with save_pretrained")
        return Weights(config["model"], folder / "model.safetensors")
    found = checkpoint.steps_in(folder / "checkpoints")
    if not found:
        raise InputError(f"{folder}: holds no checkpoint yet; train it first")
    newest = found[-1][1]
    state = checkpoint.load_state(newest)
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"{newest / 'state.json'}: describes no model; the checkpoint is damaged")
    return Weights(state["model"], newest / "ema.safetensors")

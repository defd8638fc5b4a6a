"""Saving a model: a folder of its description, its weights and a card, whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError
from ifsq.store.files import check_free, record, write_tensors, write_text
from ifsq.store.folders import whole_folder
from ifsq.store.run import CONFIG, MODEL, WEIGHTS, Run


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill for a saved model; it becomes ``out`` at the end, or goes where something is raised."""
    check_free(out)
    with whole_folder(out, CONFIG) as unfinished:
        yield unfinished


def save_model(folder: Path, described: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write ``model.safetensors``, the card as ``README.md``, and ``config.json`` with the SHA-256 of the weights.

    A new folder appears whole. In one that is there they take the place of older ones, ``config.json`` last: a save cut
    short there leaves a folder that holds no model, never two halves. Raises InputError for a file or the folder of a
    training run, and where there is no room.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the model")
    if (folder / CONFIG).is_file() and Run.open(folder).kind != MODEL:
        raise InputError(f"{folder}: holds a training run; save the model in another folder")
    with whole_folder(folder, CONFIG) as unfinished:
        write_tensors(unfinished / WEIGHTS, {name: value.contiguous() for name, value in tensors.items()})
        write_text(unfinished / "README.md", card)
        config = {"kind": MODEL, "model": described, "files": {WEIGHTS: record(unfinished / WEIGHTS)}}
        write_text(unfinished / CONFIG, json.dumps(config, indent=1) + "\n")

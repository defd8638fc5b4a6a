"""A run is a folder, and its ``config.json`` says whose. Called by ``loop``, ``pipeline`` and ``bench``.

A folder that is not ours, or that holds another configuration, is refused: nothing of somebody else's is overwritten.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError, build, differences, read_json, to_dict
from ifsq.store.files import LOCK, WriteError, entries_of, is_free, reason, write_tensors, write_text
from ifsq.store.folders import whole_folder
from ifsq.store.lock import lock
from ifsq.training import checkpoint
from ifsq.training.distributed import World, from_first
from ifsq.training.hub import locate

CONFIG = "config.json"
LAYOUT = ("experiment.train.engine.", "experiment.engine.", "experiment.out ")


def check_run(folder: Path, config: dict[str, Any], experiment: type | None = None) -> bool:
    """Whether ``folder`` already holds this very run (True) or is free (False).

    experiment  the class of ``config["experiment"]``: options that came after the run was started have their defaults

    Where a run lies and how its work is laid out on machines may change, and is not compared. Raises InputError when it
    is a file, holds something else, or holds a run of another configuration.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the run")
    entries = entries_of(folder) if folder.is_dir() else []
    if not entries:
        return False
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: is not empty and holds no run of ifsq ({entries[0].name}); choose another folder")
    found = read_config(folder)
    if found.get("kind") == config["kind"] and experiment is not None and isinstance(found.get("experiment"), dict):
        found |= {"experiment": to_dict(build(experiment, found["experiment"], str(folder / CONFIG)))}
    if found.get("kind") == config["kind"] and not checkpoint.steps_in(folder / "checkpoints"):
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


@contextmanager
def alone_in(folder: Path, here: World, say: Callable[[str], None]) -> Iterator[None]:
    """Make the folder where there is none and hold its lock in the first process; it goes again if it stays empty.

    say  as of `lock`

    Raises InputError in every process where another run is at work there.
    """
    made: list[Path] = []

    def claim() -> None:
        try:
            if not folder.is_dir():
                Path(os.path.realpath(folder)).mkdir(parents=True)
                made.append(folder)
            held.enter_context(lock(folder / LOCK, say))
        except OSError as error:
            raise WriteError(folder, reason(error)) from error

    try:
        with ExitStack() as held:
            from_first(here, claim)
            yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def check_free(out: Path) -> None:
    """Raise InputError when ``out`` is a file or a folder that holds anything."""
    if not is_free(out):
        raise InputError(f"{out}: exists; expected a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill for a saved model; it becomes ``out`` at the end, or goes where something is raised."""
    check_free(out)
    with whole_folder(out, CONFIG) as partial:
        yield partial


def save_model(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor], card: str) -> None:
    """Write ``model.safetensors``, the card as ``README.md``, and ``config.json``.

    A new folder appears whole. In one that is there they take the place of older ones, ``config.json`` last: a save cut
    short there leaves a folder that holds no model, never two halves. Raises InputError for a file or the folder of a
    training run, and where there is no room.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the model")
    if (folder / CONFIG).is_file() and read_config(folder)["kind"] != "model":
        raise InputError(f"{folder}: holds a training run; save the model in another folder")
    with whole_folder(folder, CONFIG) as partial:
        write_tensors(partial / "model.safetensors", {name: value.contiguous() for name, value in tensors.items()})
        write_text(partial / "README.md", card)
        write_text(partial / CONFIG, json.dumps({"kind": "model", "model": described}, indent=1) + "\n")


@dataclass(frozen=True)
class Weights:
    """Where a trained model lies: its description, a file of tensors, and the step of a training run."""

    described: dict[str, Any]
    file: Path
    step: int | None = None

    def load(self) -> dict[str, Tensor]:
        """The tensors. Raises InputError when the file is missing or damaged."""
        return checkpoint.load(self.file.parent, self.file.stem)


def find_weights(source: str | Path, revision: str | None = None) -> Weights:
    """The averaged weights of a run's newest checkpoint, or those of a folder that ``save_pretrained`` wrote.

    source    a folder, or a repository ``owner/name`` of the hub where no such folder is; see `locate`
    revision  of the repository

    Raises InputError when it holds neither.
    """
    folder = locate(source, revision)
    config = read_config(folder)
    if config["kind"] == "model":
        if "model" not in config:
            raise InputError(f"{folder / CONFIG}: describes no model; write it with save_pretrained")
        return Weights(config["model"], folder / "model.safetensors")
    found = checkpoint.steps_in(folder / "checkpoints")
    if not found:
        raise InputError(f"{folder}: holds no checkpoint yet; train it first")
    step, newest = found[-1]
    state = checkpoint.load_state(newest)
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"{newest / 'state.json'}: describes no model; the checkpoint is damaged")
    return Weights(state["model"], newest / "ema.safetensors", step)

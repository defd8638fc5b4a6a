"""A run is a folder, and its ``config.json`` says whose.

A folder that is not ours, or that holds another configuration, is refused: nothing of somebody else's is overwritten.
"""

import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError, Remark, build, differences, read_json, to_dict
from ifsq.store.checkpoints import STATE, newest, record, steps_in
from ifsq.store.files import LOCK, WriteError, entries_of, is_free, make_folder, reason, write_tensors, write_text
from ifsq.store.folders import whole_folder
from ifsq.store.lock import lock
from ifsq.store.weights import read_tensors
from ifsq.training.distributed import World, from_first
from ifsq.training.hub import locate

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAY_CHANGE = ("steps", "log_every", "save_every", "validate_every", "keep", "keep_every")
"""Options of ``[train]`` that change no weight of the steps behind."""
FREE = (
    "experiment.out ",
    "experiment.engine.",
    "experiment.train.engine.",
    *(f"experiment.train.{name} " for name in MAY_CHANGE),
)


def check_run(folder: Path, config: dict[str, Any], experiment: type | None = None) -> dict[str, Any] | None:
    """What ``config.json`` of ``folder`` has to say before the run begins or goes on; None where it says so already.

    config      kind, experiment and fingerprint of the data; the folder gives the run's identity, ``run``
    experiment  the class of ``config["experiment"]``: options that came after the run was started have their defaults

    Where a run lies, how its work is laid out on machines, how long it is (`MAY_CHANGE`) and how often it logs, saves
    and validates may change. Raises InputError when ``folder`` is a file, holds something else, a run of another
    configuration, or one that has gone further than it is now to go.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the run")
    entries = entries_of(folder) if folder.is_dir() else []
    if not entries:
        return {**config, "run": secrets.token_hex(16)}
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: is not empty and holds no run of ifsq ({entries[0].name}); choose another folder")
    found = read_config(folder)
    identity = {"run": found.get("run", secrets.token_hex(16))}
    if found["kind"] == config["kind"] and not steps_in(folder / "checkpoints"):
        agreed = {**config, **identity}  # it stopped before its first checkpoint: there is nothing to lose
        return None if agreed == found else agreed
    known = {"experiment": _completed(found, experiment, folder), **identity}
    different = [told for told in differences({**found, **known}, {**config, **identity}) if not told.startswith(FREE)]
    if different:
        said = [told for told in different if not told.startswith("data ")]  # fingerprints tell a person nothing
        why = said[0] if said else "its data have changed since, or another build reads them otherwise"
        raise InputError(f"{folder}: holds another run ({why}); choose another folder or remove it")
    agreed = {**found, **identity}
    if train := config["experiment"].get("train"):
        _refuse_shorter(folder, found.get("run"), train["steps"])
        kept = found["experiment"].get("train", {})
        changed = {**kept, **{name: train[name] for name in MAY_CHANGE}}
        agreed["experiment"] = {**found["experiment"], "train": changed}
    return None if agreed == found else agreed


def create_run(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder with its ``config.json``, written whole or not at all."""
    make_folder(folder)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def _completed(found: dict[str, Any], experiment: type | None, folder: Path) -> Any:
    if experiment is None:
        return found.get("experiment")
    return to_dict(build(experiment, found.get("experiment", {}), str(folder / CONFIG)))


def _refuse_shorter(folder: Path, run: str | None, steps: int) -> None:
    checkpoint = newest(folder / "checkpoints", run).checkpoint
    if checkpoint is not None and checkpoint.step > steps:
        raise InputError(
            f"{folder}: has {checkpoint.step} steps behind it; expected train.steps of as many, got {steps}"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a run. Raises InputError when there is none or it is damaged."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run of ifsq")
    if not path.is_file():
        raise InputError(f"{folder}: holds no {CONFIG}; expected a run of ifsq")
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise InputError(f"{path}: is not a run of ifsq; expected a JSON object with a kind")
    for key, kind in (("experiment", dict), ("run", str), ("data", str)):
        if not isinstance(found.get(key, kind()), kind):
            raise InputError(f"{path}: {key}: expected {'a JSON object' if kind is dict else 'text'}")
    return found


@contextmanager
def claimed(
    folder: Path, config: dict[str, Any], experiment: type, here: World, say: Callable[[str], None],
    *, wait: bool = False,
) -> Iterator[Callable[[], None]]:  # fmt: skip
    """Make the folder this run's own, once every process has looked at it, for as long as it trains there.

    Gives a check for the first process, which is also made at the end. It raises InputError where the folder is there
    no more or is another one, and where its ``config.json`` is gone, after writing it again.

    config, experiment  as of `check_run`
    say, wait           as of `lock`

    Raises InputError in every process: as `check_run`, and where another run is at work there.
    """
    check_run(folder, config, experiment)
    here.barrier()
    with alone_in(folder, here, say, wait=wait):

        def agree() -> dict[str, Any]:
            agreed = check_run(folder, config, experiment)  # again: another run may have come before this one
            if agreed is not None:
                create_run(folder, agreed)
            return read_config(folder)

        agreed = from_first(here, agree)
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder}: process {here.rank} does not see it; expected a file system that all hosts share"
            )
        place = folder.stat()

        def check() -> None:
            if not folder.is_dir() or not os.path.samestat(folder.stat(), place):
                raise InputError(
                    f"{folder}: was moved or removed while the run trained there; once it is back, or with --out where"
                    " it is now, the same command goes on from its newest checkpoint"
                )
            if not (folder / CONFIG).is_file():
                create_run(folder, agreed)
                raise InputError(
                    f"{folder / CONFIG}: was removed while the run trained; it is written again, and the same command"
                    " goes on from its newest checkpoint"
                )

        yield check
        if here.first:
            check()


@contextmanager
def alone_in(folder: Path, here: World, say: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Make the folder where there is none and hold its lock in the first process; it goes again if it stays empty.

    say, wait  as of `lock`

    Raises InputError in every process where another run is at work there.
    """
    made: list[os.stat_result] = []

    def claim() -> None:
        try:
            if make_folder(folder):
                made.append(folder.stat())
            held.enter_context(lock(folder / LOCK, say, wait=wait))
        except OSError as error:
            raise WriteError(folder, reason(error)) from error

    try:
        with ExitStack() as held:
            from_first(here, claim)
            yield
    finally:
        if made and folder.is_dir() and os.path.samestat(folder.stat(), made[0]) and not any(folder.iterdir()):
            Path(os.path.realpath(folder)).rmdir()  # a link stays


def check_free(out: Path) -> None:
    """Raise InputError when ``out`` is a file or a folder that holds anything."""
    if not is_free(out):
        raise InputError(f"{out}: exists; expected a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill for a saved model; it becomes ``out`` at the end, or goes where something is raised."""
    check_free(out)
    with whole_folder(out, CONFIG) as unfinished:
        yield unfinished


def save_model(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor], card: str) -> None:
    """Write ``model.safetensors``, the card as ``README.md``, and ``config.json`` with the SHA-256 of the weights.

    A new folder appears whole. In one that is there they take the place of older ones, ``config.json`` last: a save cut
    short there leaves a folder that holds no model, never two halves. Raises InputError for a file or the folder of a
    training run, and where there is no room.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the model")
    if (folder / CONFIG).is_file() and read_config(folder)["kind"] != "model":
        raise InputError(f"{folder}: holds a training run; save the model in another folder")
    with whole_folder(folder, CONFIG) as unfinished:
        write_tensors(unfinished / WEIGHTS, {name: value.contiguous() for name, value in tensors.items()})
        write_text(unfinished / "README.md", card)
        config = {"kind": "model", "model": described, "files": {WEIGHTS: record(unfinished / WEIGHTS)}}
        write_text(unfinished / CONFIG, json.dumps(config, indent=1) + "\n")


@dataclass(frozen=True)
class Weights:
    """A trained model on disk: its description, how its tensors are read, and the step of a training run.

    ``load`` raises InputError where a file is missing, damaged or not the one that was saved.
    """

    described: dict[str, Any]
    load: Callable[[], dict[str, Tensor]]
    step: int | None = None


def find_weights(source: str | Path, revision: str | None = None) -> Weights:
    """The averaged weights of a run's newest whole checkpoint, or those of a folder that ``save_pretrained`` wrote.

    source    a folder, or a repository ``owner/name`` of the hub where no such folder is; see `locate`
    revision  of the repository

    Warns of checkpoints that are unfinished, and of one whose bytes nothing vouches for. Raises InputError when it
    holds neither, or what it holds is damaged.
    """
    folder = locate(source, revision)
    config = read_config(folder)
    if config["kind"] == "model":
        if not isinstance(config.get("model"), dict):
            raise InputError(f"{folder / CONFIG}: describes no model; write it with save_pretrained")
        return Weights(config["model"], partial(_load_saved, folder, config))
    found = newest(folder / "checkpoints", config.get("run"))
    checkpoint = found.checkpoint
    if checkpoint is None:
        raise InputError(f"{folder}: holds no checkpoint yet; train it first")
    if not isinstance(checkpoint.state.get("model"), dict):
        raise InputError(f"{checkpoint.folder / STATE}: describes no model; {checkpoint.advice}")
    for path, lacks in found.unfinished:
        warnings.warn(f"{path}: is unfinished ({lacks}); {checkpoint.folder.name} is used", Remark, stacklevel=2)
    if checkpoint.remark:
        warnings.warn(checkpoint.remark, Remark, stacklevel=2)
    return Weights(checkpoint.state["model"], partial(checkpoint.load_checked, "ema"), checkpoint.step)


def newest_step(run: Path) -> int | None:
    """Of a run's newest whole checkpoint; None where there is none, as in a saved model. Raises InputError."""
    found = newest(run / "checkpoints", read_config(run).get("run")).checkpoint
    return None if found is None else found.step


def _load_saved(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a saved model; one that was saved before files were vouched for names no SHA-256."""
    if "files" in config and config["files"] != {WEIGHTS: record(folder / WEIGHTS)}:
        raise InputError(
            f"{folder / WEIGHTS}: is damaged or of another model, its SHA-256 is not the one in {CONFIG}; fetch or save"
            " it again"
        )
    return read_tensors(folder / WEIGHTS)

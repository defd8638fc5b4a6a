"""A run, or a saved model, on disk: one object, whose ``config.json`` is read once.

A run's folder holds ``config.json`` (its kind, its experiment, the fingerprint of its data and its identity),
``metrics.jsonl``, ``checkpoints/``, ``evaluation.json``, ``evaluations/`` and ``samples/``; a saved model's holds
``config.json`` and ``model.safetensors``.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ifsq.config import InputError, Remark, build, read_json
from ifsq.store.checkpoints import STATE, STEP, Checkpoint, Newest, newest, of_step, whole_steps
from ifsq.store.files import make_folder, record, write_text
from ifsq.store.hub import locate
from ifsq.store.weights import read_tensors

T = TypeVar("T")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
EVALUATION = "evaluation.json"
EVALUATIONS = "evaluations"
"""Folder of a run's evaluations by step."""
MODEL = "model"
"""The kind of a saved model."""


@dataclass(frozen=True)
class Weights:
    """A trained model on disk: its description, how its tensors are read, and the step of a training run.

    ``load`` raises InputError where a file is missing, damaged or not the one that was saved.
    """

    described: dict[str, Any]
    load: Callable[[], dict[str, Tensor]]
    step: int | None = None


@dataclass(frozen=True)
class Run:
    """The folder of a training run or of a saved model, opened.

    folder  where it lies
    name    what the caller called it, for messages
    config  what its ``config.json`` says
    """

    folder: Path
    name: str
    config: dict[str, Any]

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> "Run":
        """Read the ``config.json`` of a folder, or of a repository of the hub.

        source    a folder, or a repository ``owner/name`` of the hub where no such folder is; see `locate`
        revision  of the repository

        Raises InputError when there is none or it is damaged.
        """
        folder = locate(source, revision)
        return cls(folder, str(source), read_config(folder))

    @property
    def kind(self) -> str:
        """``tokenizer``, a kind of generator, ``judge``, or `MODEL`."""
        return self.config["kind"]

    @property
    def data(self) -> str | None:
        """Fingerprint of what it was trained on, or of its codes; None of a saved model."""
        return self.config.get("data")

    @property
    def trained(self) -> bool:
        """Whether it is a training run, whose experiment is known, and no saved model."""
        return "experiment" in self.config

    def table(self, *section: str) -> dict[str, Any]:
        """The experiment as plain values, or a section of it. Raises InputError where there is none."""
        if not self.trained:
            raise InputError(f"{self.name}: is not a training run; what it was trained on is not known")
        table = self.config["experiment"]
        for name in section:
            table = table.get(name)
            if not isinstance(table, dict):
                raise InputError(f"{self.folder / CONFIG}: experiment.{'.'.join(section)}: expected a table")
        return table

    def experiment(self, cls: type[T], *section: str) -> T:
        """The experiment, or a section of it, as its class; options that came later have their defaults.

        Raises InputError, as for a saved model.
        """
        return build(cls, self.table(*section), str(self.folder / CONFIG))

    @property
    def newest(self) -> Newest:
        """Its newest whole checkpoint, and what is unfinished after it. Raises InputError, see `newest`."""
        return newest(self.folder / "checkpoints", self.config.get("run"))

    @property
    def step(self) -> int | None:
        """Step of the newest whole checkpoint; None where there is none, as in a saved model. Raises InputError."""
        found = self.newest.checkpoint
        return None if found is None else found.step

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps of its whole checkpoints, oldest first. Raises InputError where one is damaged."""
        return whole_steps(self.folder / "checkpoints")

    def weights(self, step: int | None = None, average: bool = True) -> Weights:
        """The weights of a run's checkpoint, or those of a saved model, which has one set and no steps.

        step     of a checkpoint that is kept; None: the newest whole one
        average  the averaged weights, else those that training goes on from

        Warns of checkpoints that are unfinished, and of one whose bytes nothing vouches for. Raises InputError when
        there are neither, or what there is is damaged.
        """
        if self.kind == MODEL:
            if not isinstance(self.config.get("model"), dict):
                raise InputError(f"{self.folder / CONFIG}: describes no model; write it with save_pretrained")
            if step is not None or not average:
                asked = f"step {step}" if step is not None else "weights raw"
                raise InputError(f"{self.name}: is a saved model with one set of weights; got {asked}")
            return Weights(self.config["model"], partial(_load_saved, self.folder, self.config))
        checkpoint = self._checkpoint(step)
        if not isinstance(checkpoint.state.get("model"), dict):
            raise InputError(f"{checkpoint.folder / STATE}: describes no model; {checkpoint.advice}")
        described = checkpoint.state["model"].get("kind", self.kind)
        if described != self.kind:
            raise InputError(f"{self.folder / CONFIG}: kind {self.kind!r}, and its weights are of kind {described!r}")
        if checkpoint.remark:
            warnings.warn(checkpoint.remark, Remark, stacklevel=2)
        load = partial(checkpoint.load_checked, "ema" if average else "model")
        return Weights(checkpoint.state["model"], load, checkpoint.step)

    def beside(self, table: str) -> dict[str, Tensor] | None:
        """Tensors that its newest whole checkpoint has beside the model; None where it has none. Raises InputError."""
        found = self.newest.checkpoint
        return found.load_checked(table) if found is not None and found.holds(table) else None

    def _checkpoint(self, step: int | None) -> Checkpoint:
        if step is not None:
            return of_step(self.folder / "checkpoints", self.config.get("run"), step)
        found = self.newest
        if found.checkpoint is None:
            raise InputError(f"{self.folder}: holds no checkpoint yet; train it first")
        for path, lacks in found.unfinished:
            told = f"{path}: is unfinished ({lacks}); {found.checkpoint.folder.name} is used"
            warnings.warn(told, Remark, stacklevel=3)
        return found.checkpoint

    def evaluation(self, step: int | None = None) -> dict[str, Any] | None:
        """What its ``evaluation.json``, or that of a step, holds; None where there is none. Raises InputError."""
        path = self.evaluation_file(step)
        if not path.exists():
            return None
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("cards"), list):
            raise InputError(f"{path}: holds no cards; expected what eval wrote, evaluate again")
        return found

    def evaluation_file(self, step: int | None = None) -> Path:
        """``evaluation.json``, or ``evaluations/step_N.json``."""
        return self.folder / (EVALUATION if step is None else f"{EVALUATIONS}/step_{step}.json")

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Steps that have an evaluation of their own, ``evaluations/step_N.json``, oldest first."""
        files = (self.folder / EVALUATIONS).glob("*.json")
        return tuple(sorted(int(match[1]) for path in files if (match := STEP.fullmatch(path.stem))))

    def write_evaluation(self, table: Mapping[str, Any], suffix: str = "", step: int | None = None) -> None:
        """Write ``evaluation.json``, or that of a step; with ``suffix`` in its name where it was measured otherwise."""
        path = self.evaluation_file(step)
        make_folder(path.parent)
        write_text(path.with_stem(f"{path.stem}{suffix}"), json.dumps(table, indent=1) + "\n")


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
    for key, kind in (("experiment", dict), ("run", str), ("data", str), ("init", dict)):
        if not isinstance(found.get(key, kind()), kind):
            raise InputError(f"{path}: {key}: expected {'a JSON object' if kind is dict else 'text'}")
    return found


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Make the folder with its ``config.json``, written whole or not at all."""
    make_folder(folder)
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def _load_saved(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a saved model; one that was saved before files were vouched for names no SHA-256."""
    if "files" in config and config["files"] != {WEIGHTS: record(folder / WEIGHTS)}:
        raise InputError(
            f"{folder / WEIGHTS}: is damaged or of another model, its SHA-256 is not the one in {CONFIG}; fetch or save"
            " it again"
        )
    return read_tensors(folder / WEIGHTS)

"""Where a run's figures and pictures go besides the run's folder: TensorBoard, Weights & Biases, trackio.

All three are extras, imported when asked for; none takes a credential from a config. What they show is a copy:
the run's folder is the record.
"""

import importlib
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ifsq.config import InputError
from ifsq.data.decode import read_image
from ifsq.store.files import write_text, writing

PROJECT = "ifsq"
PICTURE = "samples"


@runtime_checkable
class Sink(Protocol):
    """Takes figures by name, and pictures, at a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show them."""

    def picture(self, step: int, path: Path) -> None:
        """Show the picture of a file, under the name ``samples``."""

    def close(self) -> None:
        """Flush."""


def check_sinks(names: tuple[str, ...]) -> None:
    """Raise InputError for a logger that is not installed."""
    for name in names:
        _import(name, name)


def open_sinks(names: tuple[str, ...], folder: Path, step: int) -> list[Sink]:
    """The loggers of a run that stands at ``step``. Raises InputError for one that is not installed."""
    return [SINKS[name](folder.absolute(), step) for name in names]


class TensorBoard:
    """Event files under ``RUN/tensorboard``; what an interrupted run wrote after its checkpoint is purged."""

    def __init__(self, folder: Path, step: int) -> None:
        _import("tensorboard", "tensorboard")
        writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder, self._as_ever = folder / "tensorboard", threading.excepthook
        threading.excepthook = self._leave_to_the_run
        self._writer = writer(str(self._folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with writing(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        with writing(self._folder):
            self._writer.add_image(PICTURE, read_image(path), step, dataformats="HWC")

    def close(self) -> None:
        try:
            with writing(self._folder):
                self._writer.close()
        finally:
            threading.excepthook = self._as_ever

    def _leave_to_the_run(self, told: threading.ExceptHookArgs) -> None:
        """What its thread meets while it writes, the next figure raises: no traceback is needed beside that."""
        if not type(told.thread).__module__.startswith("tensorboard."):
            self._as_ever(told)


class WandB:
    """A run of project ``ifsq`` named after the folder; the same folder continues the same run."""

    def __init__(self, folder: Path, step: int) -> None:
        wandb = _import("wandb", "wandb")
        known = folder / "wandb_id"  # of this run and no other with the same path on another machine
        if not step or not known.is_file():
            write_text(known, uuid.uuid4().hex)
        name = f"{folder.parent.name}/{folder.name}"
        self._image = wandb.Image
        self._run = wandb.init(
            project=PROJECT, name=name, id=known.read_text(), resume="allow", dir=str(folder), reinit=True
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self._run.log({PICTURE: self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the local trackio project ``ifsq``, named after the folder."""

    def __init__(self, folder: Path, step: int) -> None:
        trackio = _import("trackio", "trackio")
        self._image = trackio.Image
        self._run = trackio.init(project=PROJECT, name=f"{folder.parent.name}-{folder.name}", resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self._run.log({PICTURE: self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Path, int], Sink]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"train.engine.loggers: {package} is not installed; expected pip install 'ifsq[log]' or {package}"
        ) from error

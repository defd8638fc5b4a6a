"""A stage of a grid: what it does, what it needs, and its content address.

The address follows from every option that decides the result, as far as it is not the usual one, and from the
addresses of what the stage is given. Where it lies, how its work is laid out on machines and how often it logs do not
enter it, nor does the version of the code, which the cards say.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ifsq.bench.grid.work import Work
from ifsq.config import digest
from ifsq.training.claim import MAY_CHANGE

STAGES = "stages"
"""Folder of a grid's stages."""
LENGTH = 12
PLACES = ("out", "tokenizer", "codes", "teacher")
NO_MATTER = ("engine", *(name for name in MAY_CHANGE if name not in ("steps", "keep_every")))
"""Options of ``[train]`` that decide nothing."""


@dataclass(frozen=True)
class Stage:
    """A piece of work that is done once.

    kind    see `ifsq.bench.grid.config.KINDS`
    config  options that decide its result, see `identity`
    inputs  what it is given, by role: names of stages, and fingerprints of what comes from outside
    needs   names of stages that must be complete
    work    does it
    seed    of its training or its sampling; None where there is none
    flops   floating-point operations of its training; None of what does not train
    steps   of its training
    """

    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    work: Work
    needs: tuple[str, ...] = ()
    seed: int | None = None
    flops: float | None = None
    steps: int | None = None

    @cached_property
    def name(self) -> str:
        """``KIND-ADDRESS``."""
        return f"{self.kind}-{digest({'kind': self.kind, 'config': self.config, 'inputs': self.inputs})[:LENGTH]}"

    def folder(self, out: Path) -> Path:
        """Where it lies in the folder of a grid."""
        return folder_of(out, self.name)


def folder_of(out: Path, name: str) -> Path:
    """Where the stage of this name lies in the folder of a grid."""
    return out / STAGES / name


def marker_of(out: Path, name: str) -> Path:
    """The file that is there once the stage is complete: what it was, and what it took."""
    return out / STAGES / f"{name}.json"


def is_complete(out: Path, name: str) -> bool:
    """Whether a stage is done and what it wrote is there."""
    return marker_of(out, name).is_file() and folder_of(out, name).is_dir()


def identity(config: Any) -> dict[str, Any]:
    """What of a config decides the result, as plain values: options that are not as usual.

    An option that comes later, with a default that means what was before, changes no address.
    """
    said = _unusual(config)
    said = {name: value for name, value in said.items() if name not in PLACES or not isinstance(value, str)}
    if isinstance(said.get("train"), Mapping):
        said["train"] = {name: value for name, value in said["train"].items() if name not in NO_MATTER}
    if isinstance(said.get("alignment"), Mapping):  # features are inputs, by their addresses
        said["alignment"] = {name: value for name, value in said["alignment"].items() if name != "features"}
    return said


def _unusual(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            one.name: _unusual(getattr(value, one.name))
            for one in fields(value)
            if getattr(value, one.name) != _usual(one)
        }
    if isinstance(value, (list, tuple)):
        return [_unusual(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _unusual(one) for name, one in value.items()}
    return value


def _usual(one: Any) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default

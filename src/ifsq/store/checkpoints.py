"""Checkpoints on disk: which are whole, whose they are, and that their bytes are those that were saved.

``checkpoints/step_N/`` holds tables of tensors as safetensors, each in one file or in as many as processes wrote it,
and ``state.json``, which is written last: the step, the run, size and SHA-256 of every file, and a digest of itself.
One of before these were kept has only the step; it is read, and nothing vouches for its bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError, digest, read_json
from ifsq.store.files import record
from ifsq.store.weights import read_tensors

STATE = "state.json"
STEP = re.compile(r"step_(0|[1-9][0-9]{0,17})")
VOUCHING = {"run", "files", "digest"}
"""What the state of one that vouches for its bytes has."""
FILE = re.compile(r"([a-z_]+)(?:-([0-9]{5})-of-([0-9]{5}))?\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    step    optimizer steps that it has seen
    folder  where it lies
    state   its ``state.json``
    """

    step: int
    folder: Path
    state: dict[str, Any]

    @property
    def vouched(self) -> bool:
        """Whether it tells the SHA-256 of its files."""
        return "files" in self.state

    def files(self, table: str = "") -> list[Path]:
        """Those of a table, or of all. Raises InputError where a table has none."""
        names = self.state["files"] if self.vouched else [path.name for path in self.folder.iterdir()]
        found = [match for name in sorted(names) if (match := FILE.fullmatch(name)) and table in ("", match[1])]
        if not found:
            told = f"{self.folder / table}.safetensors: no such file" if table else f"{self.folder}: holds no tensors"
            raise InputError(f"{told}; {self.advice}")
        if table and found[0][3]:  # of several processes: all that there must be
            return [self.folder / f"{table}-{i + 1:05d}-of-{found[0][3]}.safetensors" for i in range(int(found[0][3]))]
        return [self.folder / match[0] for match in found]

    def holds(self, table: str) -> bool:
        """Whether a table was saved with it."""
        names = self.state["files"] if self.vouched else [path.name for path in self.folder.iterdir()]
        return any((match := FILE.fullmatch(name)) and match[1] == table for name in names)

    def check(self, file: Path) -> None:
        """Raise InputError where a file is not the one that was saved with this checkpoint."""
        if self.vouched and record(file) != self.state["files"].get(file.name):
            raise InputError(
                f"{file}: is damaged or of another checkpoint, its SHA-256 is not the one in {STATE}; {self.advice}"
            )

    def load(self, table: str) -> dict[str, Tensor]:
        """Its tensors, unchecked. Raises InputError where a file is missing or cannot be read."""
        files = self.files(table)
        try:
            return {key: value for file in files for key, value in read_tensors(file).items()}
        except InputError as error:
            raise InputError(f"{error}; {self.advice}") from error

    def load_checked(self, table: str) -> dict[str, Tensor]:
        """`load`, after `check` of its files."""
        for file in self.files(table):
            self.check(file)
        return self.load(table)

    @property
    def advice(self) -> str:
        """What to do where it cannot be used."""
        return _advice(self.folder)

    @property
    def remark(self) -> str:
        """What is worth saying of it; empty for a vouched one."""
        if self.vouched:
            return ""
        return f"{self.folder}: was saved before checkpoints kept the SHA-256 of their files; nothing vouches for it"


@dataclass(frozen=True)
class Newest:
    """What a folder of checkpoints gives to go on from.

    checkpoint  the newest that is whole, if any
    unfinished  those after it that are not, each with what it lacks
    """

    checkpoint: Checkpoint | None
    unfinished: tuple[tuple[Path, str], ...] = ()


def newest(folder: Path, run: str | None) -> Newest:
    """The newest whole checkpoint in ``folder``; what a copy or a power cut left unfinished is passed over.

    run  identity of the run that the folder belongs to

    Raises InputError, which says what to remove, where the newest is damaged, renamed or of another run, and where all
    are unfinished.
    """
    unfinished: list[tuple[Path, str]] = []
    for _, path in reversed(steps_in(folder)):
        if not (lacks := _lacks(path)):
            return Newest(_of_run(at(path), run), tuple(unfinished))
        unfinished.append((path, lacks))
    if unfinished:
        path, lacks = unfinished[0]
        raise InputError(f"{path}: is unfinished, {lacks}; {_advice(path)}")
    return Newest(None)


def of_step(folder: Path, run: str | None, step: int) -> Checkpoint:
    """The whole checkpoint of one step in ``folder``; ``run`` as of `newest`.

    Raises InputError naming the steps that are kept where it is not, and as `newest` where it is damaged.
    """
    path = dict(steps_in(folder)).get(step)
    if path is None:
        there = ", ".join(str(number) for number, _ in steps_in(folder))
        raise InputError(f"{folder}: step {step} is not kept; expected one of {there or 'those that training saves'}")
    if lacks := _lacks(path):
        raise InputError(f"{path}: is unfinished, {lacks}; expected another step, or that training saves it again")
    return _of_run(at(path), run)


def whole_steps(folder: Path) -> tuple[int, ...]:
    """Steps of the checkpoints in ``folder`` that are whole, oldest first. Raises InputError for a damaged state."""
    return tuple(step for step, path in steps_in(folder) if not _lacks(path))


def at(path: Path) -> Checkpoint:
    """The checkpoint ``path``, of any run. Raises InputError where its state is damaged, or it was renamed."""
    step, state = _step_of(path), _read_state(path)
    if state["step"] != step:
        raise InputError(
            f"{path}: was renamed, its {STATE} says step {state['step']}; rename it back, or {_advice(path)}"
        )
    return Checkpoint(step, path, state)


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Everything below ``folder`` that is called a checkpoint, whole or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := STEP.fullmatch(path.name)))


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with its digest."""
    return {**state, "digest": digest(state)}


def _lacks(path: Path) -> str:
    """What makes a checkpoint unfinished, in words; nothing where all of it is there, damaged or not."""
    file = path / STATE
    if not file.exists() or not file.stat().st_size:
        return f"{STATE} is {'empty' if file.exists() else 'missing'}"
    for name, recorded in _read_state(path).get("files", {}).items():
        if not (path / name).exists():
            return f"{name} is missing"
        if (path / name).stat().st_size < recorded["bytes"]:
            return f"{name} is cut short"
    return ""


def _of_run(found: Checkpoint, run: str | None) -> Checkpoint:
    if "run" in found.state and found.state["run"] != run:
        raise InputError(f"{found.folder}: was saved by another run than the one it lies in; {found.advice}")
    return found


def _read_state(path: Path) -> dict[str, Any]:
    """A ``state.json`` of the right form. Raises InputError."""
    file = path / STATE
    try:
        state = read_json(file)
    except InputError as error:
        raise InputError(f"{error}; {_advice(path)}") from error
    if not isinstance(state, dict) or type(state.get("step")) is not int:
        raise InputError(f"{file}: names no step; {_advice(path)}")
    if state.keys() & VOUCHING and not _is_sealed(state):
        raise InputError(f"{file}: is damaged or was changed, it does not agree with its own digest; {_advice(path)}")
    return state


def _is_sealed(state: dict[str, Any]) -> bool:
    """Whether it is as it was saved: its digest, and records of files in the form that `record` gives."""
    files = state.get("files")
    return (
        state == sealed({key: value for key, value in state.items() if key != "digest"})
        and isinstance(files, dict)
        and all(FILE.fullmatch(name) and _is_record(value) for name, value in files.items())
    )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("bytes")) is int and type(value.get("sha256")) is str


def _advice(path: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    step = _step_of(path)
    before = [other for number, other in steps_in(path.parent) if number < step and (other / STATE).exists()]
    if before:
        return f"remove {path} to use the one before, {before[-1].name}"
    return f"there is none before it, remove {path} to begin anew"


def _step_of(path: Path) -> int:
    match = STEP.fullmatch(path.name)
    if match is None:
        raise InputError(f"{path}: expected a folder called step_ and a number")
    return int(match[1])

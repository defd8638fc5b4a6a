"""Checkpoints: ``checkpoints/step_N/`` of safetensors and JSON, written whole or not at all.

A `Writer` copies the state in memory and writes it in the background, every process its share of the tensors, into a
hidden folder beside its place; when all have flushed theirs to disk it is renamed. A process killed at any moment
leaves the old state or the new one. Files hold whole tensors, so any number of processes can go on. Nothing is pickled.
"""

import itertools
import json
import math
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError, read_json
from ifsq.store.checkpoints import STATE, Checkpoint, newest, record, sealed, steps_in
from ifsq.store.files import PARTIAL, flush, write_tensors, write_text, writing
from ifsq.store.weights import like, refuse_infinite, whole
from ifsq.training.distributed import World

Tables = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by file."""


class Writer:
    """Writes the checkpoints of a run, one at a time.

    keep        newest ones that stay
    keep_every  those at multiples of this step stay for good; 0: none
    run         identity of the run that they are of

    ``checkpoint`` is the newest that was there, None where there was none. Folders after it that are unfinished, as a
    copy that broke off or a power cut leaves them, are set aside as ``unfinished_step_N``, and ``passed_over`` tells.
    Raises InputError where it cannot be used, see `newest`.
    """

    def __init__(self, folder: Path, world: World, keep: int, keep_every: int = 0, run: str | None = None) -> None:
        self.folder, self.world, self.keep, self.keep_every, self.run = folder, world, keep, keep_every, run
        found = newest(folder, run)
        self.checkpoint = found.checkpoint
        self.passed_over = [f"{path}: is unfinished ({lacks}) and was set aside" for path, lacks in found.unfinished]
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved = self.checkpoint.step if self.checkpoint is not None else -1
        world.barrier()  # every process has looked
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(leftover)
            for path, _ in found.unfinished:
                path.rename(_aside(path))
        world.barrier()

    def save(self, step: int, tables: Tables, state: dict[str, Any]) -> None:
        """Copy the state and begin to write it, once the one before is written. Every process calls it."""
        self.wait()
        if step == self._saved:
            return
        self._saved = step
        mine = _share(tables, self.world)
        partial = self.folder / f".partial_step_{step}"
        if self.world.first:
            with writing(self.folder / f"step_{step}"):
                partial.mkdir()  # not its parents: a run that was moved begins nothing where it was
        self.world.barrier()
        named = {"step": step, "run": self.run, **state}
        self._writing = self._thread.submit(self._write, partial, step, mine, named)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Return when every process has written. Raises InputError when this one could not."""
        if self._writing is None:
            return
        self._writing.result()
        self._writing = None
        self.world.barrier()

    def close(self) -> None:
        """Let this process's writing end."""
        self._thread.shutdown()

    def _write(self, partial: Path, step: int, mine: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        try:
            with writing(self.folder / f"step_{step}"):
                files: dict[str, Any] = {}
                for name, table in mine.items():
                    self._refuse_infinite(table, name, step)
                    write_tensors(partial / f"{name}.safetensors", table)
                    files[f"{name}.safetensors"] = record(partial / f"{name}.safetensors")
                write_text(partial / f".written_{self.world.rank}", json.dumps(files))
                if self.world.first:
                    self._publish(partial, step, state)
        except (OSError, InputError):
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if self.world.first:
            self._retire()

    def _publish(self, partial: Path, step: int, state: dict[str, Any]) -> None:
        written = [partial / f".written_{rank}" for rank in range(self.world.size)]
        while not all(file.exists() for file in written):
            if not partial.exists():
                where = self.folder / f"step_{step}"
                raise InputError(f"{where}: was removed while it was written, as where another process could not write")
            self.world.refuse_lost()
            time.sleep(0.005)
        files: dict[str, Any] = {}
        for file in written:
            files |= read_json(file)
            file.unlink()
        write_text(partial / STATE, json.dumps(sealed({**state, "files": files}), indent=1))
        partial.rename(self.folder / f"step_{step}")
        flush(self.folder)

    def _refuse_infinite(self, table: Mapping[str, Tensor], name: str, step: int) -> None:
        try:
            refuse_infinite(table, name, serial=True)
        except InputError as error:
            raise InputError(
                f"{self.folder / f'step_{step}'}: is not saved: {error}; lower train.optim.lr, in a new folder"
            ) from error

    def _retire(self) -> None:
        for old, path in steps_in(self.folder)[: -self.keep]:
            if not self.keep_every or old % self.keep_every:
                going = path.with_name(f".partial_old_{old}")
                path.rename(going)  # a kill leaves a whole checkpoint or none
                shutil.rmtree(going)


def _aside(path: Path) -> Path:
    """A free name for what is not whole."""
    names = (f"unfinished_{path.name}{f'_{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(place for name in names if not (place := path.with_name(name)).exists())


def _share(tables: Tables, world: World) -> dict[str, dict[str, Tensor]]:
    """Copies on the CPU of the tensors that this process writes, by file.

    Greedy balancing: the largest tensor goes to the process with the fewest bytes, then the next.
    """
    sizes = sorted(
        ((value.numel() * value.element_size(), name, key) for name, t in tables.items() for key, value in t.items()),
        reverse=True,
    )
    load, owner = [0] * world.size, {}
    for size, name, key in sizes:
        least = load.index(min(load))
        owner[name, key] = least
        load[least] += size
    part = "" if world.size == 1 else f"-{world.rank + 1:05d}-of-{world.size:05d}"
    mine: dict[str, dict[str, Tensor]] = {}
    for name, table in tables.items():
        own = mine.setdefault(f"{name}{part}", {})
        for key, value in table.items():
            full = whole(value.detach())  # every process must ask, also for what it does not write
            if owner[name, key] == world.rank:
                own[key] = torch.empty(full.shape, dtype=full.dtype).copy_(full)
    return mine


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as one flat table: ``<parameter number>.<name>``; hyper-parameters live in the config."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor], where: str, steps: int) -> None:
    """Inverse of `flatten_optimizer`, for AdamW and Muon.

    steps  that it may have made; 0 for none, and then it has no state. Else every parameter has

    Raises InputError naming the first entry that is missing, left over, or not in its parameter's shape and type: a
    fused optimizer walks them side by side in memory.
    """
    current = optimizer.state_dict()
    owners = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    places: dict[str, Tensor] = {}
    for number, (group, parameter) in enumerate(owners if steps else ()):
        if "momentum" in group:  # Muon's
            places[f"{number}.momentum_buffer"] = parameter
            continue
        places |= {f"{number}.{name}": parameter for name in ("exp_avg", "exp_avg_sq")}
        places[f"{number}.step"] = torch.zeros(())
    for key in sorted(places.keys() | flat.keys()):
        if key not in flat or key not in places:
            what = "is missing" if key in places else "belongs to no parameter of this model"
            raise InputError(f"{where}: optimizer state {key!r} {what}")
        if (found := _form(flat[key])) != (expected := _form(places[key])):
            raise InputError(f"{where}: optimizer state {key!r} is {found}, expected {expected}")
        if key.endswith(".step") and not 0 <= float(flat[key]) <= steps:
            raise InputError(f"{where}: optimizer state {key!r} is {float(flat[key])}, expected 0 to {steps}")
    refuse_infinite(flat, where)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        owner, _, name = key.partition(".")
        state.setdefault(int(owner), {})[name] = value if name == "step" else like(value, places[key])
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def check_files(found: Checkpoint, world: World) -> None:
    """Take the SHA-256 of all files of a checkpoint, each in one process. Every process raises the same InputError."""
    refused = None
    try:
        for file in found.files()[world.rank :: world.size]:
            found.check(file)
    except InputError as error:
        refused = str(error)
    for told in world.gather(refused):
        if told is not None:
            raise InputError(told)


def number(found: Checkpoint, name: str) -> float:
    """A number of the state, at least 0. Raises InputError."""
    value = found.state.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InputError(f"{found.folder / STATE}: {name}: {value!r}, expected a number from 0 on; {found.advice}")
    return float(value)


def scaler_state(found: Checkpoint, name: str, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """The state of a loss scale, with the entries that it has. Raises InputError."""
    own, given = scaler.state_dict(), found.state.get(name)
    if not isinstance(given, dict) or given.keys() != own.keys():
        raise InputError(f"{found.folder / STATE}: {name}: expected {', '.join(own) or 'nothing'}; {found.advice}")
    for key, value in given.items():
        if type(value) is not type(own[key]) or not 0 <= value < math.inf:
            raise InputError(f"{found.folder / STATE}: {name}.{key}: {value!r}, expected as {own[key]}; {found.advice}")
    return given


def _form(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"

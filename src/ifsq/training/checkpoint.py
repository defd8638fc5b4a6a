"""Checkpoints: ``checkpoints/step_N/`` of safetensors and JSON, written whole or not at all. Called by ``loop``.

A `Writer` copies the state in memory and writes it in the background, every process its share of the tensors, into a
hidden folder beside its place; when all have flushed theirs to disk it is renamed. A process killed at any moment
leaves the old state or the new one. Files hold whole tensors, so any number of processes can go on. Nothing is pickled.
"""

import json
import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError, read_json
from ifsq.store.files import flush, write_tensors, write_text, writing
from ifsq.store.weights import like, read_tensors, whole
from ifsq.training.distributed import World

STEP = re.compile(r"step_(\d+)")
PART = re.compile(r".+-(\d{5})-of-(\d{5})\.safetensors")
Tables = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by file."""


class Writer:
    """Writes the checkpoints of a run, one at a time.

    keep        newest ones that stay
    keep_every  those at multiples of this step stay for good; 0: none
    """

    def __init__(self, folder: Path, world: World, keep: int, keep_every: int = 0) -> None:
        self.folder, self.world, self.keep, self.keep_every = folder, world, keep, keep_every
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved = max((step for step, _ in steps_in(folder)), default=-1)
        if world.first:
            for leftover in folder.glob(".partial_*"):
                shutil.rmtree(leftover)
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
            partial.mkdir(parents=True)
        self.world.barrier()
        self._writing = self._thread.submit(self._write, partial, step, mine, {"step": step, **state})

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
                for name, table in mine.items():
                    write_tensors(partial / f"{name}.safetensors", table)
                (partial / f".written_{self.world.rank}").touch()
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
            if not partial.exists():  # another process could not write and says so
                return
            time.sleep(0.005)
        for file in written:
            file.unlink()
        write_text(partial / "state.json", json.dumps(state, indent=1))
        partial.rename(self.folder / f"step_{step}")
        flush(self.folder)

    def _retire(self) -> None:
        for old, path in steps_in(self.folder)[: -self.keep]:
            if not self.keep_every or old % self.keep_every:
                going = path.with_name(f".partial_old_{old}")
                path.rename(going)  # a kill leaves a whole checkpoint or none
                shutil.rmtree(going)


def _share(tables: Tables, world: World) -> dict[str, dict[str, Tensor]]:
    """Copies on the CPU of the tensors that this process writes, by file: the largest first to whoever has least."""
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


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := STEP.fullmatch(path.name))]
    return sorted(found)


def load(path: Path, name: str) -> dict[str, Tensor]:
    """One table of a checkpoint, from its file or the files of several processes.

    Raises InputError when one is missing or damaged.
    """
    parts = sorted(file for file in path.glob(f"{name}-*.safetensors") if PART.fullmatch(file.name))
    if not parts:
        return read_tensors(path / f"{name}.safetensors")
    match = PART.fullmatch(parts[0].name)
    assert match is not None
    expected = [path / f"{name}-{rank + 1:05d}-of-{match[2]}.safetensors" for rank in range(int(match[2]))]
    return {key: value for file in expected for key, value in read_tensors(file).items()}


def load_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint. Raises InputError when it is missing or damaged."""
    return read_json(path / "state.json")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as one flat table: ``<parameter number>.<name>``; hyper-parameters live in the config."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor], where: str) -> None:
    """Inverse of `flatten_optimizer`. Raises InputError for state that belongs to no parameter."""
    current = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        if int(number) >= len(parameters):
            raise InputError(f"{where}: optimizer state {key!r} belongs to no parameter of this model")
        parameter = parameters[int(number)]
        laid = like(value, parameter) if value.shape == parameter.shape else value
        state.setdefault(int(number), {})[name] = laid
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})

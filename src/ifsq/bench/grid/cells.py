"""The cells of a grid, and the experiments of a cell: base files with the settings laid over them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifsq.bench.grid.config import GENERATOR, Grid, Setting, Value, When, values_of
from ifsq.bench.shipped import experiment_file
from ifsq.config import InputError, merge, read_toml

Cell = dict[str, Value]


@dataclass(frozen=True)
class Bases:
    """The base experiments of a grid as tables, and the names of their files.

    tables  ``tokenizer``, ``teacher`` where there is one, and ``generator.NAME`` of each generator
    """

    tables: dict[str, dict[str, Any]]
    names: dict[str, str]

    @classmethod
    def read(cls, grid: Grid, beside: Path) -> "Bases":
        """Read them: beside the grid file, or as shipped. Raises InputError."""
        names = {"tokenizer": grid.tokenizer, **({"teacher": grid.teacher} if grid.teacher else {})}
        names |= {f"{GENERATOR}.{name}": file for name, file in grid.generators.items()}
        return cls({key: read_toml(_file(beside, name)) for key, name in names.items()}, names)

    def of(self, grid: Grid, cell: Cell, what: str) -> dict[str, Any]:
        """The table of one of a cell's experiments.

        what  ``tokenizer``, ``teacher``, ``generator`` or ``codes``, which has no base
        """
        key = f"{GENERATOR}.{cell[GENERATOR]}" if what == GENERATOR else what
        table = self.tables.get(key, {})
        for setting in grid.settings:
            if holds(setting.when, cell):
                table = _laid(table, setting, what)
        return table


def cells(grid: Grid) -> list[Cell]:
    """Every cell once, in the order of the axes. Raises InputError where none is left."""
    names, found = list(grid.values), []
    for values in itertools.product(*grid.values.values()):
        whole = dict(zip(names, values, strict=True))
        without = {one.axis for one in grid.absent if holds(one.when, whole)}
        cell = {name: value for name, value in whole.items() if name not in without}
        if cell not in found and not any(holds(one.when, cell) for one in grid.left_out):
            found.append(cell)
    if not found:
        raise InputError("left_out: no cell is left")
    for of in (found, [part(cell, grid.of_tokenizer) for cell in found]):
        _refuse_one_name(of)
    return found


def holds(when: When, cell: Cell) -> bool:
    """Whether a cell has one of the values that are named, on every axis that is named."""
    return all(name in cell and cell[name] in values_of(wanted) for name, wanted in when.items())


def part(cell: Cell, axes: set[str]) -> Cell:
    """The values of some axes."""
    return {name: value for name, value in cell.items() if name in axes}


def told(cell: Cell) -> str:
    """A cell in words, numbers with their axis: ``ifsq bits 4 ar``."""
    words = (value if isinstance(value, str) else f"{name} {value}" for name, value in cell.items())
    return " ".join(words) or "the grid's only cell"


def _refuse_one_name(found: Sequence[Cell]) -> None:
    """Raise InputError where two cells have one name, by which their seeds are counted and their figures told."""
    named: dict[str, Cell] = {}
    for cell in found:
        if named.setdefault(told(cell), cell) != cell:
            raise InputError(
                f"axes: {named[told(cell)]} and {cell} are both called {told(cell)!r}; expected other values"
            )


def _file(beside: Path, name: str) -> Path:
    for place in (beside / name, experiment_file(name)):
        if place.is_file():
            return place
    raise InputError(f"{beside / name}: no such file, nor a shipped experiment of this name")


def _laid(table: Mapping[str, Any], setting: Setting, what: str) -> dict[str, Any]:
    """A table with what a setting drops of it and lays over it."""
    left = dict(table)
    for name in setting.drop:
        owner, *path = name.split(".")
        if owner == what:
            left = _without(left, path, name)
    return merge(left, getattr(setting, what))


def _without(table: Mapping[str, Any], path: Sequence[str], name: str) -> dict[str, Any]:
    first, *rest = path
    if first not in table or (rest and not isinstance(table[first], Mapping)):
        raise InputError(f"settings: drop {name}: the experiment below has none; expected what it has")
    if not rest:
        return {key: value for key, value in table.items() if key != first}
    return {**table, first: _without(table[first], rest, name)}

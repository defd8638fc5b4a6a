"""The comparisons of a grid: which cells are compared, by which figures, and how many more seeds they need."""

from collections.abc import Sequence
from itertools import combinations

from ifsq.bench.grid.cells import Cell, cells, part, told
from ifsq.bench.grid.config import Compared, Grid
from ifsq.bench.measurement import Measurement
from ifsq.bench.protocol import Comparison, Verdict, judge, seeds_wanted
from ifsq.config import InputError


def comparisons_of(grid: Grid) -> list[Comparison]:
    """Every comparison that a grid asks for: one family. Raises InputError where there is none of those it names."""
    found = []
    for asked in grid.compare:
        pairs = [
            Comparison(_name(one, asked), _name(other, asked), asked.better)
            for one, other in combinations(_measured(grid, asked), 2)
            if one.keys() == other.keys() and all(one[name] == other[name] for name in one if name != asked.axis)
        ]
        if not pairs:
            raise InputError(f"compare: no two cells of a {asked.of} differ in {asked.axis} alone")
        found += pairs
    return found


def figures_of(grid: Grid, measured: Sequence[Measurement]) -> dict[str, dict[int, list[float]]]:
    """Figures of the newest steps by training seed, one a sampling seed, by the names of `comparisons_of`."""
    newest: dict[str, int] = {}
    for one in measured:
        newest[one.stage] = max(newest.get(one.stage, 0), one.step or 0)
    found: dict[str, dict[int, list[float]]] = {}
    for asked in grid.compare:
        names = [_name(cell, asked) for cell in _measured(grid, asked)]
        for one in measured:
            of_asked = (one.metric, one.value) == (asked.metric, asked.value)
            if of_asked and (one.step or 0) == newest[one.stage] and (name := _name(one.cell, asked)) in names:
                found.setdefault(name, {}).setdefault(one.seed, []).append(one.figure)
    return found


def verdicts_of(grid: Grid, measured: Sequence[Measurement]) -> tuple[Verdict, ...]:
    """What the seeds say of every comparison; nothing without a protocol."""
    if grid.protocol is None:
        return ()
    return judge(figures_of(grid, measured), comparisons_of(grid), grid.protocol)


def more_seeds(grid: Grid, measured: Sequence[Measurement]) -> dict[str, int]:
    """How many training seeds every compared cell should have next, by its name (`told`)."""
    if grid.protocol is None:
        return {}
    wanted = seeds_wanted(figures_of(grid, measured), comparisons_of(grid), grid.protocol)
    counts: dict[str, int] = {}
    for cell in cells(grid):
        names = [_name(_of(grid, cell, asked), asked) for asked in grid.compare]
        counts[told(cell)] = max(wanted.get(name, 0) for name in names)
    return counts


def _measured(grid: Grid, asked: Compared) -> list[Cell]:
    """The cells whose figures a comparison may be of, each once."""
    every = [_of(grid, cell, asked) for cell in cells(grid)]
    return [cell for number, cell in enumerate(every) if asked.axis in cell and cell not in every[:number]]


def _of(grid: Grid, cell: Cell, asked: Compared) -> Cell:
    return part(cell, grid.of_tokenizer) if asked.of == "tokenizer" else cell


def _name(cell: Cell, asked: Compared) -> str:
    return f"{told(cell)} by {asked.metric}, {asked.value}"

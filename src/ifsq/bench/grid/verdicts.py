"""The comparisons of a grid: which cells are compared, by which figures, and how many more seeds they need."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ifsq.bench.grid.cells import Cell, cells, part, told
from ifsq.bench.grid.config import Compared, Grid
from ifsq.bench.measurement import Measurement, by_seed, newest
from ifsq.bench.protocol import Comparison, Verdict, judge, seeds_wanted
from ifsq.config import InputError
from ifsq.metrics.seeds import Figures


@dataclass(frozen=True)
class Pair:
    """Two cells that a grid compares, by what it asks."""

    a: Cell
    b: Cell
    asked: Compared

    @property
    def comparison(self) -> Comparison:
        """By the names of `figures_of`."""
        return Comparison(_name(self.a, self.asked), _name(self.b, self.asked), self.asked.better)


def pairs_of(grid: Grid) -> list[Pair]:
    """Every two cells that a grid compares: one family. Raises InputError where there are none of those it names."""
    found: list[Pair] = []
    for asked in grid.compare:
        pairs = [
            Pair(one, other, asked)
            for one, other in combinations(_measured(grid, asked), 2)
            if one.keys() == other.keys() and all(one[name] == other[name] for name in one if name != asked.axis)
        ]
        if not pairs:
            raise InputError(f"compare: no two cells of a {asked.of} differ in {asked.axis} alone")
        found += pairs
    return found


def comparisons_of(grid: Grid) -> list[Comparison]:
    """Those of `pairs_of`."""
    return [pair.comparison for pair in pairs_of(grid)]


def figures_of(grid: Grid, measured: Sequence[Measurement]) -> dict[str, Figures]:
    """Figures at the newest steps by training seed, one a sampling seed, by the names of `comparisons_of`."""
    found: dict[str, list[Measurement]] = {}
    for asked in grid.compare:
        names = [_name(cell, asked) for cell in _measured(grid, asked)]
        for one in newest(measured):
            if (one.metric, one.value) == (asked.metric, asked.value) and (name := _name(one.cell, asked)) in names:
                found.setdefault(name, []).append(one)
    return {name: by_seed(of) for name, of in found.items()}


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

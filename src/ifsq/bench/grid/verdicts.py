"""The comparisons of a grid: which cells are compared, by which figures, and how many more seeds they need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ifsq.bench.grid.cells import Cell, cells, holds, part, told
from ifsq.bench.grid.config import Compared, Grid, Value, values_of
from ifsq.bench.measurement import Measurement, by_seed, newest
from ifsq.bench.protocol import Comparison, Verdict, judge, seeds_wanted
from ifsq.config import InputError
from ifsq.metrics.seeds import Figures


@dataclass(frozen=True)
class Group:
    """Cells of which a figure is the mean: one, or those that differ in the axes of ``mean_over`` alone.

    cell     what they share
    over     their values on these axes, each
    asked    by what the grid compares them
    """

    cell: Cell
    over: tuple[tuple[tuple[str, Value], ...], ...]
    asked: Compared

    @property
    def cells(self) -> list[Cell]:
        """They."""
        return [{**self.cell, **dict(values)} for values in self.over]

    @property
    def name(self) -> str:
        """Among the figures: no two groups of a grid with other cells or by another figure have the same."""
        over = f", mean of {', '.join(told(dict(values)) for values in self.over)}" if self.asked.mean_over else ""
        alone = ", each by itself" if self.asked.independent else ""
        return f"{told(self.cell)}{over}{alone} by {self.asked.metric}, {self.asked.value}"

    @property
    def shown(self) -> str:
        """The cell in fewer words, and what its figures are means over."""
        over = f", mean over {', '.join(self.asked.mean_over)} ({len(self.over)})" if self.asked.mean_over else ""
        return f"{told(self.cell)}{over}"


@dataclass(frozen=True)
class Pair:
    """Two cells that a grid compares, or groups of cells, by what it asks."""

    a: Group
    b: Group
    asked: Compared

    @property
    def comparison(self) -> Comparison:
        """By the names of `figures_of`."""
        asked = self.asked
        if asked.independent:
            return Comparison(self.a.name, self.b.name, asked.better, paired=True, each=len(self.a.over))
        return Comparison(self.a.name, self.b.name, asked.better, asked.paired)


def pairs_of(grid: Grid) -> list[Pair]:
    """Every two cells that a grid compares: one family.

    Raises InputError where there are none of those it names, and where two are compared twice by one figure.
    """
    found: dict[frozenset[str], Pair] = {}
    for asked in grid.compare:
        pairs = _pairs(grid, asked)
        if not pairs:
            raise InputError(f"compare: no two cells of a {asked.of} differ in {asked.axis} alone{_among(asked)}")
        for pair in pairs:
            names = frozenset((pair.a.name, pair.b.name))
            if names in found:
                raise InputError(f"compare: {pair.a.name}: compared twice with {pair.b.shown}; expected it once")
            found[names] = pair
    return list(found.values())


def still_compared(grid: Grid) -> Grid:
    """A grid whose axes were given fewer values, without the comparisons of which no two cells are left.

    Where none is left its protocol says the seeds alone: those of the first look.
    """
    left = tuple(asked for asked in grid.compare if _pairs(grid, asked))
    if left or grid.protocol is None:
        return replace(grid, compare=left)
    protocol = grid.protocol
    seeds = replace(
        grid.seeds, training=protocol.compared[: protocol.looks[0]], sampling=tuple(range(protocol.sampling_seeds))
    )
    return replace(grid, compare=(), protocol=None, seeds=seeds)


def comparisons_of(grid: Grid) -> list[Comparison]:
    """Those of `pairs_of`."""
    return [pair.comparison for pair in pairs_of(grid)]


def figures_of(grid: Grid, measured: Sequence[Measurement]) -> dict[str, Figures]:
    """Figures at the newest steps by training seed, one a sampling seed, by the names of `comparisons_of`.

    Of a group of cells a training seed has those of all cells, one after another, once all have it; of independent
    ones each cell has a number of its own at each seed, see `Comparison.each`.
    """
    found: dict[tuple[frozenset[tuple[str, Value]], str, str], list[Measurement]] = {}
    for one in newest(measured):
        found.setdefault((frozenset(one.cell.items()), one.metric, one.value), []).append(one)
    figures: dict[str, Figures] = {}
    for asked in grid.compare:
        for group in _groups(grid, asked):
            keys = [(frozenset(cell.items()), asked.metric, asked.value) for cell in group.cells]
            each = [by_seed(found.get(key, [])) for key in keys]
            complete = [seed for seed in each[0] if all(seed in other for other in each)]
            if not complete:
                continue
            if asked.independent:
                figures[group.name] = {
                    seed * len(each) + at: one[seed] for seed in complete for at, one in enumerate(each)
                }
            else:
                figures[group.name] = {seed: tuple(f for one in each for f in one[seed]) for seed in complete}
    return figures


def verdicts_of(grid: Grid, measured: Sequence[Measurement]) -> tuple[Verdict, ...]:
    """What the seeds say of every comparison; nothing without a protocol."""
    if grid.protocol is None:
        return ()
    return judge(figures_of(grid, measured), comparisons_of(grid), grid.protocol)


def more_seeds(grid: Grid, measured: Sequence[Measurement]) -> dict[str, int]:
    """How many training seeds every compared cell should have next, by its name (`told`).

    A comparison of tokenizers asks for those of the tokenizer's part of cells alone, by the name of that part.
    """
    if grid.protocol is None:
        return {}
    wanted = seeds_wanted(figures_of(grid, measured), comparisons_of(grid), grid.protocol)
    every = cells(grid)
    counts: dict[str, int] = {}
    for asked in grid.compare:
        for group in _groups(grid, asked):
            for cell in every:
                if (own := _of(grid, cell, asked)) in group.cells:
                    counts[told(own)] = max(counts.get(told(own), 0), wanted.get(group.name, 0))
    return counts


def _pairs(grid: Grid, asked: Compared) -> list[Pair]:
    axis = asked.axis
    return [
        Pair(one, other, asked)
        for one, other in combinations(_groups(grid, asked), 2)
        if one.over == other.over
        and one.cell.keys() == other.cell.keys()
        and all(one.cell[name] == other.cell[name] for name in one.cell if name != axis)
        and (asked.against == "" or asked.against in (one.cell[axis], other.cell[axis]))
    ]


def _groups(grid: Grid, asked: Compared) -> list[Group]:
    """The cells whose figures a comparison may be of, each once, those that count as one together."""
    found: dict[tuple[tuple[str, Value], ...], list[tuple[tuple[str, Value], ...]]] = {}
    for each in cells(grid):
        cell = _of(grid, each, asked)
        if asked.axis in cell and holds(asked.when, cell) and all(name in cell for name in asked.mean_over):
            rest = tuple((name, value) for name, value in cell.items() if name not in asked.mean_over)
            own = tuple((name, cell[name]) for name in asked.mean_over)
            members = found.setdefault(rest, [])
            if own not in members:
                members.append(own)
    return [Group(dict(rest), tuple(members), asked) for rest, members in found.items()]


def _of(grid: Grid, cell: Cell, asked: Compared) -> Cell:
    return part(cell, grid.of_tokenizer) if asked.of == "tokenizer" else cell


def _among(asked: Compared) -> str:
    """What else a comparison asks of cells, in words."""
    said = [f"{name} {', '.join(map(str, values_of(wanted)))}" for name, wanted in asked.when.items()]
    said += [f"against {asked.against}"] if asked.against != "" else []
    said += [f"means over {', '.join(asked.mean_over)}"] if asked.mean_over else []
    return f" ({'; '.join(said)})" if said else ""

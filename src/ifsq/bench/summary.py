"""The numbers of a grid's page, from its measurements alone: cells, spreads over seeds, verdicts, and what failed.

Markdown, CSV and HTML show these; none of them computes a number of its own.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean, mode
from typing import Any, Literal

from ifsq.bench.figures import HIGHER, LOWER, MAIN, better, is_of_codes, main_value
from ifsq.bench.forecast import RankCorrelation, rank_correlations
from ifsq.bench.grid.cells import part, told
from ifsq.bench.grid.config import GENERATOR, Grid, Value
from ifsq.bench.grid.guidance import Search
from ifsq.bench.grid.stages import folder_of, is_complete
from ifsq.bench.grid.verdicts import Group, pairs_of, verdicts_of
from ifsq.bench.measurement import MEASUREMENTS, Measurement, by_seed, newest, read_measurements
from ifsq.bench.protocol import LEAST_SEEDS, Comparison, Protocol, Verdict, judge
from ifsq.bench.runs import OWN
from ifsq.config import InputError, build, parse_json, read_json
from ifsq.evaluation.likelihood import BOUND
from ifsq.metrics.card import ProtocolCard, compare
from ifsq.metrics.seeds import seed_means, spread

ABOUT = "grid.json"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class About:
    """What a grid says of itself, in the ``grid.json`` of its folder.

    question  that it asks
    command   that runs all of it
    equal     options that all of its generators share, with their values
    differ    options that they have with other values, with each value
    unequal   what cannot be equal, a line each
    left_out  cells that the grid leaves out, a line each
    protocol  how its seeds decide; None: as `Summary.protocol`
    seeds     of training that each cell was to have; 0 where that is not known
    grid      itself, where it names the comparisons; None: as `Summary.families`
    searches  stages that take a cell's best guidance, and the cells' names
    """

    question: str = ""
    command: str = ""
    equal: dict[str, Any] = field(default_factory=dict)
    differ: dict[str, Any] = field(default_factory=dict)
    unequal: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    protocol: Protocol | None = None
    seeds: int = 0
    grid: Grid | None = None
    searches: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A stage that failed: its name, of which cells it was, and what it said."""

    stage: str
    cells: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Figure:
    """A value of a metric of one cell at one step, over its seeds.

    cell     by axis
    step     of the training; None of what has none
    figures  of every training seed, one a sampling seed
    of       its measurements, in the order of the seeds
    """

    cell: dict[str, Value]
    metric: str
    value: str
    step: int | None
    figures: dict[int, tuple[float, ...]]
    of: tuple[Measurement, ...]

    @cached_property
    def means(self) -> dict[int, float]:
        """By training seed, over sampling seeds."""
        return seed_means(self.figures)

    @property
    def mean(self) -> float:
        """Over training seeds."""
        return fmean(self.means.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over training seeds; None of one."""
        return spread(self.figures).deviation if len(self.figures) >= LEAST_SEEDS else None

    @property
    def flops(self) -> float | None:
        """Of training up to the step, mean over seeds; None where it was not counted."""
        known = [one.flops for one in self.of if one.flops is not None]
        return fmean(known) if len(known) == len(self.of) else None


@dataclass(frozen=True)
class Family:
    """Comparisons by one metric, judged together: with those by other metrics where the grid names them.

    metric    with its value where that is not the one that stands for the metric
    side      of the better figures: `LOWER` or `HIGHER`
    verdicts  name the cells by `Summary.name`
    apart     of each, the axis on which its two cells differ, and their values there
    """

    metric: str
    side: str
    verdicts: tuple[Verdict, ...]
    apart: tuple[tuple[str, Value, Value], ...]
    protocol: Protocol

    @property
    def told(self) -> list[str]:
        """What the verdicts say of each two values of an axis, over all other axes, a line each."""
        found: dict[tuple[str, Value, Value], list[Verdict]] = {}
        for verdict, pair in zip(self.verdicts, self.apart, strict=True):
            found.setdefault(pair, []).append(verdict)
        return [_told(*pair, verdicts) for pair, verdicts in found.items()]


def _told(axis: str, first: Value, second: Value, verdicts: Sequence[Verdict]) -> str:
    a, b = (value if isinstance(value, str) else f"{axis} {value}" for value in (first, second))
    won, lost = ([winner_of(one) for one in verdicts].count(side) for side in (0, 1))
    of, still = len(verdicts), sum(one.words == "open" for one in verdicts)
    if still == of:
        return f"{a} and {b} are not decided yet" + (f" in any of {of} pairs" if of > 1 else "")
    rest = f", not decided yet in {still}" if still else ""
    if not won + lost:
        return f"{a} and {b} are not told apart" + (f" in any of {of} pairs" if of > 1 and not still else "") + rest
    if won and lost:
        return f"{a} is better than {b} in {won} of {of} pairs, worse in {lost}{rest}"
    better_one, worse = (a, b) if won else (b, a)
    return f"{better_one} is better than {worse}" + (f" in {won + lost} of {of} pairs" if of > 1 else "") + rest


def winner_of(verdict: Verdict) -> Literal[0, 1, 2]:
    """Which of the two cells is the better one; 2 where neither is known to be."""
    if not verdict.decided:
        return 2
    return 0 if verdict.words.startswith(f"{verdict.comparison.a} above ") else 1


@dataclass(frozen=True)
class Summary:
    """A grid in numbers.

    figures   of each cell, step, metric and value, in the order of the measurements
    failures  stages that failed
    searches  of the guidance scale, by the name of the cell that took it (`told`)
    """

    folder: Path
    about: About
    figures: tuple[Figure, ...]
    failures: tuple[Failure, ...] = ()
    searches: Mapping[str, Search] = field(default_factory=dict)

    @cached_property
    def main(self) -> list[Figure]:
        """The figure that stands for each metric."""
        return [one for one in self.figures if one.value == main_value(one.of[0].card["values"])]

    @cached_property
    def last(self) -> list[Figure]:
        """Of `main` those of each cell's last step."""
        return list(_figures(newest(measured for one in self.main for measured in one.of)))

    @cached_property
    def kinds(self) -> list[list[Figure]]:
        """`last` apart: tokenizers first, then generators."""
        found: dict[bool, list[Figure]] = {}
        for one in self.last:
            found.setdefault("generator" in one.cell, []).append(one)
        return [found[of_generators] for of_generators in sorted(found)]

    @cached_property
    def varying(self) -> list[str]:
        """Axes on which cells differ, those that some cells have not included."""
        names = dict.fromkeys(name for one in self.figures for name in one.cell)
        return [name for name in names if len({one.cell.get(name) for one in self.figures}) > 1]

    @cached_property
    def constant(self) -> dict[str, Value]:
        """Axes with one value."""
        cell = {name: value for one in self.figures for name, value in one.cell.items()}
        return {name: value for name, value in cell.items() if name not in self.varying}

    def name(self, cell: dict[str, Value]) -> str:
        """A cell by its values on `varying` axes, see `told`."""
        return told(part(cell, set(self.varying)))

    @cached_property
    def protocol(self) -> Protocol | None:
        """The grid's own; else one that looks once, where cells have all seeds that they were to have.

        What a cell has does not decide when others are looked at. Of a grid that says no seeds they are as many as most
        cells have. None where these are fewer than two.
        """
        if self.about.protocol is not None:
            return self.about.protocol
        seeds = self.about.seeds or mode(len(one.figures) for one in self.last)
        return Protocol(looks=(seeds,)) if seeds >= LEAST_SEEDS else None

    @cached_property
    def families(self) -> list[Family]:
        """The comparisons that the grid names, by metric: all of them are one family, of which these are parts.

        Of a grid that names none: a family for each metric that has a better side, of cells that differ on one axis.
        Values of a numeric axis are compared with the next one, and bits of codes behind the same tokenizers alone.
        Judged on metrics of several looks at the same runs, the error holds within a family, not over all of them.
        """
        if self.about.grid is not None:
            return self._asked(self.about.grid)
        if self.protocol is None:
            return []
        found = []
        for metric in dict.fromkeys(one.metric for one in self.last if better(one.metric)):
            of = [one for one in self.last if one.metric == metric]
            side: Literal["lower", "higher"] = "lower" if better(metric) == LOWER else "higher"
            pairs = [pair for pair in _pairs(of) if not is_of_codes(metric) or same_codes(pair[:2])]
            asked = [Comparison(self.name(a.cell), self.name(b.cell), side) for a, b, _ in pairs]
            if asked:
                cells = {self.name(one.cell): one.figures for one in of}
                apart = tuple((axis, a.cell[axis], b.cell[axis]) for a, b, axis in pairs)
                found.append(Family(metric, better(metric), judge(cells, asked, self.protocol), apart, self.protocol))
        return found

    def _asked(self, grid: Grid) -> list[Family]:
        measured = [measured for one in self.figures for measured in one.of]
        found: dict[tuple[str, str], list[tuple[Verdict, tuple[str, Value, Value]]]] = {}
        for pair, verdict in zip(pairs_of(grid), verdicts_of(grid, measured), strict=True):
            asked, axis = pair.asked, pair.asked.axis
            metric = asked.metric if asked.value in MAIN else f"{asked.metric}, {asked.value}"
            shown = verdict.renamed(self._shown(pair.a), self._shown(pair.b))
            members = found.setdefault((metric, LOWER if asked.better == "lower" else HIGHER), [])
            members.append((shown, (axis, pair.a.cell[axis], pair.b.cell[axis])))
        assert grid.protocol is not None  # as it has comparisons
        families = []
        for (metric, side), members in found.items():
            verdicts, apart = zip(*members, strict=True)
            families.append(Family(metric, side, verdicts, apart, grid.protocol))
        return families

    def _shown(self, group: Group) -> str:
        """A cell by its values on `varying` axes, and what its figures are means over."""
        return replace(group, cell=part(group.cell, set(self.varying))).shown

    @cached_property
    def correlations(self) -> dict[str, list[RankCorrelation]]:
        """How figures of tokenizers rank them as each metric of generators does that has a better side, by that metric.

        Of metrics of which no correlation has an interval nothing is here, and of the bits of codes neither: they are
        fewer where a tokenizer says less of the image.
        """
        measured = [measured for one in self.figures for measured in one.of]
        of_images = [one for one in self.last if better(one.metric) and not is_of_codes(one.metric)]
        aims = {one.metric: one.value for one in of_images if GENERATOR in one.cell}
        found = {metric: rank_correlations(measured, (metric, value)) for metric, value in aims.items()}
        return {metric: of for metric, of in found.items() if any(one.interval for one in of)}

    @property
    def code_versions(self) -> list[str]:
        """By which code the figures were taken, more than one where a grid went on with another."""
        return list(dict.fromkeys(str(one.card["code_version"]) for each in self.figures for one in each.of))


def same_codes(figures: Sequence[Figure]) -> bool:
    """Whether generators stand behind the same tokenizers, seed by seed where both have it: their bits compare."""
    hashes: dict[int, set[str | None]] = {}
    for one in figures:
        for measured in one.of:
            hashes.setdefault(measured.seed, set()).add(measured.card.get("tokenizer_hash"))
    return all(len(each) == 1 for each in hashes.values())


def is_grid(folder: Path) -> bool:
    """Whether it is the folder of a grid that has measured something."""
    return (folder / MEASUREMENTS).is_file()


def summary_of(folder: Path) -> Summary:
    """Read a grid's folder. Raises InputError for a damaged file, and where figures of one metric do not compare."""
    measured = read_measurements(folder / MEASUREMENTS)
    if not measured:
        raise InputError(f"{folder / MEASUREMENTS}: holds no measurement yet; run the grid first")
    _refuse_unlike(folder, measured)
    about = _about(folder / ABOUT)
    failures, searches = _failures(folder / FAILURES), _searches(folder, about)
    summary = Summary(folder, about, _figures(measured), failures, searches)
    if not summary.last:
        raise InputError(f"{folder / MEASUREMENTS}: holds no figure that stands for its metric; measure again")
    return summary


def _about(path: Path) -> About:
    """What the page shows of a grid's plan; nothing where it has written none."""
    if not path.is_file():
        return About()
    table = read_json(path)
    grid = table.get("grid", {}) if isinstance(table, dict) else None
    if not isinstance(grid, dict):
        raise InputError(f"{path}: expected a JSON object with the grid, as bench writes it")
    shown = {name: table[name] for name in ("equal", "differ", "unequal") if name in table}
    shown |= {name: grid[name] for name in ("question", "protocol") if name in grid}
    if grid.get("compare"):
        shown["grid"] = grid
    if isinstance(seeds := grid.get("seeds"), dict) and isinstance(training := seeds.get("training"), list):
        shown["seeds"] = len(training)
    for name, held in (("command", table.get("command")), ("grid.left_out", grid.get("left_out"))):
        if held and not isinstance(held, list):
            raise InputError(f"{path}: {name}: expected a list, as bench writes it, got {str(held)[:80]!r}")
    if isinstance(stages := table.get("stages"), dict):
        searches = {
            name: one for name, one in stages.items() if isinstance(one, dict) and one.get("kind") == "guidance"
        }
        shown["searches"] = {name: one.get("cells", []) for name, one in searches.items()}
    if command := table.get("command"):
        shown["command"] = shlex.join(["ifsq", *map(str, command)])
    if left_out := grid.get("left_out"):
        shown["left_out"] = [_left_out(one) for one in left_out]
    return build(About, shown, str(path))


def _searches(folder: Path, about: About) -> dict[str, Search]:
    """Those that are done."""
    done = {name: cells for name, cells in about.searches.items() if is_complete(folder, name)}
    return {cell: Search.read(folder_of(folder, name)) for name, cells in done.items() for cell in cells}


def _left_out(one: Any) -> str:
    """Which cells, and why, in words."""
    when = one.get("when", {}) if isinstance(one, dict) else one
    cells = ", ".join(f"{name} {value}" for name, value in when.items()) if isinstance(when, dict) else str(when)
    why = one.get("why") if isinstance(one, dict) else ""
    return f"{cells}: {why}" if why else cells


def _pairs(of: Sequence[Figure]) -> list[tuple[Figure, Figure, str]]:
    """Cells that differ on one axis alone, and that axis; of numbers those that are next to each other."""
    found = []
    for a, b in combinations(of, 2):
        apart = [name for name in dict.fromkeys((*a.cell, *b.cell)) if a.cell.get(name) != b.cell.get(name)]
        if len(apart) != 1 or a.cell.keys() != b.cell.keys():
            continue
        low, high = a.cell[apart[0]], b.cell[apart[0]]
        if not isinstance(low, str) and not isinstance(high, str):
            values = sorted({value for one in of if not isinstance(value := one.cell.get(apart[0], ""), str)})
            if abs(values.index(low) - values.index(high)) != 1:
                continue
        found.append((a, b, apart[0]))
    return found


def _figures(measured: Sequence[Measurement]) -> tuple[Figure, ...]:
    """Figures by cell, step and metric; of a cell that was measured again by another stage the newest line stands."""
    found: dict[tuple[Any, ...], dict[tuple[int, int | None], Measurement]] = {}
    for one in measured:
        key = (tuple(sorted(one.cell.items())), one.step, one.metric, one.value)
        found.setdefault(key, {})[one.seed, one.sampling_seed] = one
    figures = []
    for (_, step, metric, value), members in found.items():
        of = tuple(members.values())
        figures.append(Figure(of[0].cell, metric, value, step, by_seed(of), of))
    return tuple(figures)


def _refuse_unlike(folder: Path, measured: Sequence[Measurement]) -> None:
    """How a generator samples is its own, and so is how a bound of its bits is found, which holds however it is found.

    A grid may go on with newer code, which the page then says.
    """
    first: dict[tuple[str, bool], Measurement] = {}
    for one in measured:
        other = first.setdefault((one.metric, "generator" in one.cell), one)
        try:
            compare(
                ProtocolCard.from_dict(other.card),
                ProtocolCard.from_dict(one.card),
                allow=(*OWN, "seed", "code_version", *(["method"] if one.metric == BOUND else [])),
            )
        except ValueError as error:
            runs = f"{folder / other.run} and {folder / one.run}"
            raise InputError(f"{runs}: {one.metric}: {error}; measure both again") from error


def _failures(path: Path) -> tuple[Failure, ...]:
    if not path.is_file():
        return ()
    found = []
    # A last line that a kill cut short is left out, as one of the measurements.
    for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], start=1):
        table = parse_json(line, f"{path}: line {number}")
        if not isinstance(table, dict):
            raise InputError(f"{path}: line {number}: expected a JSON object, got {str(table)[:80]}")
        found.append(build(Failure, table, f"{path}: line {number}"))
    return tuple(found)

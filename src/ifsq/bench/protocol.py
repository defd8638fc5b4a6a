"""``[protocol]`` of a grid: how many seeds, and when they say that one cell is above another.

The comparisons that a grid asks for are one family. Each is looked at when its cells have 3, then 5, then 8 training
seeds (`Protocol.looks`), and looked at no more once it is decided. The chance that any verdict of the family is false,
over all looks, is at most `Protocol.error`; a verdict is false where the gap is 0 or has the other sign. It holds for
normal figures of any spreads, equal or not, and however comparisons depend on each other. Two cells that are compared
and not paired are taken as independent; where they move together, as behind the tokenizer of the same seed, verdicts
are rarer, and `paired` finds more:

- every look spends a share of the error that is fixed beforehand, in the power family of spending functions (Lan and
  DeMets 1983, Biometrika 70; Kim and DeMets 1987, Biometrika 74). Shares are added (Bonferroni), so nothing is assumed
  of how looks depend on each other;
- every comparison has two one-sided hypotheses, of which one at least is true. Holm's procedure (1979) over all of them
  holds within a look: after r verdicts a comparison is tested at a one-sided level of share * error / (2 m - r).

Why that is enough: when the first false verdict falls, r verdicts were right, so at most 2 m - r hypotheses are true.
Each of them is wrongly rejected at a look with at most share * error / (number of the true ones); the sum over true
hypotheses and looks is at most the error. (Maurer and Bretz 2013, Statistics in Biopharmaceutical Research 5, is the
general form.) An anytime-valid confidence sequence (arXiv 2310.03722) needs no cap, and is wider at few seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Literal

from ifsq.generators.conditioning import check_guidance
from ifsq.metrics.seeds import Figures, Gap, gap, seed_means, shared_seeds

SEARCH_SEEDS = 1_000_000
"""The first seed, of training and of sampling, of searches: far from those that are compared."""
LEAST_SEEDS, MOST_SEEDS = 2, 1000  # of training, that are compared: of one there is no spread
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Protocol:
    """Seeds of a grid and how its comparisons are judged.

    looks            training seeds of each cell at which comparisons are judged; the last is the cap
    sampling_seeds   of every trained model, where something is drawn
    error            the chance that a family of comparisons has any false verdict, over all looks
    spending         power of the spending function: 1 spends evenly over the seeds, 2 and 3 save for the last look
    paired           whether cells are compared seed by seed, see `gap`; both have the same seeds then
    power            of the gap that could have been seen, `Verdict.detectable`
    guidance         scales of which each cell takes its best; empty: that of its own sampling
    search_seeds     training seeds of that search; none of them is compared
    search_sampling_seeds  sampling seeds of each
    """

    looks: tuple[int, ...] = (3, 5, 8)
    sampling_seeds: int = 1
    error: float = 0.05
    spending: float = 1.0
    paired: bool = False
    power: float = 0.8
    guidance: tuple[float, ...] = ()
    search_seeds: int = 1
    search_sampling_seeds: int = 1

    def __post_init__(self) -> None:
        looks = list(self.looks)
        if not looks or looks != sorted(set(looks)) or looks[0] < LEAST_SEEDS or looks[-1] > MOST_SEEDS:
            raise ValueError(f"looks={looks}: expected rising counts of training seeds, {LEAST_SEEDS} to {MOST_SEEDS}")
        for name in ("sampling_seeds", "search_seeds", "search_sampling_seeds"):
            if not 1 <= getattr(self, name) <= MOST_SEEDS:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 to {MOST_SEEDS}")
        if not 0 < self.error < 0.5:
            raise ValueError(f"error={self.error}: expected more than 0 and less than 0.5")
        if not self.error < self.power < 1:
            raise ValueError(f"power={self.power}: expected more than error={self.error} and less than 1")
        if not 0 < self.spending <= 10:
            raise ValueError(f"spending={self.spending}: expected more than 0, at most 10")
        if len(set(self.guidance)) < len(self.guidance):
            raise ValueError(f"guidance={list(self.guidance)}: expected scales that differ")
        for scale in self.guidance:
            check_guidance(scale)

    @property
    def cap(self) -> int:
        """The most training seeds of a cell."""
        return self.looks[-1]

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Of the error, what each look spends; their sum is 1."""
        spent = [(look / self.cap) ** self.spending for look in self.looks]
        return tuple(after - before for before, after in zip([0.0, *spent], spent, strict=False))

    @property
    def compared(self) -> tuple[int, ...]:
        """The training seeds that a cell has when its cap is reached; the first ones come first."""
        return tuple(range(self.cap))

    @property
    def searched(self) -> tuple[tuple[int, int], ...]:
        """Training seed and sampling seed of everything that a search of the best guidance draws; none is compared."""
        training = range(SEARCH_SEEDS, SEARCH_SEEDS + self.search_seeds)
        sampling = range(SEARCH_SEEDS, SEARCH_SEEDS + self.search_sampling_seeds)
        return tuple((seed, drawn) for seed in training for drawn in sampling)


@dataclass(frozen=True)
class Comparison:
    """Two cells, by their names among the figures.

    better  which figure is the better one
    paired  whether they are compared seed by seed; None: as the protocol says
    each    pairs that a training seed has, all independent of each other: their figures are numbered, those of the
            first seed first. Pairs may differ in their spread: Student's test of independent normal figures of any
            spreads is false at most as often as it says below a level of 8 % (Bakirov and Szekely 2006, Journal of
            Mathematical Sciences 139; Ibragimov and Mueller 2010, Journal of Business and Economic Statistics 28)
    """

    a: str
    b: str
    better: Better = "lower"
    paired: bool | None = None
    each: int = 1


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of one comparison.

    comparison  the question
    words       ``A above B`` with the cells' names, the better one first; ``not told apart`` at the cap; ``open``
                while more seeds may decide it
    gap         a less b at the look that decided it, or the latest; None while there was no look
    error       of both sides of its interval; a verdict falls exactly where the interval leaves out 0
    power       of `detectable`
    """

    comparison: Comparison
    words: str
    gap: Gap | None
    error: float
    power: float

    @property
    def decided(self) -> bool:
        """Whether one cell is above the other."""
        return self.words not in ("open", "not told apart")

    def renamed(self, a: str, b: str) -> "Verdict":
        """The same of two cells by other names."""
        asked, words = self.comparison, self.words
        if self.decided:
            words = f"{a} above {b}" if words == f"{asked.a} above {asked.b}" else f"{b} above {a}"
        return replace(self, comparison=replace(asked, a=a, b=b), words=words)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the gap, in the metric's unit; None without a look, and where the figures have no spread."""
        return None if self.gap is None else self.gap.interval(self.error)

    @property
    def percent(self) -> tuple[float, float, float] | None:
        """Gap and the ends of its interval, in percent of the mean of b, which is taken as known."""
        if self.gap is None or self.interval is None:
            return None
        low, high = (self.gap.relative(end) for end in self.interval)
        return self.gap.relative(self.gap.value), low, high

    @property
    def detectable(self) -> float | None:
        """The least true gap that this many seeds of this spread separate with probability `power`."""
        return None if self.gap is None else self.gap.detectable(self.error, self.power)

    @property
    def sentence(self) -> str:
        """Words, gap, interval and percent; where nothing was told apart, what could have been."""
        asked = self.comparison
        if self.gap is None:
            return f"{asked.a} against {asked.b}: {self.words}, too few seeds for a look"
        said = self.words if self.decided else f"{asked.a} against {asked.b}: {self.words}"
        if self.interval is None or self.percent is None or self.detectable is None:
            return f"{said}; gap {self.gap.value:.4g}, without any spread over {self.gap.seeds} seeds"
        (low, high), (relative, least, most) = self.interval, self.percent
        text = f"{said}; gap {self.gap.value:.4g} [{low:.4g}, {high:.4g}], {relative:.2f} % [{least:.2f}, {most:.2f}]"
        if not self.decided:
            seen = self.detectable
            text += f"; a gap of {seen:.4g} ({self.gap.relative(seen):.2f} %) is seen {self.power:.0%} of the time"
        return f"{text}; {self.gap.seeds} {'pairs' if self.gap.paired else 'seeds'}"


def judge(cells: Mapping[str, Figures], comparisons: Sequence[Comparison], protocol: Protocol) -> tuple[Verdict, ...]:
    """Verdicts of a family of comparisons, in its order, from all figures that there are.

    All looks are taken again from the first on, so the answer depends on the figures alone, and a verdict that fell
    stays when more seeds come. The comparisons are to be chosen before figures are seen.

    cells  figures by the name of the cell; one that is missing has no seeds yet

    Raises ValueError for a comparison that is asked twice or of a cell with itself, for figures of a search, and as
    `seed_means`.
    """
    for name, figures in cells.items():
        if any(seed >= SEARCH_SEEDS for seed in figures):
            raise ValueError(f"cell {name!r}: training seed {max(figures)} is one of a search; expected compared ones")
    asked = [frozenset((one.a, one.b)) for one in comparisons]
    for one, names in zip(comparisons, asked, strict=True):
        if len(names) < 2 or asked.count(names) > 1:
            raise ValueError(f"comparison of {one.a!r} and {one.b!r}: expected two cells, once in a family")
    family = 2 * len(comparisons)  # one-sided hypotheses
    found: dict[int, Verdict] = {}
    latest: dict[int, Verdict] = {}
    for seeds, share in zip(protocol.looks, protocol.shares, strict=True):
        gaps = {
            number: gap(cells[one.a], cells[one.b], seeds * one.each, _paired(one, protocol))
            for number, one in enumerate(comparisons)
            if number not in found and _seeds(cells, one, _paired(one, protocol)) >= seeds * one.each
        }
        while True:
            level = 2 * share * protocol.error / (family - len(found))  # of both sides
            new = {number: at for number, at in gaps.items() if number not in found and at.separates(level)}
            if not new:
                break
            for number, at in new.items():
                found[number] = _verdict(comparisons[number], at, level, protocol, decided=True)
        for number in gaps.keys() - found.keys():
            latest[number] = _verdict(comparisons[number], gaps[number], level, protocol, decided=False)
    none = (Verdict(one, "open", None, protocol.error, protocol.power) for one in comparisons)
    return tuple(found.get(number, latest.get(number, nothing)) for number, nothing in enumerate(none))


def seeds_wanted(cells: Mapping[str, Figures], comparisons: Sequence[Comparison], protocol: Protocol) -> dict[str, int]:
    """How many of `Protocol.compared`, from the first on, every cell needs next; all has been done where all have them.

    A cell all of whose comparisons are decided keeps what it has.
    """
    wanted = {name: len(cells.get(name, {})) // one.each for one in comparisons for name in (one.a, one.b)}
    for verdict in judge(cells, comparisons, protocol):
        if verdict.words == "open":
            reached = 0 if verdict.gap is None else verdict.gap.seeds // verdict.comparison.each
            look = next(seeds for seeds in protocol.looks if seeds > reached)
            for name in (verdict.comparison.a, verdict.comparison.b):
                wanted[name] = max(wanted[name], look)
    return wanted


def best_setting(figures: Mapping[float, Figures], better: Better = "lower") -> float:
    """The setting, as a guidance scale, with the best mean; of equal ones the smallest.

    figures  of every setting on the seeds of a search (`Protocol.searched`). Chosen on the seeds that are then
             compared, the best of several looks better than it is, by what its noise happened to be

    Raises ValueError without settings, and where they were not measured on the same seeds.
    """
    if not figures:
        raise ValueError("best of 0 settings: expected at least one")
    measured = {tuple(sorted((seed, len(drawn)) for seed, drawn in one.items())) for one in figures.values()}
    if len(measured) > 1 or not measured.pop():
        raise ValueError(f"settings {sorted(figures)}: expected each to be measured on the same seeds")
    sign = 1 if better == "lower" else -1
    return min(sorted(figures), key=lambda setting: sign * fmean(seed_means(figures[setting]).values()))


def _paired(one: Comparison, protocol: Protocol) -> bool:
    return protocol.paired if one.paired is None else one.paired


def _seeds(cells: Mapping[str, Figures], one: Comparison, paired: bool) -> int:
    return shared_seeds(cells.get(one.a, {}), cells.get(one.b, {}), paired)


def _verdict(one: Comparison, at: Gap, level: float, protocol: Protocol, *, decided: bool) -> Verdict:
    """Of a look. A gap below 0 means that a has the lower figure."""
    if decided:
        first = (at.value < 0) == (one.better == "lower")
        words = f"{one.a} above {one.b}" if first else f"{one.b} above {one.a}"
    else:
        words = "not told apart" if at.seeds == protocol.cap * one.each else "open"
    return Verdict(one, words, at, level, protocol.power)

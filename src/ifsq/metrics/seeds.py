"""Figures of one cell over training seeds and sampling seeds: their two spreads, and the gap between two cells.

Sampling seeds are nested in training seeds. Training again moves a distance more than sampling again does ("FID
lottery", arXiv 2606.20536), and says something new of the method each time; sampling again says the same of one
model more exactly. So a training seed counts once, by the mean of its sampling seeds, and every interval rests on
the spread of these means, which holds both sources.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np
from scipy.optimize import brentq
from scipy.special import roots_jacobi, stdtr, stdtrit
from scipy.stats import nct

Figures = Mapping[int, Sequence[float]]
"""Of every training seed, a figure a sampling seed, or one where nothing is drawn."""
EXACT_SEEDS = 30
"""Above which Welch's test is taken as it is."""
ROUNDING = 1e-12  # of the figures: what is nearer is equal
NODES, RATIOS = 200, 50  # of the quadrature, and of the spreads that are tried


@dataclass(frozen=True)
class Spread:
    """Mean of a cell and where its spread comes from.

    mean       over training seeds, each by the mean of its sampling seeds
    seeds      training seeds
    deviation  standard deviation of the training seeds' means: what intervals rest on; nan of one seed
    sampling   standard deviation of a figure over sampling seeds of one model; nan where every model has one figure
    training   standard deviation over training seeds without what sampling adds, by the moments of the nested analysis
               of variance; 0 where sampling alone explains it; nan where either is unknown
    """

    mean: float
    seeds: int
    deviation: float
    sampling: float
    training: float


@dataclass(frozen=True)
class Gap:
    """Mean of cell a less mean of cell b, over training seeds.

    value    in the metric's unit
    error    its standard error, from the spread over training seeds
    seeds    training seeds of each
    freedom  degrees of freedom of the error: seeds - 1 of pairs, else Welch's
    base     mean of cell b
    paired   whether the spread is that of differences between equal seeds

    Tests and intervals are Student's. Of unpaired cells they are Welch's (Biometrika 34, 1947) at the level of
    `welch_level`, so that they hold for normal figures of any two spreads.
    """

    value: float
    error: float
    seeds: int
    freedom: float
    base: float
    paired: bool

    def reach(self, error: float) -> float:
        """Standard errors on either side that miss the gap with probability ``error``, 0 to 1, at most."""
        level = error if self.paired else welch_level(self.seeds, error)
        return -float(stdtrit(self.freedom, level / 2))

    def separates(self, error: float) -> bool:
        """Whether the interval leaves out 0; never of figures without a spread that a gap could be held against."""
        return self.error > 0 and abs(self.value) > self.reach(error) * self.error

    def interval(self, error: float) -> tuple[float, float] | None:
        """Of the gap, missed with probability ``error`` in all; None where the figures have no spread."""
        if self.error == 0:
            return None
        half = self.error * self.reach(error)
        return self.value - half, self.value + half

    def detectable(self, error: float, power: float) -> float | None:
        """The least true gap at which an interval of this error leaves out 0, on its side, with probability ``power``.

        For new cells of this spread and this many seeds; None where the figures have no spread.
        """
        if self.error == 0:
            return None
        needed = self.reach(error)

        def lacks(shift: float) -> float:
            return float(nct.sf(needed, self.freedom, shift)) - power

        return self.error * float(brentq(lacks, 0, 4 * needed + 10))

    def relative(self, value: float) -> float:
        """A value in the metric's unit as percent of the size of cell b's mean; nan where that is 0."""
        return 100 * value / abs(self.base) if self.base else math.nan


def seed_means(figures: Figures) -> dict[int, float]:
    """Mean over the sampling seeds of every training seed, in the order of the seeds.

    Raises ValueError for a seed without a figure and one that is not finite.
    """
    for seed, drawn in figures.items():
        if not drawn or not all(math.isfinite(figure) for figure in drawn):
            raise ValueError(f"training seed {seed}: figures {list(drawn)}: expected finite numbers, at least one")
    return {seed: fmean(figures[seed]) for seed in sorted(figures)}


def spread(figures: Figures) -> Spread:
    """Both spreads of a cell. Raises ValueError without figures, and as `seed_means`."""
    if not figures:
        raise ValueError("spread of 0 training seeds: expected at least one")
    means = list(seed_means(figures).values())
    between = _variance(means) if len(means) > 1 else math.nan
    # Pooled over models: the squares about each model's mean, by their degrees of freedom.
    again = [drawn for drawn in figures.values() if len(drawn) > 1]
    freedom = sum(len(drawn) - 1 for drawn in again)
    within = sum(_variance(drawn) * (len(drawn) - 1) for drawn in again) / freedom if freedom else math.nan
    # A mean of r sampling seeds varies by training^2 + sampling^2 / r.
    added = fmean(1 / len(drawn) for drawn in figures.values())
    training = math.sqrt(max(0.0, between - within * added)) if between == between and freedom else math.nan
    return Spread(fmean(means), len(means), math.sqrt(between), math.sqrt(within), training)


def shared_seeds(a: Figures, b: Figures, paired: bool) -> int:
    """Training seeds on which two cells can be held against each other."""
    return len(a.keys() & b.keys()) if paired else min(len(a), len(b))


def gap(a: Figures, b: Figures, seeds: int, paired: bool = False) -> Gap:
    """Between two cells, over the first ``seeds`` training seeds that they have, paired: that both have.

    paired  the same training seed means the same order of data in both, and so figures that move together: take the
            spread of their differences. To be decided before figures are seen

    Raises ValueError for fewer than two seeds, and as `seed_means`.
    """
    if not 2 <= seeds <= shared_seeds(a, b, paired):
        raise ValueError(f"gap over {seeds} seeds: expected 2 to {shared_seeds(a, b, paired)}")
    common = a.keys() & b.keys() if paired else None
    of_a, of_b = (
        [mean for seed, mean in seed_means(cell).items() if common is None or seed in common][:seeds] for cell in (a, b)
    )
    if paired:
        square, freedom = _variance([x - y for x, y in zip(of_a, of_b, strict=True)]), float(seeds - 1)
    else:
        parts = _variance(of_a), _variance(of_b)
        square, squares = sum(parts), sum(part**2 for part in parts)
        freedom = (seeds - 1) * square**2 / squares if squares > 0 else float(seeds - 1)  # Welch and Satterthwaite
    error, size = math.sqrt(square / seeds), max(map(abs, [*of_a, *of_b]))
    if error < ROUNDING * size:  # the same figure, but for how it was summed: no spread
        error = 0.0
    return Gap(fmean(of_a) - fmean(of_b), error, seeds, freedom, fmean(of_b), paired)


@lru_cache(maxsize=4096)
def welch_level(seeds: int, error: float) -> float:
    """The level at which Welch's test of two normal samples rejects with probability ``error`` at most, equal means.

    seeds  of each sample, at least 2

    Whatever their spreads are: the least favourable ratio is looked for. At its nominal level Welch's test of three
    seeds each is wrong up to 1.2 times as often as it says at 5 %, and 1.8 times at 0.8 %.
    """
    if seeds > EXACT_SEEDS:
        return error  # too much by 0.2 % of it at 5 %, by 3 % of it at 0.1 %
    freedom = seeds - 1
    # Of both samples' squares, in units of their variances, the first's share is Beta(freedom / 2, freedom / 2).
    points, weights = roots_jacobi(NODES, freedom / 2 - 1, freedom / 2 - 1)
    share, weights = (points + 1) / 2, weights / weights.sum()
    theta = 1 / (1 + np.exp(-np.linspace(0, 16, RATIOS)))[:, None]  # the first sample's part of the two variances
    first, second = 2 * theta * share, 2 * (1 - theta) * (1 - share)  # sample variances, up to their common factor
    about = first + second
    welch = freedom * about**2 / (first**2 + second**2)

    def rejects(log_level: float) -> float:
        limit = -stdtrit(welch, math.exp(log_level) / 2)
        # The gap over the common factor is Student's t of both samples' degrees of freedom.
        sizes = (2 * stdtr(2 * freedom, -limit * np.sqrt(about)) * weights).sum(axis=1)
        return math.log(float(sizes.max()) / error)

    nominal = math.log(error)
    return math.exp(float(brentq(rejects, nominal - 40, nominal, xtol=1e-9))) if rejects(nominal) > 0 else error


def _variance(figures: Sequence[float]) -> float:
    """By n - 1; exactly 0 of equal figures, whose mean may round."""
    return float(np.var(figures, ddof=1)) if len(set(figures)) > 1 else 0.0

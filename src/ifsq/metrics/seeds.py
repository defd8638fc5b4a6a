"""Figures of one cell over training seeds and sampling seeds: their two spreads, and the gap between two cells.

Sampling seeds are nested in training seeds. Training again moves a distance more than sampling again does ("FID
lottery", arXiv 2606.20536), and says something new of the method each time; sampling again says the same of one
model more exactly. So a training seed counts once, by the mean of its sampling seeds, and every interval rests on
the spread of these means, which holds both sources.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import nct

Figures = Mapping[int, Sequence[float]]
"""Of every training seed, a figure a sampling seed, or one where nothing is drawn."""


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

    value   in the metric's unit
    error   its standard error, from the spread over training seeds
    seeds   training seeds of each
    base    mean of cell b
    paired  whether the spread is that of differences between equal seeds

    Tests and intervals are Student's, with ``seeds - 1`` degrees of freedom. Of unpaired cells this is the bound that
    holds for normal figures whatever their two spreads are (Mickey and Brown, Annals of Mathematical Statistics 37,
    1966); Welch's degrees of freedom are too many for three seeds and small errors.
    """

    value: float
    error: float
    seeds: int
    base: float
    paired: bool

    @property
    def freedom(self) -> int:
        """Degrees of freedom."""
        return self.seeds - 1

    @property
    def p(self) -> float:
        """Of both sides, for no gap. 1 where the figures have no spread that a gap could be held against."""
        return 2 * float(stdtr(self.freedom, -abs(self.value) / self.error)) if self.error > 0 else 1.0

    def interval(self, error: float) -> tuple[float, float] | None:
        """Of the gap, missed with probability ``error`` in all; None where the figures have no spread."""
        if self.error == 0:
            return None
        half = self.error * float(stdtrit(self.freedom, 1 - error / 2))
        return self.value - half, self.value + half

    def detectable(self, error: float, power: float) -> float | None:
        """The least true gap at which an interval of this error leaves out 0, on its side, with probability ``power``.

        For new cells of this spread and this many seeds; None where the figures have no spread.
        """
        if self.error == 0:
            return None
        needed = float(stdtrit(self.freedom, 1 - error / 2))

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
        error = math.sqrt(_variance([x - y for x, y in zip(of_a, of_b, strict=True)]) / seeds)
    else:
        error = math.sqrt((_variance(of_a) + _variance(of_b)) / seeds)
    return Gap(fmean(of_a) - fmean(of_b), error, seeds, fmean(of_b), paired)


def _variance(figures: Sequence[float]) -> float:
    """By n - 1; exactly 0 of equal figures, whose mean may round."""
    return float(np.var(figures, ddof=1)) if len(set(figures)) > 1 else 0.0

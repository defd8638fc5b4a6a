"""How well figures of tokenizers rank tokenizers as a grid's generators do: Spearman's correlation, with an interval.

Of every generator of the grid alone, over the cells that differ in their tokenizer. A figure is the mean over training
seeds, of the newest step that was measured; seeds of searches play no part.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import rankdata

from ifsq.bench.measurement import Measurement, by_seed, newest
from ifsq.bench.page import Table
from ifsq.bench.protocol import SEARCH_SEEDS
from ifsq.config import InputError
from ifsq.metrics.intervals import NORMAL
from ifsq.metrics.seeds import seed_means

Named = tuple[str, str]
"""A figure by the names on its card: metric and value."""
PREDICTORS: tuple[Named, ...] = (
    ("index entropy, bits a position", "held out"),
    ("index entropy, bits a position", "given left and above"),
    ("digit entropy, bits a position", "held out"),
    ("digit entropy, bits a position", "given left and above"),
    ("level entropy / log2 L", "mean"),
    ("index use", "share"),
    ("rFD(judge)", "distance"),
    ("iFD(judge)", "distance"),
    ("iFD(judge)", "snapped"),
    ("PSNR, dB", "mean"),
)
"""What `ifsq.pipeline.forecast` and an evaluation of a tokenizer measure."""
LEAST = 4  # cells: of three no interval is known
Cell = tuple[tuple[str, str | int | float], ...]


@dataclass(frozen=True)
class RankCorrelation:
    """Of one figure of tokenizers with one of a generator.

    predictor  the figure of tokenizers
    generator  axes of the generator's cells that the tokenizer's have not, with their values
    cells      compared: tokenizers of which both are known
    rho        Spearman's; nan where all figures of one kind are equal
    interval   of about 95 %, by Fisher's transform with the variance of Bonett and Wright (Psychometrika 65, 2000):
               over other tokenizers, not over seeds. Where all ranks agree it is that of the next lower correlation;
               None of fewer than `LEAST` cells and where rho is nan
    """

    predictor: Named
    generator: Mapping[str, str | int | float]
    cells: int
    rho: float
    interval: tuple[float, float] | None


def rank_correlations(
    measurements: Iterable[Measurement], target: Named, predictors: Sequence[Named] = PREDICTORS
) -> list[RankCorrelation]:
    """Of every predictor with the target, for each generator alone; of predictors that were not measured none.

    A tokenizer belongs to a generator's cell where all of its axes are there, with the same values. Raises InputError
    where the target was measured of no cell, and where two tokenizers belong to one.
    """
    figures = _means(measurements)
    aims = {cell: figure for (cell, named), figure in figures.items() if named == target}
    if not aims:
        raise InputError(f"measurements of {target[0]}, {target[1]}: none; expected some of a generator")
    found = []
    for predictor in predictors:
        known = {cell: figure for (cell, named), figure in figures.items() if named == predictor}
        pairs: dict[Cell, list[tuple[float, float]]] = {}
        for cell, aim in aims.items():
            own = [tokenizer for tokenizer in known if set(tokenizer) < set(cell)]
            if len(own) > 1:
                raise InputError(f"cell {dict(cell)}: {predictor[0]} of {len(own)} tokenizers; expected one")
            for tokenizer in own:
                rest = tuple(axis for axis in cell if axis not in tokenizer)
                pairs.setdefault(rest, []).append((known[tokenizer], aim))
        found += [
            RankCorrelation(predictor, dict(rest), len(each), *spearman(*zip(*each, strict=True)))
            for rest, each in pairs.items()
        ]
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Correlation of the ranks of two figures of the same cells, ties sharing theirs, and its interval.

    As `RankCorrelation` has them. Raises ValueError for other lengths.
    """
    n = len(a)
    if n != len(b):
        raise ValueError(f"{n} figures and {len(b)}: expected as many")
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan, None
    ranks = [rankdata(one) - (n + 1) / 2 for one in (a, b)]
    rho = float(ranks[0] @ ranks[1] / math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    if n < LEAST:
        return rho, None
    # The transform of 1 is infinite: two neighbours in the other order are the next ranking.
    inside = math.copysign(min(abs(rho), 1 - 12 / (n * (n * n - 1))), rho)
    half = NORMAL * math.sqrt((1 + inside**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inside) + side) for side in (-half, half))
    return rho, (min(low, rho), max(high, rho))


def correlation_table(found: Sequence[RankCorrelation], caption: str = "") -> Table:
    """A predictor a row and a generator a column; the cells that are compared in brackets."""
    generators = list(dict.fromkeys(tuple(one.generator.items()) for one in found))
    told = {(one.predictor, tuple(one.generator.items())): one for one in found}
    names = [", ".join(str(value) for _, value in generator) or "all" for generator in generators]
    rows = [
        [", ".join(predictor), *(_words(told.get((predictor, generator))) for generator in generators)]
        for predictor in dict.fromkeys(one.predictor for one in found)
    ]
    return Table(caption, ["figure of the tokenizer", *names], rows, range(1, len(names) + 1))


def _words(one: RankCorrelation | None) -> str:
    if one is None or math.isnan(one.rho):
        return "-"
    between = "" if one.interval is None else f" [{one.interval[0]:.2f}, {one.interval[1]:.2f}]"
    return f"{one.rho:.2f}{between} ({one.cells})"


def _means(measurements: Iterable[Measurement]) -> dict[tuple[Cell, Named], float]:
    """Mean over training seeds of every cell's figures at its newest step."""
    found: dict[tuple[Cell, Named], list[Measurement]] = {}
    for one in newest(one for one in measurements if one.seed < SEARCH_SEEDS):
        found.setdefault((tuple(sorted(one.cell.items())), (one.metric, one.value)), []).append(one)
    return {key: fmean(seed_means(by_seed(of)).values()) for key, of in found.items()}

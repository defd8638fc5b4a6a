"""What a bound and a cell rule make of latents of a known distribution: how evenly the levels are used, at what error.

Exact but for rounding: the shares of the levels are differences of the distribution function at the cells' edges, which
are found in z by bisection; integrals over the latent are Gauss-Legendre quadrature. `analyze` also quantizes samples
with `FSQ`, so that the arithmetic that is shipped is checked against the integrals. Float64 throughout.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ifsq.analysis.distributions import DISTRIBUTIONS, Distribution
from ifsq.calibration.lloyd import companding_points, lloyd
from ifsq.quantizers import FSQ
from ifsq.quantizers.bounds import FITTED, IFSQ_ALPHA, KNOTS, Bound, make_bound
from ifsq.quantizers.cells import CELLS, digits_to_codes
from ifsq.quantizers.usage import LevelUse, entropy_bits
from ifsq.training.log import Reporter, Silent

LEAST_LEVELS, MOST_LEVELS, LEAST_SAMPLES = 2, 257, 1000  # 1 to the paper's 8 bits
GRADIENT_AT = (1.0, 2.0, 3.0)  # |z|
DOUBT = 1e-6  # probability that sound sampling goes beyond `sampling_limit`

GRID = 4096  # intervals over z, closest around 0
REACH = 17.0  # of the grid: sinh(17) / 2 = 1e7, beyond which the heaviest tail here holds 1e-21
BISECTIONS = 64
ORIGINAL_EPS = 1e-3  # arXiv 2309.15505: so that the end levels can be reached
# Gauss-Legendre nodes and weights on (-1, 1), four points.
_INNER, _OUTER = (math.sqrt(3 / 7 + sign * 2 / 7 * math.sqrt(6 / 5)) for sign in (-1, 1))
NODES = (-_OUTER, -_INNER, _INNER, _OUTER)
WEIGHTS = tuple((18 + sign * math.sqrt(30)) / 36 for sign in (-1, 1, 1, -1))


class Case(NamedTuple):
    """A bound of the analysis."""

    bound: str
    alpha: float = IFSQ_ALPHA

    @property
    def label(self) -> str:
        return f"ifsq {self.alpha:g}" if self.bound == "ifsq" else self.bound


CASES = (
    Case("tanh"),
    Case("ifsq"),
    Case("ifsq", 1.702),  # the logistic closest to the normal distribution function
    Case("gaussian"),
    Case("clamp"),
    Case("standardized"),
    Case("quantile"),
    Case("learned"),
)
PAPER = Case("ifsq").label


@dataclass(frozen=True)
class CellUse(LevelUse):
    """How one dimension's levels are used, cut by the rule ``cells``, and what is lost.

    error            E (unrounded code - code)^2, in the units of the codes, where another bound is another unit
    relative_error   error / variance of the unrounded code
    distortion       E (z - E[z | digit])^2 / variance of z: what the best decoder of the digits loses of the latent,
                     one unit for all bounds
    """

    cells: str
    error: float
    relative_error: float
    distortion: float


@dataclass(frozen=True)
class BoundUse:
    """A bound on a distribution, before any rounding, and its level use.

    ks, rmse   distance of u = (bound(z) + 1) / 2 from U(0, 1): largest difference of the distribution functions, and
               root mean square difference of the quantile functions (of the bounded latent itself it is twice that)
    gradient   derivative of the bound at |z| = 1, 2, 3, mean of both signs
    """

    bound: str
    distribution: str
    ks: float
    rmse: float
    gradient: tuple[float, ...]
    uses: tuple[CellUse, ...]

    def use(self, cells: str, levels: int) -> CellUse | None:
        """The level use of one cell rule; None where it was not asked for or does not exist."""
        return next((use for use in self.uses if (use.cells, use.levels) == (cells, levels)), None)


@dataclass(frozen=True)
class Check:
    """Quadrature against samples quantized by `FSQ`: the largest differences over all bounds, cells and checked levels.

    compared    combinations of bound, cells and levels
    deviation   share of samples below an edge, against its probability
    ks, rmse    of samples before rounding
    fraction    level entropy over log2 L
    error       in standard errors of the mean over the samples
    """

    distribution: str
    compared: int
    deviation: float
    ks: float
    rmse: float
    fraction: float
    error: float


@dataclass(frozen=True)
class Analysis:
    """All bounds on all distributions.

    samples   latents of each distribution, drawn from ``seed``
    checks    what sampling says of the integrals
    optimum   (distribution, levels) -> the least possible distortion with so many levels (Lloyd-Max)
    """

    levels: tuple[int, ...]
    samples: int
    seed: int
    bounds: tuple[BoundUse, ...]
    optimum: dict[tuple[str, int], float]
    checks: tuple[Check, ...]

    @property
    def sampling_limit(self) -> float:
        """What `Check.deviation` exceeds with probability 1e-6, for all edges at once (Dvoretzky-Kiefer-Wolfowitz)."""
        return math.sqrt(math.log(2 / DOUBT) / (2 * self.samples))


def analyze(
    levels: Iterable[int],
    samples: int,
    seed: int,
    checked: Sequence[int] = (),
    cases: Sequence[Case] = CASES,
    reporter: Reporter | None = None,
) -> Analysis:
    """Measure every bound on every distribution of `DISTRIBUTIONS`, with every cell rule and level count.

    Fitted bounds are fitted to so many samples of the distribution. The same samples are what the integrals are checked
    on, with ``checked`` levels. Raises ValueError for levels outside 2..257, too few samples or an invalid seed.
    """
    counts = sorted(set(levels))
    if not counts or counts[0] < LEAST_LEVELS or counts[-1] > MOST_LEVELS:
        wrong = [L for L in counts if not LEAST_LEVELS <= L <= MOST_LEVELS]
        raise ValueError(f"levels={wrong[0] if wrong else 'none'}: expected {LEAST_LEVELS} to {MOST_LEVELS}")
    if samples < LEAST_SAMPLES:
        raise ValueError(f"samples={samples}: expected at least {LEAST_SAMPLES}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: expected 0 to 2**63 - 1")
    bounds: list[BoundUse] = []
    optimum: dict[tuple[str, int], float] = {}
    checks: list[Check] = []
    reporter = reporter or Silent()
    reporter.start("bounds", 0, len(DISTRIBUTIONS) * len(cases))
    for distribution in DISTRIBUTIONS:
        latents = distribution.sample(samples, torch.Generator().manual_seed(seed)).sort().values.unsqueeze(1)
        compared: list[tuple[float, ...]] = []
        for case in cases:
            bound = make_bound(case.bound, 1, case.alpha).eval()
            if case.bound in FITTED:
                bound.fit(latents)
            measured = measure(bound, distribution, [(L, cells) for cells in CELLS for L in counts], case.label)
            bounds.append(measured)
            reporter.advance(len(bounds), {})
            ks, rmse = _uniformity(bound.unit(latents))
            before = abs(ks - measured.ks), abs(rmse - measured.rmse)
            for use in measured.uses:
                if use.levels in checked:
                    deviation, fraction, error = _compare(bound, latents, use)
                    compared.append((deviation, *before, fraction, error))
        if compared:
            checks.append(Check(distribution.name, len(compared), *map(max, zip(*compared, strict=True))))
        least = least_distortion(distribution, counts)
        optimum |= {(distribution.name, L): value for L, value in zip(counts, least, strict=True)}
    reporter.finish({})
    return Analysis(tuple(counts), samples, seed, tuple(bounds), optimum, tuple(checks))


def by_name(analysis: Analysis) -> dict[tuple[str, str], BoundUse]:
    """The bounds of an analysis by their label and their distribution."""
    return {(bound.bound, bound.distribution): bound for bound in analysis.bounds}


@torch.no_grad()
def measure(
    bound: Bound, distribution: Distribution, rules: Iterable[tuple[int, str]] = (), label: str | None = None
) -> BoundUse:
    """A bound of one channel on a distribution, with (levels, cells) rules.

    Paper cells with an even level count exist for tanh alone; elsewhere that rule is left out.
    """
    wanted = [(L, cells) for L, cells in rules if cells != "paper" or L % 2 or bound.name == "tanh"]
    cuts = [_cut(L, cells, cells == "paper" and bound.name == "tanh") for L, cells in wanted]
    # A shifted bound (original FSQ, even levels) is another function of z, with integrals of its own.
    integrals = {0.0: _integrate(bound, 0.0, distribution, [cut.edges for cut in cuts if cut.shift == 0])}
    for cut in cuts:
        if cut.shift not in integrals:
            integrals[cut.shift] = _integrate(bound, cut.shift, distribution, [cut.edges])
    uses = [_use(cut, integrals[cut.shift], distribution.variance) for cut in cuts]
    plain = integrals[0.0]
    name = label or bound.name
    return BoundUse(name, distribution.name, plain.ks, plain.rmse, bound_gradient(bound), tuple(uses))


def bound_gradient(bound: Bound, at: Sequence[float] = GRADIENT_AT) -> tuple[float, ...]:
    """Derivative of a bound of one channel at |z|, mean of both signs."""
    z = torch.tensor([[sign * value] for value in at for sign in (-1, 1)], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(bound(z).sum(), z)
    return tuple(slope.view(-1, 2).mean(1).tolist())


def least_distortion(distribution: Distribution, levels: Sequence[int]) -> list[float]:
    """Mean square error of the Lloyd-Max quantizer over the distribution's variance, for every level count.

    A local optimum; on the distributions here the global one for L to 20, as dynamic programming finds it.
    """
    grid = _grid()
    weight = distribution.density((grid[1:] + grid[:-1]) / 2).pow(1 / 3) * grid.diff()
    least: list[float] = []
    for first in range(0, len(levels), 16):
        # Two starts, one askew: a symmetric one stays symmetric, which is not the best for two modes and odd L.
        starts = [companding_points(grid, weight, levels[first : first + 16], place) for place in (0.5, 0.3)]
        errors = [lloyd(points, distribution.cells, distribution.variance)[1] for points in starts]
        least += (torch.minimum(*errors) / distribution.variance).tolist()
    return least


class _Cut(NamedTuple):
    """A cell rule with L levels: edges of the cells in u = unit(z + shift), unrounded code = gain*u + offset, codes."""

    cells: str
    L: int
    shift: float
    edges: Tensor
    gain: float
    offset: float
    codes: Tensor


def _cut(L: int, cells: str, original: bool) -> _Cut:
    """The rule from its definition in `cells`, not from the code that quantizes: the check on samples compares two."""
    inner = torch.arange(1, L, dtype=torch.float64)
    codes = digits_to_codes(torch.arange(L), [L], cells).double()
    if cells == "equal":
        return _Cut(cells, L, 0.0, inner / L, 2.0, -1.0, codes)
    if not original:
        return _Cut(cells, L, 0.0, (inner - 0.5) / (L - 1), 2.0, -1.0, codes)
    # digit = round(tanh(z + shift) * half - offset) + L // 2, with half a little more than (L - 1) / 2.
    half, offset = (L - 1) * (1 + ORIGINAL_EPS) / 2, 0.0 if L % 2 else 0.5
    edges = (inner - 0.5 - L // 2 + offset) / (2 * half) + 0.5
    return _Cut(cells, L, math.atanh(offset / half), edges, 2 * half / (L // 2), -(half + offset) / (L // 2), codes)


class _Integrals(NamedTuple):
    """Integrals of the distribution up to each of ``edges`` (in u, ascending, 0 and 1 at the ends), float64.

    ``mass`` of 1, ``first`` of u, ``second`` of u^2, ``moment`` of z; and distances of u from U(0, 1).
    """

    edges: Tensor
    mass: Tensor
    first: Tensor
    second: Tensor
    moment: Tensor
    ks: float
    rmse: float


def _integrate(bound: Bound, shift: float, distribution: Distribution, edges: Sequence[Tensor]) -> _Integrals:
    def unit(z: Tensor) -> Tensor:
        return bound.unit((z + shift).view(-1, 1)).view(z.shape)

    # Where the cells' edges, which are given in u, lie in z.
    inner = torch.cat([torch.empty(0, dtype=torch.float64), *edges]).unique()
    z = _invert(unit, inner)
    # Kinks are ends of intervals: those of a quantile bound, of clamp, and of the distributions (all at 0).
    kinks = _invert(unit, torch.arange(1, KNOTS + 1, dtype=torch.float64) / (KNOTS + 1))
    ends = torch.tensor([-1.0 - shift, 0.0, 1.0 - shift], dtype=torch.float64)
    grid = torch.cat([_grid(), z, kinks, ends]).unique()

    # Four nodes in every interval of the grid; their weights hold the density.
    middle, half = (grid[1:] + grid[:-1]) / 2, (grid[1:] - grid[:-1]) / 2
    nodes = middle + half * torch.tensor(NODES, dtype=torch.float64).view(-1, 1)
    weights = half * torch.tensor(WEIGHTS, dtype=torch.float64).view(-1, 1) * distribution.density(nodes)
    u, below = unit(nodes), distribution.mass(nodes)
    at = torch.searchsorted(grid, z)

    def up_to_edges(values: Tensor) -> Tensor:
        """The integral of ``values`` * density from minus infinity to every edge."""
        total = torch.nn.functional.pad((weights * values).sum(0).cumsum(0), (1, 0))
        return torch.cat([total[:1], total[at], total[-1:]])

    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return _Integrals(
        edges=torch.cat([zero, inner, one]),
        mass=torch.cat([zero, distribution.mass(z), one]),
        first=up_to_edges(u),
        second=up_to_edges(u.square()),
        moment=torch.cat([zero, distribution.moment(z), zero]),
        # The quantile function of u at p = below(z) is unit(z), because both rise with z.
        ks=max(float((u - below).abs().max()), float((unit(grid) - distribution.mass(grid)).abs().max())),
        rmse=math.sqrt(float((weights * (u - below).square()).sum())),
    )


def _use(cut: _Cut, integrals: _Integrals, variance: float) -> CellUse:
    # The integrals over each cell are differences of those up to its edges.
    at = torch.searchsorted(integrals.edges, cut.edges)
    at = torch.nn.functional.pad(at, (1, 1))
    at[-1] = len(integrals.edges) - 1
    mass, first, second, moment = (x[at].diff() for x in integrals[1:5])
    shares = mass.clamp(min=0)
    # (gain*u + offset - code)^2, expanded: the integrals are near 1 and the error above 1e-10, so that enough is left.
    away = cut.offset - cut.codes
    error = float((cut.gain**2 * second + 2 * cut.gain * away * first + away.square() * shares).sum())
    spread = cut.gain**2 * float(integrals.second[-1] - integrals.first[-1] ** 2)
    # Var E[z | digit] over Var z is what the best decoder keeps.
    between = torch.where(shares > 0, moment.square() / shares, 0.0).sum()
    return CellUse(
        share=tuple(shares.tolist()),
        fraction=entropy_bits(shares) / math.log2(cut.L),
        cells=cut.cells,
        error=error,
        relative_error=error / spread,
        distortion=1 - float(between) / variance,
    )


def _uniformity(u: Tensor) -> tuple[float, float]:
    """KS and RMSE of ascending samples in [0, 1] against U(0, 1)."""
    n = u.numel()
    away = u.detach().flatten() - (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return float(away.abs().max()) + 0.5 / n, float(away.square().mean().sqrt())


@torch.no_grad()
def _compare(bound: Bound, latents: Tensor, use: CellUse) -> tuple[float, float, float]:
    """Differences between samples and quadrature: largest of cumulative shares, of entropies, of errors."""
    quantizer = FSQ([use.levels], bound=bound, cells=use.cells).eval()
    z = latents.float()
    quantized = quantizer(z)
    count = torch.bincount(quantized.digits.flatten(), minlength=use.levels)
    shares = torch.tensor(use.share, dtype=torch.float64)
    deviation = (count.double().cumsum(0) / len(latents) - shares.cumsum(0)).abs().max()
    fraction = entropy_bits(count) / math.log2(use.levels)
    squares = (quantizer.bounded(z) - quantized.codes).double().square()
    standard_error = float(squares.std()) / math.sqrt(len(z))
    return float(deviation), abs(fraction - use.fraction), abs(float(squares.mean()) - use.error) / standard_error


def _invert(rising: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Where a rising function reaches values between its limits, by bisection: float64, same shape."""
    low, high = -torch.ones_like(values), torch.ones_like(values)
    for _ in range(BISECTIONS):
        below, above = rising(low) >= values, rising(high) < values
        if not bool((below | above).any()):
            break
        low, high = torch.where(below, 2 * low, low), torch.where(above, 2 * high, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = rising(middle) < values
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return high


def _grid() -> Tensor:
    """Points of z, closest around 0, float64 (GRID + 1,)."""
    return torch.linspace(-REACH, REACH, GRID + 1, dtype=torch.float64).sinh() / 2

"""What a bound and a cell rule make of latents of a known distribution: how evenly the levels are used, at what error.

Exact but for rounding: the shares of the levels are differences of the distribution function at the cells' edges, which
are found in z by bisection; integrals over the latent are Gauss-Legendre quadrature. `analyze` also quantizes samples
with `FSQ`, so that the arithmetic that is shipped is checked against the integrals. Float64 throughout.

Called by ``bench.bounds``; `lloyd_max` also by whoever has latents and asks what the least distortion would be. Imports
torch only.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ifsq.quantizers.bounds import FITTED, IFSQ_ALPHA, KNOTS, Bound, make_bound
from ifsq.quantizers.cells import CELLS, digits_to_codes
from ifsq.quantizers.fsq import FSQ

LEAST_LEVELS, MOST_LEVELS, LEAST_SAMPLES = 2, 257, 1000  # 1 to the paper's 8 bits
GRADIENT_AT = (1.0, 2.0, 3.0)  # |z|
DOUBT = 1e-6  # probability that sound sampling goes beyond `sampling_limit`

GRID = 4096  # intervals over z, closest around 0
REACH = 17.0  # of the grid: sinh(17) / 2 = 1e7, beyond which the heaviest tail here holds 1e-21
BISECTIONS = 64
ORIGINAL_EPS = 1e-3  # arXiv 2309.15505: so that the end levels can be reached
LLOYD_ROUNDS, REFILLS = 2000, 20
FAR = 1e30  # where no latent is
# Gauss-Legendre nodes and weights on (-1, 1), four points.
_INNER, _OUTER = (math.sqrt(3 / 7 + sign * 2 / 7 * math.sqrt(6 / 5)) for sign in (-1, 1))
NODES = (-_OUTER, -_INNER, _INNER, _OUTER)
WEIGHTS = tuple((18 + sign * math.sqrt(30)) / 36 for sign in (-1, 1, 1, -1))


@dataclass(frozen=True)
class Distribution:
    """Latents ``z = (x - centre) / scale`` with mean 0, where x has the given functions; all in float64.

    text       what z is distributed as
    variance   of z
    symmetric  around the mean
    x_density, x_mass, x_moment   of x: density, distribution function (exact to its last digits in the lower tail), and
               integral of x * density up to a point
    draw       (n, generator) -> n samples of x
    """

    name: str
    text: str
    variance: float
    x_density: Callable[[Tensor], Tensor]
    x_mass: Callable[[Tensor], Tensor]
    x_moment: Callable[[Tensor], Tensor]
    draw: Callable[[int, torch.Generator], Tensor]
    symmetric: bool = True
    centre: float = 0.0
    scale: float = 1.0

    def density(self, z: Tensor) -> Tensor:
        return self.scale * self.x_density(self.centre + self.scale * z)

    def mass(self, z: Tensor) -> Tensor:
        """Probability of a latent below z."""
        return self.x_mass(self.centre + self.scale * z)

    def moment(self, z: Tensor) -> Tensor:
        """Integral of ``z' * density(z')`` from minus infinity to z; 0 at both ends."""
        x = self.centre + self.scale * z
        return (self.x_moment(x) - self.centre * self.x_mass(x)) / self.scale

    def cells(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and integral of ``z * density`` of the cells between ascending edges (r, k): each (r, k + 1)."""
        below = _between(self.mass(edges), 1)
        share = below.diff()
        if self.symmetric:
            # Above the mean from the other side: the difference of two values near 1 has lost its digits.
            above = _between(self.mass(-edges), 0, low=1)
            share = torch.where(below[:, :-1] > 0.5, -above.diff(), share)
        return share, _between(self.moment(edges), 0).diff()

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """n latents, float64 (n,)."""
        return (self.draw(n, rng) - self.centre) / self.scale


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


@dataclass(frozen=True)
class LevelUse:
    """How one dimension with so many levels is used.

    shares           probability of every level
    bits, fraction   entropy of the levels, and over log2(levels): 1 is even use
    least            share of the least-used level, times levels: 1 is even use, 0 is a level that never occurs
    error            E (unrounded code - code)^2, in the units of the codes, where another bound is another unit
    relative_error   error / variance of the unrounded code
    distortion       E (z - E[z | digit])^2 / variance of z: what the best decoder of the digits loses of the latent,
                     one unit for all bounds
    """

    cells: str
    levels: int
    shares: tuple[float, ...]
    bits: float
    fraction: float
    least: float
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
    uses: tuple[LevelUse, ...]

    def use(self, cells: str, levels: int) -> LevelUse | None:
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
    levels: Iterable[int], samples: int, seed: int, checked: Sequence[int] = (), cases: Sequence[Case] = CASES
) -> Analysis:
    """Measure every bound on every distribution of `DISTRIBUTIONS`, with every cell rule and level count.

    Fitted bounds are fitted to so many samples of the distribution. The same samples are what the integrals are checked
    on, with ``checked`` levels. Raises ValueError for levels outside 2..257, too few samples or a seed that is none.
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
    for distribution in DISTRIBUTIONS:
        latents = distribution.sample(samples, torch.Generator().manual_seed(seed)).sort().values.unsqueeze(1)
        compared: list[tuple[float, ...]] = []
        for case in cases:
            bound = make_bound(case.bound, 1, case.alpha).eval()
            if case.bound in FITTED:
                bound.fit(latents)
            measured = measure(bound, distribution, [(L, cells) for cells in CELLS for L in counts], case.label)
            bounds.append(measured)
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
    return Analysis(tuple(counts), samples, seed, tuple(bounds), optimum, tuple(checks))


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


def level_entropy(digits: Tensor, levels: int) -> float:
    """Entropy in bits of integer digits, 0..levels-1, of any shape; at most log2(levels)."""
    return _entropy(torch.bincount(digits.flatten().to(torch.int64), minlength=levels).double() / digits.numel())


def lloyd_max(samples: Tensor, levels: int) -> tuple[Tensor, float]:
    """The quantizer of least mean square error on samples (n,) (Lloyd 1982, Max 1960).

    Returns its reconstruction points, ascending, (levels,) of the samples' type, and E (sample - nearest point)^2. A
    local optimum, started from the asymptotically best density of points. Where the samples have fewer distinct values
    than levels, points repeat and the error is 0. Raises ValueError without samples, or where they are not finite.
    """
    if samples.ndim != 1 or samples.numel() == 0 or not bool(torch.isfinite(samples).all()):
        raise ValueError(f"samples of shape {tuple(samples.shape)}: expected some finite ones on one axis")
    if levels < 1:
        raise ValueError(f"levels={levels}: expected at least 1")
    ordered = samples.detach().cpu().double().sort().values
    distinct = ordered.unique_consecutive()
    if len(distinct) <= levels:
        points = torch.cat([distinct, distinct[-1:].expand(levels - len(distinct))])
        return points.to(samples), 0.0
    mean = ordered.mean()
    ordered = ordered - mean  # so that the sums of squares do not cancel
    # Two starts: with the extremes, which draw points that stay with them, and without, which may leave them none.
    knots, n = min(len(ordered), 1024), len(ordered)
    inner = (2 * torch.arange(knots) + 1) * n // (2 * knots)
    outer = torch.arange(knots) * (n - 1) // max(1, knots - 1)
    found = []
    for values in (ordered[inner], ordered[outer]):
        # The density between quantiles is the inverse of their distance.
        start = _companding_points(values, values.diff().pow(2 / 3), [levels])
        found.append(_lloyd_max(ordered, start))
    points, error = min(found, key=lambda pair: pair[1])
    return (points + mean).to(samples), error


def least_distortion(distribution: Distribution, levels: Sequence[int]) -> list[float]:
    """For every level count, the mean square error of the Lloyd-Max quantizer over the distribution's variance.

    A local optimum; on the distributions here the global one for L to 20, as dynamic programming finds it.
    """
    grid = _grid()
    weight = distribution.density((grid[1:] + grid[:-1]) / 2).pow(1 / 3) * grid.diff()
    least: list[float] = []
    for first in range(0, len(levels), 16):
        # Two starts, one askew: a symmetric one stays symmetric, which is not the best for two modes and odd L.
        starts = [_companding_points(grid, weight, levels[first : first + 16], place) for place in (0.5, 0.3)]
        errors = [_lloyd(points, distribution.cells, distribution.variance)[1] for points in starts]
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

    inner = torch.cat([torch.empty(0, dtype=torch.float64), *edges]).unique()
    z = _invert(unit, inner)
    # Kinks are ends of intervals: those of a quantile bound, of clamp, and of the distributions (all at 0).
    kinks = _invert(unit, torch.arange(1, KNOTS + 1, dtype=torch.float64) / (KNOTS + 1))
    ends = torch.tensor([-1.0 - shift, 0.0, 1.0 - shift], dtype=torch.float64)
    grid = torch.cat([_grid(), z, kinks, ends]).unique()

    middle, half = (grid[1:] + grid[:-1]) / 2, (grid[1:] - grid[:-1]) / 2
    nodes = middle + half * torch.tensor(NODES, dtype=torch.float64).view(-1, 1)
    weights = half * torch.tensor(WEIGHTS, dtype=torch.float64).view(-1, 1) * distribution.density(nodes)
    u, below = unit(nodes), distribution.mass(nodes)
    at = torch.searchsorted(grid, z)

    def up_to_edges(values: Tensor) -> Tensor:
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


def _use(cut: _Cut, integrals: _Integrals, variance: float) -> LevelUse:
    at = torch.searchsorted(integrals.edges, cut.edges)
    at = torch.nn.functional.pad(at, (1, 1))
    at[-1] = len(integrals.edges) - 1
    mass, first, second, moment = (x[at].diff() for x in integrals[1:5])
    shares = mass.clamp(min=0)
    # (gain*u + offset - code)^2, expanded: the integrals are near 1 and the error above 1e-10, so that enough is left.
    away = cut.offset - cut.codes
    error = float((cut.gain**2 * second + 2 * cut.gain * away * first + away.square() * shares).sum())
    spread = cut.gain**2 * float(integrals.second[-1] - integrals.first[-1] ** 2)
    between = torch.where(shares > 0, moment.square() / shares, 0.0).sum()
    bits = _entropy(shares)
    return LevelUse(
        cells=cut.cells,
        levels=cut.L,
        shares=tuple(shares.tolist()),
        bits=bits,
        fraction=bits / math.log2(cut.L),
        least=float(shares.min()) * cut.L,
        error=error,
        relative_error=error / spread,
        distortion=1 - float(between) / variance,
    )


def _between(values: Tensor, high: float, low: float = 0.0) -> Tensor:
    """Rows with ``low`` before and ``high`` behind: what a function is at edges, and at both ends of the line."""
    ends = values.new_tensor([[low], [high]]).expand(2, len(values)).unsqueeze(2)
    return torch.cat([ends[0], values, ends[1]], dim=1)


def _entropy(shares: Tensor) -> float:
    return abs(float(-torch.xlogy(shares, shares).sum() / math.log(2)))


def _uniformity(u: Tensor) -> tuple[float, float]:
    """KS and RMSE of ascending samples in [0, 1] against U(0, 1)."""
    n = u.numel()
    away = u.detach().flatten() - (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return float(away.abs().max()) + 0.5 / n, float(away.square().mean().sqrt())


@torch.no_grad()
def _compare(bound: Bound, latents: Tensor, use: LevelUse) -> tuple[float, float, float]:
    """Differences between samples and quadrature: largest of cumulative shares, of entropies, of errors."""
    quantizer = FSQ([use.levels], bound=bound, cells=use.cells).eval()
    z = latents.float()
    quantized = quantizer(z)
    digits = quantized.digits
    count = torch.bincount(digits.flatten().to(torch.int64), minlength=use.levels).double()
    shares = torch.tensor(use.shares, dtype=torch.float64)
    deviation = (count.cumsum(0) / len(latents) - shares.cumsum(0)).abs().max()
    fraction = level_entropy(digits, use.levels) / math.log2(use.levels)
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


def _companding_points(values: Tensor, weight: Tensor, levels: Sequence[int], place: float = 0.5) -> Tensor:
    """Points (len(levels), max(levels)) with density ~ f^(1/3), the best one for many points (Panter and Dite, 1951).

    ``weight`` (n,) is the integral of f^(1/3) between neighbours of ``values`` (n + 1,), up to a factor; ``place``
    is where in its cell of that measure a point lies. Shorter rows are filled with multiples of FAR.
    """
    total = torch.nn.functional.pad(weight.cumsum(0), (1, 0))
    total = total / total[-1].clamp(min=1e-300)
    rows = torch.empty(len(levels), max(levels), dtype=torch.float64)
    for row, L in zip(rows, levels, strict=True):
        wanted = (torch.arange(L, dtype=torch.float64) + place) / L
        right = torch.searchsorted(total, wanted).clamp(1, len(total) - 1)
        step = total[right] - total[right - 1]
        part = torch.where(step > 0, (wanted - total[right - 1]) / step, 0.5)
        row[:L] = torch.lerp(values[right - 1], values[right], part)
        row[L:] = FAR * torch.arange(1, len(row) - L + 1)
    return rows


def _grid() -> Tensor:
    """Points of z, closest around 0, float64 (GRID + 1,)."""
    return torch.linspace(-REACH, REACH, GRID + 1, dtype=torch.float64).sinh() / 2


def _lloyd_max(ordered: Tensor, points: Tensor) -> tuple[Tensor, float]:
    """Lloyd's iteration on ascending samples (n,) of mean 0 from points (1, L): points (L,) and mean square error.

    Points that end without samples are put where the error is greatest, a few times.
    """
    n, pad = len(ordered), torch.nn.functional.pad
    sums, squares = pad(ordered.cumsum(0), (1, 0)), pad(ordered.square().cumsum(0), (1, 0))

    def cells(edges: Tensor) -> tuple[Tensor, Tensor]:
        below = torch.searchsorted(ordered, edges)
        return _between(below.double() / n, 1).diff(), _between(sums[below] / n, 0).diff()

    for _ in range(REFILLS):
        points, _ = _lloyd(points, cells, float(squares[-1]) / n)
        edges = (points[0, 1:] + points[0, :-1]) / 2
        ends = pad(pad(torch.searchsorted(ordered, edges), (1, 0)), (0, 1), value=n)
        count, total = ends.diff(), sums[ends].diff()
        empty = count == 0
        if not bool(empty.any()):
            break
        within = squares[ends].diff() - total.square() / count.clamp(min=1)
        worst = within.argsort(descending=True)[: int(empty.sum())]
        points = torch.cat([points[0, ~empty], ordered[ends[worst + 1] - 1]]).sort().values.unsqueeze(0)
    nearest = points[0][torch.searchsorted((points[0, 1:] + points[0, :-1]) / 2, ordered)]
    return points[0], float((ordered - nearest).square().mean())


def _lloyd(points: Tensor, cells: Callable[[Tensor], tuple[Tensor, Tensor]], square: float) -> tuple[Tensor, Tensor]:
    """Lloyd's iteration on rows of ascending points (r, L), for latents of mean 0 and mean square ``square``.

    ``cells`` gives the probability of the cells between edges (r, L - 1), and the integral of z over them. Returns
    points and errors (r,). A point without any mass stays, as do those from FAR on, which are no points.
    """
    error = torch.full(points.shape[:1], torch.inf, dtype=torch.float64)
    for _ in range(LLOYD_ROUNDS):
        edges = (points[:, 1:] + points[:, :-1]) / 2
        share, moment = cells(edges.contiguous())
        used = (share > 0) & (points < FAR)
        points = torch.where(used, moment / torch.where(used, share, 1.0), points)
        before, error = error, square - (moment * torch.where(used, points, 0.0)).sum(1)
        if bool((before - error <= 1e-9 * error.abs()).all()):
            break
    return points, error


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _normal(name: str, deviation: float) -> Distribution:
    return Distribution(
        name,
        "N(0, 1)" if deviation == 1 else f"N(0, {deviation:g}^2)",
        deviation**2,
        _normal_density,
        torch.special.ndtr,
        lambda x: -_normal_density(x),
        lambda n, rng: torch.randn(n, generator=rng, dtype=torch.float64),
        scale=1 / deviation,
    )


def _laplace() -> Distribution:
    def mass(x: Tensor) -> Tensor:
        tail = torch.exp(-x.abs()) / 2
        return torch.where(x < 0, tail, 1 - tail)

    def draw(n: int, rng: torch.Generator) -> Tensor:
        size, sign = torch.rand(2, n, generator=rng, dtype=torch.float64)
        return -torch.log1p(-size) * torch.where(sign < 0.5, -1.0, 1.0)

    return Distribution(
        "laplace",
        "Laplace with variance 1",
        1.0,
        lambda x: torch.exp(-x.abs()) / 2,
        mass,
        lambda x: -(x.abs() + 1) * torch.exp(-x.abs()) / 2,
        draw,
        scale=math.sqrt(2),
    )


def _student() -> Distribution:
    def mass(x: Tensor) -> Tensor:
        t = x / math.sqrt(3)
        s = -1 / torch.where(t < -100, t, -100.0)  # the tail as a series: its closed form cancels
        tail = s**3 * (2 / 3 - s**2 * (4 / 5 - s**2 * 6 / 7)) / math.pi
        return torch.where(t < -100, tail, 0.5 + (t / (1 + t.square()) + torch.atan(t)) / math.pi)

    def draw(n: int, rng: torch.Generator) -> Tensor:
        normal = torch.randn(4, n, generator=rng, dtype=torch.float64)
        return normal[0] / (normal[1:].square().mean(0)).sqrt()

    return Distribution(
        "student-t",
        "Student's t, 3 degrees of freedom, scaled to variance 1",
        1.0,
        lambda x: 6 * math.sqrt(3) / (math.pi * (3 + x.square()).square()),
        mass,
        lambda x: -3 * math.sqrt(3) / (math.pi * (3 + x.square())),
        draw,
        scale=math.sqrt(3),
    )


def _bimodal(deviation: float) -> Distribution:
    def both(of: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: (of((x + 1) / deviation, -1) + of((x - 1) / deviation, 1)) / 2

    def draw(n: int, rng: torch.Generator) -> Tensor:
        sign = torch.where(torch.rand(n, generator=rng, dtype=torch.float64) < 0.5, -1.0, 1.0)
        return sign + deviation * torch.randn(n, generator=rng, dtype=torch.float64)

    return Distribution(
        "bimodal",
        f"halves of N(-1, {deviation:g}^2) and N(1, {deviation:g}^2), scaled to variance 1",
        1.0,
        both(lambda t, _: _normal_density(t) / deviation),
        both(lambda t, _: torch.special.ndtr(t)),
        both(lambda t, mode: mode * torch.special.ndtr(t) - deviation * _normal_density(t)),
        draw,
        scale=math.sqrt(1 + deviation**2),
    )


def _skewed(sigma: float) -> Distribution:
    mean = math.exp(sigma**2 / 2)

    def log(x: Tensor) -> Tensor:
        return torch.log(x.clamp(min=1e-300)) / sigma

    return Distribution(
        "skewed",
        f"log-normal exp({sigma:g} N(0, 1)), shifted to mean 0 and scaled to variance 1",
        1.0,
        lambda x: torch.where(x > 0, _normal_density(log(x)) / (sigma * x.clamp(min=1e-300)), 0.0),
        lambda x: torch.special.ndtr(log(x)),
        lambda x: mean * torch.special.ndtr(log(x) - sigma),
        lambda n, rng: torch.exp(sigma * torch.randn(n, generator=rng, dtype=torch.float64)),
        symmetric=False,
        centre=mean,
        scale=mean * math.sqrt(math.expm1(sigma**2)),
    )


NORMAL, NARROW = _normal("normal", 1.0), _normal("narrow", 0.5)
LAPLACE, STUDENT, BIMODAL, SKEWED = _laplace(), _student(), _bimodal(0.35), _skewed(0.6)
DISTRIBUTIONS = (NORMAL, NARROW, LAPLACE, STUDENT, BIMODAL, SKEWED)

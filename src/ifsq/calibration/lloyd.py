"""The scalar quantizer of least mean square error, by Lloyd's iteration (Lloyd 1982, Max 1960)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

LLOYD_ROUNDS, REFILLS = 2000, 20
FAR = 1e30  # where no latent is


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
        start = companding_points(values, values.diff().pow(2 / 3), [levels])
        found.append(_lloyd_max(ordered, start))
    points, error = min(found, key=lambda pair: pair[1])
    return (points + mean).to(samples), error


def companding_points(values: Tensor, weight: Tensor, levels: Sequence[int], place: float = 0.5) -> Tensor:
    """Points (len(levels), max(levels)) with density ~ f^(1/3), the best one for many points (Panter and Dite, 1951).

    ``weight`` (n,) is the integral of f^(1/3) between neighbours of ``values`` (n + 1,), up to a factor; ``place``
    is where in its cell of that measure a point lies. Shorter rows are filled with multiples of FAR.
    """
    # The measure with density f^(1/3) up to each value, from 0 to 1.
    total = pad(weight.cumsum(0), (1, 0))
    total = total / total[-1].clamp(min=1e-300)
    rows = torch.empty(len(levels), max(levels), dtype=torch.float64)
    for row, L in zip(rows, levels, strict=True):
        # L equal parts of it, a point in each: the value where the measure is that large, by interpolation.
        wanted = (torch.arange(L, dtype=torch.float64) + place) / L
        right = torch.searchsorted(total, wanted).clamp(1, len(total) - 1)
        step = total[right] - total[right - 1]
        part = torch.where(step > 0, (wanted - total[right - 1]) / step, 0.5)
        row[:L] = torch.lerp(values[right - 1], values[right], part)
        row[L:] = FAR * torch.arange(1, len(row) - L + 1)
    return rows


def _lloyd_max(ordered: Tensor, points: Tensor) -> tuple[Tensor, float]:
    """Lloyd's iteration on ascending samples (n,) of mean 0 from points (1, L): points (L,) and mean square error.

    Points that end without samples are put where the error is greatest, a few times.
    """
    n = len(ordered)
    # Sums over the first k samples, so that the sums over a cell are differences of two.
    sums, squares = pad(ordered.cumsum(0), (1, 0)), pad(ordered.square().cumsum(0), (1, 0))

    def cells(edges: Tensor) -> tuple[Tensor, Tensor]:
        below = torch.searchsorted(ordered, edges)
        return with_ends(below.double() / n, 1).diff(), with_ends(sums[below] / n, 0).diff()

    for _ in range(REFILLS):
        # To a local optimum, then find the cells without samples.
        points, _ = lloyd(points, cells, float(squares[-1]) / n)
        edges = (points[0, 1:] + points[0, :-1]) / 2
        ends = pad(pad(torch.searchsorted(ordered, edges), (1, 0)), (0, 1), value=n)
        count, total = ends.diff(), sums[ends].diff()
        empty = count == 0
        if not bool(empty.any()):
            break
        # The square error within each cell; the worst cells give their largest sample to the points without any.
        within = squares[ends].diff() - total.square() / count.clamp(min=1)
        worst = within.argsort(descending=True)[: int(empty.sum())]
        points = torch.cat([points[0, ~empty], ordered[ends[worst + 1] - 1]]).sort().values.unsqueeze(0)
    # Edges between neighbouring points: each sample goes to its nearest.
    nearest = points[0][torch.searchsorted((points[0, 1:] + points[0, :-1]) / 2, ordered)]
    return points[0], float((ordered - nearest).square().mean())


def lloyd(points: Tensor, cells: Callable[[Tensor], tuple[Tensor, Tensor]], square: float) -> tuple[Tensor, Tensor]:
    """Lloyd's iteration from rows of ascending points (r, L), for latents of mean 0 and mean square ``square``.

    ``cells`` gives the probability of the cells between edges (r, L - 1), and the integral of z over them. Returns
    points and errors (r,). A point without any mass stays, as do those from FAR on, which are no points.
    """
    error = torch.full(points.shape[:1], torch.inf, dtype=torch.float64)
    for _ in range(LLOYD_ROUNDS):
        # Cells end half-way between points; each point moves to the mean of its cell.
        edges = (points[:, 1:] + points[:, :-1]) / 2
        share, moment = cells(edges.contiguous())
        used = (share > 0) & (points < FAR)
        points = torch.where(used, moment / torch.where(used, share, 1.0), points)
        # E z^2 - E E[z | cell]^2: rounds end where it hardly falls.
        before, error = error, square - (moment * torch.where(used, points, 0.0)).sum(1)
        if bool((before - error <= 1e-9 * error.abs()).all()):
            break
    return points, error


def with_ends(values: Tensor, high: float, low: float = 0.0) -> Tensor:
    """Rows with ``low`` before and ``high`` behind: what a function is at edges, and at both ends of the line."""
    ends = values.new_tensor([[low], [high]]).expand(2, len(values)).unsqueeze(2)
    return torch.cat([ends[0], values, ends[1]], dim=1)

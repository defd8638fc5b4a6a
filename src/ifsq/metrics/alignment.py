"""How alike two networks see the same images: CKNNA, linear CKA, mutual nearest neighbours.

Row i of both sets is of image i; widths may differ. CKNNA (Huh et al. 2024, arXiv:2405.07987) is a kernel alignment
over those pairs of images that are near in both sets; linear CKA (Kornblith et al. 2019, arXiv:1905.00414) is over all
pairs; both stand on HSIC, biased (Gretton et al. 2005) or unbiased (Song et al. 2012). Sums are float64, and kernels
are made a tile at a time: memory beside the features is n * k for CKNNA, and the square of the widths for CKA.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.metrics.tiles import ALONE, BLOCK, check_rows, own_tiles

NEIGHBOURS = 10
"""k of the official repository's CKNNA."""
CKNNA_EPS = 1e-6
"""Added to its denominator there."""
LEAST = 4
"""Rows that the unbiased HSIC needs."""


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows of each row by inner product.

    rows      numbers of the neighbours, int64
    products  inner products with them, float64
    itself    whether a row counts among its own neighbours
    """

    rows: Int[Tensor, "n k"]
    products: Float[Tensor, "n k"]
    itself: bool


def nearest(features: Float[Tensor, "n f"], k: int = NEIGHBOURS, itself: bool = False) -> Nearest:
    """The rows with the greatest inner products with each, in no particular order; of equal ones any.

    itself  let a row count among its own neighbours, as the official biased form does

    Raises ValueError unless 1 <= k < n, and on values that are not finite.
    """
    check_neighbours(k, len(features))
    check_rows(features, features.shape[1], "features", 1)
    n, device = len(features), features.device
    products = torch.full((n, k), -torch.inf, dtype=torch.float64, device=device)
    rows = torch.zeros(n, k, dtype=torch.int64, device=device)
    for left, right in own_tiles(n, ALONE):
        tile = features[left].double() @ features[right].double().T
        if left == right and not itself:
            tile.fill_diagonal_(-torch.inf)
        _keep_greatest(products[left], rows[left], tile, right.start)
        if left != right:
            _keep_greatest(products[right], rows[right], tile.T.contiguous(), left.start)
    return Nearest(rows, products, itself)


def check_neighbours(k: int, n: int) -> None:
    """Raise ValueError unless each of n images can have k neighbours."""
    if not 1 <= k < n:
        raise ValueError(f"k={k} neighbours among {n} images: expected 1 to {max(1, n - 1)}, and at least 2 images")


def cknna(a: Float[Tensor, "n f"], b: Float[Tensor, "m g"], k: int = NEIGHBOURS, *, unbiased: bool = True) -> float:
    """Centred kernel nearest-neighbour alignment of two sets of features, as the official repository computes it.

    Features are taken as they are; scale each row to length 1 beforehand for the alignment of directions. 1 for equal
    features; of unrelated ones about the share of neighbours that fall together by chance, k / n, in the unbiased form
    too. NaN where a set has no pair of which each is near to the other.

    unbiased  HSIC without the kernels' diagonals; else the biased one, in which a row is its own neighbour too

    Raises ValueError on unlike numbers of rows, and as `nearest`.
    """
    _check_pairs(a, b)
    return cknna_of(nearest(a, k, itself=not unbiased), nearest(b, k, itself=not unbiased))


def cknna_of(a: Nearest, b: Nearest) -> float:
    """`cknna` of sets whose neighbours are known: biased where a row is its own neighbour. Raises ValueError."""
    _check_alike(a, b)
    hsic = _masked_hsic(a, b)
    own = _masked_hsic(a, a) * _masked_hsic(b, b)
    return hsic / (math.sqrt(own) + CKNNA_EPS) if own >= 0 else math.nan


def mutual_neighbours(a: Nearest, b: Nearest) -> float:
    """Share of each row's k neighbours that are its neighbours in both sets, on average. Raises ValueError."""
    _check_alike(a, b)
    return float((a.rows[:, :, None] == b.rows[:, None, :]).sum(dim=(1, 2)).double().mean() / a.rows.shape[1])


class CrossMoments:
    """Running sums over pairs of rows (x, y) of two sets of features, for the HSIC of their linear kernels.

    Rows are counted from the mean of the first batch on, so that little cancels: HSIC does not change by a shift.
    """

    def __init__(self) -> None:
        self.n = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, Tensor] = {}

    def add(self, x: Float[Tensor, "b f"], y: Float[Tensor, "m g"]) -> None:
        """Count a batch. Raises ValueError on unlike numbers of rows, other widths, and values that are not finite."""
        _check_pairs(x, y)
        for name, rows in (("x", x), ("y", y)):
            width = rows.shape[1] if not self.n else self._sums[name].shape[0]
            check_rows(rows, width, f"features {name}", 0)
        if not len(x):
            return
        x, y = x.double(), y.double()
        self._origin = self._origin or (x.mean(dim=0), y.mean(dim=0))
        x, y = x - self._origin[0], y - self._origin[1]
        squares_x, squares_y = x.square().sum(dim=1), y.square().sum(dim=1)
        batch = {
            "x": x.sum(dim=0),  # f
            "y": y.sum(dim=0),  # g
            "xy": x.T @ y,  # f g
            "xx": squares_x.sum(),
            "yy": squares_y.sum(),
            "xxyy": squares_x @ squares_y,
            "xyy": squares_y @ x,  # f
            "yxx": squares_x @ y,  # g
        }
        self._sums = {name: self._sums[name] + value for name, value in batch.items()} if self.n else batch
        self.n += len(x)

    def hsic(self, unbiased: bool = True) -> float:
        """Hilbert-Schmidt independence criterion of the linear kernels.

        unbiased  Song et al. 2012, equation 4; else the trace of K H L H, not divided by anything, as in the official
                  repository

        Raises ValueError for fewer than `LEAST` rows, or than 2 of the biased one.
        """
        if self.n < (LEAST if unbiased else 2):
            raise ValueError(f"HSIC of {self.n} rows: expected at least {LEAST if unbiased else 2}")
        n, s = self.n, self._sums
        if not unbiased:
            return float((s["xy"] - torch.outer(s["x"], s["y"]) / n).square().sum())
        # K and L without their diagonals: the sum over both, over each, and of the sums of their rows multiplied.
        both = s["xy"].square().sum() - s["xxyy"]
        of_k, of_l = s["x"].square().sum() - s["xx"], s["y"].square().sum() - s["yy"]
        rows = s["x"] @ s["xy"] @ s["y"] - s["x"] @ s["xyy"] - s["y"] @ s["yxx"] + s["xxyy"]
        return float(_unbiased(both, of_k, of_l, rows, n))


def linear_cka(ab: CrossMoments, aa: CrossMoments, bb: CrossMoments, unbiased: bool = True) -> float:
    """Centred kernel alignment: HSIC of a and b over the root of those of a and of b with themselves.

    1 for sets that are rotations of each other, times any factor; the unbiased one about 0 for independent sets, the
    biased one far above it where there are few rows to the widths. NaN where a set never varies.

    Raises ValueError, as `CrossMoments.hsic`.
    """
    own = aa.hsic(unbiased) * bb.hsic(unbiased)
    return ab.hsic(unbiased) / math.sqrt(own) if own > 0 else math.nan


def cka_of_rows(a: Float[Tensor, "n f"], b: Float[Tensor, "m g"], unbiased: bool = True) -> float:
    """`linear_cka` of two sets that are there as a whole. Raises ValueError."""
    _check_pairs(a, b)
    return linear_cka(moments_of(a, b), moments_of(a, a), moments_of(b, b), unbiased)


def moments_of(a: Float[Tensor, "n f"], b: Float[Tensor, "m g"]) -> CrossMoments:
    """Of two sets that are there as a whole, a block at a time. Raises ValueError."""
    _check_pairs(a, b)
    found = CrossMoments()
    for x, y in zip(a.split(BLOCK), b.split(BLOCK), strict=True):
        found.add(x, y)
    return found


def unit_rows(features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Each row at length 1, of the features' own type; a row of zeros stays one."""
    lengths = torch.cat([rows.double().norm(dim=1) for rows in features.split(BLOCK)])
    return features / torch.where(lengths > 0, lengths, 1).to(features.dtype)[:, None]


def _keep_greatest(products: Tensor, rows: Tensor, tile: Tensor, first: int) -> None:
    """Put the greatest of what is known and of a tile, whose columns are rows ``first`` and on, in place."""
    k = products.shape[1]
    found = tile.topk(min(k, tile.shape[1]), dim=1)
    values = torch.cat([products, found.values], dim=1)
    numbers = torch.cat([rows, found.indices + first], dim=1)
    best = values.topk(k, dim=1)
    products.copy_(best.values)
    rows.copy_(numbers.gather(1, best.indices))


def _masked_hsic(a: Nearest, b: Nearest) -> float:
    """HSIC of both kernels where a pair of rows is near in both sets; they are zero elsewhere."""
    n, k = a.rows.shape
    first = torch.arange(n, device=a.rows.device)[:, None] * n
    of_a, order_a = (first + a.rows).flatten().sort()
    of_b, order_b = (first + b.rows).flatten().sort()
    # Where each pair of a lies among those of b, and which of them are there at all.
    place = torch.searchsorted(of_b, of_a).clamp(max=n * k - 1)
    shared = of_b[place] == of_a
    pairs = of_a[shared]  # i * n + j, ascending
    kernel_a = a.products.flatten()[order_a][shared]
    kernel_b = b.products.flatten()[order_b][place[shared]]
    i, j = pairs // n, pairs % n
    # Nearness has a direction: the entry across the diagonal may be absent, which is zero.
    across = j * n + i
    place = torch.searchsorted(pairs, across).clamp(max=max(0, len(pairs) - 1))
    there = pairs[place] == across
    both = (kernel_a[there] * kernel_b[place[there]]).sum()
    columns_a, rows_a = (_sums(at, kernel_a, n) for at in (j, i))
    columns_b, rows_b = (_sums(at, kernel_b, n) for at in (j, i))
    of_k, of_l = kernel_a.sum(), kernel_b.sum()
    if not a.itself:
        return float(_unbiased(both, of_k, of_l, columns_a @ rows_b, n))
    centred = both - (columns_b @ rows_a + columns_a @ rows_b) / n + of_k * of_l / n**2
    return float(centred)


def _unbiased(both: Tensor, of_k: Tensor, of_l: Tensor, rows: Tensor, n: int) -> Tensor:
    """Song et al. 2012, equation 4, of sums over kernels without diagonals: tr KL, 1K1, 1L1 and 1KL1."""
    return (both + of_k * of_l / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


def _sums(at: Tensor, values: Tensor, n: int) -> Float[Tensor, "n"]:
    return torch.zeros(n, dtype=values.dtype, device=values.device).index_add_(0, at, values)


def _check_pairs(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(f"features {tuple(a.shape)} and {tuple(b.shape)}: expected as many rows of both")


def _check_alike(a: Nearest, b: Nearest) -> None:
    if a.rows.shape != b.rows.shape or a.itself != b.itself:
        raise ValueError(f"neighbours {tuple(a.rows.shape)} and {tuple(b.rows.shape)}: expected the same of both")
    if len(a.rows) < LEAST:
        raise ValueError(f"neighbours of {len(a.rows)} images: expected at least {LEAST}")

"""Kernel distance of two sets of features, KID where they are Inception's (Binkowski et al. 2018, arXiv:1801.01401).

The squared maximum mean discrepancy of the kernel ``(x . y / f + 1)^3``, unbiased at any number of images, which the
Fréchet distance is not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.metrics.distribution import INCEPTION_2015

BLOCK = 1024  # rows of the kernel at a time


@dataclass(frozen=True)
class KernelDistance:
    """An estimate, and what it was on images drawn again from these, with replacement.

    value  the unbiased estimate: 0 in the mean for sets of one distribution, and then below zero half of the time
    drawn  of each bootstrap draw; their standard deviation is the standard error
    """

    value: float
    drawn: Float[Tensor, "r"]


def kid_name(features: str) -> str:
    """``KID`` for the 2015-12-05 Inception network, ``KD(<features>)`` for every other feature extractor."""
    return "KID" if features == INCEPTION_2015 else f"KD({features})"


def kernel_distance(
    a: Float[Tensor, "n f"], b: Float[Tensor, "m e"], draws: int = 100, seed: int = 0
) -> KernelDistance:
    """Over all pairs of two sets, in float64; memory grows with n + m, time with (n + m)^2.

    draws  of the bootstrap over images, of both sets; pairs of an image with itself never count

    Raises ValueError on unlike widths, on fewer than two rows, and on values that are not finite.
    """
    for features in (a, b):
        if features.ndim != 2 or features.shape[1] != a.shape[1] or len(features) < 2:
            raise ValueError(f"features {tuple(features.shape)}: expected at least two rows of {a.shape[1]}")
        if not bool(features.isfinite().all()):
            raise ValueError("features: expected finite values, found nan or infinity")
    a, b = a.to(torch.float64), b.to(torch.float64)
    rng = torch.Generator().manual_seed(seed)
    of_a, of_b = _weights(len(a), draws, rng), _weights(len(b), draws, rng)
    values = _within(a, of_a) + _within(b, of_b) - 2 * _sums(a, b, of_a, of_b) / (of_a.sum(dim=0) * of_b.sum(dim=0))
    return KernelDistance(float(values[0]), values[1:])


def _weights(n: int, draws: int, rng: torch.Generator) -> Float[Tensor, "n r"]:
    """How often each image counts: once in the first column, as often as it is drawn in the others."""
    columns = [torch.ones(n, dtype=torch.float64)]
    for _ in range(draws):
        columns.append(torch.bincount(torch.randint(n, (n,), generator=rng), minlength=n).double())
    return torch.stack(columns, dim=1)


def _within(x: Tensor, weights: Tensor) -> Float[Tensor, "r"]:
    """Weighted mean of the kernel over the pairs of different images of a set."""
    own = (x.square().sum(dim=1) / x.shape[1] + 1).pow(3)  # of each with itself
    squares = weights.square()
    pairs = _sums(x, x, weights, weights) - (squares * own[:, None]).sum(dim=0)
    return pairs / (weights.sum(dim=0).square() - squares.sum(dim=0))


def _sums(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Float[Tensor, "r"]:
    """Weighted sum of the kernel over all pairs."""
    total = of_a.new_zeros(of_a.shape[1])
    for rows, weights in zip(a.split(BLOCK), of_a.split(BLOCK), strict=True):
        kernel = (rows @ b.T / a.shape[1] + 1).pow(3)
        total += (weights * (kernel @ of_b)).sum(dim=0)
    return total

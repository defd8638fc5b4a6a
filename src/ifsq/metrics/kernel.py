"""Kernel distance of two sets of features, KID where they are Inception's (Binkowski et al. 2018, arXiv:1801.01401).

The squared maximum mean discrepancy of the kernel ``(x . y / f + 1)^3``, unbiased at any number of images, which the
Fréchet distance is not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.metrics.distribution import INCEPTION_2015
from ifsq.metrics.tiles import ALONE, BLOCK, check_rows, own_tiles, tiles
from ifsq.training.distributed import World


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
    a: Float[Tensor, "n f"], b: Float[Tensor, "m e"], draws: int = 100, seed: int = 0, world: World = ALONE
) -> KernelDistance:
    """Over all pairs of two sets, in float64 a tile at a time: memory beside the sets grows with n + m.

    draws  of the bootstrap over images, of both sets; pairs of an image with itself never count
    world  processes that share the work; all have the same two sets, and each gets the result

    Raises ValueError on unlike widths, on fewer than two rows, and on values that are not finite.
    """
    for features in (a, b):
        check_rows(features, a.shape[1], "features", 2)
    rng = torch.Generator().manual_seed(seed)
    of_a, of_b = (_weights(len(features), draws, rng).to(features.device) for features in (a, b))
    parts = torch.stack(
        [_sums(a, a, of_a, of_a, world), _sums(b, b, of_b, of_b, world), _sums(a, b, of_a, of_b, world)]
    )
    within_a, within_b, across = sum(world.gather(parts))
    values = _within(within_a, a, of_a) + _within(within_b, b, of_b)
    values = (values - 2 * across / (of_a.sum(dim=0) * of_b.sum(dim=0))).cpu()
    return KernelDistance(float(values[0]), values[1:])


def _weights(n: int, draws: int, rng: torch.Generator) -> Float[Tensor, "n r"]:
    """How often each image counts: once in the first column, as often as it is drawn in the others."""
    columns = [torch.ones(n, dtype=torch.float64)]
    for _ in range(draws):
        columns.append(torch.bincount(torch.randint(n, (n,), generator=rng), minlength=n).double())
    return torch.stack(columns, dim=1)


def _within(total: Tensor, x: Tensor, weights: Tensor) -> Float[Tensor, "r"]:
    """Weighted mean of the kernel over the pairs of different images of a set, of its sum over all pairs."""
    squares = weights.square()
    with_itself = torch.cat([_kernel(rows.double().square().sum(dim=1), x.shape[1]) for rows in x.split(BLOCK)])
    pairs = total - (squares * with_itself[:, None]).sum(dim=0)
    return pairs / (weights.sum(dim=0).square() - squares.sum(dim=0))


def _sums(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, world: World) -> Float[Tensor, "r"]:
    """This process's share of the weighted sum of the kernel over all pairs."""
    total = of_a.new_zeros(of_a.shape[1])
    for rows, columns in own_tiles(len(a), world) if a is b else tiles(len(a), len(b), world):
        kernel = _kernel(a[rows].double() @ b[columns].double().T, a.shape[1])
        times = 2 if a is b and rows != columns else 1  # the tile and its mirror image
        total += times * (of_a[rows] * (kernel @ of_b[columns])).sum(dim=0)
    return total


def _kernel(products: Tensor, width: int) -> Tensor:
    """Of inner products."""
    return (products / width + 1).pow(3)

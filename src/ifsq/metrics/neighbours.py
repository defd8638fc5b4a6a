"""Precision, recall, density and coverage: how two sets of features lie among each other's nearest neighbours.

Precision and recall as the field's evaluator (ADM) computes them, after Kynkäänniemi et al. 2019, arXiv:1904.06991;
density and coverage of Naeem et al. 2020, arXiv:2002.09797.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1024  # rows of distances at a time


@dataclass(frozen=True)
class Neighbours:
    """Shares that each sample and each real image adds to; a figure is the mean of its column.

    precision  of each sample: whether it lies within the ball of a real image, which reaches to its k-th neighbour
    recall     of each real image: whether it lies within the ball of a sample
    density    of each sample: real balls that it lies in, divided by k
    coverage   of each real image: whether its ball holds a sample
    """

    precision: Float[Tensor, "m"]
    recall: Float[Tensor, "n"]
    density: Float[Tensor, "m"]
    coverage: Float[Tensor, "n"]


def neighbours(real: Float[Tensor, "n f"], samples: Float[Tensor, "m e"], k: int = 3, k_density: int = 5) -> Neighbours:
    """Compare two sets of features, in float64; memory grows with n + m, time with n * m.

    k          of precision and recall
    k_density  of density and coverage

    Raises ValueError on unlike widths, on fewer than k + 1 rows of a set, and on values that are not finite.
    """
    for name, features in (("real", real), ("samples", samples)):
        if features.ndim != 2 or features.shape[1] != real.shape[1]:
            raise ValueError(f"{name} features {tuple(features.shape)}: expected rows of {real.shape[1]}")
        if len(features) <= max(k, k_density):
            raise ValueError(f"{len(features)} {name}: expected more than the {max(k, k_density)} neighbours")
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} features: expected finite values, found nan or infinity")
    real, samples = real.to(torch.float64), samples.to(torch.float64)
    near, dense = radii(real, (k, k_density)).unbind(1)
    own = radii(samples, (k,))[:, 0]
    precision, density, reached = [], [], []
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, radius in zip(samples.split(BLOCK), own.split(BLOCK), strict=True):
        squares = _squared_distances(rows, real)  # of a block of samples to every real image
        precision.append((squares <= near).any(dim=1))
        density.append((squares <= dense).sum(dim=1) / k_density)
        covered |= (squares <= dense).any(dim=0)
        reached.append((squares <= radius[:, None]).any(dim=0))
    return Neighbours(
        torch.cat(precision).double(),
        torch.stack(reached).any(dim=0).double(),
        torch.cat(density).double(),
        covered.double(),
    )


def radii(features: Float[Tensor, "n f"], ks: tuple[int, ...]) -> Float[Tensor, "n ks"]:
    """Squared distance from each row to its k-th nearest other one."""
    found = []
    for start in range(0, len(features), BLOCK):
        squares = _squared_distances(features[start : start + BLOCK], features)
        rows = torch.arange(len(squares))
        squares[rows, start + rows] = -1.0  # each is its own nearest, whatever is rounded
        nearest = squares.topk(max(ks) + 1, dim=1, largest=False).values  # in their order, itself first
        found.append(nearest[:, list(ks)])
    return torch.cat(found)


def _squared_distances(a: Float[Tensor, "a f"], b: Float[Tensor, "b f"]) -> Float[Tensor, "a b"]:
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * (a @ b.T)
    return squares.clamp(min=0)

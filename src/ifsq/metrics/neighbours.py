"""Precision, recall, density and coverage: how two sets of features lie among each other's nearest neighbours.

Precision and recall as the field's evaluator (ADM) computes them, after Kynkäänniemi et al. 2019, arXiv:1904.06991;
density and coverage of Naeem et al. 2020, arXiv:2002.09797.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.metrics.tiles import ALONE, check_rows, own_tiles, squared_distances, tiles
from ifsq.training.distributed import World


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


def neighbours(
    real: Float[Tensor, "n f"], samples: Float[Tensor, "m e"], k: int = 3, k_density: int = 5, world: World = ALONE
) -> Neighbours:
    """Compare two sets of features, in float64 a tile at a time: memory beside the sets grows with n + m.

    k          of precision and recall
    k_density  of density and coverage
    world      processes that share the work; all have the same two sets, and each gets the result, the same to the bit

    Raises ValueError on unlike widths, on fewer rows than the greater k and one, and on values that are not finite.
    """
    for name, features in (("real features", real), ("features of samples", samples)):
        check_rows(features, real.shape[1], name, max(k, k_density) + 1)
    near, dense = radii(real, (k, k_density), world).unbind(1)
    own = radii(samples, (k,), world)[:, 0]
    hit, inside = (torch.zeros(len(samples), dtype=torch.int64, device=real.device) for _ in range(2))
    reached, covered = (torch.zeros(len(real), dtype=torch.int64, device=real.device) for _ in range(2))
    for rows, columns in tiles(len(samples), len(real), world):
        squares = squared_distances(samples[rows], real[columns])
        within = squares <= dense[columns]
        hit[rows] += (squares <= near[columns]).any(dim=1)
        inside[rows] += within.sum(dim=1)
        covered[columns] += within.any(dim=0)
        reached[columns] += (squares <= own[rows, None]).any(dim=0)
    shares = world.gather((hit, inside, reached, covered))
    hit, inside, reached, covered = (sum(counts) for counts in zip(*shares, strict=True))
    return Neighbours((hit > 0).double(), (reached > 0).double(), inside.double() / k_density, (covered > 0).double())


def radii(features: Float[Tensor, "n f"], ks: tuple[int, ...], world: World = ALONE) -> Float[Tensor, "n ks"]:
    """Squared distance from each row to its k-th nearest other one."""
    most = max(ks)
    nearest = torch.full((len(features), most), torch.inf, dtype=torch.float64, device=features.device)
    for rows, columns in own_tiles(len(features), world):
        squares = squared_distances(features[rows], features[columns])
        if rows == columns:
            squares.fill_diagonal_(torch.inf)  # none is its own neighbour
        else:
            nearest[columns] = _smallest((nearest[columns], squares.T), most)
        nearest[rows] = _smallest((nearest[rows], squares), most)
    return _smallest(world.gather(nearest), most)[:, [k - 1 for k in ks]]


def _smallest(found: Sequence[Float[Tensor, "n _"]], count: int) -> Float[Tensor, "n count"]:
    """The smallest values of each row, in their order."""
    return torch.cat(list(found), dim=1).topk(count, dim=1, largest=False).values

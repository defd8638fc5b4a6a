"""The Fréchet distance between two sets of feature vectors (Heusel et al. 2017).

Float64 on the CPU throughout.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg.lapack import dpstrf
from torch import Tensor

INCEPTION_2015 = "inception-2015-12-05"


def fd_name(features: str) -> str:
    """``FID`` for the 2015-12-05 Inception network, ``FD(<features>)`` for every other feature extractor."""
    return "FID" if features == INCEPTION_2015 else f"FD({features})"


def sfd_name(features: str) -> str:
    """Of spatial features: ``sFID`` for the 2015-12-05 Inception network, ``sFD(<features>)`` for every other."""
    return "sFID" if features == INCEPTION_2015 else f"sFD({features})"


class FeatureStatistics:
    """Running mean and covariance of features, as sums of deviations (Chan et al. 1983), so nothing cancels."""

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim}: expected at least one feature")
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Float[Tensor, "b f"]) -> None:
        """Count a batch. Raises ValueError on another width or on values that are not finite."""
        rows = features.detach().to("cpu", torch.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"features {tuple(rows.shape)}: expected rows of {len(self.mean)}")
        if not bool(rows.isfinite().all()):
            raise ValueError("features: expected finite values, found nan or infinity")
        if len(rows) == 0:
            return
        mean = rows.mean(dim=0)
        self._join(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: "FeatureStatistics") -> None:
        """Count what ``other`` has counted: as if its features had been added here. Raises ValueError on another width.

        Adding a batch is merging the statistics of that batch, to the last bit.
        """
        if len(other.mean) != len(self.mean):
            raise ValueError(f"statistics of {len(other.mean)} features: expected {len(self.mean)}")
        if other.n:
            self._join(other.n, other.mean, other._scatter)

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        shift, total = mean - self.mean, self.n + n
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    @property
    def covariance(self) -> Float[Tensor, "f f"]:
        """Unbiased covariance (divided by n - 1). Raises ValueError for fewer than two vectors."""
        if self.n < 2:
            raise ValueError(f"covariance of {self.n} feature vectors: expected at least two")
        return self._scatter / (self.n - 1)


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features where nothing else is known of them, as from a file of statistics."""

    mean: Float[Tensor, "f"]
    covariance: Float[Tensor, "f f"]


def frechet_distance(features_a: Float[Tensor, "n f"], features_b: Float[Tensor, "m f"]) -> float:
    """Fréchet distance (squared, as the field reports it) between the Gaussians fitted to two feature sets."""
    return frechet_from_statistics(_statistics(features_a), _statistics(features_b))


def frechet_from_statistics(a: FeatureStatistics | Moments, b: FeatureStatistics | Moments) -> float:
    """``|mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))``.

    With ``C_a = F F^T`` and ``C_b = G G^T`` the last trace is the sum of the singular values of ``F^T G``: real, and
    exact where a covariance is singular. The usual code's root of the product finds it to half the digits there.
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions: expected equal")
    first, second = a.covariance, b.covariance
    product = _factor(first).T @ _factor(second)
    cross = float(np.linalg.svd(product.numpy(), compute_uv=False).sum())  # torch's takes half as long again
    means = (a.mean - b.mean).square().sum()
    return max(0.0, float(means + first.trace() + second.trace() - 2 * cross))


def _factor(covariance: Float[Tensor, "f f"]) -> Float[Tensor, "f r"]:
    """F of as many columns as the rank, with ``F F^T`` the covariance: Cholesky's with pivots (LAPACK's pstrf)."""
    lower, pivots, rank, _ = dpstrf(covariance.numpy(), lower=1)
    factor = np.empty((len(lower), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]  # pivots count from 1
    return torch.from_numpy(factor)


def _statistics(features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.add(features)
    return statistics

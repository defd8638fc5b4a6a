"""Lloyd and Max's quantizer of samples against all partitions of a few, and on samples that are hard to start from."""

import itertools
import math

import pytest
import torch

from ifsq.calibration.lloyd import lloyd_max


def partition_error(ordered, L):
    """Least error over all partitions into L runs, by trying each."""
    n = len(ordered)
    cost = [[((part := ordered[i:j]) - part.mean()).square().sum().item() for j in range(n + 1)] for i in range(n)]
    cuts = itertools.combinations(range(1, n), L - 1)
    return min(sum(cost[i][j] for i, j in itertools.pairwise((0, *cut, n))) for cut in cuts) / n


@pytest.mark.parametrize("L", [2, 3, 4])
def test_lloyd_max_is_near_the_best_partition(L):
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(16, generator=rng, dtype=torch.float64).sign() + 0.35 * torch.randn(16, generator=rng)
        points, error = lloyd_max(z, L)
        nearest = (z.unsqueeze(1) - points).square().min(1).values.mean()
        assert error == pytest.approx(nearest.item())
        best = partition_error(z.sort().values, L)
        assert best - 1e-12 <= error <= 1.6 * best


def test_lloyd_max_of_awkward_samples():
    points, error = lloyd_max(torch.tensor([1.0, 2.0, 1.0]), 4)
    assert (points.tolist(), error) == ([1.0, 2.0, 2.0, 2.0], 0.0)
    assert lloyd_max(torch.full((5,), 3.0), 1)[0].tolist() == [3.0]
    spiked = torch.cat([torch.zeros(100_000), torch.arange(1.0, 41.0)])  # all quantiles are 0
    points, error = lloyd_max(spiked, 33)
    assert len(points.unique()) == 33
    assert error < 1e-3
    for wrong, L in (
        (torch.zeros(0), 2),
        (torch.tensor([math.nan, 1.0]), 2),
        (torch.zeros(2, 2), 2),
        (torch.ones(3), 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            lloyd_max(wrong, L)

"""Distances between feature sets: golden values, closed forms, and the formula of the usual code."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ifsq.metrics import FeatureStatistics, fd_name, frechet_distance, frechet_from_statistics


def gaussian(n: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=draw, dtype=torch.float64) * scale + shift


@pytest.mark.parametrize(("other", "case"), [(1, "f11"), (2, "f12"), (3, "f13_rank_deficient"), (2, "adm_f12")])
def test_golden_frechet_distances(golden: Callable[[str], Any], other: int, case: str) -> None:
    vectors = golden("metrics")
    ours = frechet_distance(vectors.get_tensor("fid/feat1"), vectors.get_tensor(f"fid/feat{other}"))
    assert ours == pytest.approx(float(vectors.get_tensor(f"fid/{case}")), abs=1e-7)


def test_it_is_the_textbook_formula() -> None:
    a, b = gaussian(80, 6, 0), gaussian(90, 6, 1, 1.7, 0.3) @ gaussian(6, 6, 2)
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    means = a.mean(0).numpy() - b.mean(0).numpy()
    expected = means @ means + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_a_shift_and_a_scale_have_closed_forms() -> None:
    a = gaussian(300, 5, 0)
    assert frechet_distance(a, a + 2) == pytest.approx(5 * 4, rel=1e-10)
    centred = a - a.mean(0)
    variance = centred.square().sum() / 299
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(variance), rel=1e-10)


def exactly(mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Rows whose mean and covariance are ``mean`` and ``factor factor^T``, to rounding."""
    points = factor.T * ((2 * factor.shape[1] - 1) / 2) ** 0.5
    return torch.cat([mean + points, mean - points])


def test_two_gaussians_have_a_closed_form() -> None:
    """In two dimensions ``tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2)``, whether or not A and B commute."""
    for seed in range(5):
        first, second = gaussian(2, 2, seed), gaussian(2, 2, 100 + seed)
        shift = gaussian(2, 1, 200 + seed)[:, 0]
        a, b = first @ first.T, second @ second.T
        root = ((a @ b).trace() + 2 * torch.linalg.det(a @ b).sqrt()).sqrt()
        expected = shift.square().sum() + a.trace() + b.trace() - 2 * root
        found = frechet_distance(exactly(torch.zeros(2), first), exactly(shift, second))
        assert found == pytest.approx(float(expected), rel=1e-10)


def test_fewer_vectors_than_dimensions_are_exact() -> None:
    """The trace of the root is then the sum of singular values of the products of rows, which needs no covariance."""
    for n, m in ((4, 5), (20, 29), (29, 60)):
        a, b = gaussian(n, 30, 0), gaussian(m, 30, 1)
        rows = [x - x.mean(dim=0) for x in (a, b)]
        cross = torch.linalg.svdvals(rows[0] @ rows[1].T).sum() / ((n - 1) * (m - 1)) ** 0.5
        traces = sum(x.square().sum() / (len(x) - 1) for x in rows)
        expected = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + traces - 2 * cross
        assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)
        assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-12)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_features_that_repeat_or_never_change() -> None:
    """A feature twice counts twice, a constant one by its mean alone; sets of equal images have a distance too."""
    a, b = gaussian(80, 4, 0), gaussian(90, 4, 1, 1.5, 0.4)
    once, constant = frechet_distance(a, b), torch.ones(1)
    assert frechet_distance(a.repeat(1, 2), b.repeat(1, 2)) == pytest.approx(2 * once, rel=1e-12)
    wider = (torch.cat([x, constant.expand(len(x), 1) * value], dim=1) for x, value in ((a, 2), (b, 5)))
    assert frechet_distance(*wider) == pytest.approx(once + 9, rel=1e-12)
    assert frechet_distance(torch.zeros(3, 4), torch.ones(5, 4)) == pytest.approx(4)


def test_statistics_stream_and_survive_a_large_mean() -> None:
    # float32 features far from zero: sums of squares would lose every digit of the covariance.
    features = (gaussian(500, 4, 0) + 3000).float()
    statistics = FeatureStatistics(4)
    for part in features.split([1, 99, 0, 400]):
        statistics.add(part)
    assert statistics.n == 500
    np.testing.assert_allclose(statistics.mean.numpy(), features.double().mean(0).numpy(), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance.numpy(), np.cov(features.double().numpy().T), rtol=1e-10)


def test_adding_is_merging_to_the_last_bit() -> None:
    first, second = gaussian(37, 5, 0) + 100, gaussian(64, 5, 1, 3.0)
    added, merged, other = FeatureStatistics(5), FeatureStatistics(5), FeatureStatistics(5)
    added.add(first)
    added.add(second)
    merged.add(first)
    other.add(second)
    merged.merge(other)
    merged.merge(FeatureStatistics(5))
    assert merged.n == added.n == 101
    assert torch.equal(merged.mean, added.mean)
    assert torch.equal(merged.covariance, added.covariance)
    assert other.n == 64


def test_parts_in_any_order_are_the_whole() -> None:
    # Small integers, and counts that are powers of two: every sum and quotient is exact, so the order cannot show.
    features = torch.randint(-8, 9, (64, 3), generator=torch.Generator().manual_seed(0)).double()
    whole = FeatureStatistics(3)
    whole.add(features)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        parts = [FeatureStatistics(3) for _ in range(4)]
        for part, rows in zip(parts, features.split(16), strict=True):
            part.add(rows)
        left, right = (parts[k] for k in order[::2])
        left.merge(parts[order[1]])
        right.merge(parts[order[3]])
        left.merge(right)
        assert torch.equal(left.mean, whole.mean)
        assert torch.equal(left.covariance, whole.covariance)


def test_only_the_2015_inception_is_called_fid() -> None:
    assert fd_name("inception-2015-12-05") == "FID"
    assert fd_name("judge") == "FD(judge)"
    assert fd_name("inception") == "FD(inception)"


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="covariance of 1 feature vectors"):
        frechet_distance(gaussian(1, 3, 0), gaussian(9, 3, 0))
    with pytest.raises(ValueError, match="features of 3 and 4 dimensions"):
        frechet_from_statistics(FeatureStatistics(3), FeatureStatistics(4))
    with pytest.raises(ValueError, match="found nan"):
        FeatureStatistics(2).add(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"features \(2, 3\): expected rows of 2"):
        FeatureStatistics(2).add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="statistics of 3 features: expected 2"):
        FeatureStatistics(2).merge(FeatureStatistics(3))

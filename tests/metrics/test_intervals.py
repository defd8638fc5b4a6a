"""Intervals: the jackknife and the bootstrap against many fresh samples, and what is said of few images."""

import pytest
import torch

from ifsq.metrics import FeatureStatistics, frechet_from_statistics
from ifsq.metrics.intervals import CORRECTS, bias_note, bootstrap_means, frechet_jackknife, percentiles
from ifsq.metrics.neighbours import neighbours


def normal(n, dim=4, seed=0, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def counted(rows):
    statistics = FeatureStatistics(rows.shape[1])
    statistics.add(rows)
    return statistics


def groups(rows, count=10):
    return [counted(rows[number::count]) for number in range(count)]


def test_the_jackknife_is_its_definition():
    rows, reference = normal(60, seed=1, shift=0.3), counted(normal(500))
    found = frechet_jackknife(groups(rows, 3), reference)
    assert found.value == pytest.approx(frechet_from_statistics(counted(rows), reference), rel=1e-12)
    for number, value in enumerate(found.without):
        others = torch.cat([rows[other::3] for other in range(3) if other != number])
        assert value == pytest.approx(frechet_from_statistics(counted(others), reference), rel=1e-12)
    mean = sum(found.without) / 3
    assert found.error == pytest.approx((2 / 3 * sum((value - mean) ** 2 for value in found.without)) ** 0.5)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.value)


def test_the_jackknife_tells_the_error_and_most_of_the_bias():
    """Of 200 samples: its error is that over 60 fresh sets, to a third; corrected, the bias is at most a quarter."""
    dim, reference = 8, FeatureStatistics(8)
    scale = (99_999 / 2) ** 0.5  # rows whose mean and covariance are exactly 0 and the identity
    reference.n, reference._scatter = 100_000, torch.eye(8, dtype=torch.float64) * 2 * scale**2
    found = [frechet_jackknife(groups(normal(200, dim, seed=seed)), reference) for seed in range(60)]
    values = torch.tensor([one.value for one in found])
    assert sum(one.error for one in found) / 60 == pytest.approx(float(values.std()), rel=1 / 3)
    bias = float(values.mean())  # the truth is 0
    assert bias > 5 * float(values.std()) / 60**0.5
    assert abs(sum(one.corrected for one in found)) / 60 < bias / 4


def test_below_four_images_a_feature_the_correction_takes_off_too_much():
    """Of as many samples as features the distance is far above the truth, 0, and the corrected one far below."""
    dim, reference = 24, FeatureStatistics(24)
    reference.n, reference._scatter = 100_000, torch.eye(24, dtype=torch.float64) * 99_999
    found = [frechet_jackknife(groups(normal(n, dim), 8), reference) for n in (20, CORRECTS * dim)]
    assert [one.value > 4 * one.error for one in found] == [True, True]
    assert found[0].corrected < -3 * found[0].error
    assert abs(found[1].corrected) < found[1].value / 4


def test_the_bootstrap_of_precision_tells_the_error():
    """Against fresh samples at the same real images, to a third."""
    real = normal(150, seed=1)
    shares = [neighbours(real, normal(120, seed=seed, shift=0.8)).precision for seed in range(2, 42)]
    fresh = torch.stack([share.mean() for share in shares]).std()
    drawn = torch.stack([bootstrap_means(share, 200).std() for share in shares]).mean()
    assert float(drawn) == pytest.approx(float(fresh), rel=1 / 3)
    assert torch.equal(bootstrap_means(shares[0], 9, seed=1), bootstrap_means(shares[0], 9, seed=1))
    low, high = percentiles(bootstrap_means(shares[0], 500))
    assert low < float(shares[0].mean()) < high


def test_percentiles_are_of_the_middle():
    assert percentiles(torch.arange(1001.0)) == pytest.approx((25, 975))


def test_few_images_are_told():
    assert bias_note(600, 1280).startswith(
        "600 images for 1280 features: the distance is far too large, the covariance"
    )
    assert bias_note(5000, 1280).startswith("5000 images for 1280 features: the distance is biased upwards, about as")
    assert bias_note(50_000, 2048) == ""
    for note in (bias_note(600, 1280), bias_note(5000, 1280)):
        assert "\n" not in note
        assert "equal n" in note


def test_refuses():
    with pytest.raises(ValueError, match="jackknife of 1 groups: expected at least two"):
        frechet_jackknife([counted(normal(9))], counted(normal(9)))
    with pytest.raises(ValueError, match="covariance of 1 feature vectors"):
        frechet_jackknife([counted(normal(9)), counted(normal(1))], counted(normal(9)))
    with pytest.raises(ValueError, match="bootstrap of 0 images"):
        bootstrap_means(torch.empty(0))

"""Precision, recall, density and coverage: golden values, a second implementation, and sets whose figures are known."""

import pytest
import torch

from ifsq.metrics import tiles
from ifsq.metrics.neighbours import neighbours, radii


def normal(n, dim=8, seed=0, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_golden(golden):
    vectors = golden("metrics")
    real, samples = vectors.get_tensor("pr/ref"), vectors.get_tensor("pr/sample")
    found = neighbours(real, samples)
    expected = vectors.get_tensor("pr/precision_recall").double()
    torch.testing.assert_close(torch.stack([found.precision.mean(), found.recall.mean()]), expected, rtol=1e-6, atol=0)
    for features, name in ((real, "pr/radii_ref"), (samples, "pr/radii_sample")):
        radius = radii(features.double(), (3,)).float()
        torch.testing.assert_close(radius, vectors.get_tensor(name), rtol=1e-5, atol=0)


@pytest.mark.parametrize("block", [7, 1000])
def test_all_equal_a_loop_over_images(monkeypatch, block):
    monkeypatch.setattr(tiles, "BLOCK", block)
    real, samples = normal(40, seed=1), normal(30, seed=2, shift=0.4)
    found = neighbours(real, samples, k=2, k_density=4)

    def radius(points, index, k):
        return sorted(float((points[index] - other).norm()) for j, other in enumerate(points) if j != index)[k - 1]

    def inside(point, points, index, k):
        return float((point - points[index]).norm()) <= radius(points, index, k)

    for i, sample in enumerate(samples):
        assert found.precision[i] == any(inside(sample, real, j, 2) for j in range(40))
        assert found.density[i] == sum(inside(sample, real, j, 4) for j in range(40)) / 4
    for j, image in enumerate(real):
        assert found.recall[j] == any(inside(image, samples, i, 2) for i in range(30))
        assert found.coverage[j] == any(inside(sample, real, j, 4) for sample in samples)


def test_known_sets():
    same = normal(200)
    found = neighbours(same, same.clone())
    assert found.precision.mean() == found.recall.mean() == found.coverage.mean() == 1
    far = neighbours(same, normal(100, seed=1, shift=100.0))
    assert far.precision.sum() == far.recall.sum() == far.density.sum() == far.coverage.sum() == 0
    half = torch.cat([normal(150, seed=2), normal(50, seed=3, shift=100.0)])
    assert 0.6 < neighbours(same, half).precision.mean() <= 0.75
    assert abs(float(neighbours(normal(800, 4, 4), normal(800, 4, 5)).density.mean()) - 1) < 0.1


def test_processes_share_the_work_to_the_bit(monkeypatch, processes):
    monkeypatch.setattr(tiles, "BLOCK", 16)
    real, samples = normal(90, seed=1).float(), normal(70, seed=2, shift=0.4).float()
    alone = neighbours(real, samples)
    for size in (2, 3):
        for found in processes(size, lambda world: neighbours(real, samples, world=world)):
            for name in ("precision", "recall", "density", "coverage"):
                assert torch.equal(getattr(found, name), getattr(alone, name))


def test_memory_does_not_grow_with_the_pairs():
    """The most at a time is a few tiles, of 33 MB each at 2048 rows; all pairs of these would take 800 MB."""
    rows, columns = next(tiles.tiles(10_000, 10_000, tiles.ALONE))
    assert rows == columns == slice(0, 2048)
    assert len(list(tiles.tiles(10_000, 10_000, tiles.ALONE))) == 25
    assert len(list(tiles.own_tiles(10_000, tiles.ALONE))) == 15


@pytest.mark.parametrize(
    ("real", "samples", "message"),
    [
        (normal(5), normal(20), r"real features \(5, 8\): expected at least 6 rows of 8"),
        (normal(20), normal(2), r"features of samples \(2, 8\): expected at least 6 rows of 8"),
        (normal(20), normal(20, dim=9), r"features of samples \(20, 9\): expected at least 6 rows of 8"),
        (normal(20), normal(20) / 0, "features of samples: expected finite values"),
    ],
)
def test_refuses(real, samples, message):
    with pytest.raises(ValueError, match=message):
        neighbours(real, samples)

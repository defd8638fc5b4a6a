"""The kernel distance: the definition, sets of one distribution, and the bootstrap."""

import pytest
import torch

from ifsq.metrics import kernel, tiles
from ifsq.metrics.kernel import kernel_distance, kid_name


def normal(n, dim=6, seed=0, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_names():
    assert kid_name("inception-2015-12-05") == "KID"
    assert kid_name("efficientnet-lite0") == "KD(efficientnet-lite0)"


@pytest.mark.parametrize("block", [5, 1000])
def test_it_is_the_mean_over_pairs(monkeypatch, block):
    monkeypatch.setattr(tiles, "BLOCK", block)
    monkeypatch.setattr(kernel, "BLOCK", block)
    a, b = normal(12, seed=1), normal(9, seed=2, shift=0.5)

    def k(x, y):
        return float((x @ y / 6 + 1) ** 3)

    within = [sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) for s in (a, b)]
    across = sum(k(x, y) for x in a for y in b)
    expected = within[0] / (12 * 11) + within[1] / (9 * 8) - 2 * across / (12 * 9)
    assert kernel_distance(a, b, draws=0).value == pytest.approx(expected, rel=1e-12)


def test_equal_distributions_are_unbiased():
    """Within two standard errors of zero over 50 pairs of sets."""
    values = torch.tensor([kernel_distance(normal(60, seed=i), normal(60, seed=1000 + i), 0).value for i in range(50)])
    assert abs(float(values.mean())) < 2 * float(values.std()) / 50**0.5
    assert float(values.min()) < 0 < float(values.max())


def test_processes_share_the_work(monkeypatch, processes):
    monkeypatch.setattr(tiles, "BLOCK", 16)
    a, b = normal(90, seed=1).float(), normal(70, seed=2, shift=0.4).float()
    alone = kernel_distance(a, b, 5)
    for found in processes(3, lambda world: kernel_distance(a, b, 5, world=world)):
        assert found.value == pytest.approx(alone.value, rel=1e-12)
        torch.testing.assert_close(found.drawn, alone.drawn, rtol=1e-12, atol=0)


def test_another_distribution_is_farther():
    distances = [kernel_distance(normal(200), normal(200, seed=1, shift=s), draws=0).value for s in (0.2, 0.5, 1.0)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_bootstrap_tells_the_error():
    """Its standard deviation is that over fresh sets, to a third; images drawn twice make no pair with themselves."""
    fresh = torch.tensor(
        [kernel_distance(normal(80, seed=i), normal(80, seed=500 + i, shift=0.6), 0).value for i in range(60)]
    )
    drawn = torch.stack(
        [kernel_distance(normal(80, seed=i), normal(80, seed=500 + i, shift=0.6), 60).drawn for i in range(5)]
    )
    assert float(drawn.std(dim=1).mean()) == pytest.approx(float(fresh.std()), rel=1 / 3)
    found = kernel_distance(normal(80), normal(80, seed=500, shift=0.6), 200)
    assert float(found.drawn.mean()) == pytest.approx(found.value, abs=float(found.drawn.std()))
    assert torch.equal(found.drawn, kernel_distance(normal(80), normal(80, seed=500, shift=0.6), 200).drawn)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(1), normal(5), r"features \(1, 6\): expected at least 2 rows of 6"),
        (normal(5), normal(5, dim=7), r"features \(5, 7\): expected at least 2 rows of 6"),
        (normal(5) / 0, normal(5), "features: expected finite values"),
    ],
)
def test_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(a, b)

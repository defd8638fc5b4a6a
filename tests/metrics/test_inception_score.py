"""The Inception Score: golden values, known distributions, and sums that several processes share."""

import pytest
import torch

from ifsq.metrics.inception_score import InceptionScore


@pytest.mark.parametrize("part", [500, 5000])
def test_golden(golden, part):
    vectors = golden("metrics")
    probabilities = vectors.get_tensor("is/probs")
    score = InceptionScore(20, part)
    for first in range(0, 1500, 128):
        score.add(probabilities[first : first + 128], first)
    expected = float(vectors.get_tensor(f"is/score_split{part}"))
    assert float(score.values().mean()) == pytest.approx(expected, rel=1e-6)


def test_known_distributions():
    certain, uncertain = InceptionScore(4), InceptionScore(4)
    certain.add(torch.eye(4), 0)
    uncertain.add(torch.full((4, 4), 0.25), 0)
    assert float(certain.values()) == pytest.approx(4)
    assert float(uncertain.values()) == pytest.approx(1)


def test_processes_share_the_images():
    probabilities = torch.rand(37, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    alone, one, two = (InceptionScore(5, part=10) for _ in range(3))
    alone.add(probabilities, 0)
    for first in range(0, 37, 6):
        (one if first % 12 else two).add(probabilities[first : first + 6], first)
    one.merge(two)
    assert len(alone.values()) == 4
    torch.testing.assert_close(one.values(), alone.values(), rtol=1e-12, atol=0)


def test_refuses():
    score = InceptionScore(3)
    with pytest.raises(ValueError, match=r"probabilities \(2, 4\): expected rows of 3"):
        score.add(torch.zeros(2, 4), 0)
    with pytest.raises(ValueError, match="expected values from 0 to 1"):
        score.add(torch.full((1, 3), 2.0), 0)
    with pytest.raises(ValueError, match="Inception Score of no images"):
        score.values()
    with pytest.raises(ValueError, match="scores of 4 classes in parts of 5000: expected the same"):
        score.merge(InceptionScore(4))

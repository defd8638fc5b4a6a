"""Local against distant similarity: closed forms, a second implementation, and what it does not see."""

import math
from itertools import product

import pytest
import torch

from ifsq.metrics.spatial import local_distant_similarity


def positions(rows, columns):
    return list(product(range(rows), range(columns)))


@pytest.mark.parametrize(("rows", "columns", "far"), [(4, 4, 2), (3, 7, 4), (16, 16, 6)])
def test_a_chess_board_in_closed_form(rows, columns, far):
    """Neighbours are orthogonal, and two patches are alike where their distance is even."""
    places = positions(rows, columns)
    features = torch.tensor([[1.0, 0.0] if (r + c) % 2 else [0.0, 2.0] for r, c in places])[None]
    apart = [abs(r - s) + abs(c - d) for r, c in places for s, d in places]
    distant = [d for d in apart if d >= far]
    expected = 0 - sum(d % 2 == 0 for d in distant) / len(distant)
    found = local_distant_similarity(features, (rows, columns), far)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_a_turning_vector_in_closed_form():
    """An angle a column: neighbours in a row differ by it, those in a column not at all."""
    side, angle, far = 6, 0.2, 9  # 9 apart: the corners' squares alone
    features = torch.tensor([[math.cos(c * angle), math.sin(c * angle)] for _, c in positions(side, side)])[None]
    local = (1 + math.cos(angle)) / 2
    # Of 6x6 at least 9 apart: 5 rows and 5 columns (1 way), 5 and 4 (2 places), 4 and 5 (2 places)
    distant = (math.cos(5 * angle) + 2 * math.cos(4 * angle) + 2 * math.cos(5 * angle)) / 5
    found = local_distant_similarity(features, (side, side), far)
    torch.testing.assert_close(found, torch.tensor([local - distant], dtype=torch.float64), atol=1e-7, rtol=0)


def test_it_equals_a_second_implementation(monkeypatch):
    features = torch.randn(3, 15, 4, generator=torch.Generator().manual_seed(0))
    expected = []
    for image in features.double():
        local, distant = [], []
        for (i, (r, c)), (j, (s, d)) in product(enumerate(positions(3, 5)), repeat=2):
            cosine = float(image[i] @ image[j] / (image[i].norm() * image[j].norm()))
            apart = abs(r - s) + abs(c - d)
            local += [cosine] if apart == 1 else []
            distant += [cosine] if apart >= 2 else []  # 3/8 of 4 is 1.5
        expected.append(sum(local) / len(local) - sum(distant) / len(distant))
    found = local_distant_similarity(features, (3, 5))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    monkeypatch.setattr("ifsq.metrics.spatial.PAIRS_AT_ONCE", 1)
    torch.testing.assert_close(local_distant_similarity(features, (3, 5)), found)


def test_what_it_does_not_see():
    features = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    found = local_distant_similarity(features, (8, 8))
    lengths = torch.rand(2, 64, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    torch.testing.assert_close(local_distant_similarity(features * lengths, (8, 8)), found, atol=1e-6, rtol=0)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    torch.testing.assert_close(local_distant_similarity(features @ rotation, (8, 8)), found, atol=1e-6, rtol=0)
    assert found.abs().max() < 0.1  # noise has no structure
    constant = torch.ones(1, 64, 8)
    assert float(local_distant_similarity(constant, (8, 8)).abs()) < 1e-12


def test_smooth_features_have_structure():
    """Noise that is smoothed more goes on further: a higher score, up to where it reaches distant patches."""
    noise = torch.randn(4, 16, 20, 20, generator=torch.Generator().manual_seed(0))
    scores = []
    for width in (1, 3, 5):
        smooth = torch.nn.functional.avg_pool2d(noise, width, stride=1)[..., :16, :16]
        scores.append(float(local_distant_similarity(smooth.flatten(2).transpose(1, 2), (16, 16)).mean()))
    assert scores == sorted(scores)
    assert scores[2] > 0.6


@pytest.mark.parametrize(
    ("shape", "grid", "far", "told"),
    [
        ((1, 15, 2), (4, 4), None, "15 patches: expected the 16 of a grid of 4x4"),
        ((1, 16, 2), (4, 4), 7, "far=7: a grid of 4x4 has patches up to 6 apart"),
        ((1, 16, 2), (4, 4), 0, "far=0"),
        ((1, 1, 2), (1, 1), None, "far=2: a grid of 1x1 has patches up to 0 apart"),
    ],
)
def test_what_it_refuses(shape, grid, far, told):
    with pytest.raises(ValueError, match=told):
        local_distant_similarity(torch.zeros(shape), grid, far)


def test_features_that_are_no_numbers():
    with pytest.raises(ValueError, match="not finite"):
        local_distant_similarity(torch.full((1, 16, 2), math.nan), (4, 4))

"""Entropy and shares from counts that are known."""

import math

import pytest
import torch

from ifsq.quantizers.usage import LevelUse, entropy_bits


def test_entropy_of_counts_and_of_shares():
    assert entropy_bits(torch.full((16,), 7)) == pytest.approx(4)
    assert entropy_bits(torch.tensor([0, 0, 9])) == 0
    assert entropy_bits(torch.tensor([3, 1])) == pytest.approx(0.75 * math.log2(4 / 3) + 0.5)
    assert entropy_bits(torch.tensor([0.75, 0.25])) == pytest.approx(entropy_bits(torch.tensor([3, 1])))


def test_use_of_one_dimension():
    use = LevelUse.of([torch.tensor([1, 5, 2, 0])])
    assert use.share == (0.125, 0.625, 0.25, 0.0)
    assert (use.levels, use.least, use.top, use.ends) == (4, 0, 0.625, 0.125)
    assert use.bits == pytest.approx(entropy_bits(torch.tensor([1, 5, 2])))
    assert use.fraction == pytest.approx(use.bits / 2)


def test_dimensions_of_unlike_levels_together():
    use = LevelUse.of([torch.tensor([4, 4]), torch.tensor([8, 0, 0])])
    assert use.share == (0.75, 0.25, 0.0)
    assert use.fraction == 0.5  # of 1 and 0


@pytest.mark.parametrize("share", [(), (0.5, -0.1), (1.5,), (math.nan, 1.0)])
def test_shares_are_parts_of_one(share):
    with pytest.raises(ValueError, match="expected a part of 1"):
        LevelUse(share, 1.0)

"""How evenly levels and indices are used, from counts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class LevelUse:
    """How evenly the levels of one dimension, or of several together, are used.

    share     part of all digits that falls on each level
    fraction  entropy over log2 L, mean over the dimensions: 1 is even use
    """

    share: tuple[float, ...]
    fraction: float

    def __post_init__(self) -> None:
        if not self.share or not all(0 <= part <= 1 for part in self.share):
            raise ValueError("share: expected a part of 1 for each level")

    @classmethod
    def of(cls, counts: Sequence[Shaped[Tensor, "_"]]) -> LevelUse:
        """Counts of the levels, a tensor a dimension, none all zero -> their use; a dimension may have fewer levels."""
        fractions = [entropy_bits(count) / math.log2(len(count)) for count in counts]
        total = torch.zeros(max(map(len, counts)), dtype=torch.float64)
        for count in counts:
            total[: len(count)] += count.cpu()
        return cls(tuple((total / total.sum()).tolist()), sum(fractions) / len(fractions))

    @property
    def levels(self) -> int:
        """Level count."""
        return len(self.share)

    @property
    def bits(self) -> float:
        """Entropy of the levels of one dimension."""
        return self.fraction * math.log2(self.levels)

    @property
    def least(self) -> float:
        """Share of the least-used level, times the level count: 1 is even use, 0 is a level that never occurs."""
        return min(self.share) * self.levels

    @property
    def top(self) -> float:
        """Share of the most used level."""
        return max(self.share)

    @property
    def ends(self) -> float:
        """Share of the two end levels together."""
        return self.share[0] + self.share[-1]


def entropy_bits(counts: Shaped[Tensor, "k"]) -> float:
    """Entropy in bits, at most log2(k), of the distribution that counts or shares (not all zero) describe."""
    shares = counts.double() / counts.sum()
    return abs(float(-torch.xlogy(shares, shares).sum() / math.log(2)))

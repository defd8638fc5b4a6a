"""How sure a figure is: jackknife of Fréchet distances, bootstrap of means over images, and a bias in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.metrics.distribution import FeatureStatistics, Moments, frechet_from_statistics

LEVEL = 0.95
"""Of intervals: the share that holds the true value, where the assumption of the method is met."""
NORMAL = 1.96  # standard errors on either side that hold it
CORRECTS = 4
"""Samples a feature from which `Jackknife.corrected` is an estimate."""


@dataclass(frozen=True)
class Jackknife:
    """A Fréchet distance, and what it is without each of some groups of the samples (Tukey 1958).

    value    of all samples
    without  of all but one group, a value a group
    """

    value: float
    without: tuple[float, ...]

    @property
    def error(self) -> float:
        """Standard error over other samples of as many images; the reference stays. Up to 1.7 times too large (log)."""
        left = torch.tensor(self.without, dtype=torch.float64)
        return float((left - left.mean()).square().sum() * (len(left) - 1) / len(left)) ** 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """Around `value`, of about `LEVEL`, for the distance that as many images give in the mean."""
        return self.value - NORMAL * self.error, self.value + NORMAL * self.error

    @property
    def corrected(self) -> float:
        """Without the part of the bias that falls as 1/n: an estimate of the distance at very many samples.

        Below `CORRECTS` samples a feature the bias does not fall so, and this takes off too much, down to far below 0.
        """
        count = len(self.without)
        return count * self.value - (count - 1) * sum(self.without) / count


def frechet_jackknife(parts: Sequence[FeatureStatistics], reference: FeatureStatistics | Moments) -> Jackknife:
    """From statistics of groups of the samples, of about equal counts, as of every tenth image.

    Takes as many distances as there are groups, and one. Raises ValueError for fewer than two groups, and where two
    images are not left without one of them.
    """
    if len(parts) < 2:
        raise ValueError(f"jackknife of {len(parts)} groups: expected at least two")
    without = []
    for left_out in range(len(parts)):
        others = [part for number, part in enumerate(parts) if number != left_out]
        without.append(frechet_from_statistics(_merged(others), reference))
    return Jackknife(frechet_from_statistics(_merged(parts), reference), tuple(without))


def bootstrap_means(values: Float[Tensor, "n"], draws: int = 1000, seed: int = 0) -> Float[Tensor, "draws"]:
    """Means over images drawn again from these, with replacement.

    Of `Neighbours`, the columns: the images are drawn again and the balls stay, so the deviation is what other samples
    against the same balls give. Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("bootstrap of 0 images: expected at least one")
    rng = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    picks = (torch.randint(len(values), (len(values),), generator=rng) for _ in range(draws))
    return torch.stack([values[pick].mean() for pick in picks])


def percentiles(drawn: Float[Tensor, "draws"], level: float = LEVEL) -> tuple[float, float]:
    """The interval that holds the middle ``level`` of bootstrap draws."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=drawn.device)
    low, high = drawn.double().quantile(ends).tolist()
    return low, high


def bias_note(n: int, features: int) -> str:
    """A line on the bias of a Fréchet distance over so few images, or nothing where there are ten times the features.

    n         images of the smaller set
    features  numbers that the network says of an image
    """
    advice = "compare it at equal n alone, or use the kernel distance, which has no bias"
    if n >= 10 * features:
        return ""
    bias = "biased upwards, about as 1/n" if n > features else "far too large, the covariance lacks directions"
    return f"{n} images for {features} features: the distance is {bias}; {advice}"


def _merged(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    whole = FeatureStatistics(len(parts[0].mean))
    for part in parts:
        whole.merge(part)
    return whole

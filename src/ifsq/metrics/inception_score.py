"""Inception Score (Salimans et al. 2016, arXiv:1606.03498), in parts of 5000 images as the field's evaluator (ADM)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.metrics.distribution import INCEPTION_2015

PART = 5000


def score_name(features: str) -> str:
    """``Inception Score`` for the 2015-12-05 Inception network, ``IS(<features>)`` for every other classifier."""
    return "Inception Score" if features == INCEPTION_2015 else f"IS({features})"


class InceptionScore:
    """Sums over class probabilities: of each part the mean distribution and the mean negative entropy.

    part  images of a part, in their order; the last may have fewer
    """

    def __init__(self, classes: int, part: int = PART) -> None:
        if classes < 1 or part < 1:
            raise ValueError(f"classes={classes}, part={part}: expected positive numbers")
        self.classes, self.part = classes, part
        self._counts: dict[int, int] = {}
        self._sums: dict[int, Tensor] = {}
        self._negentropy: dict[int, float] = {}

    def add(self, probabilities: Float[Tensor, "b classes"], first: int) -> None:
        """Count images by the probabilities of their classes, rows that sum to 1.

        first  number of the first image among all: it says which part it belongs to

        Raises ValueError on another width and on values that are no probabilities.
        """
        rows = probabilities.detach().to("cpu", torch.float64)
        if rows.ndim != 2 or rows.shape[1] != self.classes:
            raise ValueError(f"probabilities {tuple(rows.shape)}: expected rows of {self.classes}")
        if not bool(((rows >= 0) & (rows <= 1 + 1e-6)).all()):
            raise ValueError("probabilities: expected values from 0 to 1")
        parts = (first + torch.arange(len(rows))) // self.part
        for number in parts.unique().tolist():
            inside = rows[parts == number]
            self._count(number, len(inside), inside.sum(dim=0), float(torch.special.xlogy(inside, inside).sum()))

    def merge(self, other: "InceptionScore") -> None:
        """Count what another process has counted of the same images. Raises ValueError on another layout."""
        if (other.classes, other.part) != (self.classes, self.part):
            raise ValueError(f"scores of {other.classes} classes in parts of {other.part}: expected the same")
        for number, count in other._counts.items():
            self._count(number, count, other._sums[number], other._negentropy[number])

    def values(self) -> Float[Tensor, "parts"]:
        """``exp(E KL(p(y|x) || p(y)))`` of each part; the score is their mean. Raises ValueError without images."""
        if not self._counts:
            raise ValueError("Inception Score of no images: expected at least one")
        found = []
        for number, count in sorted(self._counts.items()):
            mean = self._sums[number] / count
            found.append(self._negentropy[number] / count - float(torch.special.xlogy(mean, mean).sum()))
        return torch.tensor(found, dtype=torch.float64).exp()

    def _count(self, number: int, count: int, sums: Tensor, negentropy: float) -> None:
        self._counts[number] = self._counts.get(number, 0) + count
        self._sums[number] = self._sums[number] + sums if number in self._sums else sums
        self._negentropy[number] = self._negentropy.get(number, 0.0) + negentropy

"""Linear probe: how well ridge regression reads the class of an image it has not seen from frozen features.

The regression has a closed form, so that nothing is tuned and the figure follows from features and labels alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.metrics.tiles import BLOCK, check_rows

FOLDS = 5
PENALTY = 0.01
ROUNDING = 1e-12
"""Far above that of float64 and below that of float32, in which features come."""


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    accuracy  share of images whose class it finds when it was fitted without their fold
    chance    share of the most frequent class
    error     standard error of the accuracy
    """

    accuracy: float
    chance: float
    error: float


def ridge_probe(
    features: Float[Tensor, "n f"], labels: Int[Tensor, "m"], folds: int = FOLDS, penalty: float = PENALTY
) -> Probe:
    """Fit on all folds but one and count in that one, for each; the images of every class go round the folds in turn.

    Each feature is scaled to variance 1 over the images that are fitted; the regression of the classes (one-hot) has an
    intercept and ``penalty`` times the square of its weights beside the mean squared error. In float64, a block of rows
    at a time: memory beside the features is folds * f^2.

    Raises ValueError for fewer than 2 classes, for folds outside 2 to n, for a penalty that is not positive, for
    labels below 0, and for values that are not finite.
    """
    n = len(features)
    if not 2 <= folds <= n:
        raise ValueError(f"folds={folds} of {n} images: expected 2 to {n}")
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty={penalty}: expected a positive number")
    check_rows(features, features.shape[1], "features", 1)
    if labels.shape != (n,) or int(labels.min()) < 0:
        raise ValueError(f"labels {tuple(labels.shape)}, from {labels.min()}: expected {n} of them, 0 and above")
    known, targets = labels.unique(return_inverse=True)
    if len(known) < 2:
        raise ValueError(f"{len(known)} class: expected at least 2 to tell apart")
    origin = torch.stack([rows.double().sum(dim=0) for rows in features.split(BLOCK)]).sum(dim=0) / n
    by_class = targets.argsort(stable=True)
    held_out = [by_class[fold::folds].sort().values for fold in range(folds)]
    parts = [_sums(features, targets, images, origin, len(known)) for images in held_out]
    right = 0
    for images, part in zip(held_out, parts, strict=True):
        others = [other for other in parts if other is not part]
        sums = (torch.stack(each).sum(dim=0) for each in zip(*others, strict=True))
        weights, intercept = _fit(penalty, ROUNDING * origin.abs(), *sums)
        for some in images.split(BLOCK):
            scores = (features[some].double() - origin) @ weights + intercept
            right += int((scores.argmax(dim=1) == targets[some]).sum())
    accuracy = right / n
    chance = float(targets.bincount().max()) / n
    return Probe(accuracy, chance, math.sqrt(accuracy * (1 - accuracy) / n))


def _sums(features: Tensor, targets: Tensor, images: Tensor, origin: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Of x, x x^T, the classes, and x by class, of some images; x counted from ``origin``, so that little cancels."""
    f = len(origin)
    x_sum, squares = origin.new_zeros(f), origin.new_zeros(f, f)
    counts, by_class = origin.new_zeros(classes), origin.new_zeros(f, classes)
    for some in images.split(BLOCK):
        x, y = features[some].double() - origin, F.one_hot(targets[some], classes).double()
        x_sum += x.sum(dim=0)
        squares += x.T @ x
        counts += y.sum(dim=0)
        by_class += x.T @ y
    return x_sum, squares, counts, by_class


def _fit(
    penalty: float, least: Tensor, x_sum: Tensor, squares: Tensor, counts: Tensor, by_class: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights (f, classes) and intercept of the ridge regression with these sums.

    least  deviation of each feature that is more than rounding
    """
    n = counts.sum()
    x_mean, y_mean = x_sum / n, counts / n
    covariance = squares / n - torch.outer(x_mean, x_mean)
    cross = by_class / n - torch.outer(x_mean, y_mean)
    variance = covariance.diagonal()
    # What rounding leaves of a constant is no feature: one of all images, or of those that are fitted.
    varies = variance > least.square() + ROUNDING * squares.diagonal() / n
    scale = torch.where(varies, variance, torch.inf).rsqrt()
    system = scale[:, None] * covariance * scale
    system.diagonal().add_(penalty)
    weights = scale[:, None] * torch.cholesky_solve(scale[:, None] * cross, torch.linalg.cholesky(system))
    return weights, y_mean - x_mean @ weights

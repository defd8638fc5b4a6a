"""Bounds: monotone maps from an unbounded latent to (-1, 1), element by element.

The paper's one line is here: FSQ bounds with ``tanh(z) = 2*sigmoid(2z) - 1``, iFSQ with ``2*sigmoid(1.6z) - 1``
(arXiv 2601.17124, section 3), which sends N(0, 1) to nearly U(-1, 1). Called by ``fsq``; imports torch only.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BOUNDS = ("tanh", "ifsq", "gaussian", "clamp")
IFSQ_ALPHA = 1.6

Bound = Callable[[Tensor], Tensor]


def make_bound(name: str, alpha: float = IFSQ_ALPHA) -> Bound:
    """The bound called ``name``; ``alpha`` is the slope of ``ifsq`` and ignored by the others.

    Raises ValueError for an unknown name or a slope that is not positive.
    """
    if name == "ifsq":
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha={alpha}: the slope of the ifsq bound must be a positive number")
        return lambda z: logistic(z, alpha)
    if name == "tanh":
        return torch.tanh
    if name == "gaussian":
        return gaussian
    if name == "clamp":
        return clamp
    raise ValueError(f"bound={name!r}: expected one of {', '.join(BOUNDS)}")


def logistic(z: Tensor, alpha: float) -> Tensor:
    """``2*sigmoid(alpha*z) - 1``, any shape, float in (-1, 1); makes a logistic distribution of scale 1/alpha uniform.

    alpha = 1.6 comes within 0.017 (Kolmogorov-Smirnov) of uniform on N(0, 1); 1.702 is the closest logistic.
    """
    return 2 * torch.sigmoid(alpha * z) - 1


def gaussian(z: Tensor) -> Tensor:
    """``erf(z / sqrt 2)``, any shape, float in (-1, 1); makes N(0, 1) exactly uniform."""
    return torch.erf(z * math.sqrt(0.5))


def clamp(z: Tensor) -> Tensor:
    """``clamp(z, -1, 1)``, any shape; makes U(-1, 1) uniform. No gradient reaches a latent outside the interval."""
    return z.clamp(-1, 1)

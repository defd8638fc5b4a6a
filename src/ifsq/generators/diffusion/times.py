"""At which times of the path a diffusion model is trained: laws on [0, 1], where 0 is noise and 1 is data.

Logit-normal, mode and cosine: arXiv 2403.03206, section 3.1; the shift by resolution: its section 5.3.2.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LAWS = ("lognorm", "uniform", "mode", "cosine")
LARGEST_MODE = 2 / (math.pi - 2)
"""Scale of the law ``mode`` from which on it would not be monotone."""


def draw_times(
    law: str, count: int, rng: torch.Generator, mean: float = 0.0, std: float = 1.0, scale: float = 1.29
) -> Float[Tensor, "b"]:
    """Times of a law, float32 on the device of ``rng``.

    lognorm  logit-normal: the sigmoid of N(mean, std^2); a mean below 0 is nearer to noise
    uniform  all alike
    mode     most in the middle for a scale above 0, -1 to LARGEST_MODE, and most at both ends below
    cosine   those of a uniform log signal-to-noise ratio on the cosine path, mapped to the straight one
    """
    if law == "lognorm":
        return (torch.randn(count, generator=rng, device=rng.device) * std + mean).sigmoid()
    u = torch.rand(count, generator=rng, device=rng.device)
    if law == "uniform":
        return u
    if law == "mode":
        return u + scale * (u - torch.sin(math.pi / 2 * u) ** 2)
    sine, cosine = torch.sin(math.pi / 2 * u), torch.cos(math.pi / 2 * u)
    return sine / (sine + cosine)


def shift_times(times: Float[Tensor, "..."], shift: float) -> Float[Tensor, "..."]:
    """``t' = s t / (1 + (s - 1) t)``: a shift s below 1 moves times towards the noise, above 1 towards the data.

    0 stands for none, as 1 is.
    """
    if shift == 0:
        return times
    return shift * times / (1 + (shift - 1) * times)


def shift_by_resolution(base: int, values: int) -> float:
    """The shift for images of so many numbers whose noise hides as much as even times hide in ``base`` numbers.

    Averaging n pixels of equal content leaves the noise's deviation at ``1 / sqrt(n)``, so the ratio sigma / alpha must
    grow by ``sqrt(values / base)``.
    """
    return math.sqrt(base / values)

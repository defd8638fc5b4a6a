"""Data that is Gaussian, whose velocity is known along every path."""

import torch

SCALES = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64)  # of data that is N(MEANS, SCALES^2)
MEANS = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)


def of_gaussian(path):
    """The velocity that leads N(0, 1) to that data, and the point that each noise is led to."""

    def velocity(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = (alpha * SCALES) ** 2 + sigma**2
        score = (alpha * MEANS - x) / variance
        data = MEANS + alpha * SCALES**2 / variance * (x - alpha * MEANS)
        return path.d_alpha(t) * data - path.d_sigma(t) * sigma * score

    return velocity, lambda noise: MEANS + SCALES * noise


def bent(steps, shift):
    """`time_grid` in float64."""
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return even if shift == 0 else shift * even / (1 + (shift - 1) * even)

"""Laws of training times: each draw against the law's own distribution function, and the shift."""

import math

import pytest
import torch

from ifsq.generators.diffusion.solvers import time_grid
from ifsq.generators.diffusion.times import LARGEST_MODE, LAWS, draw_times, shift_by_resolution, shift_times

NORMAL = torch.distributions.Normal(0.0, 1.0)
COUNT = 4000


def law_of(t, law, mean=0.0, std=1.0, scale=1.29):
    """Distribution function of each law, from arXiv 2403.03206, where t = 1 is noise."""
    if law == "lognorm":
        return NORMAL.cdf(((t / (1 - t)).log() - mean) / std)
    if law == "uniform":
        return t
    if law == "cosine":  # the integral of 2 / (pi - 2 pi t + 2 pi t^2), their equation 21
        fine = torch.linspace(0, 1, 20001, dtype=torch.float64)
        density = 2 / (math.pi - 2 * math.pi * fine + 2 * math.pi * fine**2)
        total = torch.cumulative_trapezoid(density, fine)
        return total[(t * 20000).long().clamp(max=19999)]
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)
    theirs = 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)  # their equation 20, falls from 1 to 0
    return torch.searchsorted(1 - theirs, t) / 20000


@pytest.mark.parametrize(
    ("law", "options"),
    [
        ("lognorm", {}),
        ("lognorm", {"mean": -1.0, "std": 0.5}),
        ("uniform", {}),
        ("mode", {}),
        ("mode", {"scale": -0.9}),
        ("mode", {"scale": 1.7}),
        ("cosine", {}),
    ],
)
def test_draws_follow_their_law(law, options):
    times = draw_times(law, COUNT, torch.Generator().manual_seed(0), **options).double().sort().values
    assert bool(((times >= 0) & (times <= 1)).all())
    expected = (torch.arange(COUNT) + 0.5) / COUNT
    distance = (law_of(times, law, **options) - expected).abs().max()
    assert float(distance) < 1.63 / math.sqrt(COUNT)  # Kolmogorov-Smirnov at 1 %


@pytest.mark.parametrize("law", LAWS)
def test_draws_are_the_generators(law):
    times, again = (draw_times(law, 8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(times, again)
    assert times.dtype == torch.float32


def test_a_negative_mean_is_nearer_to_noise():
    low, high = (draw_times("lognorm", 500, torch.Generator(), mean=mean).mean() for mean in (-0.5, 0.5))
    assert low < 0.45 < 0.55 < high


def test_the_mode_law_is_monotone_up_to_its_largest_scale():
    u = torch.linspace(0, 1, 10001, dtype=torch.float64)
    at = lambda scale: u + scale * (u - torch.sin(math.pi / 2 * u) ** 2)  # noqa: E731
    assert bool((at(LARGEST_MODE).diff() > -1e-12).all())
    assert bool((at(LARGEST_MODE + 0.05).diff() < 0).any())


def test_the_shift_is_that_of_sampling_and_turns_back():
    even = torch.linspace(0, 1, 9)
    assert torch.equal(shift_times(even, 0.3), time_grid(8, 0.3))
    assert torch.equal(shift_times(even, 0.0), even)
    assert torch.allclose(shift_times(shift_times(even, 0.3), 1 / 0.3), even, atol=1e-6)
    assert float(shift_times(torch.tensor(0.5), 0.3)) < 0.5


def test_the_shift_by_resolution_is_the_published_one():
    """Their equation 23, of times at which 1 is noise: ``sqrt(m / n) t / (1 + (sqrt(m / n) - 1) t)``."""
    noise_time, ratio = torch.linspace(0, 1, 9), math.sqrt(4096 / 1024)
    theirs = ratio * noise_time / (1 + (ratio - 1) * noise_time)
    assert torch.allclose(1 - shift_times(1 - noise_time, shift_by_resolution(1024, 4096)), theirs, atol=1e-6)

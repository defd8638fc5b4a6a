"""Distributions of latents whose density, distribution function and first moment are known exactly. Float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ifsq.calibration.lloyd import with_ends


@dataclass(frozen=True)
class Distribution:
    """Latents ``z = (x - centre) / scale`` with mean 0, where x has the given functions; all in float64.

    text       what z is distributed as
    variance   of z
    symmetric  around the mean
    x_density, x_mass, x_moment   of x: density, distribution function (exact to its last digits in the lower tail), and
               integral of x * density up to a point
    draw       (n, generator) -> n samples of x
    """

    name: str
    text: str
    variance: float
    x_density: Callable[[Tensor], Tensor]
    x_mass: Callable[[Tensor], Tensor]
    x_moment: Callable[[Tensor], Tensor]
    draw: Callable[[int, torch.Generator], Tensor]
    symmetric: bool = True
    centre: float = 0.0
    scale: float = 1.0

    def density(self, z: Tensor) -> Tensor:
        return self.scale * self.x_density(self.centre + self.scale * z)

    def mass(self, z: Tensor) -> Tensor:
        """Probability of a latent below z."""
        return self.x_mass(self.centre + self.scale * z)

    def moment(self, z: Tensor) -> Tensor:
        """Integral of ``z' * density(z')`` from minus infinity to z; 0 at both ends."""
        x = self.centre + self.scale * z
        return (self.x_moment(x) - self.centre * self.x_mass(x)) / self.scale

    def cells(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and integral of ``z * density`` of the cells between ascending edges (r, k): each (r, k + 1)."""
        below = with_ends(self.mass(edges), 1)
        share = below.diff()
        if self.symmetric:
            # Above the mean from the other side: the difference of two values near 1 has lost its digits.
            above = with_ends(self.mass(-edges), 0, low=1)
            share = torch.where(below[:, :-1] > 0.5, -above.diff(), share)
        return share, with_ends(self.moment(edges), 0).diff()

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """n latents, float64 (n,)."""
        return (self.draw(n, rng) - self.centre) / self.scale


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _normal(name: str, deviation: float) -> Distribution:
    return Distribution(
        name,
        "N(0, 1)" if deviation == 1 else f"N(0, {deviation:g}^2)",
        deviation**2,
        _normal_density,
        torch.special.ndtr,
        lambda x: -_normal_density(x),
        lambda n, rng: torch.randn(n, generator=rng, dtype=torch.float64),
        scale=1 / deviation,
    )


def _laplace() -> Distribution:
    def mass(x: Tensor) -> Tensor:
        tail = torch.exp(-x.abs()) / 2
        return torch.where(x < 0, tail, 1 - tail)

    def draw(n: int, rng: torch.Generator) -> Tensor:
        size, sign = torch.rand(2, n, generator=rng, dtype=torch.float64)
        return -torch.log1p(-size) * torch.where(sign < 0.5, -1.0, 1.0)

    return Distribution(
        "laplace",
        "Laplace with variance 1",
        1.0,
        lambda x: torch.exp(-x.abs()) / 2,
        mass,
        lambda x: -(x.abs() + 1) * torch.exp(-x.abs()) / 2,
        draw,
        scale=math.sqrt(2),
    )


def _student() -> Distribution:
    def mass(x: Tensor) -> Tensor:
        t = x / math.sqrt(3)
        s = -1 / torch.where(t < -100, t, -100.0)  # the tail as a series: its closed form cancels
        tail = s**3 * (2 / 3 - s**2 * (4 / 5 - s**2 * 6 / 7)) / math.pi
        return torch.where(t < -100, tail, 0.5 + (t / (1 + t.square()) + torch.atan(t)) / math.pi)

    def draw(n: int, rng: torch.Generator) -> Tensor:
        normal = torch.randn(4, n, generator=rng, dtype=torch.float64)
        return normal[0] / (normal[1:].square().mean(0)).sqrt()

    return Distribution(
        "student-t",
        "Student's t, 3 degrees of freedom, scaled to variance 1",
        1.0,
        lambda x: 6 * math.sqrt(3) / (math.pi * (3 + x.square()).square()),
        mass,
        lambda x: -3 * math.sqrt(3) / (math.pi * (3 + x.square())),
        draw,
        scale=math.sqrt(3),
    )


def _bimodal(deviation: float) -> Distribution:
    def both(of: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: (of((x + 1) / deviation, -1) + of((x - 1) / deviation, 1)) / 2

    def draw(n: int, rng: torch.Generator) -> Tensor:
        sign = torch.where(torch.rand(n, generator=rng, dtype=torch.float64) < 0.5, -1.0, 1.0)
        return sign + deviation * torch.randn(n, generator=rng, dtype=torch.float64)

    return Distribution(
        "bimodal",
        f"halves of N(-1, {deviation:g}^2) and N(1, {deviation:g}^2), scaled to variance 1",
        1.0,
        both(lambda t, _: _normal_density(t) / deviation),
        both(lambda t, _: torch.special.ndtr(t)),
        both(lambda t, mode: mode * torch.special.ndtr(t) - deviation * _normal_density(t)),
        draw,
        scale=math.sqrt(1 + deviation**2),
    )


def _skewed(sigma: float) -> Distribution:
    mean = math.exp(sigma**2 / 2)

    def log(x: Tensor) -> Tensor:
        return torch.log(x.clamp(min=1e-300)) / sigma

    return Distribution(
        "skewed",
        f"log-normal exp({sigma:g} N(0, 1)), shifted to mean 0 and scaled to variance 1",
        1.0,
        lambda x: torch.where(x > 0, _normal_density(log(x)) / (sigma * x.clamp(min=1e-300)), 0.0),
        lambda x: torch.special.ndtr(log(x)),
        lambda x: mean * torch.special.ndtr(log(x) - sigma),
        lambda n, rng: torch.exp(sigma * torch.randn(n, generator=rng, dtype=torch.float64)),
        symmetric=False,
        centre=mean,
        scale=mean * math.sqrt(math.expm1(sigma**2)),
    )


NORMAL, NARROW = _normal("normal", 1.0), _normal("narrow", 0.5)
LAPLACE, STUDENT, BIMODAL, SKEWED = _laplace(), _student(), _bimodal(0.35), _skewed(0.6)
DISTRIBUTIONS = (NORMAL, NARROW, LAPLACE, STUDENT, BIMODAL, SKEWED)

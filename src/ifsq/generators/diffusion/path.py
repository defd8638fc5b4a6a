"""The paths from noise to data that a diffusion model learns, and what their quantities are of each other.

``x_t = alpha(t) x_1 + sigma(t) x_0`` leads from noise x_0 (t = 0) to data x_1 (t = 1); its derivative in t is the
velocity. Given x_t and any one of velocity, data, noise and score, the others follow. Flow matching: arXiv 2210.02747;
the cosine and the variance preserving path: arXiv 2401.08740; DDPM: arXiv 2006.11239.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Quantity = Literal["velocity", "noise", "data", "score"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

END_GAP = 1e-3  # how far times stay from an end of the path at which something is divided by 0


@dataclass(frozen=True)
class PathSample:
    """A point of the path, like x: ``x`` and its ``velocity``."""

    x: Float[Tensor, "b *shape"]
    velocity: Float[Tensor, "b *shape"]


class Path(ABC):
    """``alpha`` and ``sigma`` of the time, their derivatives, and the conversions that follow from them.

    Times are float tensors of 0 (noise) to 1 (data): one for each x, (b,), or a scalar for all; values are of any shape
    that x has.
    """

    @abstractmethod
    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Share of the data: 0 (or nearly) at t = 0 and 1 at t = 1."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Share of the noise: 1 (or nearly) at t = 0 and 0 at t = 1."""

    @abstractmethod
    def d_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Derivative of ``alpha``."""

    @abstractmethod
    def d_sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Derivative of ``sigma``."""

    def span(self, prediction: Quantity) -> tuple[float, float]:
        """First and last time at which ``prediction`` gives a finite velocity, END_GAP from an end that does not."""
        low = END_GAP if prediction in ("noise", "score") else 0.0
        return low, 1 - END_GAP if prediction == "data" else 1.0

    def training_times(self, t: Float[Tensor, "b"], prediction: Quantity) -> Float[Tensor, "b"]:
        """Where in its `span` the network is trained for times t of [0, 1]."""
        low, high = self.span(prediction)
        return low + (high - low) * t

    def network_time(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The time as the network is told it."""
        return t

    def sample(self, x0: Float[Tensor, "b *d"], x1: Float[Tensor, "b *d"], t: Float[Tensor, "b"]) -> PathSample:
        """The point between noise x0 and data x1 at each one's time."""
        alpha, sigma = _along(self.alpha(t), x1), _along(self.sigma(t), x1)
        d_alpha, d_sigma = _along(self.d_alpha(t), x1), _along(self.d_sigma(t), x1)
        return PathSample(alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0)

    def convert(
        self,
        value: Float[Tensor, "*shape"],
        x: Float[Tensor, "*shape"],
        t: Float[Tensor, "*b"],
        given: Quantity,
        wanted: Quantity,
    ) -> Float[Tensor, "*shape"]:
        """What ``value``, the ``given`` quantity at x and t, says of the ``wanted`` one.

        Not finite where that takes a division by 0: `span` says where a velocity is finite, and at t = 1 there is no
        score.
        """
        if given == wanted:
            return value
        alpha, sigma = _along(self.alpha(t), x), _along(self.sigma(t), x)
        if given == "score":  # x_t given x_1 is N(alpha x_1, sigma^2)
            given, value = "noise", -sigma * value
        if wanted == "score":
            return -self.convert(value, x, t, given, "noise") / sigma
        if given == wanted:
            return value
        # Two of the three equations x = alpha data + sigma noise, velocity = d_alpha data + d_sigma noise.
        if given == "velocity":
            d_alpha, d_sigma = _along(self.d_alpha(t), x), _along(self.d_sigma(t), x)
            determinant = sigma * d_alpha - alpha * d_sigma
            if wanted == "data":
                return (sigma * value - d_sigma * x) / determinant
            return (d_alpha * x - alpha * value) / determinant
        data = value if given == "data" else (x - sigma * value) / alpha
        noise = value if given == "noise" else (x - alpha * value) / sigma
        if wanted == "velocity":
            return _along(self.d_alpha(t), x) * data + _along(self.d_sigma(t), x) * noise
        return data if wanted == "data" else noise


class LinearPath(Path):
    """The straight path: ``alpha = t``, ``sigma = 1 - t``."""

    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return t

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return 1 - t

    def d_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.ones_like(t)

    def d_sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return -torch.ones_like(t)


class CosinePath(Path):
    """A quarter of a circle (GVP): ``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``, exact at both ends."""

    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return -math.pi / 2 * self.alpha(t)


class VariancePreservingPath(Path):
    """``alpha^2 + sigma^2 = 1`` under a rate of noising that falls evenly from 20 (t = 0) to 0.1 (arXiv 2011.13456).

    Its velocity is infinite at t = 1, and at t = 0 is 0.7 % of the data left.
    """

    rates = (0.1, 20.0)  # at t = 1 and t = 0

    def log_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Logarithm of ``alpha``: minus half the integral of the rate from t to 1."""
        low, high = self.rates
        return -((1 - t) ** 2) * (high - low) / 4 - (1 - t) * low / 2

    def d_log_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Derivative of ``log_alpha``: half the rate."""
        low, high = self.rates
        return (1 - t) * (high - low) / 2 + low / 2

    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.log_alpha(t).exp()

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def d_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.d_log_alpha(t) * self.alpha(t)

    def d_sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return -self.d_log_alpha(t) * self.alpha(t) ** 2 / self.sigma(t)

    def span(self, prediction: Quantity) -> tuple[float, float]:
        return 0.0, 1 - END_GAP


class DDPMPath(VariancePreservingPath):
    """The path of DDPM (arXiv 2006.11239): 1000 steps of noising, of which step k = 0..999 adds a share ``betas[k]``.

    Data are at t = 1, and each step is 0.001 before the last: behind step k is t = 1 - (k + 1) / 1000. The network is
    told k and is trained at the steps alone. Between them ``alpha`` goes on smoothly, so that solvers of any times take
    the path as they take others.
    """

    steps = 1000
    rates = (1e-4, 2e-2)  # of the first step of noising and the last

    @property
    def betas(self) -> Float[Tensor, "k"]:
        """Variance that each step of noising adds, evenly rising; float64 on the CPU."""
        return torch.linspace(*self.rates, self.steps, dtype=torch.float64)

    def time(self, k: Int[Tensor, "*b"] | Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The time behind step k of noising, float32 of whole numbers; -1 stands for the data."""
        return 1 - (k + 1) / self.steps

    def step(self, t: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Inverse of `time`."""
        return (self.steps * (1 - t)).round().to(torch.int64) - 1

    def log_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        # Half the sum of log(1 - beta_k) over n steps. With beta_k = low + k d and a = (1 - low) / d + 1 the product of
        # 1 - beta_k = d (a - 1 - k) is d^n Gamma(a) / Gamma(a - n), which says what lies between the steps too.
        # Stirling's series of it, whose terms of the size of a have cancelled, is exact to 1e-16.
        n, a, d = self._noised(t)
        b = a - n
        series = n * math.log(a * d) - (b - 0.5) * torch.log1p(-n / a) - n - n / (12 * a * b)
        return (series / 2).to(t)

    def d_log_alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        n, a, d = self._noised(t)
        b = a - n
        slope = math.log(a * d) + torch.log1p(-n / a) - 1 / (2 * b) - 1 / (12 * b**2)
        return (-self.steps * slope / 2).to(t)

    def span(self, prediction: Quantity) -> tuple[float, float]:
        return 0.0, 1 - 1 / self.steps

    def training_times(self, t: Float[Tensor, "b"], prediction: Quantity) -> Float[Tensor, "b"]:
        return self.time((self.steps * (1 - t)).long().clamp(max=self.steps - 1))

    def network_time(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.round(self.steps * (1 - t), decimals=3) - 1  # float32 times are off by some 1e-5 of a step

    def _noised(self, t: Tensor) -> tuple[Tensor, float, float]:
        """Steps of noising behind at t, float64, and the a and d of `log_alpha`."""
        low, high = self.rates
        d = (high - low) / (self.steps - 1)
        exact = t.cpu().double() if t.device.type == "mps" else t.double()  # mps has no float64
        return self.steps * (1 - exact), (1 - low) / d + 1, d


PATHS: dict[str, type[Path]] = {
    "linear": LinearPath,
    "cosine": CosinePath,
    "vp": VariancePreservingPath,
    "ddpm": DDPMPath,
}


def _along(share: Tensor, x: Tensor) -> Tensor:
    """A number for each x, (b,), against values like x; one for all stays a scalar."""
    return share.reshape(share.shape + (1,) * (x.ndim - share.ndim)) if share.ndim else share

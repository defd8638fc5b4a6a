"""The path from noise to data that a diffusion model learns, and what its quantities are of each other.

``x_t = alpha(t) x_1 + sigma(t) x_0`` leads from noise x_0 (t = 0) to data x_1 (t = 1); its derivative in t is the
velocity. Given x_t and any one of velocity, data, noise and score, the others follow. Flow matching: arXiv 2210.02747.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PathSample:
    """A point of the path, like x: ``x`` and its ``velocity``."""

    x: Float[Tensor, "b d h w"]
    velocity: Float[Tensor, "b d h w"]


class LinearPath:
    """The straight path: ``alpha(t) = t``, ``sigma(t) = 1 - t``. Times are float (b,), or a scalar tensor for all.

    Conversions divide by ``alpha`` or ``sigma`` where they must, and so are of no use at that end of the path.
    """

    d_alpha = 1.0
    d_sigma = -1.0

    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b 1 1 1"]:
        """Share of the data."""
        return t[..., None, None, None]

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b 1 1 1"]:
        """Share of the noise."""
        return 1 - t[..., None, None, None]

    def sample(self, x0: Float[Tensor, "b d h w"], x1: Float[Tensor, "b d h w"], t: Float[Tensor, "b"]) -> PathSample:
        """The point between noise x0 and data x1 at each one's time."""
        x = self.alpha(t) * x1 + self.sigma(t) * x0
        return PathSample(x, self.d_alpha * x1 + self.d_sigma * x0)

    def data(
        self, x: Float[Tensor, "b d h w"], velocity: Float[Tensor, "b d h w"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "b d h w"]:
        """Where the path ends, by the velocity at x."""
        return (self.sigma(t) * velocity - self.d_sigma * x) / self._determinant(t)

    def noise(
        self, x: Float[Tensor, "b d h w"], velocity: Float[Tensor, "b d h w"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "b d h w"]:
        """Where the path began, by the velocity at x."""
        return (self.d_alpha * x - self.alpha(t) * velocity) / self._determinant(t)

    def score(
        self, x: Float[Tensor, "b d h w"], velocity: Float[Tensor, "b d h w"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "b d h w"]:
        """Gradient of the log density at x, by the velocity there: ``-noise / sigma``."""
        return -self.noise(x, velocity, t) / self.sigma(t)

    def velocity_of_data(
        self, x: Float[Tensor, "b d h w"], data: Float[Tensor, "b d h w"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "b d h w"]:
        """Inverse of `data`."""
        return self.d_alpha * data + self.d_sigma * (x - self.alpha(t) * data) / self.sigma(t)

    def velocity_of_noise(
        self, x: Float[Tensor, "b d h w"], noise: Float[Tensor, "b d h w"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "b d h w"]:
        """Inverse of `noise`."""
        return self.d_alpha * (x - self.sigma(t) * noise) / self.alpha(t) + self.d_sigma * noise

    def velocity_of_score(
        self, x: Float[Tensor, "b d h w"], score: Float[Tensor, "b d h w"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "b d h w"]:
        """Inverse of `score`."""
        return self.velocity_of_noise(x, -self.sigma(t) * score, t)

    def _determinant(self, t: Tensor) -> Tensor:
        """Of the two equations that give x and its velocity by data and noise."""
        return self.sigma(t) * self.d_alpha - self.alpha(t) * self.d_sigma

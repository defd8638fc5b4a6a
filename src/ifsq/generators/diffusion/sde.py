"""Solvers that add noise on the way from noise to data, along times from 0 (noise) to 1 (data).

The density of the path is kept by ``dx = (v + w score) dt + sqrt(2 w) dW`` for every ``w(t) >= 0`` (arXiv 2303.08797,
2401.08740): `euler_maruyama` and `stochastic_heun`. `ddim` (arXiv 2010.02502) and `ddpm` (2006.11239, with the learned
variance of 2102.09672) draw from the posterior of a step, given the data that the network sees in x; both in the path's
own variables, so that they serve every path.

Pure functions, which keep the last state alone. Numbers of N(0, 1) come from ``noise``, once a step.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.generators.diffusion.path import LinearPath, Path
from ifsq.generators.diffusion.solvers import OnStep, Velocity, march

Noise = Callable[[Tensor], Tensor]  # x -> numbers of N(0, 1) like x, others at each call
DIFFUSIONS = ("constant", "sbdm", "sigma", "linear", "decreasing")
LAST_STEPS = ("mean", "tweedie", "euler", "none")


def diffusion_coefficient(path: Path, t: Float[Tensor, "*b"], form: str, scale: float = 1.0) -> Float[Tensor, "*b"]:
    """``w(t)``, half the rate at which noise is added.

    constant    scale
    sbdm        ``scale * (sigma^2 alpha' / alpha - sigma sigma')``, that of score-based models; infinite at alpha = 0
    sigma       ``scale * sigma``
    linear      ``scale * (1 - t)``
    decreasing  ``(scale * cos(pi t) + 1)^2 / 4``
    """
    if form == "constant":
        return torch.full_like(t, scale)
    if form == "sbdm":
        alpha, sigma = path.alpha(t), path.sigma(t)
        return scale * (sigma**2 * path.d_alpha(t) / alpha - sigma * path.d_sigma(t))
    if form == "sigma":
        return scale * path.sigma(t)
    if form == "linear":
        return scale * (1 - t)
    return (scale * torch.cos(math.pi * t) + 1) ** 2 / 4


class _Drift:
    """``v + w score`` and the noise of a step, along a path."""

    def __init__(self, velocity: Velocity, path: Path, noise: Noise, form: str, scale: float) -> None:
        self.velocity, self.path, self.noise, self.form, self.scale = velocity, path, noise, form, scale

    def at(self, x: Tensor, t: Tensor) -> Tensor:
        v = self.velocity(x, t)
        score = self.path.convert(v, x, t, "velocity", "score")
        return v + diffusion_coefficient(self.path, t, self.form, self.scale) * score

    def kick(self, x: Tensor, t: Tensor, length: Tensor) -> Tensor:
        """What is added to x in a step of this length."""
        w = diffusion_coefficient(self.path, t, self.form, self.scale)
        return (2 * w * length).sqrt() * self.noise(x)

    def last(self, x: Tensor, t: Tensor, length: Tensor, kind: str) -> Tensor:
        """The last step, without noise of its own; see `euler_maruyama`."""
        if kind == "mean":
            return x + length * self.at(x, t)
        v = self.velocity(x, t)
        return x + length * v if kind == "euler" else self.path.convert(v, x, t, "velocity", "data")


def euler_maruyama(
    velocity: Velocity,
    x: Float[Tensor, "..."],
    times: Float[Tensor, "times"],
    on_step: OnStep | None = None,
    *,
    noise: Noise,
    path: Path | None = None,
    diffusion: str = "sigma",
    diffusion_scale: float = 1.0,
    last_step: str = "mean",
) -> Float[Tensor, "..."]:
    """Weak order 1, one evaluation a step.

    path       that the velocity is of; None: the straight one
    diffusion  form of ``w``, see `diffusion_coefficient`
    last_step  from the last time but one to the last, where no noise may be left: ``mean``, a step without its noise;
               ``euler``, one of the velocity alone; ``tweedie``, the mean of the data given x (which the last time
               does not change); ``none``, one as all others
    """
    drift = _Drift(velocity, path or LinearPath(), noise, diffusion, diffusion_scale)

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        return x + (after - t) * drift.at(x, t) + drift.kick(x, t, after - t)

    return march(_ending(step, drift, times, last_step), x, times, on_step)


def stochastic_heun(
    velocity: Velocity,
    x: Float[Tensor, "..."],
    times: Float[Tensor, "times"],
    on_step: OnStep | None = None,
    *,
    noise: Noise,
    path: Path | None = None,
    diffusion: str = "sigma",
    diffusion_scale: float = 1.0,
    last_step: str = "mean",
) -> Float[Tensor, "..."]:
    """The noise first, then Heun's step of the drift: two evaluations a step, one the last. Else as `euler_maruyama`.

    With ``last_step`` ``none`` the network is asked at the last time, where the score must be finite.
    """
    drift = _Drift(velocity, path or LinearPath(), noise, diffusion, diffusion_scale)

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        x = x + drift.kick(x, t, after - t)
        slope = drift.at(x, t)
        return x + (after - t) / 2 * (slope + drift.at(x + (after - t) * slope, after))

    return march(_ending(step, drift, times, last_step), x, times, on_step)


def ddim(
    velocity: Velocity,
    x: Float[Tensor, "..."],
    times: Float[Tensor, "times"],
    on_step: OnStep | None = None,
    *,
    noise: Noise,
    path: Path | None = None,
    eta: float = 0.0,
) -> Float[Tensor, "..."]:
    """Data and noise as the network sees them in x, mixed again as at the next time; one evaluation a step.

    path  that the velocity is of; None: the straight one
    eta   0 adds no noise; 1 adds the posterior's, as `ddpm` does
    """
    path = path or LinearPath()

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        v, alpha, sigma = velocity(x, t), path.alpha(after), path.sigma(after)
        data = path.convert(v, x, t, "velocity", "data")
        found = path.convert(v, x, t, "velocity", "noise")
        fresh = eta * posterior_deviation(path, t, after)
        x = alpha * data + (sigma**2 - fresh**2).clamp(min=0).sqrt() * found
        return x + fresh * noise(x) if eta else x

    return march(step, x, times, on_step)


def ddpm(
    velocity: Velocity,
    x: Float[Tensor, "..."],
    times: Float[Tensor, "times"],
    on_step: OnStep | None = None,
    *,
    noise: Noise,
    path: Path | None = None,
    variance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "..."]:
    """A draw from the posterior of every step; one evaluation a step, the last without noise.

    path      that the velocity is of; None: the straight one
    variance  what a network says of the variance at x and t, asked after the velocity, like x: where its logarithm lies
              between that of the posterior (-1) and of the step itself (1). None: the posterior's
    """
    path, last = path or LinearPath(), times[-1]

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        v, alpha, sigma = velocity(x, t), path.alpha(after), path.sigma(after)
        data = path.convert(v, x, t, "velocity", "data")
        found = path.convert(v, x, t, "velocity", "noise")
        least = posterior_deviation(path, t, after)
        mean = alpha * data + (sigma**2 - least**2).clamp(min=0).sqrt() * found
        if bool(after == last):
            return mean
        if variance is None:
            return mean + least * noise(x)
        most = least * path.sigma(t) / sigma
        share = (variance(x, t) + 1) / 2
        return mean + torch.exp(share * most.log() + (1 - share) * least.log()) * noise(x)

    return march(step, x, times, on_step)


def posterior_deviation(path: Path, t: Float[Tensor, ""], after: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Standard deviation of x at the later time, given x at the earlier one and the data."""
    sigma, next_sigma = path.sigma(t), path.sigma(after)
    kept = path.alpha(t) * next_sigma / (path.alpha(after) * sigma)  # root of the ratio of signal to noise
    return next_sigma * (1 - kept**2).clamp(min=0).sqrt()


def respaced(spacing: str, steps: int) -> list[int]:
    """Which of the steps of noising 0..steps-1 are taken, in rising order (arXiv 2102.09672, section 4).

    spacing  ``10``: ten, evenly from the first to the last; ``5,3``: five so of the first half and three of the second,
             as many parts as numbers; ``ddim10``: ten, each as many steps after the last as the others, from the first

    Raises ValueError where there are no such steps.
    """
    numbers = spacing.removeprefix("ddim").split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"respacing={spacing!r}: expected counts of steps, as 250, 100,50 or ddim50")
    counts = [int(number) for number in numbers]
    if spacing.startswith("ddim"):
        strides = [stride for stride in range(1, steps + 1) if len(range(0, steps, stride)) == counts[0]]
        if len(counts) > 1 or not strides:
            raise ValueError(f"respacing={spacing!r}: expected a count that an even stride through {steps} steps gives")
        return list(range(0, steps, strides[0]))
    taken, start = [], 0
    for part, count in enumerate(counts):
        size = steps // len(counts) + (part < steps % len(counts))
        if count > size:
            raise ValueError(f"respacing={spacing!r}: {count} of {size} steps, expected at most all")
        between = (size - 1) / (count - 1) if count > 1 else 1.0
        taken += [start + round(between * number) for number in range(count)]
        start += size
    return taken


def _ending(
    step: Callable[[Tensor, Tensor, Tensor], Tensor], drift: _Drift, times: Tensor, last_step: str
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``step``, but to the last of the times as ``last_step`` says."""
    if last_step == "none":
        return step
    last = times[-1]
    return lambda x, t, after: drift.last(x, t, after - t, last_step) if bool(after == last) else step(x, t, after)

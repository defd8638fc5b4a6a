"""What a diffusion network is trained for: its path, what it predicts there, at which times, what an error weighs."""

import math
from dataclasses import dataclass, fields
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.diffusion.coupling import COUPLINGS, coupled
from ifsq.generators.diffusion.path import PATHS, QUANTITIES, DDPMPath, PathSample, Quantity
from ifsq.generators.diffusion.times import LARGEST_MODE, LAWS, draw_times, shift_by_resolution, shift_times
from ifsq.generators.diffusion.variational import variational_bound

OBJECTIVES = ("flow_matching", "mean_flow")
DERIVATIVES = ("exact", "difference")
WEIGHTINGS = ("none", "velocity", "min_snr", "adaptive")

# The network starts at v = 0, where the cosine's slope is 1 / eps: with torch's 1e-8 the first step would leave an
# optimizer's second moments at 1e13. Velocities have a length of about sqrt(2 d), so 0.1 changes nothing else.
COSINE_EPS = 0.1
ADAPTIVE_EPS = 1e-3  # beside squared errors of normalised codes, of about 2 before training


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What a diffusion generator is trained for.

    objective        ``flow_matching``: what the network gives at a time; ``mean_flow``: the average velocity from a
                     time to any later one, which long steps take, see `ifsq.generators.diffusion.mean_flow`; on the
                     linear path, of velocities
    path             from noise to data: ``linear``, ``cosine`` (GVP), ``vp`` (variance preserving) or ``ddpm``, see
                     `ifsq.generators.diffusion.path`
    prediction       what the network gives: ``velocity``, ``noise``, ``data`` or ``score``; each gives the others
    learned_variance as many outputs again, which say the variance of a step of DDPM. On the path ``ddpm`` the
                     variational bound trains them alone; on others nothing reads them
    weighting        of the squared error, by its time: ``none``, that of the prediction as it is (of a score: of its
                     noise); ``velocity``, that of the velocity it gives; ``min_snr``, that of the data it gives times
                     the signal-to-noise ratio or ``min_snr_gamma``, whichever is less (arXiv 2303.09556);
                     ``adaptive``, each example's over itself, so that all count alike (arXiv 2505.13447)
    min_snr_gamma    see there
    cosine_weight    weight of ``1 - cos`` between predicted and true velocity in the loss; the official code has 1
    time_sampling    law of the training times: ``lognorm``, sigmoid of N(time_mean, time_std^2); ``uniform``; ``mode``,
                     of scale ``time_scale``; ``cosine``; see `times.draw_times`
    time_mean        of ``lognorm``; below 0 is nearer to noise
    time_std         of ``lognorm``
    time_scale       of ``mode``; above 0 favours the middle
    time_shift       bends the times as ``sampling.timestep_shift`` does; 0 leaves them
    time_shift_base  shift by resolution instead: by ``sqrt(time_shift_base / (d h w))``; None does not
    coupling         of noise and data in a batch (of each process, and part of an accumulated one): ``independent``,
                     ``optimal`` or ``optimal_in_class``, see `coupling.coupled`
    interval_share   of ``mean_flow``: share of the examples that train an interval of any length; the others train the
                     velocity
    derivative       of ``mean_flow``: that of the average velocity along the flow, ``exact``, by forward-mode
                     differentiation, or ``difference``, of two values in float32: to about 1e-4, less time on a CPU
    trained_guidance  of ``mean_flow``: the greatest scale of guidance that the network is trained for and told, so that
                     one evaluation is guided; 1 trains none
    trained_guidance_interval  times ``[low, high]`` between which the trained velocity is guided; None: everywhere
    """

    objective: str = "flow_matching"
    path: str = "linear"
    prediction: str = "velocity"
    learned_variance: bool = False
    weighting: str = "none"
    min_snr_gamma: float = 5.0
    cosine_weight: float = 0.0
    time_sampling: str = "lognorm"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_scale: float = 1.29
    time_shift: float = 0.0
    time_shift_base: int | None = None
    coupling: str = "independent"
    interval_share: float = 0.5
    derivative: str = "exact"
    trained_guidance: float = 1.0
    trained_guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("objective", OBJECTIVES),
            ("path", tuple(PATHS)),
            ("prediction", QUANTITIES),
            ("weighting", WEIGHTINGS),
            ("time_sampling", LAWS),
            ("coupling", COUPLINGS),
            ("derivative", DERIVATIVES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name in ("min_snr_gamma", "time_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        for name in ("cosine_weight", "time_shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number of at least 0")
        if not math.isfinite(self.time_mean):
            raise ValueError(f"time_mean={self.time_mean}: expected a finite number")
        if not -1 <= self.time_scale <= LARGEST_MODE:
            raise ValueError(f"time_scale={self.time_scale}: expected -1 to {LARGEST_MODE:.4f}")
        if self.time_shift_base is not None and (self.time_shift_base < 1 or self.time_shift):
            raise ValueError(
                f"time_shift_base={self.time_shift_base}, time_shift={self.time_shift}: expected a base of at least 1, "
                "and one of the two"
            )
        if not 0 < self.interval_share < 1:
            raise ValueError(f"interval_share={self.interval_share}: expected a share above 0 and below 1")
        if not 1 <= self.trained_guidance < math.inf:
            raise ValueError(f"trained_guidance={self.trained_guidance}: expected a number of at least 1 (none)")
        interval = self.trained_guidance_interval
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"trained_guidance_interval={interval}: expected two times, 0 <= low < high <= 1")
        self._refuse_without_effect()

    @property
    def averages(self) -> bool:
        """Whether the network gives average velocities."""
        return self.objective == "mean_flow"

    @property
    def tells_guidance(self) -> bool:
        """Whether the network is told the scale of guidance."""
        return self.trained_guidance > 1

    def _refuse_without_effect(self) -> None:
        defaults = {field.name: field.default for field in fields(ObjectiveConfig)}
        for name, owner, needed in (
            ("min_snr_gamma", "weighting", "min_snr"),
            ("time_mean", "time_sampling", "lognorm"),
            ("time_std", "time_sampling", "lognorm"),
            ("time_scale", "time_sampling", "mode"),
            ("interval_share", "objective", "mean_flow"),
            ("derivative", "objective", "mean_flow"),
            ("trained_guidance", "objective", "mean_flow"),
        ):
            value, chosen = getattr(self, name), getattr(self, owner)
            if value != defaults[name] and chosen != needed:
                raise ValueError(f"{name}={value}: expected {owner} = {needed!r} beside it, not {chosen!r}")
        interval = self.trained_guidance_interval
        if interval is not None and not self.tells_guidance:
            raise ValueError(f"trained_guidance_interval={interval}: expected trained_guidance above 1 beside it")
        for name in ("path", "prediction", "learned_variance"):
            if self.averages and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected {defaults[name]!r} beside objective = 'mean_flow'"
                )


class Objective:
    """The objective of a config for examples of ``values`` numbers each."""

    def __init__(self, config: ObjectiveConfig, values: int) -> None:
        self.config = config
        self.path = PATHS[config.path]()
        self.prediction = cast(Quantity, config.prediction)
        base = config.time_shift_base
        self.shift = config.time_shift if base is None else shift_by_resolution(base, values)

    @property
    def span(self) -> tuple[float, float]:
        """First and last time at which the network is asked."""
        return self.path.span(self.prediction)

    @property
    def trains_variance(self) -> bool:
        """Whether the second half of the network's outputs says the variance of a step."""
        return self.config.learned_variance and isinstance(self.path, DDPMPath)

    def times(self, count: int, rng: torch.Generator) -> Float[Tensor, "b"]:
        """Training times, on the device of ``rng``."""
        config = self.config
        times = draw_times(
            config.time_sampling, count, rng, mean=config.time_mean, std=config.time_std, scale=config.time_scale
        )
        return self.path.training_times(shift_times(times, self.shift), self.prediction)

    def pairs(
        self, x0: Float[Tensor, "b *d"], x1: Float[Tensor, "b *d"], labels: Int[Tensor, "b"]
    ) -> Float[Tensor, "b *d"]:
        """The noise x0, reordered so that each leads to the x1 at its place."""
        return coupled(x0, x1, labels, self.config.coupling)

    def velocity(
        self, predicted: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*shape"]:
        """The velocity that a prediction at x gives."""
        return self.path.convert(predicted, x, t, self.prediction, "velocity")

    def loss(
        self,
        predicted: Float[Tensor, "b *outputs"],
        point: PathSample,
        x0: Float[Tensor, "b *d"],
        x1: Float[Tensor, "b *d"],
        t: Float[Tensor, "b"],
    ) -> dict[str, Tensor]:
        """``mse``, weighted by time, ``cosine`` where it has a weight, ``bound`` of a variance, and their sum ``loss``.

        predicted  by the network at ``point``, the path's between noise x0 and data x1 at the times t; of a learned
                   variance in twice the channels
        """
        config = self.config
        predicted, values = predicted.split(x1.shape[1], dim=1) if config.learned_variance else (predicted, None)
        value = predicted
        target = {"velocity": point.velocity, "data": x1}.get(self.prediction, x0)
        if self.prediction == "score":
            value = self.path.convert(predicted, point.x, t, "score", "noise")
        if config.weighting == "none":
            mse = F.mse_loss(value, target)
        else:
            errors = (value - target).square().flatten(1).mean(dim=1)
            mse = (self.weights(t) * errors).mean()
        losses = {"loss": mse, "mse": mse.detach()}
        if config.weighting == "adaptive":
            losses["loss"] = (errors / (errors.detach() + ADAPTIVE_EPS)).mean()
        if config.cosine_weight != 0:
            v = self.velocity(predicted, point.x, t)
            cosine = (1 - F.cosine_similarity(v, point.velocity, dim=1, eps=COSINE_EPS)).mean()
            losses |= {"loss": losses["loss"] + config.cosine_weight * cosine, "cosine": cosine.detach()}
        if values is not None and isinstance(self.path, DDPMPath):
            data = self.path.convert(predicted.detach(), point.x, t, self.prediction, "data")
            bound = variational_bound(self.path, data, values, point.x, x1, self.path.step(t)).mean()
            losses |= {"loss": losses["loss"] + bound, "bound": bound.detach()}
        return losses

    def weights(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """What the squared error of the prediction (of a score: of its noise) weighs at each time."""
        if self.config.weighting in ("none", "adaptive"):
            return torch.ones_like(t)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        determinant = sigma * self.path.d_alpha(t) - alpha * self.path.d_sigma(t)
        # At one x: error of velocity / determinant = of data / sigma = of noise / alpha, but for the sign.
        own = {"velocity": determinant, "data": sigma}.get(self.prediction, alpha)
        if self.config.weighting == "velocity":
            return (determinant / own) ** 2
        # min(alpha^2 / sigma^2, gamma) of the data's error
        return torch.minimum(alpha**2, self.config.min_snr_gamma * sigma**2) / own**2

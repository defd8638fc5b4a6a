"""Solving dx/dt = v(x, t) from noise (t = 0) to data (t = 1): the options, time grids and three solvers.

Pure functions of a velocity: the textbook Runge-Kutta methods of orders 1 and 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.generators.base import Sampling

Velocity = Callable[[Tensor, Tensor], Tensor]  # x (b, d, h, w), time (scalar tensor) -> velocity like x
OnStep = Callable[[int, Tensor, Tensor], None]  # steps behind, time (scalar tensor) and x after the last of them


@dataclass(frozen=True)
class DiffusionSampling(Sampling):
    """How a diffusion generator is sampled.

    guidance           as of `Sampling`, of the velocity
    steps              of the solver
    solver             ``euler``, ``heun`` or ``midpoint``
    timestep_shift     bends the times, see `time_grid`; 0 leaves them even
    guidance_interval  times ``[low, high]``, 0 is noise and 1 data: guide between them alone; None guides all
    """

    guidance: float = 1.0
    steps: int = 25
    solver: str = "euler"
    timestep_shift: float = 0.0
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SOLVERS:
            raise ValueError(f"solver={self.solver!r}: expected one of {', '.join(SOLVERS)}")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")
        if not 0 <= self.timestep_shift < float("inf"):
            raise ValueError(f"timestep_shift={self.timestep_shift}: expected 0 (none) or a positive number")
        interval = self.guidance_interval
        if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"guidance_interval={interval}: expected two times, 0 <= low <= high <= 1")

    @property
    def unsaid(self) -> tuple[str, ...]:
        return ("timestep_shift",) if self.timestep_shift == 0 else ()

    def guides(self, t: float) -> bool:
        """Whether the null class is asked at this time."""
        low, high = self.guidance_interval or (0.0, 1.0)
        return self.guidance != 1 and low <= t <= high

    def solve(self, velocity: Velocity, x: Float[Tensor, "..."], on_step: OnStep | None = None) -> Float[Tensor, "..."]:
        """From noise x to data by these options."""
        return SOLVERS[self.solver](velocity, x, time_grid(self.steps, self.timestep_shift), on_step)

    def evaluations(self) -> int:
        """Network evaluations for one image; a guided one counts twice."""
        times: list[float] = []

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times.append(float(t))
            return x

        self.solve(velocity, torch.zeros(()))
        return sum(2 if self.guides(t) else 1 for t in times)


def time_grid(steps: int, timestep_shift: float = 0.0) -> Float[Tensor, "times"]:
    """``steps + 1`` float32 times from 0 to 1 on the CPU; a shift s > 0 bends them: ``t' = s t / (1 + (s - 1) t)``.

    s below 1 spends more of the steps near the noise, above 1 near the data; 0 and 1 leave the grid even.
    """
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float32, device="cpu")
    if timestep_shift == 0:
        return times
    return timestep_shift * times / (1 + (timestep_shift - 1) * times)


def euler(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """First order, one evaluation a step. Every solver tells ``on_step`` of each step once it is done."""
    return _march(lambda x, t, after: x + (after - t) * velocity(x, t), x, times, on_step)


def heun(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """Second order, two evaluations a step: the mean of the slopes at both ends."""

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        slope = velocity(x, t)
        return x + (after - t) / 2 * (slope + velocity(x + (after - t) * slope, after))

    return _march(step, x, times, on_step)


def midpoint(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """Second order, two evaluations a step: the slope half way."""

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        half = (after - t) / 2
        return x + (after - t) * velocity(x + half * velocity(x, t), t + half)

    return _march(step, x, times, on_step)


SOLVERS = {"euler": euler, "heun": heun, "midpoint": midpoint}


def _march(
    step: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, times: Tensor, on_step: OnStep | None
) -> Tensor:
    """Through all times; ``step`` leads x from one to the next."""
    for done, (t, after) in enumerate(pairwise(times), start=1):
        x = step(x, t, after)
        if on_step is not None:
            on_step(done, after, x)
    return x

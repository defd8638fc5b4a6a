"""Solving dx/dt = v(x, t) from noise (t = 0) to data (t = 1): time grids, three solvers, and what they cost.

Pure functions of a velocity; called by ``flow``. The solvers are the textbook Runge-Kutta methods of orders 1 and 2.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # x (b, d, h, w), time (scalar tensor) -> velocity like x


def time_grid(steps: int, timestep_shift: float = 0.0) -> Float[Tensor, "times"]:
    """``steps + 1`` float32 times from 0 to 1 on the CPU; a shift s > 0 bends them: ``t' = s t / (1 + (s - 1) t)``.

    s below 1 spends more of the steps near the noise, above 1 near the data; 0 and 1 leave the grid even.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    if not 0 <= timestep_shift < float("inf"):
        raise ValueError(f"timestep_shift={timestep_shift}: expected 0 (none) or a positive number")
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float32, device="cpu")
    if timestep_shift == 0:
        return times
    return timestep_shift * times / (1 + (timestep_shift - 1) * times)


def euler(velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"]) -> Float[Tensor, "..."]:
    """First order, one evaluation a step."""
    for t, after in pairwise(times):
        x = x + (after - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"]) -> Float[Tensor, "..."]:
    """Second order, two evaluations a step: the mean of the slopes at both ends."""
    for t, after in pairwise(times):
        slope = velocity(x, t)
        x = x + (after - t) / 2 * (slope + velocity(x + (after - t) * slope, after))
    return x


def midpoint(velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"]) -> Float[Tensor, "..."]:
    """Second order, two evaluations a step: the slope half way."""
    for t, after in pairwise(times):
        half = (after - t) / 2
        x = x + (after - t) * velocity(x + half * velocity(x, t), t + half)
    return x


SOLVERS = {"euler": euler, "heun": heun, "midpoint": midpoint}
EVALUATIONS_PER_STEP = {"euler": 1, "heun": 2, "midpoint": 2}


def check_solver(solver: str) -> None:
    """Raise ValueError for an unknown solver."""
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r}: expected one of {', '.join(SOLVERS)}")


def function_evaluations(steps: int, solver: str, guidance: float = 1.0) -> int:
    """Network evaluations for one image, for the protocol card: guidance counts twice (an interval saves some)."""
    check_solver(solver)
    return steps * EVALUATIONS_PER_STEP[solver] * (1 if guidance == 1 else 2)

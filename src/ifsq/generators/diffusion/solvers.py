"""Solving dx/dt = v(x, t) from noise to data, along times from 0 (noise) to 1 (data).

Pure functions of a velocity, which keep the last state alone. Euler, Heun, midpoint and the classical method of order 4
are the textbooks'; ``ab2`` is Adams and Bashforth's with two values, for uneven times; ``dpm_solver`` is DPM-Solver++
(2M), arXiv 2211.01095; ``dopri5`` is Dormand and Prince's, by torchdiffeq.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.config import InputError
from ifsq.generators.diffusion.path import LinearPath, Path
from ifsq.generators.diffusion.times import shift_times

Velocity = Callable[[Tensor, Tensor], Tensor]  # x (b, d, h, w), time (scalar tensor) -> velocity like x
Average = Callable[[Tensor, Tensor, Tensor], Tensor]  # x, its time and a later one -> average velocity like x
OnStep = Callable[[int, Tensor, Tensor], None]  # steps behind, time (scalar tensor) and x after the last of them


def time_grid(steps: int, timestep_shift: float = 0.0) -> Float[Tensor, "times"]:
    """``steps + 1`` float32 times from 0 to 1 on the CPU; a shift s > 0 bends them: ``t' = s t / (1 + (s - 1) t)``.

    s below 1 spends more of the steps near the noise, above 1 near the data; 0 and 1 leave the grid even.
    """
    return shift_times(torch.linspace(0, 1, steps + 1, dtype=torch.float32, device="cpu"), timestep_shift)


def euler(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """First order, one evaluation a step. Every solver tells ``on_step`` of each step once it is done."""
    return march(lambda x, t, after: x + (after - t) * velocity(x, t), x, times, on_step)


def heun(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """Second order, two evaluations a step: the mean of the slopes at both ends."""

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        slope = velocity(x, t)
        return x + (after - t) / 2 * (slope + velocity(x + (after - t) * slope, after))

    return march(step, x, times, on_step)


def midpoint(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """Second order, two evaluations a step: the slope half way."""

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        half = (after - t) / 2
        return x + (after - t) * velocity(x + half * velocity(x, t), t + half)

    return march(step, x, times, on_step)


def rk4(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """Fourth order, four evaluations a step: Runge and Kutta's classical method."""

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        half = (after - t) / 2
        first = velocity(x, t)
        second = velocity(x + half * first, t + half)
        third = velocity(x + half * second, t + half)
        fourth = velocity(x + (after - t) * third, after)
        return x + (after - t) / 6 * (first + 2 * (second + third) + fourth)

    return march(step, x, times, on_step)


def ab2(
    velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """Second order, one evaluation a step: the line through this slope and the last one. The first step is Euler's."""
    last: tuple[Tensor, Tensor] | None = None  # the slope before this one and how long its step was

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        nonlocal last
        slope, length = velocity(x, t), after - t
        ahead = slope if last is None else slope + length / (2 * last[1]) * (slope - last[0])
        last = slope, length
        return x + length * ahead

    return march(step, x, times, on_step)


def dpm_solver(
    velocity: Velocity,
    x: Float[Tensor, "..."],
    times: Float[Tensor, "times"],
    on_step: OnStep | None = None,
    path: Path | None = None,
) -> Float[Tensor, "..."]:
    """DPM-Solver++ (2M): second order, one evaluation a step; what noise does to x is solved exactly.

    The data that the network sees in x is a line in ``log(alpha / sigma)`` through this value and the last one. Where
    that logarithm is infinite, at the ends of a path, there is no line, and the step is of first order.

    path  that the velocity is of; None: the straight one
    """
    path = path or LinearPath()
    last: tuple[Tensor, Tensor] | None = None  # the data seen before, and how far the logarithm went since

    def step(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        nonlocal last
        alpha, sigma, next_alpha, next_sigma = path.alpha(t), path.sigma(t), path.alpha(after), path.sigma(after)
        length = (next_alpha / next_sigma).log() - (alpha / sigma).log()
        data = path.convert(velocity(x, t), x, t, "velocity", "data")
        ahead = data
        if last is not None and bool(last[1].isfinite()) and bool(length.isfinite()):
            ahead = data + length / (2 * last[1]) * (data - last[0])
        last = data, length
        kept = next_sigma / sigma
        return kept * x + (next_alpha - kept * alpha) * ahead

    return march(step, x, times, on_step)


def dopri5(
    velocity: Velocity,
    x: Float[Tensor, "..."],
    times: Float[Tensor, "times"],
    on_step: OnStep | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> Float[Tensor, "..."]:
    """Fifth order with steps as long as an error of ``atol + rtol * |x|`` allows, by torchdiffeq (extra ``ode``).

    The steps suit all of x together: a batch is solved otherwise than its images one by one. Of ``times`` the first
    and the last count. Raises InputError where torchdiffeq is not installed, and where no step is short enough.
    """
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError as error:
        raise InputError("solver='dopri5': needs the package torchdiffeq: pip install 'ifsq[ode]'") from error
    right = _Told(velocity, on_step)
    ends = times[[0, -1]].to(x.device)
    try:
        final = odeint(right, x, ends, rtol=rtol, atol=atol, method="dopri5")[-1]
    except AssertionError as error:  # how torchdiffeq says that its steps came to nothing, as with values that are NaN
        raise InputError(f"solver='dopri5': {error}: expected finite weights, a smaller guidance or rtol") from error
    if on_step is not None:
        on_step(right.accepted, times[-1], final)
    return final


def mean(
    average: Average, x: Float[Tensor, "..."], times: Float[Tensor, "times"], on_step: OnStep | None = None
) -> Float[Tensor, "..."]:
    """One evaluation a step, exact in steps of any length where the average velocities are.

    average  of x, the time of a step and the one after it
    """
    return march(lambda x, t, after: x + (after - t) * average(x, t, after), x, times, on_step)


class _Told:
    """A velocity as torchdiffeq asks for it, which is told of the steps that were taken."""

    def __init__(self, velocity: Velocity, on_step: OnStep | None) -> None:
        self.velocity, self.on_step, self.accepted = velocity, on_step, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.velocity(x, t)

    def callback_accept_step(self, t: Tensor, x: Tensor, length: Tensor) -> None:
        """By torchdiffeq, with the state before the step, which is the one after the last."""
        if self.accepted and self.on_step is not None:
            self.on_step(self.accepted, t, x)
        self.accepted += 1


def march(step: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, times: Tensor, on_step: OnStep | None) -> Tensor:
    """Through all times; ``step`` leads x from one to the next."""
    for done, (t, after) in enumerate(pairwise(times), start=1):
        x = step(x, t, after)
        if on_step is not None:
            on_step(done, after, x)
    return x

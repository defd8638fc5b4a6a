"""How a diffusion generator is sampled: its options, and the table of solvers with the options that each has."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.generators.base import Sampling
from ifsq.generators.diffusion.path import LinearPath, Path
from ifsq.generators.diffusion.solvers import (
    OnStep,
    Velocity,
    ab2,
    dopri5,
    dpm_solver,
    euler,
    heun,
    midpoint,
    rk4,
    time_grid,
)

SNAPS = ("nearest", "none")


@dataclass(frozen=True)
class Solver:
    """A solver and what it is told.

    solve     of velocity, x and times
    options   fields of `DiffusionSampling` that it alone has, or some
    path      it is told the path
    adaptive  it finds its steps itself
    """

    solve: Callable[..., Tensor]
    options: tuple[str, ...] = ()
    path: bool = False
    adaptive: bool = False


SOLVERS = {
    "euler": Solver(euler),
    "heun": Solver(heun),
    "midpoint": Solver(midpoint),
    "ab2": Solver(ab2),
    "dpm++2m": Solver(dpm_solver, path=True),
    "rk4": Solver(rk4),
    "dopri5": Solver(dopri5, ("rtol", "atol"), adaptive=True),
}


@dataclass(frozen=True)
class DiffusionSampling(Sampling):
    """How a diffusion generator is sampled. An option that the solver has not is refused; None is its default.

    guidance           as of `Sampling`, of the velocity
    steps              of the solver
    solver             of order 1 and one evaluation a step: ``euler``; of order 2 and two: ``heun``, ``midpoint``; of
                       order 2 and one: ``ab2``, ``dpm++2m``; of order 4 and four: ``rk4``; ``dopri5`` finds its steps
                       itself, those of each image alone (extra ``ode``). See `ifsq.generators.diffusion.solvers`
    timestep_shift     bends the times, see `time_grid`; 0 leaves them even
    guidance_interval  times ``[low, high]``, 0 is noise and 1 data: guide between them alone; None guides all
    times              of the steps, in place of ``steps`` and ``timestep_shift``: from 0 to 1, each above the last
    snap               ``nearest``: to the codes that the tokenizer can produce; ``none``: the codes as they come
    rtol, atol         of ``dopri5``: the error that a step may have, ``atol + rtol * |x|``; 1e-3 and 1e-6
    """

    guidance: float = 1.0
    steps: int = 25
    solver: str = "euler"
    timestep_shift: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    times: tuple[float, ...] | None = None
    snap: str = "nearest"
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        if self.times is not None:  # hashable, and equal whatever it came as
            object.__setattr__(self, "times", tuple(self.times))
        super().__post_init__()
        _check_choice("solver", self.solver, SOLVERS)
        _check_choice("snap", self.snap, SNAPS)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")
        if not 0 <= self.timestep_shift < math.inf:
            raise ValueError(f"timestep_shift={self.timestep_shift}: expected 0 (none) or a positive number")
        interval = self.guidance_interval
        if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"guidance_interval={interval}: expected two times, 0 <= low <= high <= 1")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: expected a positive number")
        self._check_times()
        self._check_solver()

    @property
    def unsaid(self) -> tuple[str, ...]:
        off = {"timestep_shift": self.timestep_shift == 0, "snap": self.snap == "nearest"}
        off["steps"] = self.times is not None or SOLVERS[self.solver].adaptive
        return tuple(name for name, is_off in off.items() if is_off)

    @property
    def adaptive(self) -> bool:
        """Whether the solver finds its steps itself, so that images are solved one by one."""
        return SOLVERS[self.solver].adaptive

    def guides(self, t: float) -> bool:
        """Whether the null class is asked at this time."""
        low, high = self.guidance_interval or (0.0, 1.0)
        return self.guidance != 1 and low <= t <= high

    def grid(self, span: tuple[float, float] = (0.0, 1.0)) -> Float[Tensor, "times"]:
        """The times of the steps, float32 on the CPU, from the first to the last of ``span``."""
        times = time_grid(self.steps, self.timestep_shift)
        if self.times is not None:
            times = torch.tensor(self.times, dtype=torch.float32)
        return span[0] + (span[1] - span[0]) * times

    def solve(
        self,
        velocity: Velocity,
        x: Float[Tensor, "..."],
        path: Path | None = None,
        on_step: OnStep | None = None,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Float[Tensor, "..."]:
        """From noise x to data by these options, along ``path``; None is the straight one.

        span  the first and the last time at which the velocity is finite
        """
        solver = SOLVERS[self.solver]
        told = {name: getattr(self, name) for name in solver.options if getattr(self, name) is not None}
        if solver.path:
            told["path"] = path or LinearPath()
        return solver.solve(velocity, x, self.grid(span), on_step, **told)

    def evaluations(self, span: tuple[float, float] = (0.0, 1.0)) -> int:
        """Network evaluations for one image, of a solver whose steps are known; a guided one counts twice.

        span  as of `solve`
        """
        times: list[float] = []

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times.append(float(t))
            return x

        self.solve(velocity, torch.zeros(()), span=span)
        return sum(2 if self.guides(t) else 1 for t in times)

    def _check_times(self) -> None:
        if self.times is None:
            return
        rising = all(before < after for before, after in pairwise(self.times))
        if len(self.times) < 2 or self.times[0] != 0 or self.times[-1] != 1 or not rising:
            raise ValueError(f"times={list(self.times)}: expected times that rise from 0 to 1")
        if self.timestep_shift != 0:
            raise ValueError(f"timestep_shift={self.timestep_shift}: expected 0 beside times, which say all")

    def _check_solver(self) -> None:
        """Raise ValueError naming the first option that is given and that the solver has not."""
        own = {name for solver in SOLVERS.values() for name in solver.options}
        lacks: dict[str, object] = dict.fromkeys(own - set(SOLVERS[self.solver].options))
        if self.adaptive:
            default = type(self).__dataclass_fields__["steps"].default
            lacks |= {"times": None, "timestep_shift": 0, "steps": default}
        for name, off in sorted(lacks.items()):
            if getattr(self, name) != off:
                raise ValueError(f"{name}={getattr(self, name)}: solver {self.solver} has no such option")


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")

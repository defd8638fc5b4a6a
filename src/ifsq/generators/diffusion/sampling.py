"""How a diffusion generator is sampled: its options, and the table of solvers with the options that each has."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.generators.base import Sampling
from ifsq.generators.conditioning import GUIDANCE_SCHEDULES, guidance_rise
from ifsq.generators.diffusion.path import END_GAP, DDPMPath, LinearPath, Path
from ifsq.generators.diffusion.sde import (
    DIFFUSIONS,
    LAST_STEPS,
    Noise,
    ddim,
    ddpm,
    euler_maruyama,
    respaced,
    stochastic_heun,
)
from ifsq.generators.diffusion.solvers import (
    Average,
    OnStep,
    Velocity,
    ab2,
    dopri5,
    dpm_solver,
    euler,
    heun,
    mean,
    midpoint,
    rk4,
    time_grid,
)

SNAPS = ("nearest", "none")
LAST_STEP_SIZE = 0.04  # of the official code
GUIDANCE_POWER = 2.75
STEPS_UNSAID = (16, 25)
"""Of a solver that takes no ``steps``: the default, and what it was when older runs were written."""
_SDE = ("diffusion", "diffusion_scale", "last_step")
_WHEN = ("steps", "timestep_shift", "times", "respacing")  # they say when the steps are


@dataclass(frozen=True)
class Solver:
    """A solver and what it is told.

    solve     of velocity, x and times
    options   fields of `DiffusionSampling` that it alone has, or some
    of_times  such fields that `DiffusionSampling.grid` reads, not the solver
    path      it is told the path
    noise     it is given noise
    variance  it is told of a variance that the network has learned
    adaptive  it finds its steps itself
    average   it is given average velocities in place of velocities
    """

    solve: Callable[..., Tensor]
    options: tuple[str, ...] = ()
    of_times: tuple[str, ...] = ()
    path: bool = False
    noise: bool = False
    variance: bool = False
    adaptive: bool = False
    average: bool = False


SOLVERS = {
    "euler": Solver(euler),
    "heun": Solver(heun),
    "midpoint": Solver(midpoint),
    "ab2": Solver(ab2),
    "dpm++2m": Solver(dpm_solver, path=True),
    "rk4": Solver(rk4),
    "dopri5": Solver(dopri5, ("rtol", "atol"), adaptive=True),
    "mean": Solver(mean, average=True),
    "sde-euler": Solver(euler_maruyama, _SDE, ("last_step_size",), path=True, noise=True),
    "sde-heun": Solver(stochastic_heun, _SDE, ("last_step_size",), path=True, noise=True),
    "ddim": Solver(ddim, ("eta",), ("respacing",), path=True, noise=True),
    "ddpm": Solver(ddpm, (), ("respacing",), path=True, noise=True, variance=True),
}


@dataclass(frozen=True)
class DiffusionSampling(Sampling):
    """How a diffusion generator is sampled. An option that the solver has not is refused; None is its default.

    guidance           as of `Sampling`, of the velocity
    steps              of the solver, 16
    solver             of order 1 and one evaluation a step: ``euler``; of order 2 and two: ``heun``, ``midpoint``; of
                       order 2 and one: ``ab2`` (default), ``dpm++2m``; of order 4 and four: ``rk4``; ``dopri5`` finds
                       its steps itself, those of each image alone (extra ``ode``); `ifsq.generators.diffusion.solvers`.
                       ``mean``: one evaluation a step of any length, of a generator that has learned average velocities
                       With noise at every step: ``sde-euler``, ``sde-heun``, ``ddpm``; ``ddim`` with ``eta``. See
                       `ifsq.generators.diffusion.sde`
    timestep_shift     bends the times, see `time_grid`; 0 leaves them even
    guidance_interval  times ``[low, high]``, 0 is noise and 1 data: guide between them alone; None guides all
    guidance_schedule  how the scale rises from 1 from the first to the last of the guided times, see `guidance_rise`:
                       ``constant`` (it is ``guidance`` everywhere), ``linear`` or ``power-cosine``
    guidance_power     of ``power-cosine``, above 0: the greater, the later the scale rises; 2.75
    guide              folder of a smaller or less trained generator of the same codes, which is told the class and
                       stands in for the null class (autoguidance, arXiv 2406.02507)
    guide_step         of a checkpoint that is kept there; None is the newest
    internal_guidance  s gives ``early + s * (last - early)`` of what a generator with ``internal_depth`` gives behind
                       its early blocks and its last (arXiv 2512.24176), for the class and the null class alike, at no
                       further evaluation; 1 and None are none
    internal_interval  times ``[low, high]``, as ``guidance_interval``: of internal guidance
    times              of the steps, in place of ``steps`` and ``timestep_shift``: from 0 to 1, each above the last
    snap               ``nearest``: to the codes that the tokenizer can produce; ``none``: the codes as they come
    rtol, atol         of ``dopri5``: the error that a step may have, ``atol + rtol * |x|``; 1e-3 and 1e-6
    diffusion          of SDEs: how much noise when, ``constant``, ``sbdm``, ``sigma`` (default), ``linear`` or
                       ``decreasing``, see `diffusion_coefficient`
    diffusion_scale    of SDEs: its factor, 1
    last_step          of SDEs: ``mean`` (default), ``tweedie``, ``euler`` or ``none``, see `euler_maruyama`
    last_step_size     of SDEs with a last step: how long it is, 0.04
    respacing          of ``ddim`` and ``ddpm`` on the path ``ddpm``, in place of ``steps``: which of its 1000 steps are
                       taken, as ``250``, ``100,50`` or ``ddim50``, see `respaced`
    eta                of ``ddim``: how much noise, 0 (default) is none and 1 as much as ``ddpm``
    """

    guidance: float = 1.0
    steps: int = 16
    solver: str = "ab2"
    timestep_shift: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    times: tuple[float, ...] | None = None
    snap: str = "nearest"
    rtol: float | None = None
    atol: float | None = None
    diffusion: str | None = None
    diffusion_scale: float | None = None
    last_step: str | None = None
    last_step_size: float | None = None
    eta: float | None = None
    respacing: str | int | None = None
    guidance_schedule: str = "constant"
    guidance_power: float | None = None
    guide: str | None = None
    guide_step: int | None = None
    internal_guidance: float | None = None
    internal_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.times is not None:  # hashable, and equal whatever it came as
            object.__setattr__(self, "times", tuple(self.times))
        if self.respacing is not None:  # the command reads 250 as a number
            object.__setattr__(self, "respacing", str(self.respacing))
        super().__post_init__()
        _check_choice("solver", self.solver, SOLVERS)
        _check_choice("snap", self.snap, SNAPS)
        _check_choice("guidance_schedule", self.guidance_schedule, GUIDANCE_SCHEDULES)
        for name, choices in (("diffusion", DIFFUSIONS), ("last_step", LAST_STEPS)):
            if getattr(self, name) is not None:
                _check_choice(name, getattr(self, name), choices)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")
        if not 0 <= self.timestep_shift < math.inf:
            raise ValueError(f"timestep_shift={self.timestep_shift}: expected 0 (none) or a positive number")
        for name in ("guidance_interval", "internal_interval"):
            interval = getattr(self, name)
            if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
                raise ValueError(f"{name}={interval}: expected two times, 0 <= low <= high <= 1")
        if self.internal_guidance is not None and not 0 <= self.internal_guidance < math.inf:
            raise ValueError(f"internal_guidance={self.internal_guidance}: expected a number of at least 0")
        if self.internal_interval is not None and self.internal_guidance is None:
            raise ValueError(f"internal_interval={self.internal_interval}: expected internal_guidance beside it")
        for name in ("rtol", "atol", "diffusion_scale", "guidance_power"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: expected a positive number")
        if self.last_step_size is not None and not 0 < self.last_step_size < 1:
            raise ValueError(f"last_step_size={self.last_step_size}: expected a time above 0 and below 1")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: expected 0 to 1")
        if self.guidance_power is not None and self.guidance_schedule != "power-cosine":
            raise ValueError(f"guidance_power={self.guidance_power}: expected guidance_schedule power-cosine beside it")
        if self.guide_step is not None and self.guide is None:
            raise ValueError(f"guide_step={self.guide_step}: expected a guide beside it")
        self._check_solver()
        self._check_times()

    @classmethod
    def left(cls, usual: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Whatever says when the steps are takes the place of what said it before, as does a solver without such."""
        replaced = set[str]()
        if any(asked.get(name) is not None for name in _WHEN):
            replaced |= {"times", "respacing"}
        if asked.get("times") is not None or asked.get("respacing") is not None:
            replaced |= {"steps", "timestep_shift"}
        if asked.get("solver") in SOLVERS:
            replaced |= _lacks(str(asked["solver"]))
        return {name: value for name, value in usual.items() if name not in replaced}

    @property
    def unsaid(self) -> tuple[str, ...]:
        off = {"timestep_shift": self.timestep_shift == 0, "snap": self.snap == "nearest"}
        off["guidance_schedule"] = self.guidance_schedule == "constant"
        off["steps"] = self.times is not None or self.respacing is not None or SOLVERS[self.solver].adaptive
        return tuple(name for name, is_off in off.items() if is_off)

    @property
    def adaptive(self) -> bool:
        """Whether the solver finds its steps itself, so that images are solved one by one."""
        return SOLVERS[self.solver].adaptive

    def scale(self, t: float) -> float:
        """Of guidance at this time: 1 outside the interval, in it by the schedule."""
        low, high = self.guidance_interval or (0.0, 1.0)
        if not low <= t <= high:
            return 1.0
        behind = (t - low) / (high - low) if high > low else 1.0
        power = GUIDANCE_POWER if self.guidance_power is None else self.guidance_power
        rise = guidance_rise(self.guidance_schedule, behind, power)
        return self.guidance if rise == 1 else 1 + (self.guidance - 1) * rise

    def internal_scale(self, t: float) -> float:
        """Of internal guidance at this time."""
        low, high = self.internal_interval or (0.0, 1.0)
        return 1.0 if self.internal_guidance is None or not low <= t <= high else self.internal_guidance

    def guides(self, t: float) -> bool:
        """Whether the null class, or the guide, is asked at this time."""
        return self.scale(t) != 1

    def grid(self, span: tuple[float, float] = (0.0, 1.0)) -> Float[Tensor, "times"]:
        """The times of the steps, float32 on the CPU, from the first of ``span`` to 1, or its last if that is asked at.

        Those of an SDE end with its last step or, where there is none, END_GAP before 1, where the score is infinite.
        """
        if self.respacing is not None:
            path = DDPMPath()
            taken = respaced(str(self.respacing), path.steps)
            return path.time(torch.tensor([*reversed(taken), -1], device="cpu"))
        low, high = span
        if not self.adaptive and not self._is_sde:  # nothing is asked at the last time, see `solve`
            high = 1.0
        if self._is_sde and self.diffusion == "sbdm":
            low = max(low, END_GAP)
        if self._is_sde and self.last_step == "none":
            high = min(high, 1 - END_GAP)
        if self.times is not None:
            times = torch.tensor(self.times, dtype=torch.float32)
        elif self._is_sde and self.last_step != "none":
            before_last = time_grid(self.steps - 1, self.timestep_shift)
            times = torch.cat([before_last * (1 - (self.last_step_size or LAST_STEP_SIZE)), torch.ones(1)])
        else:
            times = time_grid(self.steps, self.timestep_shift)
        return low + (high - low) * times

    def solve(
        self,
        velocity: Velocity,
        x: Float[Tensor, "..."],
        path: Path | None = None,
        on_step: OnStep | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        noise: Noise = torch.randn_like,
        times: Float[Tensor, "times"] | None = None,
        variance: Callable[[Tensor, Tensor], Tensor] | None = None,
        average: Average | None = None,
    ) -> Float[Tensor, "..."]:
        """From noise x to data by these options, along ``path``; None is the straight one.

        span      the first and the last time at which the velocity is finite. Where that is not the end, it changes
                  without bound before it, and a solver that knows no path takes the data seen in x for its last step
        noise     numbers of N(0, 1) like what it is given, of a solver that adds noise
        times     in place of `grid`
        variance  what a network says of it, see `ddpm`; the other solvers have no use for it
        average   average velocities, of which ``mean`` takes its steps; the other solvers take none
        """
        solver = SOLVERS[self.solver]
        told = {name: getattr(self, name) for name in solver.options if getattr(self, name) is not None}
        if solver.path:
            told["path"] = path or LinearPath()
        if solver.noise:
            told["noise"] = noise
        if solver.variance:
            told["variance"] = variance
        times = self.grid(span) if times is None else times
        if solver.average:
            if average is None:
                raise ValueError(f"solver={self.solver!r}: expected average velocities to take its steps of")
            return solver.solve(average, x, times, on_step)
        if span[1] == 1 or solver.path:
            return solver.solve(velocity, x, times, on_step, **told)
        steps = 0

        def count(done: int, t: Tensor, x: Tensor) -> None:
            nonlocal steps
            steps = done
            if on_step is not None:
                on_step(done, t, x)

        before = times if solver.adaptive else times[:-1]  # an adaptive one goes through to the end of the span
        x, t = solver.solve(velocity, x, before, count, **told), before[-1]
        x = (path or LinearPath()).convert(velocity(x, t), x, t, "velocity", "data")
        if on_step is not None:
            on_step(steps + 1, torch.ones_like(t), x)
        return x

    def evaluations(self, span: tuple[float, float] = (0.0, 1.0)) -> int:
        """Network evaluations for one image, of a solver whose steps are known; a guided one counts twice.

        span  as of `solve`
        """
        times: list[float] = []

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times.append(float(t))
            return x

        def average(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
            return velocity(x, t)

        self.solve(velocity, torch.zeros(()), span=span, noise=torch.zeros_like, average=average)
        return sum(2 if self.guides(t) else 1 for t in times)

    @property
    def _is_sde(self) -> bool:
        return "last_step" in SOLVERS[self.solver].options

    def _check_times(self) -> None:
        last = self._is_sde and self.last_step != "none"
        if self.times is None and last and self.steps < 2:
            raise ValueError(f"steps={self.steps}: expected at least 2, the last of which is last_step")
        if self.last_step_size is not None and (not last or self.times is not None):
            beside = "beside times, which say all" if last else "where there is no last step"
            raise ValueError(f"last_step_size={self.last_step_size}: expected none {beside}")
        if self.respacing is not None:
            respaced(str(self.respacing), DDPMPath.steps)
            for name, off in (("times", (None,)), ("timestep_shift", (0,)), ("steps", STEPS_UNSAID)):
                if getattr(self, name) not in off:
                    raise ValueError(f"{name}={getattr(self, name)}: expected none beside respacing, which says all")
        if self.times is None:
            return
        rising = all(before < after for before, after in pairwise(self.times))
        if len(self.times) < 2 or self.times[0] != 0 or self.times[-1] != 1 or not rising:
            raise ValueError(f"times={list(self.times)}: expected times that rise from 0 to 1")
        if self.timestep_shift != 0:
            raise ValueError(f"timestep_shift={self.timestep_shift}: expected 0 beside times, which say all")

    def _check_solver(self) -> None:
        """Raise ValueError naming the first option that is given and that the solver has not."""
        off: dict[str, tuple[object, ...]] = {"timestep_shift": (0,), "steps": STEPS_UNSAID}
        for name in sorted(_lacks(self.solver)):
            if getattr(self, name) not in off.get(name, (None,)):
                raise ValueError(f"{name}={getattr(self, name)}: solver {self.solver} has no such option")


def _lacks(solver: str) -> set[str]:
    """Options that other solvers have and this one has not."""
    own = {name for one in SOLVERS.values() for name in one.options + one.of_times}
    has = SOLVERS[solver]
    return own.difference(has.options, has.of_times) | ({"steps", "timestep_shift", "times"} if has.adaptive else set())


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")

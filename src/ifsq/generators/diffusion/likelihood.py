"""How likely a diffusion generator finds images: the density that its flow carries from the noise to them, in bits.

Along ``dx/dt = v(x, t)`` the logarithm of the density falls by the divergence of v (arXiv 1806.07366):

    log p(x(end)) = log N(x(low); 0, 1) - integral from low to end of div v(x(t), t) dt

with ``end`` at the data and ``low`` the first time at which the network is asked, where sampling begins with N(0, 1)
too. The divergence is the trace of v's Jacobian: exact by as many products as x has numbers, or estimated by
``e . (J^T e)`` with signs e of an image's own (Hutchinson's estimator; FFJORD, arXiv 1810.01367; arXiv 2011.13456).

Of latents that is a density. Digits have a probability, which is bounded: see `likelihood`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.config import InputError
from ifsq.generators.base import Generator
from ifsq.generators.diffusion.generator import DiffusionGenerator
from ifsq.generators.diffusion.path import LinearPath, Path
from ifsq.generators.diffusion.sampling import DiffusionSampling
from ifsq.generators.diffusion.solvers import Velocity, ab2, dopri5, euler, heun, midpoint, rk4, time_grid
from ifsq.generators.streams import uniforms
from ifsq.nn.modes import evaluating, without_gradients
from ifsq.quantizers.cells import placement

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "rk4": rk4,
    "heun": heun,
    "midpoint": midpoint,
    "euler": euler,
    "ab2": ab2,
    "dopri5": dopri5,
}
TRACES = ("auto", "exact", "hutchinson")
DEQUANTIZATIONS = ("path", "uniform")
EXACT = 64  # numbers of an image up to which the trace is exact unless said otherwise
MOST_EXACT = 1024  # up to which it can be: each asks for a backward pass of every evaluation
AT_ONCE = 16  # images that pass through the network together


@dataclass(frozen=True)
class LikelihoodOptions:
    """How a likelihood is computed. An option that has no effect is refused.

    solver          of the way from the data to the noise: ``rk4``, ``heun``, ``midpoint``, ``euler``, ``ab2``, or
                    ``dopri5``, which finds the steps of each image itself (extra ``ode``)
    steps           of the solver
    timestep_shift  bends their times as that of `DiffusionSampling` does: above 1 more lie near the data
    tolerance       of ``dopri5``: relative and absolute error of a step
    trace           ``exact``, for codes of at most MOST_EXACT numbers; ``hutchinson``; ``auto``: exact up to EXACT
    probes          of Hutchinson's estimator, at least 1; from two on their spread says how far off it is
    dequantization  of digits: ``path``, the noise of the path at the time at which ``spread`` of it is left; or
                    ``uniform`` over the cells, at the last time of the path
    spread          of ``path``: standard deviation of the noise in half widths of the narrowest cell. Each gives a
                    bound, and which is best depends on how sharp the model is: of the demo's 1, of a perfect one 0.25
    """

    solver: str = "rk4"
    steps: int = 32
    timestep_shift: float = 4.0
    tolerance: float = 1e-5
    trace: str = "auto"
    probes: int = 1
    dequantization: str = "path"
    spread: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("solver", SOLVERS), ("trace", TRACES), ("dequantization", DEQUANTIZATIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name in ("steps", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("timestep_shift", "tolerance", "spread"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        defaults = {field.name: field.default for field in fields(self)}
        fixed = {"steps": "solver", "timestep_shift": "solver"} if self.adaptive else {"tolerance": "solver"}
        if self.trace == "exact":
            fixed |= {"probes": "trace"}
        if self.dequantization == "uniform":
            fixed |= {"spread": "dequantization"}
        for name, owner in fixed.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(self, name)}: {owner} {getattr(self, owner)} has no such option")

    @property
    def adaptive(self) -> bool:
        """Whether the solver finds its steps itself, so that images are solved one by one."""
        return self.solver == "dopri5"

    @property
    def sampler(self) -> str:
        """The solver in words, as a protocol card states it."""
        if self.adaptive:
            return f"{self.solver}, tolerance {self.tolerance:g}"
        return f"{self.solver}, steps {self.steps}, timestep_shift {self.timestep_shift:g}"

    def is_exact(self, values: int) -> bool:
        """Whether the trace is exact for codes of so many numbers. Raises ValueError where it cannot be."""
        if self.trace == "exact" and values > MOST_EXACT:
            raise ValueError(
                f"trace='exact': codes of {values} numbers, expected at most {MOST_EXACT}; or trace='hutchinson'"
            )
        return self.trace == "exact" or (self.trace == "auto" and values <= EXACT)

    def times(self, low: float, end: float) -> Float[Tensor, "times"]:
        """From ``end`` back to ``low``, float64 on the CPU."""
        even = torch.tensor([0.0, 1.0], device="cpu") if self.adaptive else time_grid(self.steps, self.timestep_shift)
        return (low + (end - low) * even.double()).flip(0)


@dataclass(frozen=True)
class LogDensity:
    """Of data under a flow.

    nats         (b, k): one for each of k probes, whose mean is the estimate, or one, exact
    evaluations  of the velocity
    """

    nats: Float[Tensor, "b k"]
    evaluations: int


@dataclass(frozen=True)
class Likelihood:
    """Bits that images take, see `likelihood`.

    bits         of each image, float64 on the CPU
    error        standard error of the estimated trace in each, in bits; 0 where it is exact, None of one probe
    evaluations  of the network for each image; as many backward passes come with it as there are probes, or of an exact
                 trace numbers in the codes
    time         at which the density was read
    exact        whether the trace is
    """

    bits: Float[Tensor, "b"]
    error: Float[Tensor, "b"] | None
    evaluations: Int[Tensor, "b"]
    time: float
    exact: bool


def log_density(
    velocity: Velocity,
    y: Float[Tensor, "b *d"],
    options: LikelihoodOptions,
    probes: Float[Tensor, "b k *d"] | None = None,
    path: Path | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    read: float | None = None,
) -> LogDensity:
    """Log-density, in nats, of data y (or with ``read`` of y = x / alpha at that time) under the flow of a velocity.

    velocity  of ``path``, differentiable in x, where no example sees another
    probes    signs; None: the exact trace
    span      the first time and the last at which the velocity is finite. Where that is not the end of the path, the
              rest is one step: in y and sigma / alpha the slope is the noise, which falls to 0 with sigma, so that half
              of the noise seen in y is added; to the power of 4 of sigma / alpha exact where the density is smooth
    """
    path = path or LinearPath()
    low, end = span[0], span[1] if read is None else read
    time = torch.tensor(end, dtype=y.dtype, device=y.device)
    change, evaluations = torch.zeros(len(y), 1, dtype=y.dtype, device=y.device), 0
    if end < 1 and read is None:

        def missing(y: Tensor) -> Tensor:
            data = path.convert(velocity(path.alpha(time) * y, time), path.alpha(time) * y, time, "velocity", "data")
            return (y - data) / 2

        step, change = _with_trace(missing, y, probes)
        y, evaluations = y + step, 1
    asked = 0

    def slope(state: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        v, trace = _with_trace(lambda x: velocity(x, t), state[:, : y[0].numel()].view_as(y), probes)
        return torch.cat([v.flatten(1), trace], dim=1)

    # log p of y = x / alpha is that of x and the logarithm of alpha for each number.
    change = change + y[0].numel() * path.alpha(time).log()
    columns = 1 if probes is None else probes.shape[1]
    state = torch.cat([(path.alpha(time) * y).flatten(1), change.expand(-1, columns)], dim=1)
    told = {"rtol": options.tolerance, "atol": options.tolerance} if options.adaptive else {}
    # On the way back the integral of the divergence is taken away, which is its sign in the density.
    state = SOLVERS[options.solver](slope, state, options.times(low, end).to(y), **told)
    noise, change = state[:, : y[0].numel()], state[:, y[0].numel() :]
    prior = -(noise.square().sum(dim=1, keepdim=True) + noise.shape[1] * math.log(2 * math.pi)) / 2
    return LogDensity(prior + change, evaluations + asked)


def likelihood(
    generator: Generator,
    batch: CodeBatch,
    options: LikelihoodOptions | None = None,
    *,
    seed: int = 0,
    first: int = 0,
) -> Likelihood:
    """Bits that each image of a batch takes by a diffusion generator, given its label, without guidance.

    Of latents: ``-log2`` of their density, in the units in which they are stored. It may be negative, and compares
    between models of the same latents alone.

    Of digits: an upper bound on ``-log2 P(digits)``, which stands beside the bits of an autoregressive model. Snapping
    gives a digit the probability that the density has in its cell, of which noise u in the cell (Theis et al. 2016, Ho
    et al. 2019: dequantization) knows a bound by Jensen's inequality,

        log P(digits) = log of the integral of p over the cells >= E[log p(codes + u) - log q(u)],  u ~ q

    The model has seen points of the lattice alone, so the better it is, the more its density at the data is a spike in
    each cell, which uniform noise misses: that bound holds and grows without end. With ``dequantization="path"`` u is
    the noise of the path, cut off at the cells, and p the density at the time at which that noise is left, where no
    spike is narrower. Either is of images that are drawn up to the time it is read at and snapped there, which for
    ``uniform`` is the last time that the network is asked at. An end cell is open; the noise takes as much of it as of
    the others. The bound is on average over u: an image's own figure scatters about it, as with the estimated trace.

    seed, first  of the noise and the probes of the images, numbered from ``first`` on as in `Generator.sample`: each
                 one's are its own, whatever stands beside it

    Raises InputError for a generator of another kind and for codes of a codebook, which have no cells; ValueError for a
    batch of other codes, a label that is no class, and codes too large for the exact trace; InputError where the
    density is not finite.
    """
    options = options or LikelihoodOptions()
    if not isinstance(generator, DiffusionGenerator):
        raise InputError(
            f"a generator of kind {generator.kind}: expected diffusion; its own nll is exact and needs no flow"
        )
    if isinstance(generator.spec, CodeSpec) and not generator.spec.on_lattice:
        raise InputError(
            f"codes of a codebook of {' + '.join(map(str, generator.spec.levels))}: have no cells that noise could"
            " fill; expected digits of a lattice, or latents"
        )
    difference = batch.layout.differs_from(generator.spec)
    if difference:
        raise ValueError(f"codes of another layout than the generator's: {difference}")
    generator.check_labels(batch.labels)
    exact = options.is_exact(generator.code_dim * generator.spec.tokens)
    parts = list(_parts(generator, batch, options, exact, seed, first))
    bits = torch.cat([-part.nats.cpu().double() / math.log(2) for part, _ in parts])  # b k
    if not bool(bits.isfinite().all()):
        raise InputError(
            f"the density is not finite with {options.sampler}: expected finite weights, or more steps or"
            " another solver"
        )
    error = bits.std(dim=1) / bits.shape[1] ** 0.5 if bits.shape[1] > 1 else None
    evaluations = torch.cat([torch.full((len(part.nats),), part.evaluations) for part, _ in parts])
    return Likelihood(
        bits.mean(dim=1), torch.zeros(len(bits)).double() if exact else error, evaluations, parts[0][1], exact
    )


def half_cells(spec: CodeSpec, std: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
    """Half the distance of neighbouring lattice points in each dimension, in units of ``std``, float64.

    What is snapped to a point lies no further from it, by any rule of the cells; beyond an end point without bound.
    """
    levels = torch.tensor(spec.levels, dtype=torch.float64, device=std.device)
    _, h = placement(levels, spec.cells)
    return spec.scale / (2 * h) / std.double()


def time_of_noise(path: Path, level: float, last: float = 1.0) -> float:
    """The time at which ``sigma / alpha`` has fallen to ``level``, ``last`` at most."""
    low, high = 0.0, last
    if _noise_level(path, last) >= level:
        return last
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _noise_level(path, middle) > level else (low, middle)
    return high


def _parts(
    model: DiffusionGenerator, batch: CodeBatch, options: LikelihoodOptions, exact: bool, seed: int, first: int
) -> Iterator[tuple[LogDensity, float]]:
    """The images a few at a time: the nats of data, or of digits those of the bound, and the time they are read at."""
    device, shape = model.code_mean.device, (model.code_dim, *model.spec.grid)
    values, columns = math.prod(shape), 0 if exact else options.probes
    exactly = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    data, labels = model.normalize(batch.codes().to(device)).to(exactly), batch.labels.to(device)
    at_once = 1 if options.adaptive else AT_ONCE
    for start in range(0, len(labels), at_once):
        y, told = data[start : start + at_once], labels[start : start + at_once]
        drawn = uniforms(seed, first + start, len(y), values * (1 + columns)).unflatten(1, (1 + columns, *shape))
        signs = torch.where(drawn[:, 1:] < 0.5, -1.0, 1.0).to(y)
        offset, read = -model.spec.tokens * model.code_std.to(exactly).log().sum(), None
        if isinstance(model.spec, CodeSpec):
            read, noise, offset = _noise(model, options, drawn[:, 0].to(y))
            y = y + noise

        def velocity(x: Tensor, t: Tensor, told: Tensor = told) -> Tensor:
            return model.velocity(x, t, told, DiffusionSampling())

        with evaluating(model), without_gradients(model):
            span = model.objective.span
            found = log_density(velocity, y, options, None if exact else signs, model.path, span, read)
        nats = found.nats + (offset[:, None] if offset.ndim else offset)
        yield LogDensity(nats, found.evaluations), span[1] if read is None else read


def _noise(
    model: DiffusionGenerator, options: LikelihoodOptions, uniform: Float[Tensor, "b d h w"]
) -> tuple[float, Tensor, Tensor]:
    """When the density is read, the noise of normalised codes, and minus its log-density, (b,)."""
    assert isinstance(model.spec, CodeSpec)
    path, last = model.path, model.objective.span[1]
    half = half_cells(model.spec, model.code_std)
    uniform = uniform.clamp(min=2.0**-25)  # open at 0, whose normal number is infinite
    if options.dequantization == "uniform":
        half = half.to(uniform)[:, None, None]
        return last, half * (2 * uniform - 1), (2 * half).log().expand_as(uniform).flatten(1).sum(dim=1)
    read = time_of_noise(path, options.spread * float(half.min()), last)
    level = _noise_level(path, read)
    cut = (half / level).to(uniform)[:, None, None]
    inside = torch.special.erf(cut / math.sqrt(2))
    z = torch.special.ndtri((1 - inside) / 2 + inside * uniform)  # N(0, 1) within the cut
    density = -z.square() / 2 - math.log(level * math.sqrt(2 * math.pi)) - inside.log()
    return read, level * z, -density.flatten(1).sum(dim=1)


def _noise_level(path: Path, t: float) -> float:
    time = torch.tensor(t, dtype=torch.float64, device="cpu")
    return float(path.sigma(time) / path.alpha(time))


def _with_trace(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "b *d"], probes: Float[Tensor, "b k *d"] | None
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b k"]]:
    """``f(x)`` and the trace of its Jacobian: estimated by each probe, or exact in one column. The graph ends here."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = f(x)
    columns = [_products(value, x, probe) for probe in _directions(x, probes)]
    if probes is None:
        return value.detach(), torch.stack(columns, dim=1).sum(dim=1, keepdim=True)
    return value.detach(), torch.stack(columns, dim=1)


def _directions(x: Tensor, probes: Tensor | None) -> Iterator[Tensor]:
    """Each probe, or the unit vectors, like x."""
    if probes is not None:
        yield from probes.unbind(dim=1)
        return
    for number in range(x[0].numel()):
        unit = torch.zeros(x[0].numel(), dtype=x.dtype, device=x.device)
        unit[number] = 1
        yield unit.view_as(x[0]).expand_as(x)


def _products(value: Tensor, x: Tensor, direction: Tensor) -> Float[Tensor, "b"]:
    """``e . (J^T e)`` of each example."""
    (product,) = torch.autograd.grad(value, x, direction, retain_graph=True)
    return (product * direction).flatten(1).sum(dim=1)

"""Times of the steps that are fitted to a trained model: where they lie nearest to a fine solution.

The error of a few solutions at their end is made least by Adam over the lengths of the steps, through the solver and
the network; the best times seen are returned, so that they are no worse than those it began with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ifsq.config import InputError, to_dict
from ifsq.generators.base import Generator, Sampling
from ifsq.generators.diffusion.generator import DiffusionGenerator
from ifsq.generators.diffusion.sampling import SOLVERS, DiffusionSampling
from ifsq.generators.diffusion.solvers import Velocity, rk4, time_grid
from ifsq.generators.streams import normals
from ifsq.nn.modes import evaluating, without_gradients
from ifsq.store.model import new_folder
from ifsq.store.model_card import Provenance
from ifsq.training.log import Reporter, Silent

Solve = Callable[[Velocity, Tensor, Tensor], Tensor]  # velocity, x, times -> x at the last of them
SHIFTS = (0.0, 0.3, 0.5, 2.0, 3.0)  # from the best of which the fit begins
RATE = 0.1  # of Adam, of the logarithms of the lengths
FINISH = 0.1  # of the rate, at the end
HELD_OUT = 2**62  # number of the first image whose noise the times are fitted to
REFERENCE = 50
"""Steps of the fine solution, of order 4."""


@dataclass(frozen=True)
class FittedTimes:
    """Times of steps, and how far from the fine solution they end: root of the mean square of normalised codes.

    times       from 0 to 1
    error       of these times, on the noises that they were fitted to
    even_error  of even times, on the same
    """

    times: tuple[float, ...]
    error: float
    even_error: float


def fit_times(
    solve: Solve,
    velocity: Velocity,
    noise: Float[Tensor, "b *d"],
    target: Float[Tensor, "b *d"],
    steps: int,
    iterations: int = 40,
    span: tuple[float, float] = (0.0, 1.0),
    starts: Sequence[float] = SHIFTS,
    reporter: Reporter | None = None,
) -> FittedTimes:
    """The times at which ``steps`` of a solver lead the noise nearest to ``target``.

    Each iteration asks for the gradient of all steps; states between evaluations are kept, what is inside of them is
    computed again.

    solve       of a solver whose steps the times are
    velocity    differentiable in x and t; its parameters need no gradients
    span        the first and the last time of ``velocity``, to which 0 and 1 are mapped
    starts      shifts of `time_grid`; the fit begins with the best
    """
    reporter = reporter or Silent()
    low, high = span
    kept: Velocity = lambda x, t: checkpoint(velocity, x, t, use_reentrant=False)  # noqa: E731

    def error(times: Tensor, velocity: Velocity = velocity) -> Tensor:
        return (solve(velocity, noise, low + (high - low) * times) - target).square().mean()

    with torch.no_grad():
        grids = [time_grid(steps, shift) for shift in dict.fromkeys((0.0, *starts))]
        errors = [float(error(grid)) for grid in grids]
    even_error, (best_error, best) = errors[0], min(zip(errors, grids, strict=True), key=lambda pair: pair[0])
    lengths = best.diff().log().requires_grad_()
    optimizer = torch.optim.Adam([lengths], RATE, betas=(0.8, 0.95))
    count = iterations if steps > 1 else 0
    reporter.start("times", 0, count)
    for iteration in range(count):
        optimizer.param_groups[0]["lr"] = RATE * (1 - (1 - FINISH) * iteration / iterations)
        times = _times(lengths)
        found = error(times, kept)
        if float(found.detach()) < best_error:
            best_error, best = float(found.detach()), times.detach()
        optimizer.zero_grad()
        (gradient,) = torch.autograd.grad(found.log(), lengths)
        lengths.grad = gradient
        optimizer.step()
        reporter.advance(iteration + 1, {})
    reporter.finish({})
    return FittedTimes(tuple(best.tolist()), best_error**0.5, even_error**0.5)


def fit_generator_times(
    generator: Generator,
    sampling: Sampling,
    images: int = 16,
    iterations: int = 40,
    reporter: Reporter | None = None,
) -> FittedTimes:
    """The times for a trained generator and the steps, the solver and the guidance of ``sampling``.

    The noises are of images that no sampling reaches, of all classes in turn; the fine solution is REFERENCE steps of
    `rk4`. Raises InputError on a generator that is no diffusion one, a solver that has no fixed steps or adds noise,
    and where times are given already.
    """
    if not isinstance(generator, DiffusionGenerator) or not isinstance(sampling, DiffusionSampling):
        raise InputError(f"a generator of kind {generator.kind}: expected diffusion, whose solver has times")
    solver = SOLVERS[sampling.solver]
    if solver.adaptive or solver.noise or solver.average:
        able = (name for name, one in SOLVERS.items() if not (one.adaptive or one.noise or one.average))
        raise InputError(f"solver={sampling.solver!r}: expected one of fixed steps without noise, {', '.join(able)}")
    if sampling.times is not None:
        raise InputError(f"times={list(sampling.times)}: expected none, they are what is fitted")
    for name, value, least in (("images", images, 1), ("iterations", iterations, 0)):
        if value < least:
            raise InputError(f"{name}={value}: expected at least {least}")
    generator.check_sampling(sampling)
    device, shape = generator.code_mean.device, (generator.code_dim, *generator.spec.grid)
    labels = torch.arange(images, device=device) % generator.num_classes
    noise = normals(0, HELD_OUT, images, math.prod(shape)).unflatten(1, shape).to(device)
    (low, end), path = generator.objective.span, generator.path

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return generator.velocity(x, t, labels, sampling)

    with evaluating(generator), without_gradients(generator):
        target = rk4(velocity, noise, low + (end - low) * time_grid(REFERENCE))
        if end < 1:  # sampling ends on the data that are seen there
            last = torch.tensor(end, device="cpu")
            target = path.convert(velocity(target, last), target, last, "velocity", "data")
        with torch.enable_grad():
            return fit_times(
                lambda velocity, x, times: sampling.solve(velocity, x, path, span=(low, end), times=times),
                velocity,
                noise,
                target,
                sampling.steps,
                iterations,
                (low, 1.0),  # as `DiffusionSampling.grid` has them
                (sampling.timestep_shift, *SHIFTS),
                reporter,
            )


def save_with_times(
    generator: Generator, sampling: Sampling, times: Sequence[float], out: Path, made: Provenance
) -> None:
    """Save the generator in a new folder, to be sampled by ``sampling`` with these times where nobody says otherwise.

    Raises InputError where the folder is taken.
    """
    assert isinstance(sampling, DiffusionSampling)
    usual = replace(sampling, times=tuple(times), timestep_shift=0.0)
    generator.origin = replace(generator.origin, sampling=to_dict(usual))
    with new_folder(out) as partial:
        generator.save_pretrained(partial, made)


def _times(lengths: Float[Tensor, "steps"]) -> Float[Tensor, "times"]:
    """Times from exactly 0 to exactly 1 by the logarithms of the lengths between them."""
    inner = lengths.softmax(dim=0).cumsum(dim=0)[:-1]
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])

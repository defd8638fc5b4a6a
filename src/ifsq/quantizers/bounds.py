"""Bounds: monotone maps from an unbounded latent to (-1, 1), channel by channel.

The paper's one line is here: FSQ bounds with ``tanh(z) = 2*sigmoid(2z) - 1``, iFSQ with ``2*sigmoid(1.6z) - 1``
(arXiv 2601.17124, section 3), which sends N(0, 1) to nearly U(-1, 1). Every bound is computed as a map to the unit
interval, ``unit(z) = (bound(z) + 1) / 2``. A bound is the CDF of some distribution; latents with that distribution
become uniform. Two families:

- fixed: ``tanh``, ``ifsq``, ``gaussian``, ``clamp``;
- fitted to the latents, channel by channel: ``standardized`` and ``quantile`` follow slow running statistics,
  ``learned`` is trained with the model. Training and evaluation compute the same function of the same state:
  normalising by the statistics of a batch costs reconstruction, because a code then means something else each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq.quantizers.compilers import constant, materialize

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FIXED = ("tanh", "ifsq", "gaussian", "clamp")
FITTED = ("standardized", "quantile", "learned")
BOUNDS = FIXED + FITTED
IFSQ_ALPHA = 1.6
MOMENTUM = 0.01  # of the running statistics: a half-life of 69 batches

KNOTS = 63  # of the quantile bound: 64 pieces of equal probability
SAMPLES_PER_CHANNEL = 1024  # of a batch that its quantiles are taken from; momentum 0.01 remembers a hundred batches
GOLDEN = (math.sqrt(5) - 1) / 2
LEAST_DEVIATION = 0.01  # so that the gradient into a channel that hardly moves stays finite
SPLINE_BINS = 16
MIN_MASS = 1e-3  # of a spline bin, so that its gradient cannot vanish
MIN_SLOPE = 1e-2


class Bound(nn.Module):
    """A bound. Called on latents, float, of any shape with channels on ``axis``; returns (-1, 1), same shape.

    Statistics and fitted tables are float32 whatever the module is cast to, for bfloat16 cannot hold an update of 1 %.
    Do not use running ones inside activation checkpointing: it runs a forward twice, and they would move twice.
    """

    name: str
    channels: int | None = None  # None: the same for every channel

    def unit(self, z: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        """Latents -> [0, 1], same shape; differentiable."""
        raise NotImplementedError

    def forward(self, z: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        return 2 * self.unit(z, axis) - 1

    def observe(self, z: Float[Tensor, "..."], axis: int = -1) -> None:
        """Move the running statistics, if there are any, towards those of a training batch."""

    def fit(self, samples: Float[Tensor, "n c"]) -> None:
        """Set the state from latents (n, channels), float."""
        raise ValueError(f"bound={self.name!r} has nothing to fit; expected one of {', '.join(FITTED)}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bound:
        def move(t: Tensor) -> Tensor:
            return fn(t) if t.is_meta else t.to(fn(t.new_empty(0)).device)

        buffers = {name: move(b) for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)
        self._buffers.update(buffers)
        return self

    def extra_repr(self) -> str:
        return self.name


class Curve(Bound):
    """A bound that is one elementary function of an affine latent: ``curve(slope * z + shift)``.

    These are the ones that the fused kernels compute; ``curve`` names the function.
    """

    curve: ClassVar[str]

    def affine(self, ndim: int, axis: int) -> tuple[float | Tensor, float | Tensor]:
        """Slope and shift: numbers, or float32 tensors that broadcast over a latent of ``ndim`` axes."""
        return 1.0, 0.0

    def unit(self, z: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        slope, shift = self.affine(z.ndim, axis)
        return CURVES[self.curve](z * slope + shift)


class Logistic(Curve):
    """``2*sigmoid(alpha*z) - 1``: makes a logistic distribution of scale 1/alpha uniform.

    alpha = 2 is tanh (FSQ); 1.6 is iFSQ and comes within 0.017 (Kolmogorov-Smirnov) of uniform on N(0, 1); 1.702 is the
    closest logistic, within 0.0095.
    """

    curve = "logistic"
    alpha = constant("_alpha")

    def __init__(self, alpha: float, name: str = "ifsq") -> None:
        super().__init__()
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha={alpha}: the slope of the ifsq bound must be a positive number")
        self.alpha, self.name = alpha, name

    def affine(self, ndim: int, axis: int) -> tuple[float | Tensor, float | Tensor]:
        return self.alpha, 0.0

    def extra_repr(self) -> str:
        return "tanh" if self.name == "tanh" else f"{self.name}, alpha={self.alpha}"


class Gaussian(Curve):
    """``erf(z / sqrt 2)``, the normal distribution function: makes N(0, 1) exactly uniform."""

    curve, name = "gaussian", "gaussian"


class Clamp(Curve):
    """``clamp(z, -1, 1)``: makes U(-1, 1) uniform. No gradient reaches a latent outside the interval."""

    curve, name = "clamp", "clamp"


class Standardized(Curve):
    """``2*sigmoid(alpha*(z - mean)/deviation) - 1`` with running statistics of each channel.

    Makes any logistic-like (and nearly any Gaussian) latent uniform whatever its mean and scale: the location-scale
    family of N(0, 1), not skew, tails or several modes. Starts as iFSQ (mean 0, deviation 1).
    """

    curve, name = "logistic", "standardized"
    alpha = constant("_alpha")
    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, alpha: float = IFSQ_ALPHA, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.channels, self.alpha, self.momentum = channels, alpha, momentum
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("variance", torch.ones(channels, dtype=torch.float32))

    def affine(self, ndim: int, axis: int) -> tuple[float | Tensor, float | Tensor]:
        mean, variance = self.mean, self.variance
        if self.training:  # the gradient is of these, which `observe` moves before it is computed
            mean, variance = materialize(mean), materialize(variance)
        slope = self.alpha * torch.rsqrt(variance.clamp(min=LEAST_DEVIATION**2))
        return _along(slope, ndim, axis), _along(-mean * slope, ndim, axis)

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "..."], axis: int = -1) -> None:
        rows = _rows(z.detach(), axis).float()
        mean = _average(rows.mean(1))
        variance = (rows - mean.unsqueeze(1)).square().mean(1)
        _follow(self.mean, mean, self.momentum)
        _follow(self.variance, variance, self.momentum)

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "n c"]) -> None:
        _check_samples(self.name, samples, self.channels)
        samples = samples.detach().double()
        self.mean.copy_(samples.mean(0))
        self.variance.copy_(samples.var(0, correction=0))


class Quantile(Bound):
    """The running distribution function of each channel, piecewise linear between 63 quantiles, exponential beyond.

    Makes whatever the channel holds uniform (to 1/64 between two knots). The quantiles follow those of the batches at
    ``momentum`` in training and are constant in evaluation and in an exported graph. Starts as iFSQ.
    """

    name = "quantile"
    knots: Tensor

    def __init__(self, channels: int, alpha: float = IFSQ_ALPHA, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.channels, self.momentum = channels, momentum
        self.register_buffer("knots", (torch.logit(_probabilities()) / alpha).expand(channels, KNOTS).clone())

    def unit(self, z: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        knots = materialize(self.knots) if self.training else self.knots  # which `observe` moves
        return _unrows(_Piecewise.apply(_rows(z, axis), knots), z, axis)

    @torch.no_grad()
    def observe(self, z: Float[Tensor, "..."], axis: int = -1) -> None:
        rows = _rows(z.detach(), axis).float()
        fresh = _separate(_quantiles(_spread(rows))) if rows.numel() else self.knots
        _follow(self.knots, fresh, self.momentum)

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "n c"]) -> None:
        _check_samples(self.name, samples, self.channels)
        self.knots.copy_(_separate(_quantiles(samples.detach().float().t())))


class Learned(Bound):
    """A monotone rational-quadratic spline (arXiv 1906.04032) of the iFSQ bound for each channel; trained by gradient.

    16 bins over iFSQ's unit interval; starts as iFSQ exactly, and makes uniform what training wants uniform. `fit` sets
    it to the distribution function of the samples, as far as 16 bins resolve it: not modes narrower than a bin.
    """

    name = "learned"
    alpha = constant("_alpha")

    def __init__(self, channels: int, alpha: float = IFSQ_ALPHA) -> None:
        super().__init__()
        self.channels, self.alpha = channels, alpha
        self.heights = nn.Parameter(torch.zeros(channels, SPLINE_BINS))
        self.slopes = nn.Parameter(torch.full((channels, SPLINE_BINS + 1), math.log(math.expm1(1 - MIN_SLOPE))))

    def unit(self, z: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        u = torch.sigmoid(_rows(z, axis) * self.alpha)
        dtype = u.dtype
        # Heights of the bins and slopes at their ends, both positive: the spline rises.
        heights = materialize(MIN_MASS + (1 - SPLINE_BINS * MIN_MASS) * torch.softmax(self.heights.to(dtype), dim=1))
        slopes = MIN_SLOPE + F.softplus(self.slopes.to(dtype))
        base = F.pad(heights.cumsum(1), (1, 0))[:, :-1]
        # The bin of each latent, and how far into it the latent is.
        scaled = u * SPLINE_BINS
        with torch.no_grad():
            piece = scaled.floor().clamp(0, SPLINE_BINS - 1).to(torch.int64)
        x = scaled - piece
        # The rational quadratic of that bin, equation 4 of the source on a bin of width 1/16.
        height = heights.gather(1, piece)
        secant = height * SPLINE_BINS
        left, right = slopes.gather(1, piece), slopes.gather(1, piece + 1)
        bend = x * (1 - x)
        part = (secant * x.square() + left * bend) / (secant + (left + right - 2 * secant) * bend)
        return _unrows(base.gather(1, piece) + height * part, z, axis)

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "n c"]) -> None:
        _check_samples(self.name, samples, self.channels)
        u = torch.sigmoid(samples.detach().float() * self.alpha)
        for c in range(u.shape[1]):
            mass = torch.histc(u[:, c], SPLINE_BINS, 0, 1) / len(u)
            mass = ((mass - MIN_MASS).clamp(min=MIN_MASS / 10)) / (1 - SPLINE_BINS * MIN_MASS)
            self.heights[c] = mass.log()
            secant = SPLINE_BINS * (MIN_MASS + (1 - SPLINE_BINS * MIN_MASS) * mass / mass.sum())
            # The harmonic mean of two neighbours keeps a step between them from overshooting.
            inner = 2 / (1 / secant[1:] + 1 / secant[:-1])
            self.slopes[c] = _inverse_slope(torch.cat([secant[:1], inner, secant[-1:]]))


def make_bound(name: str, channels: int, alpha: float = IFSQ_ALPHA) -> Bound:
    """The bound called ``name`` for latents of so many channels.

    ``alpha`` is the slope of ``ifsq`` and of the logistic that the fitted bounds start from; ``tanh``, ``gaussian`` and
    ``clamp`` have none. Raises ValueError for an unknown name or a slope that is not positive.
    """
    if name not in BOUNDS:
        raise ValueError(f"bound={name!r}: expected one of {', '.join(BOUNDS)}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha={alpha}: the slope of the ifsq bound must be a positive number")
    if name == "tanh":
        return Logistic(2.0, "tanh")
    if name == "ifsq":
        return Logistic(alpha)
    if name in FIXED:
        return {"gaussian": Gaussian, "clamp": Clamp}[name]()
    return {"standardized": Standardized, "quantile": Quantile, "learned": Learned}[name](channels, alpha)


def refuse_second_derivative() -> None:
    """Raise RuntimeError in the backward pass of a fused function, which would leave a term out in silence."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("create_graph=True: a quantizer has no second derivative; expected a first one")


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.erf(z * math.sqrt(0.5))


def _uniform_cdf(z: Tensor) -> Tensor:
    return 0.5 + 0.5 * z.clamp(-1, 1)


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": torch.sigmoid,
    "gaussian": _normal_cdf,
    "clamp": _uniform_cdf,
}


def _along(vector: Tensor, ndim: int, axis: int) -> Tensor:
    """A value a channel, shaped to broadcast over a latent."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.view(shape)


def _rows(z: Float[Tensor, "..."], axis: int) -> Float[Tensor, "c n"]:
    """A latent as (channels, n)."""
    return z.movedim(axis, 0).flatten(1)


def _unrows(rows: Float[Tensor, "c n"], like: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
    moved = like.movedim(axis, 0).shape
    return rows.view(moved).movedim(0, axis)


def _probabilities() -> Float[Tensor, "k"]:
    return torch.arange(1, KNOTS + 1, dtype=torch.float32) / (KNOTS + 1)


def _quantiles(rows: Float[Tensor, "c n"]) -> Float[Tensor, "c k"]:
    """Quantiles (channels, KNOTS) of latents (channels, n), linear between order statistics."""
    ordered = rows.sort(dim=1).values
    place = _probabilities().to(rows.device) * (ordered.shape[1] - 1)
    low = place.floor().to(torch.int64)
    high = (low + 1).clamp(max=ordered.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], (place - low).expand(len(rows), -1))


def _separate(knots: Float[Tensor, "c k"]) -> Float[Tensor, "c k"]:
    """Knots with a least distance between neighbours: a thousandth of their span, so that no slope is infinite.

    Averages of such knots keep it.
    """
    span = (knots[:, -1:] - knots[:, :1]).clamp(min=0.1)
    steps = span * 1e-3 * torch.arange(KNOTS, device=knots.device, dtype=knots.dtype)
    return (knots - steps).cummax(dim=1).values + steps


class _Piecewise(torch.autograd.Function):
    """Latents (channels, n) and knots (channels, KNOTS) -> [0, 1]; keeps its slope for the gradient, nothing else."""

    @staticmethod
    def forward(ctx: Any, rows: Float[Tensor, "c n"], knots: Float[Tensor, "c k"]) -> Float[Tensor, "c n"]:
        # A piece's left knot and inverse width; the two tails continue the slope of their neighbours.
        inverse = 1 / knots.diff(dim=1)
        left = torch.cat([knots[:, :1], knots], dim=1)
        inverse = torch.cat([inverse[:, :1], inverse, inverse[:, -1:]], dim=1) / (KNOTS + 1)
        piece = _count_below(knots, rows)
        slope = inverse.gather(1, piece)
        # How far into its piece each latent is, in parts of the whole interval.
        u = (rows - left.gather(1, piece)).mul_(slope)
        # In the tails: at the first knot exp(t)/64, beyond the last one 1 - exp(-t)/64.
        tail = torch.exp(u.abs().mul_(-(KNOTS + 1)))
        first, last = piece == 0, piece == KNOTS
        # Every piece before it holds 1/64.
        u.add_(piece, alpha=1 / (KNOTS + 1))
        u = torch.where(first, tail / (KNOTS + 1), torch.where(last, 1 - tail / (KNOTS + 1), u))
        if ctx.needs_input_grad[0]:  # an exponential's slope falls as it does
            ctx.save_for_backward(torch.where(first | last, slope * tail, slope))
        return u

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        return grad * ctx.saved_tensors[0], None


def _count_below(knots: Float[Tensor, "c k"], rows: Float[Tensor, "c n"]) -> Int[Tensor, "c n"]:
    """How many of its channel's knots are at or below each latent: int64 (channels, n), 0 to KNOTS.

    By halving: gathers from a small table are quicker than torch.searchsorted, and every exporter knows them.
    """
    count = torch.zeros_like(rows, dtype=torch.int64)
    step = (KNOTS + 1) // 2
    while step:
        count.add_(knots[:, step - 1 :].gather(1, count) <= rows, alpha=step)
        step //= 2
    return count


def _inverse_slope(slope: Tensor) -> Tensor:
    """Parameter whose spline slope is this one."""
    return torch.log(torch.expm1((slope - MIN_SLOPE).clamp(min=1e-4)))


def _follow(state: Tensor, fresh: Tensor, momentum: float) -> None:
    """Move a running statistic; what a batch without finite values says is left out, or it would stay NaN for good."""
    fresh = _average(fresh.to(state.dtype))
    state.lerp_(torch.where(torch.isfinite(fresh), fresh, state), momentum)


def _spread(rows: Float[Tensor, "c n"]) -> Float[Tensor, "c m"]:
    """At most `SAMPLES_PER_CHANNEL` columns of (channels, n), spread by the golden ratio.

    Even steps would fall into step with the width of an image and see some of its columns alone.
    """
    n = rows.shape[1]
    if n <= SAMPLES_PER_CHANNEL:
        return rows
    place = torch.arange(1, SAMPLES_PER_CHANNEL + 1, dtype=torch.float64, device=rows.device) * GOLDEN
    return rows[:, ((place - place.floor()) * n).to(torch.int64)]


def _check_samples(name: str, samples: Tensor, channels: int | None) -> None:
    if samples.ndim != 2 or samples.shape[1] != channels or len(samples) == 0:
        raise ValueError(f"samples of shape {tuple(samples.shape)}: expected (n, {channels}) for bound={name!r}")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"samples for bound={name!r} hold NaN or infinity: expected finite values")


def _average(x: Tensor) -> Tensor:
    """Mean over the processes of a distributed run; every process sees the same statistics."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        x = x.clone()
        torch.distributed.all_reduce(x)
        x /= torch.distributed.get_world_size()
    return x

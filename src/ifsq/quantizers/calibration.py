"""Calibration: fit a quantizer's bound to the latents that reach it, and report what that changes.

A fixed bound is the distribution function of one distribution; an encoder has another. `calibrate` reads the latents
behind whatever projection and rotation the quantizer has, fits the bound to them, and says in numbers and in words what
the levels carry before and after. Even use of the levels is not least distortion, so both are reported. Called as
``ifsq.calibrate``, on one process; imports torch only.
"""

import copy
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.quantizers import fused
from ifsq.quantizers.analysis import level_entropy, lloyd_max
from ifsq.quantizers.bounds import FITTED, IFSQ_ALPHA, Bound, make_bound
from ifsq.quantizers.cells import CELLS, digits_to_codes
from ifsq.quantizers.fsq import FSQ

LEAST_SAMPLES, LEAST_PER_LEVEL = 512, 10  # fewer say little about 64 quantiles, or about the entropy of L levels
MOST_VALUES = 2**25  # latents kept of all channels together: 128 MiB
DEAD = 0.999  # share of one level
SATURATED = 0.5  # share of the two end levels beyond an even share, over the largest possible
NEAR = 0.01  # of log2 L: what a bound must gain over a simpler one to be recommended
NARROW, WIDE, OFF_CENTRE, SKEWED, HEAVY, FLAT = 0.8, 1.25, 0.25, 0.5, 1.0, -0.7  # words for a channel's moments
COLUMNS, ROWS = 98, 32  # of a printed report


@dataclass(frozen=True)
class Use:
    """What a bound and a cell rule make of one channel.

    bits, fraction  entropy of the levels, and over log2 L: 1 is even use
    top, ends       share of the most used level; of the two end levels together
    slope           mean derivative of the bound by the latent: what of a gradient passes
    dead            one level holds more than 99.9 %
    saturated       the end levels hold their even share 2/L and more than half of the rest
    distortion      E (z - E[z | digit])^2 / variance of z: what the best decoder of the digits loses
    inverted        the same with the inverse of the bound at the code, within the sample, in place of E[z | digit]:
                    what a decoder loses that takes the codes at their word
    """

    bits: float
    fraction: float
    top: float
    ends: float
    slope: float
    dead: bool
    saturated: bool
    distortion: float
    inverted: float


@dataclass(frozen=True)
class Channel:
    """One channel's latents and its use before and after; ``skew`` and excess ``kurtosis`` are 0 for N(0, 1).

    scale      standard deviation
    low, high  least and largest latent of the sample
    least      least distortion found with L levels: the Lloyd-Max quantizer's
    """

    levels: int
    mean: float
    scale: float
    skew: float
    kurtosis: float
    low: float
    high: float
    before: Use
    after: Use
    least: float


@dataclass(frozen=True)
class Trial:
    """A bound with its cells on all channels: bits of a token, mean fraction of log2 L, mean distortion."""

    bound: str
    cells: str
    bits: float
    fraction: float
    distortion: float


@dataclass(frozen=True)
class Calibration:
    """Report on one quantizer; ``str`` gives a table and the recommendation.

    name             of the module inside the model
    before, after    bound and cells as they were, and as they are or (without ``fitted``) would be
    fitted           whether the quantizer was changed
    seen, samples    latents that reached the quantizer, and how many of them were kept to measure on
    trials           fixed ``ifsq``, ``standardized`` and ``quantile``, fitted, with equal cells
    equal            the bound of ``after`` with equal cells
    """

    name: str
    before: Trial
    after: Trial
    fitted: bool
    seen: int
    samples: int
    channels: tuple[Channel, ...]
    trials: tuple[Trial, ...]
    equal: Trial

    @property
    def capacity(self) -> float:
        """Bits of a token where all levels of all channels are used evenly."""
        return sum(math.log2(channel.levels) for channel in self.channels)

    @property
    def recommendation(self) -> str:
        """What the numbers say, in sentences."""
        return " ".join([*_about_bounds(self), *_about_channels(self), *_about_distortion(self), *_about_change(self)])

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {**asdict(self), "capacity": self.capacity, "recommendation": self.recommendation}

    def __str__(self) -> str:
        old, new = self.before, self.after
        lines = [
            f"{self.name}: {len(self.channels)} channels, measured on {self.samples} of {self.seen} latents",
            f"before: {old.bound}, {old.cells} cells    after: {new.bound}, {new.cells} cells"
            + ("" if self.fitted else " (not changed)"),
            "",
            f"{'latent':^33} | {'bits':^11} {'of log2 L':^11} | {'ends %':^9} | {'distortion %':^18}",
            f"{'ch':>3} {'L':>4} {'mean':>6} {'scale':>5} {'skew':>5} {'kurt':>5} |"
            f" {'before':>6} {'after':>5} {'before':>6} {'after':>4} |{'before':>6} {'after':>5} |"
            f"{'before':>6} {'after':>5} {'least':>5}",
        ]
        for c, channel in enumerate(self.channels[:ROWS]):
            b, a = channel.before, channel.after
            lines.append(
                f"{c:>3} {channel.levels:>4} {channel.mean:>6.2f} {channel.scale:>5.2f} {channel.skew:>5.1f}"
                f" {channel.kurtosis:>5.1f} | {b.bits:>6.2f} {a.bits:>5.2f} {b.fraction:>6.3f} {a.fraction:>5.3f} |"
                f" {100 * b.ends:>5.0f} {100 * a.ends:>5.0f} | {100 * b.distortion:>5.2f} {100 * a.distortion:>5.2f}"
                f" {100 * channel.least:>5.2f}"
            )
        if len(self.channels) > ROWS:
            lines.append(f"    and {len(self.channels) - ROWS} more channels in .channels")
        lines += [
            f"bits a token: {old.bits:.2f} before, {new.bits:.2f} after, {self.equal.bits:.2f} with equal cells,"
            f" {self.capacity:.2f} at most",
            "",
            f"{'fitted, equal cells':<20} {'bits a token':>12} {'of log2 L':>10} {'distortion %':>13}",
        ]
        lines += [f"{t.bound:<20} {t.bits:>12.2f} {t.fraction:>10.3f} {100 * t.distortion:>13.2f}" for t in self.trials]
        return "\n".join([*lines, "", *textwrap.wrap(self.recommendation, COLUMNS, break_on_hyphens=False)])


class Calibrations(dict[str, Calibration]):
    """Reports by the name of the quantizer, where a model has several."""

    def to_dict(self) -> dict[str, Any]:
        return {name: report.to_dict() for name, report in self.items()}

    def __str__(self) -> str:
        return "\n\n".join(str(report) for report in self.values())


def calibrate(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    bound: str | None = "auto",
    cells: str | None = None,
    fit: bool = True,
    max_samples: int = 200_000,
    call: Callable[[Any], object] | None = None,
) -> Calibration | Calibrations:
    """Fit the bound of every `FSQ` in ``module`` to the latents that reach it, and report.

    module       an `FSQ`, or a model that holds some
    batches      what the module takes: tensors, tuples or lists of positional arguments, dictionaries of named ones; or
                 one tensor. Moved to the module's device. For an `FSQ`, latents in its layout
    bound        ``auto`` fits the bound that is there, or puts the simplest that fits in place of one without anything
                 to fit: ``standardized`` or ``quantile``, or none where fixed ``ifsq`` would be as even to 0.01;
                 ``standardized``, ``quantile``, ``learned``: puts this one there. None keeps the bound, and fits it if
                 it can be fitted
    cells        cell rule from now on; None keeps it
    fit          False: change nothing, but report what would come of it
    max_samples  latents kept to measure and fit on, of each quantizer; fewer where 2**25 values are reached
    call         what is called on a batch in place of the module, e.g. ``model.encode``

    Returns one report, or reports by name where there are several quantizers. The module runs in evaluation mode,
    without gradients; its training flags come back, and no running statistic moves. Which latents are kept depends on
    their place in the stream alone. A ``learned`` bound put in place brings new parameters. Raises ValueError, before
    anything is changed, on a module without `FSQ`, on no batches, on too few or infinite latents, and on cells that the
    levels forbid.
    """
    quantizers = {name or type(module).__name__: q for name, q in module.named_modules() if isinstance(q, FSQ)}
    bounds = [id(q.bound) for q in quantizers.values() if _can_fit(q.bound)]
    if len(set(bounds)) < len(bounds):
        raise ValueError(
            f"two of {', '.join(quantizers)} share one bound: expected one each, or bound=... to replace it"
        )
    if not quantizers:
        raise ValueError(f"no ifsq.FSQ in {type(module).__name__}: expected at least one; ifsq.convert puts them there")
    if bound not in (None, "auto", *FITTED):
        raise ValueError(f"bound={bound!r}: expected None, 'auto' or one of {', '.join(FITTED)}")
    if cells is not None and cells not in CELLS:
        raise ValueError(f"cells={cells!r}: expected one of {', '.join(CELLS)}")
    if max_samples < LEAST_SAMPLES:
        raise ValueError(f"max_samples={max_samples}: expected at least {LEAST_SAMPLES}")
    kinds = {name: _kind(name, q, bound, cells) for name, q in quantizers.items()}
    samplers = {name: _Sampler(name, q, max_samples) for name, q in quantizers.items()}
    _run(module, call, batches, samplers)

    plans = [_plan(q, samplers[name], kinds[name], cells) for name, q in quantizers.items()]
    reports = Calibrations()
    for plan in plans:
        fitted = fit and plan.changes
        reports[plan.name] = _report(plan, fitted)
        if fitted:
            plan.install()
    return reports if len(reports) > 1 else next(iter(reports.values()))


class _Sampler:
    """A uniform sample of the latents that reach one quantizer: those with the smallest of random keys.

    The keys come from a generator of its own, one a latent: the sample does not depend on how the stream is cut.
    """

    def __init__(self, name: str, q: FSQ, limit: int) -> None:
        self.name, self.q = name, q
        self.width, self.device = q.effective_codebook_dim, torch.device("cpu")
        self.limit = max(LEAST_SAMPLES, min(limit, MOST_VALUES // self.width))
        self.rng, self.seen, self.bar = torch.Generator().manual_seed(0), 0, 1.0
        self.keys, self.rows = torch.empty(0, dtype=torch.float64), torch.empty(0, self.width)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = (args or tuple(kwargs.values()))[0]
        outer = self.q._axis(z)
        self.q._check_input(z, outer)
        latents, axis = self.q._enter(z.detach(), outer)
        rows = latents.movedim(axis, -1).flatten(0, -2)
        self.device = rows.device
        if not bool(torch.isfinite(rows).all()):
            worst = rows[~torch.isfinite(rows)][0].item()
            raise ValueError(f"latents of {self.name} hold {worst}: expected finite values")
        keys = torch.rand(len(rows), dtype=torch.float64, generator=self.rng)
        keep = keys < self.bar
        self.seen += len(rows)
        self.keys = torch.cat([self.keys, keys[keep]])
        self.rows = torch.cat([self.rows, rows[keep.to(rows.device)].to("cpu", torch.float32)])
        if len(self.keys) > 2 * self.limit:
            self._trim()

    def sample(self) -> Tensor:
        """Latents (n, channels), float32, in the order of the stream. Raises ValueError where they are too few."""
        needed = max(LEAST_SAMPLES, LEAST_PER_LEVEL * max(self.q.levels))
        if self.seen < needed:
            raise ValueError(
                f"{self.seen} latents reached {self.name}: expected at least {needed} for {max(self.q.levels)} levels"
            )
        self._trim()
        return self.rows

    def _trim(self) -> None:
        if len(self.keys) > self.limit:
            self.bar = self.keys.kthvalue(self.limit).values.item()
            keep = self.keys <= self.bar
            self.keys, self.rows = self.keys[keep], self.rows[keep]


def _run(
    module: nn.Module, call: Callable[[Any], object] | None, batches: Iterable[Any], samplers: dict[str, _Sampler]
) -> None:
    """Call the module on every batch, the samplers listening."""
    state = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = torch.device("cpu") if state is None else state.device
    count = 0
    with torch.no_grad(), _evaluating(module):
        hooks = [sampler.q.register_forward_pre_hook(sampler, with_kwargs=True) for sampler in samplers.values()]
        try:
            # A tensor is iterable too: without its batch axis, its channels would be elsewhere.
            for batch in [batches] if isinstance(batches, Tensor) else batches:
                count += 1
                batch = _move(batch, device)
                if call is not None:
                    call(batch)
                elif isinstance(batch, dict):
                    module(**batch)
                else:
                    module(*batch) if isinstance(batch, tuple | list) else module(batch)
        finally:
            for hook in hooks:
                hook.remove()
    if count == 0:
        raise ValueError("no batches: expected at least one (an iterator that was read before has none left)")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, by the flags alone: a module's own ``train`` may do more than set them."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: _move(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [_move(part, device) for part in batch]
    return batch.to(device) if isinstance(batch, Tensor) else batch


def _kind(name: str, q: FSQ, bound: str | None, cells: str | None) -> str | None:
    """Name of the bound to put in place, None to keep the one there is. Raises ValueError where levels forbid it."""
    kind = bound
    if bound == "auto":
        kind = None if _can_fit(q.bound) else "auto"
    if kind == q.bound.name and _can_fit(q.bound):
        kind = None
    keeps_original = q.original and kind is None
    named = "quantile" if kind == "auto" else kind or q.bound.name
    if (cells or q.cells) == "paper" and not keeps_original and any(L % 2 == 0 for L in q.levels):
        raise ValueError(
            f"{name} has levels={list(q.levels)}: paper cells with bound={named!r} need odd levels;"
            " pass cells='equal' or 'symmetric'"
        )
    return kind


def _can_fit(bound: Bound) -> bool:
    return type(bound).fit is not Bound.fit


@dataclass
class _Plan:
    """What is to become of a quantizer: ``old`` as it is, ``new`` as it shall be, stand-ins for measuring."""

    name: str
    q: FSQ
    seen: int
    device: torch.device
    latents: Tensor
    old: FSQ
    new: FSQ
    trials: tuple[Trial, ...]
    replaced: bool

    @property
    def changes(self) -> bool:
        return self.replaced or _can_fit(self.old.bound) or self.new.cells != self.old.cells

    def install(self) -> None:
        q = self.q
        if self.replaced:
            q.bound = copy.deepcopy(self.new.bound).to(self.device).train(q.training)
        else:
            q.bound.load_state_dict(self.new.bound.state_dict())  # in place: an optimizer may hold its parameters
        q.cells, q.original = self.new.cells, self.new.original


def _plan(q: FSQ, sampler: _Sampler, kind: str | None, cells: str | None) -> _Plan:
    latents = sampler.sample()
    old = _stand_in(q, copy.deepcopy(q.bound).cpu(), q.cells, q.original)
    bound = copy.deepcopy(old.bound)
    trials = tuple(_fitted_trial(q, name, latents) for name in ("ifsq", "standardized", "quantile"))
    if kind == "auto":
        simplest = _simplest(trials).bound
        kind = simplest if simplest in FITTED else None
    if kind is not None:
        alpha = getattr(q.bound, "alpha", IFSQ_ALPHA) if q.bound.name == "ifsq" else IFSQ_ALPHA
        bound = make_bound(kind, sampler.width, alpha)
    if _can_fit(bound):
        bound.fit(latents)
    chosen = cells or q.cells
    new = _stand_in(q, bound, chosen, q.original and kind is None and chosen == "paper")
    return _Plan(sampler.name, q, sampler.seen, sampler.device, latents, old, new, trials, kind is not None)


def _fitted_trial(q: FSQ, name: str, latents: Tensor) -> Trial:
    bound = make_bound(name, latents.shape[1])
    if _can_fit(bound):
        bound.fit(latents)
    return _try(_stand_in(q, bound, "equal", False), latents)


def _simplest(trials: tuple[Trial, ...]) -> Trial:
    """The first that is nearly as even as the best."""
    best = max(trial.fraction for trial in trials)
    return next(trial for trial in trials if trial.fraction >= best - NEAR)


def _stand_in(q: FSQ, bound: Bound, cells: str, original: bool) -> FSQ:
    """A quantizer of all channels of all codebooks, without projection, on CPU."""
    stand_in = FSQ(q.levels * q.num_codebooks, cells="equal")
    stand_in.bound, stand_in.cells, stand_in.original = bound, cells, original
    return stand_in.eval()


def _report(plan: _Plan, fitted: bool) -> Calibration:
    latents = plan.latents
    uses = [_uses(q, latents) for q in (plan.old, plan.new)]
    channels = tuple(
        _channel(latents[:, c], L, before, after)
        for c, (L, before, after) in enumerate(zip(plan.old.levels, *uses, strict=True))
    )
    equal = _try(_stand_in(plan.q, plan.new.bound, "equal", False), latents)
    before, after = (_trial(q, use) for q, use in zip((plan.old, plan.new), uses, strict=True))
    return Calibration(plan.name, before, after, fitted, plan.seen, len(latents), channels, plan.trials, equal)


def _try(q: FSQ, latents: Tensor) -> Trial:
    return _trial(q, _uses(q, latents))


def _trial(q: FSQ, uses: list[Use]) -> Trial:
    n = len(uses)
    fraction, distortion = sum(use.fraction for use in uses) / n, sum(use.distortion for use in uses) / n
    return Trial(q.bound.name, q.cells, sum(use.bits for use in uses), fraction, distortion)


def _uses(q: FSQ, latents: Tensor) -> list[Use]:
    """Use of every channel's levels; the digits are those that the quantizer's own arithmetic gives."""
    steps = q._steps(latents, 1)
    with torch.enable_grad():
        z = latents.detach().requires_grad_()
        u = q._unit(z, 1, steps)
        slopes = 2 * torch.autograd.grad(u.sum(), z)[0]
    with torch.no_grad():
        digits = fused.straight_through(u.detach(), steps, torch.int32)[1]
        assert digits is not None
        bounded = q.bounded(latents, axis=1)
    codes = {L: digits_to_codes(torch.arange(L)[:, None], [L], q.cells)[:, 0] for L in set(q.levels)}
    return [
        _use(latents[:, c], bounded[:, c], digits[:, c].long(), codes[L], L, slopes[:, c].mean().item())
        for c, L in enumerate(q.levels)
    ]


def _use(z: Tensor, bounded: Tensor, digits: Tensor, codes: Tensor, L: int, slope: float) -> Use:
    n = len(z)
    counts = torch.bincount(digits, minlength=L)
    bits, ends = level_entropy(digits, L), (counts[0] + counts[-1]).item() / n
    z = z.double()
    variance = z.var(correction=0).item()
    centroids = torch.zeros(L, dtype=torch.float64).index_add_(0, digits, z) / counts.clamp(min=1)
    ordered, place = z.sort()
    # A code beyond what the sample reaches stands for the sample's end.
    inverse = _interpolate(bounded[place].double(), ordered, codes.double())
    losses = [(z - points[digits]).square().mean().item() for points in (centroids, inverse)]
    distortion, inverted = (loss / variance if variance > 0 else 0.0 for loss in losses)
    even = 2 / L
    return Use(
        bits=bits,
        fraction=bits / math.log2(L),
        top=counts.max().item() / n,
        ends=ends,
        slope=slope,
        dead=counts.max().item() / n > DEAD,
        saturated=L > 2 and ends - even > SATURATED * (1 - even),
        distortion=distortion,
        inverted=inverted,
    )


def _channel(z: Tensor, L: int, before: Use, after: Use) -> Channel:
    low, high = (end.item() for end in z.aminmax())
    # Lloyd's algorithm ends in a local optimum, which one of the bounds may beat.
    variance = z.double().var(correction=0).item()
    least = min(lloyd_max(z, L)[1] / variance, before.distortion, after.distortion) if variance > 0 else 0.0
    centred = z.double() - z.double().mean()
    x = centred / (math.sqrt(variance) if variance > 0 else 1.0)
    skew, fourth = x.pow(3).mean().item(), x.pow(4).mean().item()
    kurtosis = fourth - 3 if variance > 0 else 0.0
    return Channel(L, z.double().mean().item(), math.sqrt(variance), skew, kurtosis, low, high, before, after, least)


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Piecewise linear through (x, y), x ascending, at some places; the ends' values beyond them."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    run = x[right] - x[right - 1]
    part = torch.where(run > 0, (at - x[right - 1]) / run.clamp(min=1e-300), 0.5).clamp(0, 1)
    return torch.lerp(y[right - 1], y[right], part)


def _about_bounds(report: Calibration) -> list[str]:
    fixed, standard, quantile = report.trials
    chosen = _simplest(report.trials)
    alive = [channel for channel in report.channels if not channel.after.dead] or list(report.channels)
    scales = sorted(channel.scale for channel in alive)
    spread = f"scale {scales[0]:.2f} to {scales[-1]:.2f}" if len(scales) > 1 else f"scale {scales[0]:.2f}"
    with_equal = f"with equal cells {chosen.bound} reaches {chosen.fraction:.3f} of log2 L"
    if chosen is fixed:
        return [f"For even use fixed ifsq is enough: {with_equal}; the latents are close to N(0, 1) ({spread})."]
    words = [f"{name} (channel {_listed(where)})" for name, where in _shapes(report.channels).items() if where]
    if chosen is standard:
        words = [word for word in words if word.startswith(("narrow", "wide", "off-centre"))]
    because = f"the latents are {', '.join(words)}" if words else f"the latents have {spread}"
    tail = f", fixed ifsq {fixed.fraction:.3f}"
    if chosen is quantile:
        tail += f", standardized {standard.fraction:.3f}"
    return [f"For even use bound={chosen.bound!r} is the simplest that fits: {with_equal}{tail}; {because}."]


def _shapes(channels: tuple[Channel, ...]) -> dict[str, list[int]]:
    tests: dict[str, Callable[[Channel], bool]] = {
        "narrow": lambda c: c.scale < NARROW,
        "wide": lambda c: c.scale > WIDE,
        "off-centre": lambda c: abs(c.mean) > OFF_CENTRE * c.scale,
        "skewed": lambda c: abs(c.skew) > SKEWED,
        "heavy-tailed": lambda c: c.kurtosis > HEAVY,
        "flat or with several modes": lambda c: c.kurtosis < FLAT,
    }
    return {name: [i for i, c in enumerate(channels) if c.scale > 0 and test(c)] for name, test in tests.items()}


def _about_channels(report: Calibration) -> list[str]:
    said, channels = [], report.channels
    dead = [c for c, channel in enumerate(channels) if channel.before.dead]
    if dead:
        still = [c for c in dead if channels[c].after.dead]
        constant = [c for c in still if channels[c].scale == 0]
        end = "none is after." if not still else f"after, channel {_listed(still)} still."
        if constant:
            end += f" No bound revives a constant (channel {_listed(constant)}): leave it out, or train the encoder on."
        said.append(f"Dead before (one level holds more than {DEAD:.1%}): channel {_listed(dead)}; {end}")
    for when in ("before", "after"):
        full = [c for c, channel in enumerate(channels) if getattr(channel, when).saturated and channel.scale]
        if full:
            ends = max(getattr(channels[c], when).ends for c in full)
            said.append(
                f"Saturated {when}: channel {_listed(full)}, up to {ends:.0%} in the end levels, where little gradient"
                " passes."
            )
    if report.equal.bits - report.after.bits > 0.005:
        said.append(
            f"cells={report.after.cells!r} leave the end levels half a cell: {report.after.bits:.2f} bits a token,"
            f" {report.equal.bits:.2f} with cells='equal'."
        )
    return said


def _about_distortion(report: Calibration) -> list[str]:
    before, after = report.before.distortion, report.after.distortion
    least = sum(channel.least for channel in report.channels) / len(report.channels)
    gentlest = min(report.trials, key=lambda trial: trial.distortion)
    said = (
        f"Even use is not least distortion: the best decoder of the digits loses {after:.2%} of the latents' variance"
        f" ({before:.2%} before, {least:.2%} at least). For low distortion, {gentlest.bound} with equal cells is"
        f" best of the three ({gentlest.distortion:.2%})."
    )
    if after > 1.02 * before:
        said += " Here even use costs distortion: compare reconstructions after fine-tuning before keeping it."
    return [said]


def _about_change(report: Calibration) -> list[str]:
    if not report.fitted:
        return ["Nothing was changed."]
    return [
        "The codes have changed meaning: fine-tune the decoder at least, train generators anew, and encode cached codes"
        " again."
    ]


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} and {len(numbers) - 8} more"

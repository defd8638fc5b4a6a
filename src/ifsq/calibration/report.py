"""What calibration found, as records, as a printed table and in words."""

import math
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

DEAD = 0.999  # share of one level
NEAR = 0.01  # of log2 L: what a bound must gain over a simpler one to be recommended
# Words for a channel's moments.
NARROW_SCALE, WIDE_SCALE, GREAT_MEAN, GREAT_SKEW, GREAT_KURTOSIS, LOW_KURTOSIS = 0.8, 1.25, 0.25, 0.5, 1.0, -0.7
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


def _about_bounds(report: Calibration) -> list[str]:
    fixed, standard, quantile = report.trials
    chosen = simplest(report.trials)
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
        "narrow": lambda c: c.scale < NARROW_SCALE,
        "wide": lambda c: c.scale > WIDE_SCALE,
        "off-centre": lambda c: abs(c.mean) > GREAT_MEAN * c.scale,
        "skewed": lambda c: abs(c.skew) > GREAT_SKEW,
        "heavy-tailed": lambda c: c.kurtosis > GREAT_KURTOSIS,
        "flat or with several modes": lambda c: c.kurtosis < LOW_KURTOSIS,
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


def simplest(trials: tuple[Trial, ...]) -> Trial:
    """The first that is nearly as even as the best."""
    best = max(trial.fraction for trial in trials)
    return next(trial for trial in trials if trial.fraction >= best - NEAR)

"""What a bound and a cell rule make of the latents of a quantizer."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ifsq.calibration.lloyd import lloyd_max
from ifsq.calibration.report import DEAD, Channel, Trial, Use
from ifsq.quantizers import FSQ
from ifsq.quantizers.bounds import Bound, make_bound
from ifsq.quantizers.cells import digits_to_codes
from ifsq.quantizers.rounding import Rounding
from ifsq.quantizers.usage import LevelUse

SATURATED = 0.5  # share of the two end levels beyond an even share, over the largest possible


def can_fit(bound: Bound) -> bool:
    """Whether the bound has anything that latents could set."""
    return type(bound).fit is not Bound.fit


class Candidate(NamedTuple):
    """A bound and a cell rule for all channels of all codebooks of a quantizer, on CPU."""

    bound: Bound
    rounding: Rounding

    @property
    def cells(self) -> str:
        return self.rounding.lattice.cells

    def uses(self, latents: Tensor) -> list[Use]:
        """Use of every channel's levels; the digits are those that the quantizer's own arithmetic gives."""
        with torch.enable_grad():
            z = latents.detach().requires_grad_()
            slopes = 2 * torch.autograd.grad(self.rounding.unit(self.bound, z, 1).sum(), z)[0]
        with torch.no_grad():
            digits = self.rounding.round(self.bound, latents, 1, torch.int64)[1]
            assert digits is not None
            bounded = self.rounding.unrounded(self.bound, latents, 1)
        levels = self.rounding.levels
        codes = {L: digits_to_codes(torch.arange(L)[:, None], [L], self.cells)[:, 0] for L in set(levels)}
        return [
            _use(latents[:, c], bounded[:, c], digits[:, c], codes[L], L, slopes[:, c].mean().item())
            for c, L in enumerate(levels)
        ]

    def trial(self, uses: list[Use]) -> Trial:
        """What the uses of all channels come to."""
        n = len(uses)
        fraction, distortion = sum(use.fraction for use in uses) / n, sum(use.distortion for use in uses) / n
        return Trial(self.bound.name, self.cells, sum(use.bits for use in uses), fraction, distortion)


def candidate(q: FSQ, bound: Bound, cells: str, original: bool = False) -> Candidate:
    """What ``q`` would be with another bound and other cells; ``original`` as in `Rounding`."""
    return Candidate(bound.eval(), Rounding(replace(q.lattice, cells=cells), q.num_codebooks, original))


def fitted_trial(q: FSQ, name: str, latents: Tensor) -> Trial:
    """The bound called ``name``, fitted to latents (n, channels), with equal cells."""
    bound = make_bound(name, latents.shape[1])
    if can_fit(bound):
        bound.fit(latents)
    return equal_trial(q, bound, latents)


def equal_trial(q: FSQ, bound: Bound, latents: Tensor) -> Trial:
    """A bound with equal cells on latents (n, channels)."""
    equal = candidate(q, bound, "equal")
    return equal.trial(equal.uses(latents))


def _use(z: Tensor, bounded: Tensor, digits: Tensor, codes: Tensor, L: int, slope: float) -> Use:
    counts = torch.bincount(digits, minlength=L)
    use = LevelUse.of([counts])
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
        bits=use.bits,
        fraction=use.fraction,
        top=use.top,
        ends=use.ends,
        slope=slope,
        dead=use.top > DEAD,
        saturated=L > 2 and use.ends - even > SATURATED * (1 - even),
        distortion=distortion,
        inverted=inverted,
    )


def channel(z: Tensor, L: int, before: Use, after: Use) -> Channel:
    """Latents (n,) of one channel, and its use before and after -> what there is to say of it."""
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

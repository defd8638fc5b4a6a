"""``ifsq.calibrate``: fit bounds to the latents that reach them.

A fixed bound is the CDF of one distribution; an encoder has another. `calibrate` reads the latents behind whatever
projection and rotation the quantizer has, fits the bound to them, and says in numbers and in words what the levels
carry before and after. Even use of the levels is not least distortion, so both are reported. It runs on one process.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.calibration.measure import Candidate, can_fit, candidate, channel, equal_trial, fitted_trial
from ifsq.calibration.report import Calibration, Calibrations, Trial, simplest
from ifsq.calibration.sampler import LEAST_SAMPLES, Sampler, collect
from ifsq.quantizers import FSQ
from ifsq.quantizers.bounds import FITTED, IFSQ_ALPHA, make_bound
from ifsq.quantizers.cells import CELLS


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
    bounds = [id(q.bound) for q in quantizers.values() if can_fit(q.bound)]
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
    samplers = {name: Sampler(name, q, max_samples) for name, q in quantizers.items()}
    collect(module, call, batches, samplers)

    plans = [_plan(q, samplers[name], kinds[name], cells) for name, q in quantizers.items()]
    reports = Calibrations()
    for plan in plans:
        fitted = fit and plan.changes
        reports[plan.name] = _report(plan, fitted)
        if fitted:
            plan.install()
    return reports if len(reports) > 1 else next(iter(reports.values()))


def _kind(name: str, q: FSQ, bound: str | None, cells: str | None) -> str | None:
    """Name of the bound to put in place, None to keep the one there is. Raises ValueError where levels forbid it."""
    kind = bound
    if bound == "auto":
        kind = None if can_fit(q.bound) else "auto"
    if kind == q.bound.name and can_fit(q.bound):
        kind = None
    keeps_original = q.original and kind is None
    named = "quantile" if kind == "auto" else kind or q.bound.name
    if (cells or q.cells) == "paper" and not keeps_original and any(L % 2 == 0 for L in q.levels):
        raise ValueError(
            f"{name} has levels={list(q.levels)}: paper cells with bound={named!r} need odd levels;"
            " pass cells='equal' or 'symmetric'"
        )
    return kind


@dataclass
class _Plan:
    """What is to become of a quantizer: ``old`` as it is, ``new`` as it shall be, stand-ins for measuring."""

    name: str
    q: FSQ
    seen: int
    device: torch.device
    latents: Tensor
    old: Candidate
    new: Candidate
    trials: tuple[Trial, ...]
    replaced: bool

    @property
    def changes(self) -> bool:
        return self.replaced or can_fit(self.old.bound) or self.new.cells != self.old.cells

    def install(self) -> None:
        q = self.q
        if self.replaced:
            q.bound = copy.deepcopy(self.new.bound).to(self.device).train(q.training)
        else:
            q.bound.load_state_dict(self.new.bound.state_dict())  # in place: an optimizer may hold its parameters
        q.round_by(self.new.rounding)


def _plan(q: FSQ, sampler: Sampler, kind: str | None, cells: str | None) -> _Plan:
    latents = sampler.sample()
    old = candidate(q, copy.deepcopy(q.bound).cpu(), q.cells, q.original)
    bound = copy.deepcopy(old.bound)
    trials = tuple(fitted_trial(q, name, latents) for name in ("ifsq", "standardized", "quantile"))
    if kind == "auto":
        enough = simplest(trials).bound
        kind = enough if enough in FITTED else None
    if kind is not None:
        alpha = getattr(q.bound, "alpha", IFSQ_ALPHA) if q.bound.name == "ifsq" else IFSQ_ALPHA
        bound = make_bound(kind, sampler.width, alpha)
    if can_fit(bound):
        bound.fit(latents)
    chosen = cells or q.cells
    new = candidate(q, bound, chosen, q.original and kind is None and chosen == "paper")
    return _Plan(sampler.name, q, sampler.seen, sampler.device, latents, old, new, trials, kind is not None)


def _report(plan: _Plan, fitted: bool) -> Calibration:
    latents, old, new = plan.latents, plan.old, plan.new
    before, after = old.uses(latents), new.uses(latents)
    channels = tuple(channel(latents[:, c], L, before[c], after[c]) for c, L in enumerate(old.rounding.levels))
    return Calibration(
        plan.name,
        old.trial(before),
        new.trial(after),
        fitted,
        plan.seen,
        len(latents),
        channels,
        plan.trials,
        equal_trial(plan.q, new.bound, latents),
    )

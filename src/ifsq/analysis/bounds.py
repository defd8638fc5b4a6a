"""``ifsq analyze bounds``: every bound on every distribution as tables, CSV and picture.

The figures are `quadrature`'s; what they say is in docs/method.md.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ifsq.analysis.distributions import DISTRIBUTIONS
from ifsq.analysis.pictures import draw
from ifsq.analysis.quadrature import CASES, GRADIENT_AT, Analysis, BoundUse, CellUse, analyze, by_name
from ifsq.analysis.table import Table
from ifsq.config import InputError
from ifsq.quantizers.cells import CELLS
from ifsq.store.files import make_folder, write_bytes, write_text
from ifsq.training.log import Reporter

LEVELS = tuple(range(2, 66))
SHOWN = 17  # the paper's 4 bits, where it is among the levels
MOST_STANDARD_ERRORS = 6.0


@dataclass(frozen=True)
class BoundsReport:
    """Tables and a check to print; ``bounds.csv`` and ``bounds.png`` as they were written."""

    tables: tuple[Table, ...]
    check: str
    table: Path
    picture: Path


def analyze_bounds(
    out: Path,
    levels: Iterable[int] = LEVELS,
    samples: int = 100_000,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> BoundsReport:
    """Analyse all bounds, write ``bounds.csv`` and ``bounds.png`` into the folder ``out``.

    Raises InputError where the folder is a file, or for levels, samples or a seed that cannot be used.
    """
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise InputError(f"{out}: is a file, or lies below one; expected a folder for bounds.csv and bounds.png")
    counts = sorted(set(levels))
    shown = SHOWN if SHOWN in counts or not counts else counts[-1]
    try:
        # More levels than samples can tell apart would compare the entropy's bias.
        checked = [L for L in (shown, *counts[:1], *counts[-1:]) if shown == L or samples >= 20 * L]
        analysis = analyze(counts, samples, seed, checked, reporter=reporter)
    except ValueError as error:
        raise InputError(str(error)) from error
    table, picture = out / "bounds.csv", out / "bounds.png"
    content = draw(analysis, shown)
    make_folder(out)
    write_text(table, to_csv(analysis))
    write_bytes(picture, content)
    return BoundsReport(tables(analysis, shown), check(analysis), table, picture)


def to_csv(analysis: Analysis) -> str:
    """A line for every distribution, bound, cell rule and level count; the columns are those of `CellUse`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    gradients = [f"gradient_{at:g}" for at in GRADIENT_AT]
    after = ["bits", "fraction", "least", "error", "relative_error", "distortion", "least_distortion"]
    writer.writerow(["distribution", "bound", "cells", "levels", "ks", "rmse", *gradients, *after])
    for bound in analysis.bounds:
        for use in bound.uses:
            figures = [bound.ks, bound.rmse, *bound.gradient, use.bits, use.fraction, use.least]
            figures += [use.error, use.relative_error, use.distortion]
            figures.append(analysis.optimum[bound.distribution, use.levels])
            head = [bound.distribution, bound.bound, use.cells, str(use.levels)]
            writer.writerow([*head, *(f"{value:.6g}" for value in figures)])
    return buffer.getvalue()


def tables(analysis: Analysis, shown: int) -> tuple[Table, ...]:
    """A table a figure: bounds down, distributions across; level figures at ``shown`` levels."""
    found = by_name(analysis)
    names = [distribution.name for distribution in DISTRIBUTIONS]
    labels = [case.label for case in CASES]

    def before(title: str, figure: Callable[[BoundUse], float]) -> Table:
        rows = [(label, *(f"{figure(found[label, name]):.4f}" for name in names)) for label in labels]
        return Table(title, ("bound", *names), tuple(rows))

    def after(title: str, form: str, figure: Callable[[CellUse, str], float]) -> Table:
        rows = []
        for label in labels:
            uses = [(name, _distinct(found[label, name], shown)) for name in names]
            for i, use in enumerate(uses[0][1]):
                rows.append((label, use.cells, *(form.format(figure(of[i], name)) for name, of in uses)))
        return Table(f"{title}, L = {shown}", ("bound", "cells", *names), tuple(rows))

    defined = tuple((distribution.name, distribution.text) for distribution in DISTRIBUTIONS)
    gradients = [_gradient(before, i) for i in range(len(GRADIENT_AT))]
    return (
        Table("latents", ("name", "distribution"), defined),
        before("KS distance to uniform, before rounding", lambda use: use.ks),
        before("RMSE to uniform, before rounding", lambda use: use.rmse),
        *gradients,
        after("level entropy over log2 L (1: even use)", "{:.4f}", lambda use, _: use.fraction),
        after("share of the least-used level, times L (1: even use)", "{:.3f}", lambda use, _: use.least),
        after(
            "error of the bounded latent, in thousandths of its variance",
            "{:.2f}",
            lambda use, _: 1000 * use.relative_error,
        ),
        after(
            "distortion of the latent over the least possible (Lloyd-Max)",
            "{:.2f}",
            lambda use, name: use.distortion / analysis.optimum[name, shown],
        ),
    )


def check(analysis: Analysis) -> str:
    """What sampling says about the integrals."""
    checks = analysis.checks
    deviation = max(check.deviation for check in checks)
    agrees = deviation <= analysis.sampling_limit and max(check.error for check in checks) < MOST_STANDARD_ERRORS
    return (
        f"Check: {analysis.samples} samples of each distribution, quantized by FSQ, "
        f"{'agree' if agrees else 'DO NOT AGREE'} with the integrals in {sum(check.compared for check in checks)} "
        f"combinations of bound, cells and L. Largest differences: {deviation:.4f} in the share of samples below "
        f"an edge (chance exceeds {analysis.sampling_limit:.4f} once in a million), "
        f"{max(check.ks for check in checks):.4f} in KS, {max(check.rmse for check in checks):.4f} in RMSE, "
        f"{max(check.fraction for check in checks):.4f} in entropy over log2 L, "
        f"{max(check.error for check in checks):.1f} standard errors in the bounded error."
    )


def _gradient(before: Callable[[str, Callable[[BoundUse], float]], Table], i: int) -> Table:
    return before(f"gradient of the bound at |z| = {GRADIENT_AT[i]:g}", lambda use: use.gradient[i])


def _distinct(bound: BoundUse, shown: int) -> list[CellUse]:
    """Its uses at ``shown`` levels, without symmetric cells where they are the paper's."""
    uses = [use for use in (bound.use(cells, shown) for cells in CELLS) if use is not None]
    return [use for use in uses if use.cells != "symmetric" or uses[0].cells != "paper"]

"""The picture of ``ifsq analyze bounds``."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from ifsq.analysis.distributions import DISTRIBUTIONS
from ifsq.analysis.quadrature import PAPER, Analysis, BoundUse, by_name

PICTURED = ((PAPER, "paper", "#D55E00"), (PAPER, "equal", "#E69F00"), ("quantile", "equal", "#009E73"))
# Okabe and Ito's colours, and a dash of its own where two lines may lie on each other.
LINES: dict[str, tuple[str, Any]] = {
    "tanh": ("#000000", "-"),
    "ifsq 1.6": ("#D55E00", "-"),
    "ifsq 1.702": ("#E69F00", (0, (6, 1))),
    "gaussian": ("#0072B2", "-"),
    "clamp": ("#999999", "-"),
    "standardized": ("#CC79A7", (0, (3, 1.5))),
    "quantile": ("#009E73", "-"),
    "learned": ("#56B4E9", (0, (1.5, 3))),
}
ROWS = (
    "level entropy / log2 L\npaper cells, odd L",
    "level entropy / log2 L\nequal cells",
    "distortion / least possible\npaper cells, odd L",
    "distortion / least possible\nequal cells",
    "share of each level x L\nL = {L}",
)


def draw(analysis: Analysis, shown: int) -> bytes:
    """The picture, PNG: entropy and distortion over L, and the shares of ``shown`` levels, for every distribution."""
    from matplotlib import rc_context

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        return _draw(analysis, shown)


def _draw(analysis: Analysis, shown: int) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    found = by_name(analysis)
    figure = Figure(figsize=(18, 15), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    axes = figure.subplots(len(ROWS), len(DISTRIBUTIONS), sharey="row")
    for column, distribution in zip(axes.T, DISTRIBUTIONS, strict=True):
        for label in LINES:
            for row, cells in enumerate(("paper", "equal")):
                _draw_line(column[row], column[2 + row], analysis, found[label, distribution.name], cells)
        column[0].set_title(f"{distribution.name}\n{textwrap.fill(distribution.text, 34)}", fontsize=10)
        for axis in column[:4]:
            _scale_levels(axis, analysis.levels)
        for axis in column[:2]:
            axis.set_ylim(0.68, 1.01)
        for axis in column[2:4]:
            if axis.lines:
                axis.set_yscale("log")
        column[3].set_xlabel("levels L")
        _draw_shares(column[4], found, distribution.name, shown)
    for axis, text in zip(axes[:, 0], ROWS, strict=True):
        axis.set_ylabel(text.format(L=shown))
    lines = [Line2D([], [], color=colour, linestyle=style, linewidth=2) for colour, style in LINES.values()]
    figure.legend(lines, list(LINES), loc="outside upper center", ncols=len(LINES), frameon=False, fontsize=12)
    steps = [Line2D([], [], color=colour, linewidth=2) for _, _, colour in PICTURED]
    names = [f"{label}, {cells} cells" for label, cells, _ in PICTURED]
    figure.legend(
        [Line2D([], [], linestyle="none"), *steps],
        ["bottom row:", *names],
        loc="outside lower center",
        ncols=1 + len(names),
        frameon=False,
        fontsize=12,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _draw_line(entropy: Any, loss: Any, analysis: Analysis, bound: BoundUse, cells: str) -> None:
    """One bound with one cell rule: level entropy and distortion over L."""
    # In paper cells odd levels alone: only tanh has even ones, and they are another bound.
    uses = [use for use in bound.uses if use.cells == cells and (cells == "equal" or use.levels % 2)]
    if not uses:
        return
    levels = [use.levels for use in uses]
    colour, style = LINES[bound.bound]
    marker = "o" if len(analysis.levels) < 10 else None
    look = {"color": colour, "linestyle": style, "linewidth": 1.6, "marker": marker, "markersize": 4}
    entropy.plot(levels, [use.fraction for use in uses], **look)
    optimum = analysis.optimum
    loss.plot(levels, [use.distortion / optimum[bound.distribution, use.levels] for use in uses], **look)


def _scale_levels(axis: Any, levels: Sequence[int]) -> None:
    """Levels on a logarithmic scale, so that an octave is one more bit; the paper's counts are marked."""
    ticks = [L for L in (2, 3, 5, 9, 17, 33, 65, 129, 257) if levels[0] <= L <= levels[-1]]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks or list(levels), [str(L) for L in ticks or levels])
    axis.minorticks_off()
    axis.set_xlim(levels[0] / 1.1, levels[-1] * 1.1)
    axis.grid(color="#e4e4e4", linewidth=0.6)


def _draw_shares(axis: Any, found: dict[tuple[str, str], BoundUse], name: str, shown: int) -> None:
    for label, cells, colour in PICTURED:
        use = found[label, name].use(cells, shown)
        if use is not None:
            edges = [level - 0.5 for level in range(shown + 1)]
            shares = [share * shown for share in use.share]
            axis.stairs(shares, edges, color=colour, linewidth=1.8, baseline=None)
    axis.axhline(1, color="#888888", linewidth=0.8, linestyle="--")
    axis.set_xlabel("level")
    axis.set_ylim(0, 2.6)

"""Charts as SVG that takes its colours from the page, so that one drawing serves a light and a dark screen.

Each is one panel of a width that a phone can show; side by side, the page lays them out.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ifsq.bench.figures import text_of
from ifsq.bench.page import Chart, Mark, Table

SIZE = (3.9, 2.6)  # inches
SERIES = 6  # colours of lines that the page has
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")  # of the first lines, of as many more as there are colours, and so on
LOG_FROM = 20.0  # ratio of the ends of an axis from which it is logarithmic
MOST_BARS = 512  # a level each, or the mean of several
MOST_DOTS = 24  # points of a line that are marked
MOST_POINTS = 60  # of a table beside a chart

# Colours that matplotlib writes and `svg` exchanges: its own writing of CSS variables is not valid for it.
INK, SOFT, FAINT = "#0102f0", "#0102f1", "#0102f2"
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", FAINT: "var(--line)"}
_VARIABLES |= {f"#0102e{number}": f"var(--series-{number})" for number in range(SERIES)}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ifsq",
}


@dataclass(frozen=True)
class Line:
    """Points of one thing, in the order of x.

    low, high  of a band around them, as many; empty: none
    look       which colour and dash, see `mark`
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    look: int = 0


def colour(number: int) -> str:
    """Of line number ``number``, for matplotlib."""
    return f"#0102e{number % SERIES}"


def mark(name: str, number: int) -> Mark:
    """How the legend shows line number ``number``."""
    return Mark(name, number % SERIES, DASHES[number // SERIES % len(DASHES)])


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    limits: tuple[float, float] | None = None,
    table: bool = True,
    ratios: bool = False,
) -> Chart:
    """Lines with bands over one axis.

    title   of the chart, which says what y is
    limits  of y
    table   give the points as a table too
    ratios  numbers tell by their ratios: an axis is logarithmic where its ends lie far apart, that of y without limits
    """

    @rc_context(STYLE)
    def draw() -> str:
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        for line in lines:
            _draw_line(axis, line)
        _scale_x(axis, lines, ratios)
        if ratios and limits is None:
            _scale_y(axis, lines)
        if limits is not None and limits[0] < limits[1]:
            axis.set_ylim(*limits)
        axis.set_xlabel(x_label, fontsize=8.5, parse_math=False)
        return svg(figure)

    data = _points(title, lines, x_label) if table else None
    return Chart(title, draw, _told(title, lines, x_label), data)


def bar_chart(
    title: str, shares: Sequence[float], number: int, x_label: str, even: float, top: float | None = None
) -> Chart:
    """Bars of equal width from 0 on, and a dashed line at ``even``; very many are drawn as means of several.

    top  of the axis; None: by these bars
    """

    @rc_context(STYLE)
    def draw() -> str:
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        count = len(shares)
        bars = [part.mean() for part in np.array_split(shares, min(count, MOST_BARS))]
        axis.bar(np.linspace(0, count - 1, len(bars)), bars, color=colour(number), width=0.85 * count / len(bars))
        if top is not None:
            axis.set_ylim(0, 1.05 * top)
        axis.axhline(even, color=SOFT, linewidth=0.9, linestyle="--")
        axis.set_xlabel(x_label, fontsize=8.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(visible=False, axis="x")
        return svg(figure)

    alt = f"{title}: shares from {text_of(min(shares))} to {text_of(max(shares))}; even use would be {text_of(even)}"
    return Chart(title, draw, alt)


def svg(figure: Figure) -> str:
    """The figure as an element of a page: colours of the page, its font, no width of its own, no ids but those used."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], text)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1).strip()


def _draw_line(axis: Axes, line: Line) -> None:
    look: Any = {"color": colour(line.look), "linewidth": 1.4, "markersize": 3.5}
    dash = DASHES[line.look // SERIES % len(DASHES)]
    style: Any = (0, tuple(float(part) for part in dash.split())) if dash else "-"
    if line.low:
        axis.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.18, linewidth=0)
    marker = "o" if len(line.x) <= MOST_DOTS else ""
    axis.plot(line.x, line.y, label=line.name, linestyle=style, marker=marker, **look)


def _scale_x(axis: Axes, lines: Sequence[Line], ratios: bool) -> None:
    at = [x for line in lines for x in line.x]
    if ratios and at and min(at) > 0 and max(at) / min(at) >= LOG_FROM:
        axis.set_xscale("log")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=all(x == round(x) for x in at)))
        if at and max(map(abs, at)) >= 1000:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _scale_y(axis: Axes, lines: Sequence[Line]) -> None:
    at = [y for line in lines for y in (*line.y, *line.low, *line.high)]
    if at and min(at) > 0 and max(at) / min(at) >= LOG_FROM:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_locator(NullLocator())


def _points(title: str, lines: Sequence[Line], x_label: str) -> Table | None:
    """The points as a table: a column a line where lines have points at the same places, else a row a point."""
    places = sorted({x for line in lines for x in line.x})
    if len(lines) > 1 and len(places) <= MOST_POINTS and len(places) == max(len(line.x) for line in lines):
        rows = [[f"{x:.4g}", *(_at(line, x) for line in lines)] for x in places]
        return Table(title, [x_label, *(line.name for line in lines)], rows, range(len(lines) + 1))
    if sum(len(line.x) for line in lines) > MOST_POINTS:
        return None
    banded = any(line.low for line in lines)
    rows = []
    for line in lines:
        for at, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            band = [f"{text_of(line.low[at])} to {text_of(line.high[at])}" if line.low else ""] if banded else []
            rows.append([line.name, f"{x:.4g}", text_of(y), *band])
    columns = ["", x_label, title, *(["band"] if banded else [])]
    return Table("", columns, rows, range(1, len(columns)))


def _at(line: Line, x: float) -> str:
    """A line's figure at a place, and its band; nothing where it has no point."""
    if x not in line.x:
        return ""
    at = list(line.x).index(x)
    band = f" ({text_of(line.low[at])} to {text_of(line.high[at])})" if line.low else ""
    return f"{text_of(line.y[at])}{band}"


def _told(title: str, lines: Sequence[Line], x_label: str) -> str:
    """What a line does from its first point to its last."""
    parts = [
        f"{line.name} from {text_of(line.y[0])} at {line.x[0]:.4g} to {text_of(line.y[-1])} at {line.x[-1]:.4g}"
        for line in lines
        if len(line.x) and all(map(math.isfinite, (*line.x, *line.y)))
    ]
    return f"{title} over {x_label}: {'; '.join(parts)}"

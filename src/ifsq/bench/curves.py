"""Figures over the training of generators: by step, by the images that they had seen, and by what that had cost.

From ``evaluations/step_N.json`` (``ifsq generator eval --step all``), and from what was looked at while they trained
(``train.evaluate_every``). Two runs share a panel where a figure was taken of both in the same way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from ifsq.bench.charts import Line, line_chart, mark
from ifsq.bench.figures import LARGEST, titled
from ifsq.bench.page import Chart, Charts
from ifsq.bench.runs import MOST, OWN, Reported
from ifsq.metrics.card import COMPARED

SHARES = ("class agreement",)
LOOKED = "evaluate/"
DISTANCES = {f"{LOOKED}fd_": "FD", f"{LOOKED}kd_": "KD"}
TOKENIZER = tuple(f"{LOOKED}{name}" for name in ("psnr", "rfd_", "level_entropy"))
AXES = ("step", "images seen", "training FLOP")


@dataclass(frozen=True)
class Point:
    """A figure at a step; None where it is not known what training had taken by then."""

    step: int
    value: float
    seen: int | None = None
    flops: float | None = None

    def along(self, axis: str) -> int | float | None:
        """Where it lies on one of `AXES`."""
        return {"step": self.step, "images seen": self.seen, "training FLOP": self.flops}[axis]


@dataclass(frozen=True)
class Panel:
    """A figure of runs, taken in the same way: points by the names of the runs.

    protocol  what is alike of all points, by field
    """

    title: str
    protocol: dict[str, str]
    points: dict[str, list[Point]] = field(default_factory=dict)


def curves_over_training(runs: Sequence[Reported]) -> Charts | None:
    """All panels, a chart for each axis that is known; None where nothing was measured at two steps or more.

    Runs that differ in the seed of training alone are one line, their mean, in a band from the least to the greatest.
    """
    panels = [panel for panel in panels_of(runs) if any(len(points) > 1 for points in panel.points.values())]
    if not panels:
        return None
    groups = {run.label: run.group for run in runs}
    shown = dict.fromkeys(groups[label] for panel in panels for label in panel.points)
    looks = {group: look for look, group in enumerate(shown)}
    every = [point for panel in panels for points in panel.points.values() for point in points]
    axes = [axis for axis in AXES if any(point.along(axis) is not None for point in every)]
    charts = [_chart(panel, axis, groups, looks) for panel in panels for axis in axes]
    legend = [mark(group, look) for group, look in looks.items()] if len(looks) > 1 else []
    banded = len(set(groups.values())) < len(groups)
    return Charts([chart for chart in charts if chart is not None], _caption(panels, axes, banded), legend)


def tokenizer_over_training(run: Reported) -> Charts | None:
    """What was looked at while a tokenizer trained, a chart each; None where that was not at two steps or more."""
    names = dict.fromkeys(name for row in run.metrics for name in row if name.startswith(TOKENIZER))
    found = {name: run.logged(name) for name in sorted(names, key=_place)}
    found = {name: points for name, points in found.items() if len(points) > 1}
    if not found:
        return None
    n = int(max(count for _, count in run.logged(f"{LOOKED}images")))
    charts = []
    for name, points in found.items():
        steps, values = [float(step) for step, _ in points], [value for _, value in points]
        charts.append(line_chart(titled(_title(name)), [Line(run.label, steps, values)], AXES[0]))
    return Charts(charts, f"{run.label}: the averaged weights on {n} held-out images, the same ones at every step.")


def panels_of(runs: Sequence[Reported]) -> list[Panel]:
    """The panels of some generators, what was measured with cards first."""
    panels: dict[tuple[Any, ...], Panel] = {}
    for found in (_evaluated, _looked_at):
        for run in runs:
            for title, protocol, point in found(run):
                panel = panels.setdefault((title, *protocol.items()), Panel(title, protocol))
                panel.points.setdefault(run.label, []).append(point)
    return [replace(panel, title=panel.title + _apart(panel, panels.values())) for panel in panels.values()]


def _apart(panel: Panel, panels: Iterable[Panel]) -> str:
    """The first field in which a panel differs from another of its title; nothing where no other has it."""
    others = [other for other in panels if other.title == panel.title]
    for name, value in panel.protocol.items():
        if any(other.protocol[name] != value for other in others):
            return f"; {name} {value[:40]}"
    return ""


def _evaluated(run: Reported) -> Iterable[tuple[str, dict[str, str], Point]]:
    """Distances and shares of the evaluations by step; what was measured beside the generator's own samples is not."""
    for step, evaluation in run.evaluations.items():
        for card in evaluation.cards:
            value = card.values.get("distance", card.values.get("share"))
            if not card.generator_hash or "," in card.metric or value is None:
                continue
            protocol = {name: str(held) for name, held in vars(card).items() if name not in (*COMPARED, *OWN)}
            weights = "" if evaluation.weights == "average" else f", {evaluation.weights} weights"
            point = Point(step, value, evaluation.seen, evaluation.flops)
            if abs(point.value) < LARGEST and max(step, point.seen or 0) < MOST and (point.flops or 0) < LARGEST:
                yield f"{card.metric}, {card.n} samples{weights}", protocol, point


def _looked_at(run: Reported) -> Iterable[tuple[str, dict[str, str], Point]]:
    """Distances that were taken while the run trained."""
    a_step = _cost_of_a_step(run)
    for name in dict.fromkeys(name for row in run.metrics for name in row if name.startswith(tuple(DISTANCES))):
        counts = dict(run.logged(f"{LOOKED}images"))
        for step, value in run.logged(name):
            n = int(counts.get(step, 0))
            start = name[: len(LOOKED) + 3]
            title = f"{DISTANCES[start]}({name.removeprefix(start)}) while training, {n} samples"
            yield title, {}, Point(step, value, step * run.batch, a_step and step * a_step)


def _cost_of_a_step(run: Reported) -> float | None:
    """Floating-point operations, from an evaluation that counted them."""
    found = [one.flops / step for step, one in run.evaluations.items() if one.flops is not None and step]
    return found[-1] if found else None


def _chart(panel: Panel, axis: str, groups: Mapping[str, str], looks: Mapping[str, int]) -> Chart | None:
    """One panel over one axis; None where no point has a place on it."""
    lines = []
    for group, look in looks.items():
        members = [points for label, points in panel.points.items() if groups[label] == group]
        if line := _line(group, members, axis, look):
            lines.append(line)
    if not lines:
        return None
    limits = None
    if panel.title.startswith(SHARES):
        limits = (0.0, 1.02)
    elif panel.protocol:  # of what was looked at in training the height means little
        top = max(point.value for points in panel.points.values() for point in points)
        least = min(point.value for points in panel.points.values() for point in points)
        limits = (min(0.0, least), 1.05 * top or 1.0)
    name, comma, rest = panel.title.partition(",")
    return line_chart(titled(name) + comma + rest, lines, axis, limits=limits, ratios=axis == AXES[2])


def _line(name: str, members: Sequence[Sequence[Point]], axis: str, look: int) -> Line | None:
    """The points of a run, or the means of several at the steps that all of them have."""
    steps = set.intersection(*({point.step for point in points} for points in members)) if members else set()
    at: list[tuple[float, list[float]]] = []
    for step in steps:
        points = [point for run in members for point in run if point.step == step]
        places = [place for point in points if (place := point.along(axis)) is not None]
        if len(places) == len(points):
            at.append((float(mean(places)), [float(point.value) for point in points]))
    if not at:
        return None
    at.sort()
    x, values = [place for place, _ in at], [found for _, found in at]
    several = len(members) > 1
    low, high = ([list(map(end, values)) for end in (min, max)]) if several else ([], [])
    return Line(name, x, list(map(mean, values)), low, high, look)


def _place(name: str) -> int:
    """In the order of `TOKENIZER`."""
    return next(at for at, start in enumerate(TOKENIZER) if name.startswith(start))


def _title(name: str) -> str:
    """Of a figure of a tokenizer."""
    name = name.removeprefix(LOOKED)
    if name.startswith("rfd_"):
        return f"rFD({name.removeprefix('rfd_')})"
    return {"psnr": "PSNR, dB", "level_entropy": "level entropy / log2 L"}[name]


def _caption(panels: Sequence[Panel], axes: Sequence[str], banded: bool) -> str:
    text = "The averaged weights of every step that was measured; the same labels and random numbers at each."
    if banded:
        text += " Lines of several seeds of training are their mean, the band reaches from the least to the greatest."
    if any("while training" in panel.title for panel in panels):
        text += (
            " A distance while training is of few samples to some of the training images: an FD is then far too large,"
            " and its curve tells where its height does not; a KD is right in the mean."
        )
    if AXES[2] in axes:
        text += " A FLOP is counted once for a multiplication and once for an addition, forward and backward."
    return text

"""Figures over the training of generators: by step, by the images that they had seen, and by what that had cost.

From ``evaluations/step_N.json`` (``ifsq generator eval --step all``), and from what was looked at while they trained
(``train.evaluate_every``). Two runs share a panel where a figure was taken of both in the same way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ifsq.bench.pictures import COLOURS, STYLE, svg
from ifsq.bench.runs import MOST, OWN, Reported
from ifsq.metrics.card import COMPARED

SHARES = ("class agreement",)
LOOKED = "evaluate/"
DASHES = ("-", "--", ":")  # of the first curves, of as many more as there are colours, and so on
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


def curves_over_training(runs: Sequence[Reported]) -> dict[str, str] | None:
    """All panels in one figure, a row each; None where nothing was measured at two steps or more."""
    panels = [panel for panel in panels_of(runs) if any(len(points) > 1 for points in panel.points.values())]
    if not panels:
        return None
    every = [point for panel in panels for points in panel.points.values() for point in points]
    axes = [axis for axis in AXES if any(point.along(axis) is not None for point in every)]
    return {"image": _drawn(panels, axes), "caption": _caption(panels, axes)}


def tokenizer_over_training(run: Reported) -> dict[str, str] | None:
    """What was looked at while a tokenizer trained, a panel each; None where that was not at two steps or more."""
    names = dict.fromkeys(name for row in run.metrics for name in row if name.startswith(TOKENIZER))
    found = {name: run.logged(name) for name in sorted(names, key=_place)}
    found = {name: points for name, points in found.items() if len(points) > 1}
    if not found:
        return None
    n = int(max(count for _, count in run.logged(f"{LOOKED}images")))
    caption = f"The averaged weights on {n} held-out images, the same ones at every step."
    return {"image": _in_a_row({_title(name): points for name, points in found.items()}), "caption": caption}


def panels_of(runs: Sequence[Reported]) -> list[Panel]:
    """The panels of some generators, what was measured with cards first."""
    panels: dict[tuple[Any, ...], Panel] = {}
    kinds = [run.name for run in runs]
    called = [run.name if kinds.count(run.name) == 1 else f"{run.name}, {run.run.folder.name}" for run in runs]
    for found in (_evaluated, _looked_at):
        for name, run in zip(called, runs, strict=True):
            for title, protocol, point in found(run):
                panel = panels.setdefault((title, *protocol.items()), Panel(title, protocol))
                panel.points.setdefault(name, []).append(point)
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
            if all(abs(number) < MOST for number in vars(point).values() if number is not None):  # that can be drawn
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


@rc_context(STYLE)
def _drawn(panels: Sequence[Panel], axes: Sequence[str]) -> str:
    figure = Figure(figsize=(3.4 * len(axes), 2.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(axes), sharey="row", squeeze=False)
    names = list(dict.fromkeys(name for panel in panels for name in panel.points))
    looks = {name: (COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]) for n, name in enumerate(names)}
    for row, panel in zip(grid, panels, strict=True):
        for place, along in zip(row, axes, strict=True):
            for name, points in panel.points.items():
                known = sorted((at, point.value) for point in points if (at := point.along(along)) is not None)
                if known:
                    colour, dash = looks[name]
                    place.plot(
                        *zip(*known, strict=True), color=colour, linestyle=dash, marker="o", markersize=3.5,
                        linewidth=1.2, label=name,
                    )  # fmt: skip
            place.set_xlabel(along, fontsize=8)
            place.xaxis.set_major_formatter(EngFormatter(sep=""))
            place.tick_params(labelsize=8)
        if panel.title.startswith(SHARES):
            row[0].set_ylim(0, 1.02)
        elif panel.protocol:  # of what was looked at in training the height means little
            row[0].set_ylim(0, 1.05 * max(point.value for points in panel.points.values() for point in points) or 1)
        row[0].set_title(panel.title, fontsize=9, loc="left", parse_math=False)
    if len(names) > 1:
        grid[0][-1].legend(frameon=False, fontsize=8)
    return svg(figure)


@rc_context(STYLE)
def _in_a_row(panels: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    figure = Figure(figsize=(3.4 * len(panels), 2.5), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, points) in zip(grid, panels.items(), strict=True):
        place.plot(*zip(*points, strict=True), color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.2)
        place.set_title(title, fontsize=9, loc="left", parse_math=False)
        place.set_xlabel(AXES[0], fontsize=8)
        place.tick_params(labelsize=8)
    return svg(figure)


def _place(name: str) -> int:
    """In the order of `TOKENIZER`."""
    return next(at for at, start in enumerate(TOKENIZER) if name.startswith(start))


def _title(name: str) -> str:
    """Of a figure of a tokenizer."""
    name = name.removeprefix(LOOKED)
    if name.startswith("rfd_"):
        return f"rFD({name.removeprefix('rfd_')})"
    return {"psnr": "PSNR, dB", "level_entropy": "level entropy / log2 L"}[name]


def _caption(panels: Sequence[Panel], axes: Sequence[str]) -> str:
    text = "The averaged weights of every step that was measured; the same labels and random numbers at each."
    if any("while training" in panel.title for panel in panels):
        text += (
            " A distance while training is of few samples to some of the training images: an FD is then far too large,"
            " and its curve tells where its height does not; a KD is right in the mean."
        )
    if AXES[2] in axes:
        text += " A FLOP is counted once for a multiplication and once for an addition, forward and backward."
    return text

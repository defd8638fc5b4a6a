"""The picture of an alignment: figures by depth, a line a time or a step, and by step, a line a layer."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifsq.evaluation.alignment.measure import FIGURES
from ifsq.evaluation.alignment.record import LayerAlignment, LayerFigures
from ifsq.store.files import write_bytes

SHOWN = ("cknna", "cknna_cosine", "cka", "patch_cka", "probe")
TOKENS = {"own_token": "-", "next_token": "--"}
PATCHES = {"patch_cka": "-", "read_patch_cka": "--"}
MOST_NAMED = 30  # lines whose names have room
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def write_curves(place: Path, found: LayerAlignment) -> None:
    """Write the picture beside the file of figures, whole or not at all. Raises InputError."""
    write_bytes(place.with_suffix(".png"), draw_curves(found))


def draw_curves(found: LayerAlignment) -> bytes:
    """PNG: a column a figure; a row by depth at the newest step, and, of several steps, two over the training."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return _draw(found)


def _draw(found: LayerAlignment) -> bytes:
    from matplotlib.figure import Figure

    columns = [name for name in SHOWN if _known(found.rows, name)]
    if _known(found.rows, "own_token"):
        columns.append("own_token")
    rows = 3 if len(found.steps) > 1 else 1
    figure = Figure(figsize=(3.3 * len(columns), 2.8 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False, sharey="col")
    time = _clearest(found)
    at = "" if time is None else f" at time {time:g}"
    for column, name in zip(axes.T, columns, strict=True):
        _by_depth(column[0], found, name, [(found.steps[-1], one) for one in found.times], "time")
        column[0].set_title(_title(name, found), fontsize=9, loc="left")
        if rows > 1:
            _by_depth(column[1], found, name, [(step, time) for step in found.steps], "step")
            _by_step(column[2], found, name, time)
    for row in axes:
        handles, told = row[0].get_legend_handles_labels()
        if 1 < len(told) <= MOST_NAMED:
            row[-1].legend(handles, told, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    labels = [f"step {found.steps[-1]}" if found.steps[-1] is not None else "", f"each step{at}", f"each layer{at}"]
    for row, label in zip(axes, labels[:rows], strict=True):
        row[0].set_ylabel(label)
    figure.suptitle(
        f"{found.card.n} images of {found.card.reference}, teacher {found.teacher}, k = {found.neighbours}", fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _by_depth(
    axis: Any, found: LayerAlignment, name: str, lines: Sequence[tuple[int | None, float | None]], what: str
) -> None:
    """Lines over the layers, one for each of these steps and times."""
    places = range(len(found.layers))
    for (step, time), colour in zip(lines, _colours(len(lines)), strict=True):
        told = time if what == "time" else step
        for figure, dash in _drawn_with(name).items():
            rows = {row.layer: row.values.get(figure) for row in found.of_step(step) if row.time == time}
            values = [rows.get(layer) for layer in found.layers]
            if any(value is not None for value in values):
                label = f"{what} {told:g}" if told is not None and dash == "-" and len(lines) > 1 else None
                axis.plot(places, _gaps(values), color=colour, linestyle=dash, marker="o", markersize=3, label=label)
    _level(axis, found, name)
    shown = places if len(places) <= 16 else places[:: -(-len(places) // 12)]
    turned = any(len(layer) > 3 for layer in found.layers)
    axis.set_xticks(list(shown), [found.layers[place] for place in shown], rotation=30 if turned else 0)
    axis.set_xlabel("layer")


def _by_step(axis: Any, found: LayerAlignment, name: str, time: float | None) -> None:
    """Lines over the steps, one for each layer."""
    for layer, colour in zip(found.layers, _colours(len(found.layers)), strict=True):
        for figure, dash in _drawn_with(name).items():
            rows = [row for row in found.rows if row.layer == layer and row.time == time and row.step is not None]
            values = [row.values.get(figure) for row in rows]
            if any(value is not None for value in values):
                label = layer if dash == "-" else None
                steps = [row.step for row in rows]
                axis.plot(steps, _gaps(values), color=colour, linestyle=dash, marker="o", markersize=3, label=label)
    _level(axis, found, name)
    axis.set_xlabel("step")


def _level(axis: Any, found: LayerAlignment, name: str) -> None:
    """Grey: the teacher's own figure, and chance."""
    if name != "probe":
        return
    for figure, dash in (("probe", "-"), ("chance", ":")):
        value = found.beside.get(figure)
        if value is not None:
            axis.axhline(value, color="#888888", linewidth=0.8, linestyle=dash)


def _title(name: str, found: LayerAlignment) -> str:
    if name == "own_token":
        both = _known(found.rows, "next_token")
        return "cosine with own token" + (" (- -: the next)" if both else "")
    if name == "patch_cka" and _known(found.rows, "read_patch_cka"):
        return "CKA, patch predicted (- -: read)"
    return "probe (grey: teacher, chance)" if name == "probe" else FIGURES[name]


def _drawn_with(name: str) -> dict[str, str]:
    """The figures of a column, with the dash of each."""
    return TOKENS if name == "own_token" else PATCHES if name == "patch_cka" else {name: "-"}


def _clearest(found: LayerAlignment) -> float | None:
    """The time at which the newest step has the greatest CKNNA."""
    rows = [row for row in found.of_step(found.steps[-1]) if row.values.get("cknna_cosine") is not None]
    return max(rows, key=lambda row: row.values["cknna_cosine"] or 0).time if rows else found.times[0]


def _known(rows: Sequence[LayerFigures], name: str) -> bool:
    return any(row.values.get(name) is not None for row in rows)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _colours(count: int) -> list[Any]:
    """From early to late."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * number / max(1, count - 1)) for number in range(count)]

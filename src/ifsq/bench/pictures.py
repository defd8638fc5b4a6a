"""The report's pictures, as data that a page holds itself."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ifsq.bench.runs import Reported
from ifsq.data import read_image

SCALE = 2  # screen pixels a pixel of the small pictures
GAP = 2  # white pixels around each, as `ifsq.data.image_grid` draws them
COLOURS = ("#2f6fde", "#d9822b", "#2e9e6b")
MOST_BARS = 512  # a level each, or the mean of several
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "ifsq"}


@rc_context(STYLE)
def level_bars(run: Reported) -> dict[str, str] | None:
    """How quantizers use their levels on the run's latents, a panel each; None for other bottlenecks than FSQ."""
    used = list(run.evaluation.levels.items())[: len(COLOURS)]
    if not used:
        return None
    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    axes = figure.subplots(1, len(used), sharey=True, squeeze=False)[0]
    for axis, (name, use), colour in zip(axes, used, COLOURS[: len(used)], strict=True):
        count = len(use.share)
        bars = [part.mean() for part in np.array_split(use.share, min(count, MOST_BARS))]
        axis.bar(np.linspace(0, count - 1, len(bars)), bars, color=colour, width=0.85 * count / len(bars))
        axis.axhline(1 / count, color="#888", linewidth=0.8, linestyle="--")
        axis.set_title(f"{name}: entropy {use.fraction:.3f} of log2 {count}", fontsize=9, parse_math=False)
        axis.set_xlabel("level")
    deviations = ", ".join(f"{value:.2f}" for value in run.evaluation.latent.get("std", ()))
    text = (
        "The same trained latents through fixed quantizers. The paper's bound makes N(0, 1) even before rounding; "
        "its rounding gives the two end cells half the width, and nothing makes a trained latent N(0, 1): here the "
        f"standard deviations of the dimensions are {deviations}."
    )
    caption = "Share of all digits on each level, all dimensions together; dashed: even use."
    return {"image": svg(figure), "text": text, "caption": caption}


@rc_context(STYLE)
def loss_curve(run: Reported) -> dict[str, str]:
    """The losses of training and validation over the steps."""
    trained, held_out = run.logged("loss"), run.logged("val/loss")
    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    axis = figure.subplots()
    if trained:
        axis.plot(*zip(*trained, strict=True), color=COLOURS[0], linewidth=1.2, label="training")
    if held_out:
        axis.plot(
            *zip(*held_out, strict=True), color=COLOURS[1], marker="o", markersize=4, linewidth=1, label="held out"
        )
        axis.legend(frameon=False)
    axis.set_title(f"{run.name}: loss", fontsize=9)
    axis.set_xlabel("step")
    return {"image": svg(figure), "title": f"loss of the {run.name} run"}


def picture(path: Path) -> dict[str, Any]:
    """A picture for the page and the width it is shown at. Raises InputError where it is none."""
    width = SCALE * read_image(path).shape[1]
    return {"image": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", "width": width}


def svg(figure: Figure) -> str:
    """The figure as a data address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"

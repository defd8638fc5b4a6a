"""The pictures and figures that a report takes from one run, as parts of a page."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from ifsq.bench.charts import Line, bar_chart, line_chart, mark
from ifsq.bench.page import Charts, Picture
from ifsq.bench.runs import Reported
from ifsq.data import read_image
from ifsq.data.images import height_width
from ifsq.quantizers.usage import LevelUse

SCALE = 2  # screen pixels a pixel of the small pictures
LARGE = 128  # pixels of an image from which it is shown as it is
GAP = 2  # white pixels around each, as `ifsq.data.image_grid` draws them
MOST_QUANTIZERS = 3


def level_bars(levels: Mapping[str, LevelUse], label: str) -> Charts | None:
    """How quantizers use their levels on the latents of a run, a chart each; None where none was counted."""
    used = list(levels.items())[:MOST_QUANTIZERS]
    if not used:
        return None
    top = max(max(use.share) for _, use in used)  # of all charts: they are compared
    charts = []
    for number, (name, use) in enumerate(used):
        title = f"{name}: entropy {use.fraction:.3f} of log2 {use.levels}"
        charts.append(bar_chart(title, use.share, number, "level", 1 / use.levels, top or None))
    return Charts(charts, f"{label}: share of all digits on each level, all dimensions together; dashed: even use.")


def loss_charts(runs: Sequence[Reported]) -> Charts:
    """The losses of training and validation over the steps, a chart a run."""
    charts = []
    for run in runs:
        lines = [
            Line(name, [float(step) for step, _ in logged], [value for _, value in logged], look=look)
            for look, (name, logged) in enumerate(
                (("training", run.logged("loss")), ("held out", run.logged("val/loss")))
            )
            if logged
        ]
        charts.append(line_chart(f"{run.label}: loss", lines, "step", table=False))
    return Charts(
        charts, "Losses of different kinds do not compare with each other.", (mark("training", 0), mark("held out", 1))
    )


def scale_of(size: int | tuple[int, int]) -> int:
    """Screen pixels a pixel of pictures of images of a size, or a height and a width."""
    return SCALE if max(height_width(size)) < LARGE else 1


def picture(path: Path, title: str, alt: str, scale: int = SCALE) -> Picture:
    """A picture for the page, ``scale`` screen pixels a pixel. Raises InputError where it is none."""
    width = scale * read_image(path).shape[1]
    image = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Picture(title, image, path, width, alt)

"""Rate and distortion of several tokenizers: what each keeps, over the bits that its codes take."""

import math
from collections.abc import Sequence
from statistics import mean

from ifsq.bench.charts import Line, line_chart, mark
from ifsq.bench.figures import LARGEST, main_value, titled
from ifsq.bench.page import Block, Charts
from ifsq.bench.runs import Reported
from ifsq.experiment import TokenizerExperiment
from ifsq.tokenizer.bottleneck import QuantizerConfig

DISTORTIONS = ("PSNR, dB", "SSIM", "LPIPS", "rFD(", "rFID")


def rate_charts(tokenizers: Sequence[Reported]) -> list[Block]:
    """A chart a metric, a line a kind of bottleneck; nothing where fewer than two rates are known.

    Tokenizers that differ in the seed of training alone are one point, their mean, in a band.
    """
    rates = {run.label: rate for run in tokenizers if (rate := bits_a_pixel(run)) is not None}
    if len(set(rates.values())) < 2:
        return []
    names = dict.fromkeys(card.metric for run in tokenizers for card in run.evaluation.cards)
    kinds = {
        run.label: bottleneck_name(run.run.experiment(TokenizerExperiment).tokenizer.quantizer) for run in tokenizers
    }
    looks = {kind: look for look, kind in enumerate(dict.fromkeys(kinds[label] for label in rates))}
    charts = []
    for metric in [name for name in names if name.startswith(DISTORTIONS)]:
        lines = []
        for kind, look in looks.items():
            points: dict[tuple[float, str], list[float]] = {}
            for run in tokenizers:
                card = run.card(metric)
                if card is not None and run.label in rates and kinds[run.label] == kind:
                    value = card.values[main_value(card.values)]
                    if abs(value) < LARGEST:
                        points.setdefault((rates[run.label], run.group), []).append(value)
            if points:
                x, found = [rate for rate, _ in sorted(points)], [points[at] for at in sorted(points)]
                several = any(len(values) > 1 for values in found)
                low, high = ([list(map(end, found)) for end in (min, max)]) if several else ([], [])
                lines.append(Line(kind, x, list(map(mean, found)), low, high, look))
        if lines:
            charts.append(line_chart(titled(metric), lines, "bits a pixel"))
    legend = [mark(kind, look) for kind, look in looks.items()] if len(looks) > 1 else []
    caption = "Bits that the codes take before any entropy coding, over the pixels of the image."
    return [Charts(charts, caption, legend)] if charts else []


def bits_a_pixel(run: Reported) -> float | None:
    """Bits of the codes of an image over its pixels; None of continuous codes."""
    config = run.run.experiment(TokenizerExperiment).tokenizer
    quantizer = config.quantizer
    if quantizer.kind in ("kl", "ae"):
        return None
    if quantizer.kind == "vq":
        bits = math.log2(quantizer.codebook_size)
    elif quantizer.kind in ("lfq", "bsq"):
        bits = float(quantizer.dim)
    else:
        bits = sum(map(math.log2, quantizer.levels)) * (quantizer.stages if quantizer.kind == "residual" else 1)
    return bits / config.conv.factor**2


def bottleneck_name(quantizer: QuantizerConfig) -> str:
    """The kind, of FSQ with its bound and cells where they are not the paper's."""
    if quantizer.kind != "fsq":
        return quantizer.kind.upper() if quantizer.kind != "residual" else "residual FSQ"
    name = {"ifsq": "iFSQ", "tanh": "FSQ (tanh)"}.get(quantizer.bound, f"FSQ ({quantizer.bound})")
    return name if quantizer.cells == "paper" else f"{name}, {quantizer.cells} cells"

"""The README's figure of the grid `bits`: reconstruction and generation over bits a dimension, in one SVG.

    python benchmarks/bits_figure.py runs/bits docs/bits.svg

Left, PSNR of each bottleneck. Right, FD(judge) of both kinds of generators, the mean over the four bounds and cells of
FSQ at each training seed. Line: mean over training seeds; band: from the least to the greatest of them.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from xml.sax.saxutils import escape

from ifsq.bench.charts import SIZE, Line, line_chart, mark
from ifsq.bench.measurement import MEASUREMENTS, Measurement, newest, read_measurements
from ifsq.bench.page import Mark

FSQ = ("ifsq", "fsq", "equal", "calibrated")
NAMES = {"ifsq": "iFSQ", "fsq": "FSQ", "equal": "equal cells", "calibrated": "calibrated", "vq": "VQ"}
KINDS = {"ar": "autoregressive", "diffusion": "diffusion"}
WIDTH, GAP, TOP, ROW = 400, 24, 26, 20
HEIGHT = round(WIDTH * SIZE[1] / SIZE[0])
STYLE = """
svg { --ink: #1d2330; --soft: #566074; --line: #dde2ea; font-family: system-ui, sans-serif;
  --series-0: #2f6fde; --series-1: #c25e0a; --series-2: #1f8a5b; --series-3: #8b46b8; --series-4: #c02f62; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e8ebf1; --soft: #a3adbf; --line: #343c4b;
    --series-0: #7aa7ff; --series-1: #f0a35e; --series-2: #5fcf9d; --series-3: #c59af0; --series-4: #ff8eb2; } }
text { fill: var(--ink); }
"""
"""The colours of a report's page."""


def main(out: Path, target: Path) -> None:
    """Draw it."""
    measured = newest(read_measurements(out / MEASUREMENTS))
    psnr = [one for one in measured if (one.metric, one.value) == ("PSNR, dB", "mean") and "bits" in one.cell]
    distance = [one for one in measured if (one.metric, one.value) == ("FD(judge)", "distance")]
    left = [line(NAMES[name], look, by_bits(psnr, tokenizer=(name,))) for look, name in enumerate(NAMES)]
    right = [
        line(KINDS[kind], look, by_bits(distance, tokenizer=FSQ, generator=(kind,))) for look, kind in enumerate(KINDS)
    ]
    panels = [
        ("PSNR, dB, higher is better", left),
        ("FD(judge), lower is better: the four in the mean", right),
    ]
    parts = [panel(title, lines, number * (WIDTH + GAP)) for number, (title, lines) in enumerate(panels)]
    size = f"0 0 {2 * WIDTH + GAP} {TOP + HEIGHT + 2 * ROW}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img"><style>{STYLE}</style>'
    target.write_text(f"{head}{''.join(parts)}</svg>\n")


def by_bits(measured: Iterable[Measurement], **wanted: tuple[str, ...]) -> dict[float, dict[int, float]]:
    """By bits and training seed, the mean over the cells that are wanted, all of which have every seed."""
    found: dict[float, dict[int, list[float]]] = {}
    for one in measured:
        if all(one.cell.get(axis) in values for axis, values in wanted.items()):
            found.setdefault(float(one.cell["bits"]), {}).setdefault(one.seed, []).append(one.figure)
    return {bits: {seed: fmean(of) for seed, of in seeds.items()} for bits, seeds in sorted(found.items())}


def line(name: str, look: int, found: Mapping[float, Mapping[int, float]]) -> Line:
    """Means over seeds in a band from the least to the greatest."""
    ends = [[end(seeds.values()) for seeds in found.values()] for end in (min, max)]
    return Line(name, list(found), [fmean(seeds.values()) for seeds in found.values()], *ends, look)


def panel(title: str, lines: list[Line], left: int) -> str:
    """A chart with its title above and its lines' names below."""
    drawn = line_chart(title, lines, "bits a dimension").svg
    place = f'<svg x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" '
    names = "".join(
        named(mark(each.name, each.look), left + 30 + 128 * (at % 3), TOP + HEIGHT + ROW * (at // 3) + 12)
        for at, each in enumerate(lines)
    )
    text = f'<text x="{left + 8}" y="16" font-size="13">{escape(title)}</text>'
    return text + re.sub("<svg ", place, drawn, count=1) + names


def named(one: Mark, x: int, y: int) -> str:
    """A line's look and name."""
    stroke = f'stroke="var(--series-{one.colour})" stroke-width="2.5" stroke-dasharray="{one.dash}"'
    path = f'<path d="M{x - 26} {y - 4}h20" {stroke}/>'
    return f'{path}<text x="{x}" y="{y}" font-size="12">{escape(one.name)}</text>'


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

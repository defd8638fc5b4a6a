"""The picture of README: what ``ifsq demo`` keeps and draws, a photograph a column.

    ifsq demo
    python docs/picture.py runs/demo docs/demo.png

Rows: a real crop, the same behind the tokenizer, samples of the autoregressive and of the diffusion generator, taken
from the runs' ``samples`` as `ifsq generator eval` wrote them. Opaque, so that it reads on light and dark pages.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import ifsq

SIDE, GAP, SCALE = 32, 2, 2  # of a crop in the runs' pictures, and how much larger it is here
LABELS, MARGIN, SPACE = 132, 12, 6
INK, PAPER = (31, 35, 40), (246, 248, 250)
ROWS = 2  # of samples from each generator


def tiles(picture: Path) -> np.ndarray:
    """A sheet of the runs -> uint8 (rows, columns, SIDE, SIDE, 3); a row is a class."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    step = SIDE + GAP
    rows, columns = (pixels.shape[0] - GAP) // step, (pixels.shape[1] - GAP) // step
    starts = [[(GAP + r * step, GAP + c * step) for c in range(columns)] for r in range(rows)]
    return np.stack([[pixels[y : y + SIDE, x : x + SIDE] for y, x in row] for row in starts])


def reconstructed(run: Path, crops: np.ndarray) -> np.ndarray:
    """Crops (n, SIDE, SIDE, 3), uint8, behind the tokenizer of a run."""
    tokenizer = ifsq.Tokenizer.from_pretrained(run).eval()
    images = torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        images = tokenizer.decode(tokenizer.encode(images).codes)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def picture(runs: Path) -> Image.Image:
    real = tiles(runs / "ar/samples/real.png")[:, 0]
    bands = [("photograph", [real]), ("tokenizer, 17^4 codes", [reconstructed(runs / "tokenizer", real)])]
    for kind, name in (("ar", "autoregressive"), ("diffusion", "diffusion")):
        drawn = tiles(runs / kind / "samples/classes.png")
        bands.append((f"{name}, drawn", [drawn[:, k] for k in range(ROWS)]))
    step = SIDE * SCALE + GAP
    rows = sum(len(band) for _, band in bands)
    size = LABELS + len(real) * step + 2 * MARGIN, rows * step + (len(bands) - 1) * SPACE + 2 * MARGIN
    page = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    y = MARGIN
    for label, band in bands:
        height = len(band) * step
        for line, text in enumerate(lines := label.split(", ")):
            place = (MARGIN, y + height / 2 + 17 * (line - len(lines) / 2))
            draw.text(place, text, INK, font)
        for row in band:
            for column, crop in enumerate(row):
                large = Image.fromarray(crop).resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST)
                page.paste(large, (MARGIN + LABELS + column * step, y))
            y += step
        y += SPACE
    return page


if __name__ == "__main__":
    picture(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
